"""Core ML packages: four architectures, every way to store weights, a cache, and checks that find planted faults."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tiny_llama import make_llama, make_tokenizer

from ingot.core.stage import Done, load_kind
from ingot.errors import RefusedInput, StageFailed
from stagekit import run_done, run_stage, stage_of

#: One conversion of two layers takes a second; equal settings share theirs.
INT8: dict[str, Any] = {"weights": "int8", "sequence_lengths": [8, 16]}
#: Random weights lose more by rounding than trained ones; what is computed with them is held to the usual limits.
LOOSE: dict[str, Any] = {"cosine": 0.0, "top1": 0.0, "kl": 100.0}
CACHED: dict[str, Any] = {"kv_cache": True, "context": 32, "minimum_deployment_target": "iOS18"}
PACKAGE = "model.mlpackage"
MODEL = "Data/com.apple.CoreML/model.mlmodel"
BLOBS = "Data/com.apple.CoreML/weights/weight.bin"

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:You passed `quantization_config`:UserWarning"),
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("tiny") / "hf")


@pytest.fixture(scope="module")
def built(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """An int8 package and what its build gave back."""
    root = tmp_path_factory.mktemp("built")
    return root / "out", run_done("coreml", INT8, {"model": tiny}, root)


def make_model(folder: Path, architecture: str, **sizes: Any) -> Path:
    import torch
    import transformers

    fields: dict[str, Any] = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": make_tokenizer(folder), "max_position_embeddings": 128,
    }  # fmt: skip
    config = getattr(transformers, f"{architecture}Config")(**fields | sizes)
    torch.manual_seed(0)
    model = getattr(transformers, f"{architecture}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2) if parameter.dim() > 1 else parameter.uniform_(0.5, 1.5)
    model.save_pretrained(str(folder))
    if architecture == "Qwen2":  # which transformers takes for its tokenizer wherever there is a config.json
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "Qwen2Tokenizer"}))
    return folder


LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


@pytest.mark.parametrize(
    ("architecture", "sizes", "params", "stored"),
    [
        (
            "Llama",
            {"rope_parameters": LLAMA3, "attention_bias": True, "mlp_bias": True},
            {"sequence_lengths": [8, 32]},
            ["float16"],
        ),
        (
            "Mistral",
            {"sliding_window": 48},
            {"sequence_lengths": {"min": 1, "max": 48}, "weights": "palettized4", "parity": LOOSE},
            ["float16", "uint8"],
        ),
        (
            "Qwen2",
            {"tie_word_embeddings": True},
            {**CACHED, "sequence_lengths": [8, 16], "weights": "int4", "parity": LOOSE},
            ["float16", "int4"],
        ),
        (
            "Qwen3",
            {"head_dim": 8},
            {
                "sequence_lengths": [8], "weights": "palettized6", "block_size": 16,
                "minimum_deployment_target": "iOS18", "parity": LOOSE,
            },
            ["float16", "uint6"],
        ),
    ],
    ids=["llama", "mistral", "qwen2", "qwen3"],
)  # fmt: skip
def test_an_architecture_is_converted_and_proven(
    tmp_path: Path, architecture: str, sizes: dict[str, Any], params: dict[str, Any], stored: list[str]
) -> None:
    vocabulary = {"vocab_size": 320} if "block_size" in params else {}
    folder = make_model(tmp_path / "hf", architecture, **sizes, **vocabulary)
    done = run_done("coreml", params, {"model": folder}, tmp_path)
    metrics = {name: metric.value for name, metric in done.metrics.items()}
    assert sorted(name.removeprefix("matrix_bytes_") for name in metrics if name.startswith("matrix")) == stored
    quantized = "weights" in params
    assert metrics["execution_cosine" if quantized else "parity_cosine"] > 0.999
    runs = done.notes["parity"]["execution" if quantized else "parity"]["runs"]  # type: ignore[index]
    assert set(runs) == ({"prefill", "decode"} if "kv_cache" in params else {"main"})
    lengths = params["sequence_lengths"]
    if isinstance(lengths, list):  # each was run
        assert set(lengths) <= {text["tokens"] for text in next(iter(runs.values()))["texts"]}
    contract = json.loads((tmp_path / "out" / "contract.json").read_text())
    assert contract["architecture"] == f"{architecture}ForCausalLM"
    assert contract["parameters"] == metrics["parameters"]


def test_what_lies_beside_the_package(built: tuple[Path, Done], tiny: Path) -> None:
    from ingot.kit.contract import read_contract

    out, done = built
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    beside = ["chat_template.jinja", "contract.json", "generation_config.json"]
    inside = [f"{PACKAGE}/{name}" for name in (MODEL, BLOBS, "Manifest.json")]
    assert files == [*beside, *inside, "tokenizer.json", "tokenizer_config.json"]
    contract = read_contract(out)
    assert (contract.precision, contract.compute, contract.context) == ("int8", "float16", 16)
    assert contract.details["functions"] == {"main": {"tokens": [8, 16]}}
    assert contract.details["compute_units"] == "ALL"
    program = (out / PACKAGE / MODEL).read_bytes()
    assert str(out.parent).encode() not in program
    assert str(tiny.parent).encode() not in program
    assert b"conversion_date" not in program
    assert b"ingot.model.digest" in program
    reasons = done.notes["neural_engine"]
    assert isinstance(reasons, list)
    assert any(reason.startswith("gather (embedding): ") for reason in reasons)
    assert all(reason.endswith(")") and "(https://" in reason for reason in reasons)


def test_metrics_are_those_of_the_files(built: tuple[Path, Done]) -> None:
    out, done = built
    metrics = {name: metric.value for name, metric in done.metrics.items()}
    assert metrics["bytes"] == sum(path.stat().st_size for path in (out / PACKAGE).rglob("*") if path.is_file())
    blob = (out / PACKAGE / BLOBS).stat().st_size
    stored = sum(count for name, count in metrics.items() if name.startswith("weight_bytes_"))
    # every stored value has a header of 64 bytes and is aligned to 64; nothing else lies in the file
    assert 0 < stored < blob < stored + 200 * metrics["operations"]
    assert metrics["matrix_bytes_int8"] <= metrics["weight_bytes_int8"]
    # the output layer is the embedding; iOS 17 stores a zero point for each row beside each weight
    assert metrics["parameters"] < metrics["matrix_bytes_int8"] < 1.03 * metrics["parameters"]


def test_it_is_byte_for_byte_what_coremltools_converts_and_quantizes_itself(
    built: tuple[Path, Done], tiny: Path, tmp_path: Path
) -> None:
    """Empty matrices that are filled in afterwards give the same package as real ones from the beginning."""
    from coremltools.optimize.coreml import OpLinearQuantizerConfig

    config = OpLinearQuantizerConfig(
        mode="linear_symmetric", dtype="int8", granularity="per_channel", weight_threshold=100
    )
    own = _own_program(built[0] / PACKAGE)
    assert own == _whole_conversion(tiny, INT8, config, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("params", "block"),
    [
        ({"weights": "float32", "compute_precision": "float32", "sequence_lengths": [8]}, 0),
        ({"sequence_lengths": {"min": 1, "max": 16}}, 0),
        ({"weights": "int8", "sequence_lengths": [8], "minimum_deployment_target": "iOS18"}, 0),
        ({"weights": "int4", "sequence_lengths": [8, 16], "minimum_deployment_target": "iOS18"}, 32),
    ],
)
def test_other_weights_are_those_of_coremltools_too(
    tiny: Path, tmp_path: Path, params: dict[str, Any], block: int
) -> None:
    from coremltools.optimize.coreml import OpLinearQuantizerConfig

    run_done("coreml", {**params, "parity": LOOSE}, {"model": tiny}, tmp_path)
    granularity = {"granularity": "per_block", "block_size": block} if block else {"granularity": "per_channel"}
    kind = params.get("weights", "")
    config = (
        OpLinearQuantizerConfig(mode="linear_symmetric", dtype=kind, weight_threshold=100, **granularity)
        if kind.startswith("int")
        else None
    )
    assert _own_program(tmp_path / "out" / PACKAGE) == _whole_conversion(tiny, params, config, tmp_path)


def _own_program(package: Path) -> tuple[bytes, bytes]:
    """Program and weights, without what ingot says of itself in the metadata."""
    from ingot.kit.coreml import program

    spec = program.load(package)
    for name in [name for name in spec.description.metadata.userDefined if name.startswith("ingot.")]:
        del spec.description.metadata.userDefined[name]
    return spec.SerializeToString(deterministic=True), (package / BLOBS).read_bytes()


def _whole_conversion(model: Path, params: dict[str, Any], config: Any, scratch: Path) -> tuple[bytes, bytes]:
    import coremltools as ct
    import numpy as np
    import torch
    from coremltools.optimize.coreml import OptimizationConfig

    from ingot.kit.coreml import program
    from ingot.kit.coreml.convert import _shape
    from ingot.kit.coreml.prefill import Prefill
    from ingot.kit.decoder.build import build_decoder
    from ingot.kit.decoder.layers import Form
    from ingot.kit.decoder.shape import decoder_shape
    from ingot.kit.hf import iter_tensors, read_config

    settings = stage_of("coreml", params).settings()  # type: ignore[attr-defined]
    kind = torch.float16 if settings.precision == "float16" else torch.float32
    shape = decoder_shape(read_config(model), "E-X")
    decoder = build_decoder(shape, iter_tensors(model), Form(), "E-X").to(kind)
    module = Prefill(decoder, settings.lengths.most).to(kind)
    module.whole = settings.lengths.fixed
    with torch.no_grad():
        traced = torch.jit.trace(
            module, torch.zeros((1, settings.lengths.least + 1 - module.whole), dtype=torch.int32), check_trace=False
        )
    pipeline, name = ct.PassPipeline.DEFAULT, "compression::linear_quantize_weights"
    if config is not None:
        pipeline.append_pass(name)
        kinds = {"linear": config, "gather": config}
        pipeline.set_options(name, {"config": OptimizationConfig(op_type_configs=kinds)})
    made = ct.convert(
        traced,
        convert_to="mlprogram",
        inputs=[ct.TensorType(name="input_ids", shape=_shape(settings.lengths), dtype=np.int32)],
        outputs=[ct.TensorType(name="logits", dtype=np.dtype(settings.precision).type)],
        minimum_deployment_target=getattr(ct.target, settings.target),
        compute_precision=getattr(ct.precision, settings.precision.upper()),
        pass_pipeline=pipeline,
        skip_model_load=True,
    )
    made.save(str(scratch / "whole.mlpackage"))
    spec = program.load(scratch / "whole.mlpackage")
    spec.description.metadata.userDefined.pop("com.github.apple.coremltools.conversion_date")
    return spec.SerializeToString(deterministic=True), (scratch / "whole.mlpackage" / BLOBS).read_bytes()


def test_a_checkpoint_that_is_quantized_is_dequantized(tiny: Path, tmp_path: Path) -> None:
    """That W8A8 rounds inputs, too, is no difference of the weights."""
    quantized, _ = run_stage("quantize", {"scheme": "W8A8"}, {"model": tiny}, tmp_path, name="quantized")
    done = run_done("coreml", {"sequence_lengths": [8]}, {"model": quantized}, tmp_path)
    assert done.notes["dequantized_from"] == "compressed-tensors"
    assert done.metrics["parity_cosine"].value > 0.999


def test_weights_in_the_wrong_place_fail_parity(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The program is sound and every type is right; only running it shows that layer 1 has other rows."""
    from ingot.kit.coreml.checkpoint import Checkpoint

    load = Checkpoint.load

    def swapped(self: Checkpoint, name: str, precision: Any) -> Any:
        value = load(self, name, precision)
        return value[::-1].copy() if name == "layers.1.mlp.up_proj.weight" else value

    monkeypatch.setattr(Checkpoint, "load", swapped)
    with pytest.raises(StageFailed, match="does not compute what its source computes") as caught:
        run_stage("coreml", {"sequence_lengths": [8]}, {"model": tiny}, tmp_path)
    assert caught.value.code == "E-PARITY"
    assert any("layer 1" in fact for fact in caught.value.facts)
    assert "main" not in str(caught.value), "a name that nobody gave"
    # an error quotes the end of the stage's log: no bars of coremltools are there
    assert capfd.readouterr() == ("", "")


