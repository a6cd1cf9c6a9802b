"""Decoders that coremltools converted, run from the saved package: against torch, by length, weights and cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ingot.errors import RefusedInput
from ingot.kit.decoder.build import build_decoder, parameters, places
from ingot.kit.decoder.layers import Decoder, Form
from ingot.kit.decoder.shape import decoder_shape
from ingot.kit.hf import iter_tensors, read_config
from ingot.kit.mil import count
from ingot.kit.mil.language import Language
from ingot.kit.mil.model import MilModel
from ingot.kit.mil.types import Array
from milkit import Function, write

#: What is converted: everything in one process, since importing coremltools takes longer than all of it.
_SCRIPT = """
import sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
import coremltools as ct, coremltools.optimize.coreml as co, numpy as np, torch
from ingot.kit.decoder.build import build_decoder, places
from ingot.kit.decoder.layers import Form, Place
from ingot.kit.decoder.shape import decoder_shape
from ingot.kit.hf import iter_tensors, read_config

source, out = Path(sys.argv[1]), Path(sys.argv[2])
shape = decoder_shape(read_config(source), "E-X")
decoder = build_decoder(shape, iter_tensors(source), Form(), "E-X")
CONTEXT = 24

class Whole(torch.nn.Module):
    def __init__(self, fixed):
        super().__init__()
        self.decoder, self.fixed, place = decoder, fixed, places(shape, CONTEXT)
        for name in ("cos", "sin", "mask"):
            self.register_buffer(name, getattr(place, name))
    def forward(self, input_ids):
        n = CONTEXT if self.fixed else input_ids.shape[1]
        if self.fixed:
            return self.decoder(input_ids, Place(self.cos, self.sin, self.mask))
        return self.decoder(input_ids, Place(self.cos[:n], self.sin[:n], self.mask[:n, :n]))

class Cached(Whole):
    def __init__(self):
        super().__init__(False)
        for name in ("key_cache", "value_cache"):
            self.register_buffer(name, torch.zeros(shape.layers, shape.kv_heads, CONTEXT, shape.head_dim))
    def extend(self, layer, keys, values):
        self.key_cache[layer : layer + 1, :, self.begin : self.end, :] = keys
        self.value_cache[layer : layer + 1, :, self.begin : self.end, :] = values
        return self.key_cache[layer : layer + 1], self.value_cache[layer : layer + 1]
    def forward(self, input_ids, position):
        self.begin, self.end = position[0], position[0] + input_ids.shape[1]
        at = torch.arange(input_ids.shape[1], dtype=torch.int32) + position
        return self.decoder(input_ids, Place(self.cos[at], self.sin[at], self.mask[at], self))

def convert(module, shape_of_ids, target="iOS18", precision="FLOAT16", states=()):
    number = np.float16 if precision == "FLOAT16" else np.float32
    length = 1 if shape_of_ids == (1, 1) else 8
    example = [torch.zeros((1, CONTEXT if getattr(module, "fixed", False) else length), dtype=torch.int32)]
    inputs = [ct.TensorType(name="input_ids", shape=shape_of_ids, dtype=np.int32)]
    if states:
        example.append(torch.zeros(1, dtype=torch.int32))
        inputs.append(ct.TensorType(name="position", shape=(1,), dtype=np.int32))
    traced = torch.jit.trace(module.eval(), tuple(example), check_trace=False)
    return ct.convert(
        traced, source="pytorch", convert_to="mlprogram", inputs=inputs, skip_model_load=True,
        outputs=[ct.TensorType(name="logits", dtype=number)], compute_precision=getattr(ct.precision, precision),
        minimum_deployment_target=getattr(ct.target, target),
        **({"states": [ct.StateType(ct.TensorType(shape=getattr(module, name).shape, dtype=np.float16), name=name)
                       for name in states]} if states else {}),
    )

save = lambda model, name: model.save(str(out / f"{name}.mlpackage"))
listed = ct.EnumeratedShapes(shapes=[(1, 8), (1, CONTEXT)], default=(1, 8))
every = lambda config: co.OptimizationConfig(global_config=config)
linear = lambda dtype, **more: every(co.OpLinearQuantizerConfig(dtype=dtype, weight_threshold=512, **more))
tables = lambda bits: every(co.OpPalettizerConfig(mode="uniform", nbits=bits, weight_threshold=512))
if sys.argv[3] == "more":
    new = convert(Whole(False), (1, ct.RangeDim(1, CONTEXT, 8)))
    save(new, "ranged")
    old = convert(Whole(False), listed, "iOS17")
    save(convert(Whole(True), (1, CONTEXT)), "fixed")
    packed = {
        "int4": co.linear_quantize_weights(new, config=linear("int4", granularity="per_block", block_size=16)),
        "int8_17": co.linear_quantize_weights(old, config=linear("int8")),
        **{f"tables{bits}": co.palettize_weights(new, config=tables(bits)) for bits in (4, 6, 8)},
        "tables6_17": co.palettize_weights(old, config=tables(6)),
    }
    for name, model in packed.items():
        save(model, name)
        save(co.decompress_weights(model), f"{name}_plain")
    large = every(co.OpMagnitudePrunerConfig(target_sparsity=0.3, weight_threshold=512))
    save(co.prune_weights(new, config=large), "sparse")
    sys.exit()