def test_int64_in_the_traced_graph_fails_the_target(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from ingot.kit.coreml.prefill import Prefill
    from ingot.kit.decoder.layers import Place

    def forward(self: Any, input_ids: torch.Tensor) -> Any:
        places = torch.arange(input_ids.shape[1])  # int64, as torch makes it
        mask = (places[None] > places[:, None]).type_as(self.cos) * self.mask.min()
        return self.decoder(input_ids, Place(self.cos[places], self.sin[places], mask))

    monkeypatch.setattr(Prefill, "forward", forward)
    with pytest.raises(StageFailed, match="on the way to attention") as caught:
        run_stage("coreml", {"sequence_lengths": [8, 16]}, {"model": tiny}, tmp_path)
    assert caught.value.code == "E-COREML-INT64"
    assert not (tmp_path / "out" / PACKAGE).exists()


def _model(tiny: Path, **changes: Any) -> Any:
    from ingot.kit.coreml.checkpoint import Checkpoint
    from ingot.kit.coreml.convert import Model
    from ingot.kit.coreml.settings import Lengths, Settings
    from ingot.kit.decoder.shape import decoder_shape
    from ingot.kit.hf import read_config

    shape = decoder_shape(read_config(tiny), "E-X")
    settings: dict[str, Any] = {"lengths": Lengths.of(16, 8), "weights": "int8"}
    if "lengths" in changes:
        changes["lengths"] = Lengths.of(*changes["lengths"])
    return Model(shape, Checkpoint(tiny, shape), Settings(**settings | changes))


@pytest.mark.parametrize(
    ("change", "code", "what"),
    [
        ({"lengths": (8, 32)}, "E-COREML-SELFCHECK", "another interface"),
        ({"lengths": (8,)}, "E-COREML-SELFCHECK", "another interface"),
        ({"precision": "float32"}, "E-COREML-SELFCHECK", "another interface"),
        ({"weights": "float16"}, "E-COREML-SELFCHECK", "not stored as float16"),
        ({"weights": "palettized8"}, "E-COREML-SELFCHECK", "not stored as palettized8"),
        ({"target": "iOS18"}, "E-COREML-OPSET", "another system than iOS18"),
        ({"context": 32}, "E-COREML-SELFCHECK", "other functions"),
    ],
)
def test_a_package_that_is_not_what_was_asked_for_is_found(
    built: tuple[Path, Done], tiny: Path, change: dict[str, Any], code: str, what: str
) -> None:
    from ingot.kit.coreml.check import check

    assert sum(check(built[0] / PACKAGE, _model(tiny)).kinds.values()) > 50
    with pytest.raises(StageFailed, match=what) as caught:
        check(built[0] / PACKAGE, _model(tiny, **change))
    assert caught.value.code == code


def _renamed(spec: Any) -> None:
    spec.description.output[0].name = "probabilities"


def _outside(spec: Any) -> None:
    _value(spec).blobFileValue.fileName = "/etc/weights.bin"


def _elsewhere(spec: Any) -> None:
    _value(spec).blobFileValue.offset += 64


def _smaller(spec: Any) -> None:
    _value(spec).type.tensorType.dimensions[0].constant.size -= 1


def _newer(spec: Any) -> None:
    block = spec.mlProgram.functions["main"].block_specializations["CoreML7"]
    next(op for op in block.operations if op.type == "softmax").type = "scaled_dot_product_attention"


def _plain(spec: Any) -> None:
    """A layer that takes another layer's bias for its weight: no decoded matrix."""
    block = spec.mlProgram.functions["main"].block_specializations["CoreML7"]
    layer = next(op for op in block.operations if op.type == "linear")
    layer.inputs["weight"].arguments[0].name = layer.inputs["bias"].arguments[0].name


def _value(spec: Any) -> Any:
    from ingot.kit.coreml import program

    return next(
        value
        for operation in program.operations(spec)
        for value in program.stored(operation).values()
        if operation.type.startswith("constexpr")
    )


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        (_renamed, "other inputs, outputs or states"),
        (_outside, "outside of the package"),
        (_elsewhere, "no blob at byte"),
        (_smaller, "unlike its type"),
        (_newer, "operations that iOS17 does not have"),
        (_plain, "are not stored as int8"),
    ],
)
def test_a_changed_program_is_found(
    built: tuple[Path, Done], tiny: Path, tmp_path: Path, fault: Callable[[Any], None], what: str
) -> None:
    from ingot.kit.coreml import program
    from ingot.kit.coreml.check import check

    shutil.copytree(built[0] / PACKAGE, tmp_path / PACKAGE)
    spec = program.load(tmp_path / PACKAGE)
    fault(spec)
    (tmp_path / PACKAGE / MODEL).write_bytes(spec.SerializeToString())
    with pytest.raises(StageFailed, match=what):
        check(tmp_path / PACKAGE, _model(tiny))


def test_a_length_or_context_above_the_models_is_refused(tiny: Path, tmp_path: Path) -> None:
    for name, params in (
        ("a", {"sequence_lengths": [257]}),
        ("b", {**CACHED, "sequence_lengths": [8], "context": 257}),
    ):
        with pytest.raises(RefusedInput, match="257 is above the model's context of 256") as caught:
            run_stage("coreml", params, {"model": tiny}, tmp_path, name=name)
        assert caught.value.code == "E-COREML-LENGTH"


@pytest.mark.parametrize(
    ("params", "tensor", "size"),
    [
        ({"weights": "int4", "block_size": 64}, "layers.0.mlp.down_proj.weight", 96),
        ({"weights": "palettized4", "block_size": 16}, "embed_tokens.weight", 315),
    ],
)
def test_a_block_that_does_not_divide_is_refused_with_the_tensors_name(
    tiny: Path, tmp_path: Path, params: dict[str, Any], tensor: str, size: int
) -> None:
    more = {"sequence_lengths": [8], "minimum_deployment_target": "iOS18"}
    vocabulary = json.loads((tiny / "config.json").read_text())["vocab_size"]
    with pytest.raises(RefusedInput, match=tensor) as caught:
        run_stage("coreml", {**params, **more}, {"model": tiny}, tmp_path)
    assert caught.value.code == "E-COREML-BLOCK"
    assert str(vocabulary if tensor.startswith("embed") else size) in caught.value.facts[0]
    # what the hint says is no next refusal: it divides the other matrices' sides, too
    advised = int(re.findall(r"a divisor of (\d+)", caught.value.hint or "")[0])
    assert all(side % advised == 0 for side in (size, 64, 96))
    assert not (tmp_path / "out" / PACKAGE).exists()