save(convert(Whole(False), listed, "iOS17", "FLOAT32"), "listed32")
names = ("key_cache", "value_cache")
for name, length in (("prefill", 8), ("decode", 1)):
    save(convert(Cached(), (1, length), states=names), name)
both = ct.utils.MultiFunctionDescriptor()
for name in ("prefill", "decode"):
    both.add_function(str(out / f"{name}.mlpackage"), "main", name)
both.default_function_name = "prefill"
ct.utils.save_multifunction(both, str(out / "cached.mlpackage"))
"""
CONTEXT = 24


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 of two layers: biases nowhere, norms of heads, tied embeddings."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("source")
    torch.manual_seed(0)
    config = Qwen3Config(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, vocab_size=97, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.15) if parameter.dim() > 1 else parameter.uniform_(0.5, 1.5)
    model.half().float().save_pretrained(str(folder))
    return folder


def converted(source: Path, folder: Path, what: str) -> Path:
    """Convert in a process of its own: coremltools leaves its warnings to the exit."""
    command = [sys.executable, "-c", _SCRIPT, str(source), str(folder), what]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def packages(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(source, tmp_path_factory.mktemp("packages"), "few")


@pytest.fixture(scope="module")
def more(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other ways to store weights, which take longer to make."""
    return converted(source, tmp_path_factory.mktemp("more"), "more")


@pytest.fixture(scope="module")
def decoder(source: Path) -> Decoder:
    return build_decoder(decoder_shape(read_config(source), "E-X"), iter_tensors(source), Form(), "E-X")


IDS = [int(token) for token in np.random.default_rng(5).integers(0, 97, CONTEXT)]


def expected(decoder: Decoder, ids: list[int]) -> tuple[Array, list[Array]]:
    """Logits and hidden states, by torch in fp32."""
    hidden: list[Array] = []

    def keep(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
        hidden.append(output[0].numpy())

    hooks = [module.register_forward_hook(keep) for module in (decoder.embed_tokens, *decoder.layers)]
    with torch.no_grad():
        logits = decoder(torch.tensor([ids], dtype=torch.int32), places(decoder.shape, len(ids)))[0].numpy()
    for hook in hooks:
        hook.remove()
    return logits, hidden


def cosine(one: Array, two: Array) -> float:
    """The lowest over rows."""
    one, two = one.astype(np.float64), two.astype(np.float64)
    return float(((one * two).sum(-1) / np.linalg.norm(one, axis=-1) / np.linalg.norm(two, axis=-1)).min())


def check_lengths(path: Path, decoder: Decoder, lengths: tuple[int, ...]) -> None:
    """fp32 within 1e-4; fp16 with a cosine of 0.9999."""
    language, exact = Language(MilModel(path)), path.stem.endswith("32")
    for length in lengths:
        wanted, hidden = expected(decoder, IDS[:length])
        trace = language.trace(IDS[:length], probes=True)
        for found, right in zip((trace.logits, *trace.hidden), (wanted, *hidden), strict=True):
            assert found.shape == right.shape
            assert found.dtype == np.float32
            if exact:
                assert np.abs(found - right).max() <= 1e-4
            else:
                assert cosine(found, right) >= 0.9999
        # of other rows BLAS takes its sums in another order
        rows = range(length // 2, length)
        part, whole = language.logits(IDS[:length], rows), trace.logits[rows.start : rows.stop]
        assert np.abs(part - whole).max() <= (1e-5 if exact else 1e-3)


def test_every_length_computes_what_torch_computes(packages: Path, decoder: Decoder) -> None:
    check_lengths(packages / "listed32.mlpackage", decoder, (3, 8, 24))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "lengths"), [("ranged", (1, 5, 24)), ("fixed", (7, 24))])
def test_other_lengths_compute_what_torch_computes(
    more: Path, decoder: Decoder, name: str, lengths: tuple[int, ...]
) -> None:
    check_lengths(more / f"{name}.mlpackage", decoder, lengths)
    assert count.parameters(MilModel(more / f"{name}.mlpackage").runners) == parameters(decoder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["int4", "int8_17", "tables4", "tables6", "tables8", "tables6_17"])
def test_compressed_weights_are_what_coremltools_makes_of_them(more: Path, name: str, decoder: Decoder) -> None:
    """coremltools decompresses the model and saves it: the interpreter finds no difference between the two."""
    packed, plain = (Language(MilModel(more / f"{name}{end}.mlpackage")) for end in ("", "_plain"))
    one, two = (each.trace(IDS, probes=True) for each in (packed, plain))
    for found, wanted in zip((one.logits, *one.hidden), (two.logits, *two.hidden), strict=True):
        assert (found == wanted).all()
    runners = packed.model.runners
    assert any(operation.kind.startswith("constexpr") for operation in runners["main"].function.operations)
    assert count.parameters(runners) == parameters(decoder)