def test_a_weight_that_float16_cannot_hold_is_refused(tiny: Path) -> None:
    import torch

    from ingot.kit import hf
    from ingot.kit.coreml.checkpoint import Checkpoint
    from ingot.kit.decoder.shape import decoder_shape

    folder = tiny.parent / "large"
    shutil.copytree(tiny, folder)
    tensors = dict(hf.iter_tensors(tiny))
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = torch.tensor(1e5)
    (folder / "model.safetensors").unlink()
    hf.write_safetensors(folder / "model.safetensors", tensors)
    checkpoint = Checkpoint(folder, decoder_shape(hf.read_config(folder), "E-X"))
    with pytest.raises(RefusedInput, match=r"model\.layers\.1\.mlp\.up_proj\.weight") as caught:
        checkpoint.load("layers.1.mlp.up_proj.weight", "float16")
    assert caught.value.code == "E-COREML-RANGE"
    assert checkpoint.load("layers.1.mlp.up_proj.weight", "float32").max() > 65504


def test_weights_that_do_not_fit_are_refused(tiny: Path) -> None:
    from dataclasses import replace

    from ingot.kit.coreml.checkpoint import stand_in

    model = _model(tiny)
    with pytest.raises(RefusedInput, match="do not fit") as caught:
        stand_in(replace(model.shape, feed_forward=80), model.checkpoint, "float16")
    assert caught.value.code == "E-COREML-TENSOR"


@pytest.mark.parametrize(
    ("params", "what"),
    [
        ({"sequence_lengths": []}, "sequence_lengths"),
        ({"sequence_lengths": [8, 8]}, "twice"),
        ({"sequence_lengths": list(range(1, 130))}, "sequence_lengths"),
        ({"sequence_lengths": {"min": 8, "max": 8}}, "min must be less than max"),
        ({"weights": "float16", "compute_precision": "float32"}, "compute_precision: float16"),
        ({"weights": "int2"}, "weights"),
        ({"weights": "int4"}, "weights: int4 needs minimum_deployment_target: iOS18"),
        ({"weights": "palettized4", "block_size": 16}, "block_size needs minimum_deployment_target: iOS18"),
        ({"weights": "int8", "block_size": 16}, "has no blocks"),
        ({"kv_cache": True, "context": 512}, "kv_cache needs minimum_deployment_target: iOS18"),
        ({"kv_cache": True, "minimum_deployment_target": "iOS18"}, "go together"),
        ({"context": 64}, "go together"),
        ({**CACHED, "sequence_lengths": [64]}, "64 tokens does not fit into a context of 32"),
        (
            {**CACHED, "sequence_lengths": [8], "weights": "float32", "compute_precision": "float32"},
            "states are of no other type",
        ),
        ({"minimum_deployment_target": "iOS12"}, "minimum_deployment_target"),
        ({"compute_units": "TPU"}, "compute_units"),
    ],
)
def test_wrong_parameters_are_refused(params: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        load_kind("coreml").model_validate_json(json.dumps(params), strict=True)