@pytest.mark.slow
def test_sparse_weights_keep_the_large_ones(more: Path) -> None:
    sparse, whole = (MilModel(more / f"{name}.mlpackage").runners["main"] for name in ("sparse", "ranged"))
    compared = 0
    for name, weight in sparse.constants().items():
        if weight.operation.kind == "constexpr_sparse_to_dense" and "mask" not in name:
            found = sparse.constant(name)
            right = whole.constant(name.removesuffix("_sparsified"))
            assert set(np.unique(found[found != right])) == {0}
            assert 0.25 < (found == 0).mean() < 0.35
            compared += 1
    assert compared > 10


@pytest.mark.parametrize("accumulate", ["float32", "float16"])
def test_a_cache_in_states_gives_what_the_whole_text_gives(packages: Path, decoder: Decoder, accumulate: Any) -> None:
    language = Language(MilModel(packages / "cached.mlpackage", accumulate=accumulate))
    wanted, _ = expected(decoder, IDS)
    least = 0.9999 if accumulate == "float32" else 0.999
    assert language.cached
    assert language.longest == 8
    for start in (5, 8, 11):  # padded, whole, and beyond what the prompt's function takes
        rows = [language.prefill(IDS[:start])] + [language.step(token) for token in IDS[start:]]
        assert cosine(np.stack(rows), wanted[start - 1 :]) >= least
    assert cosine(language.logits(IDS, range(3, CONTEXT)), wanted[3:]) >= least
    assert len(language.trace(IDS[:6], probes=True).hidden) == 3


def test_weights_are_counted_once_and_tables_not(packages: Path, decoder: Decoder) -> None:
    for name in ("listed32", "cached"):
        assert count.parameters(MilModel(packages / f"{name}.mlpackage").runners) == parameters(decoder), name


def test_a_text_that_does_not_fit_is_refused(packages: Path) -> None:
    language = Language(MilModel(packages / "listed32.mlpackage"))
    for ids in ([1] * (CONTEXT + 1), []):
        with pytest.raises(RefusedInput, match="does not fit") as refused:
            language.trace(ids, probes=False)
        assert refused.value.code == "E-MIL-LENGTH"
    language.prefill([1] * CONTEXT)
    with pytest.raises(RefusedInput, match="does not fit"):
        language.step(1)


def test_without_a_cache_a_step_reads_the_text_again(packages: Path) -> None:
    language = Language(MilModel(packages / "listed32.mlpackage"))
    language.prefill(IDS[:7])
    for length in (8, 9):
        row = language.step(IDS[length - 1])
        assert np.abs(row - language.trace(IDS[:length], probes=False).logits[-1]).max() < 1e-5


def test_a_token_outside_of_the_vocabulary_is_refused(packages: Path) -> None:
    with pytest.raises(RefusedInput, match="do not all lie within 97") as refused:
        Language(MilModel(packages / "listed32.mlpackage")).trace([97], probes=False)
    assert refused.value.code == "E-MIL-RUN"


def test_other_programs_are_no_language_models(tmp_path: Path) -> None:
    function = Function()
    function.input("x", "float32", (1, 4))
    function.op("add", [("y", "float32", (1, 4))], {"x": "x", "y": "x"})
    function.output("y")
    with pytest.raises(RefusedInput, match="no language model") as refused:
        Language(MilModel(write(tmp_path / "a.mlpackage", function)))
    assert refused.value.code == "E-MIL-INPUT"


def _stream(tmp_path: Path, sums: int, gathers: int = 1) -> Language:
    function = Function()
    function.input("input_ids", "int32", (1, 4))
    shape = (1, 4, 2)
    for index in range(gathers):
        arguments = {"x": np.ones((5, 2), np.float32), "indices": "input_ids", "axis": np.array(0)}
        function.op("gather", [(f"h{index}", "float32", shape)], arguments)
    at = "h0"
    for index in range(sums):
        function.op("mul", [(f"m{index}", "float32", shape)], {"x": at, "y": np.array([2.0])})
        function.op("add", [(f"n{index}", "float32", shape)], {"x": f"m{index}", "y": np.ones((1, 4, 2), np.float32)})
        function.op("add", [(f"s{index}", "float32", shape)], {"x": f"n{index}", "y": at})
        at = f"s{index}"
    function.op("identity", [("logits", "float32", shape)], {"x": at})
    function.output("logits")
    return Language(MilModel(write(tmp_path / "a.mlpackage", function)))


def test_hidden_states_are_every_second_sum(tmp_path: Path) -> None:
    trace = _stream(tmp_path, 4).trace([0, 1, 2], probes=True)
    assert [float(each[0, 0]) for each in trace.hidden] == [1, 13, 121]
    assert trace.hidden[0].shape == (3, 2)


@pytest.mark.parametrize(
    ("sums", "gathers", "says"), [(3, 1, "adds 3 times"), (0, 1, "adds 0 times"), (4, 2, "2 times, and an")]
)
def test_a_program_without_such_a_stream_is_refused(tmp_path: Path, sums: int, gathers: int, says: str) -> None:
    with pytest.raises(RefusedInput, match=says) as refused:
        _stream(tmp_path, sums, gathers).trace([0, 1], probes=True)
    assert refused.value.code == "E-MIL-PROBE"
