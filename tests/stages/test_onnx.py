"""ONNX exports: they compute what their source computes, hold nothing of this machine, and show planted faults."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tiny_llama import make_llama

from ingot.core.stage import Metric, load_kind
from ingot.core.sweep import Forbidden, sweep
from ingot.errors import RefusedInput, StageFailed
from stagekit import digest_of, run_stage

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

#: One short golden text, where a test is not about parity.
QUICK: dict[str, Any] = {"parity": {"texts": 1, "max_length": 8}}
Built = tuple[Path, Mapping[str, Metric]]


def soft_llama(folder: Path, **sizes: Any) -> Path:
    """A random model whose attention is spread over the text: where it is all or nothing, rounding flips it."""
    from safetensors.torch import load_file, save_file

    make_llama(folder, **sizes)
    weights = load_file(folder / "model.safetensors")
    turned_down = {name: 0.15 if "q_proj" in name or "k_proj" in name else 1.0 for name in weights}
    scaled = {name: weight * turned_down[name] for name, weight in weights.items()}
    save_file(scaled, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return soft_llama(tmp_path_factory.mktemp("tiny") / "hf")


@pytest.fixture(scope="module")
def built(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return run_stage("onnx", {"parity": {"texts": 3, "max_length": 24}}, {"model": tiny}, tmp_path_factory.mktemp("a"))


@pytest.fixture(scope="module")
def outside(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Weights beside the model, the graph rewritten by ONNX Runtime."""
    params = {"external_data_bytes": 0, "optimization": "basic", "max_length": 64, **QUICK}
    return run_stage("onnx", params, {"model": tiny}, tmp_path_factory.mktemp("b"))


def values(metrics: Mapping[str, Metric]) -> dict[str, float]:
    return {name: metric.value for name, metric in metrics.items()}


def source_logits(folder: Path, ids: Sequence[Sequence[int]], **more: Any) -> Any:
    import torch

    from ingot.kit.hf import load_model

    with torch.no_grad():
        return load_model(folder, "float32")(input_ids=torch.tensor(ids), **more).logits.numpy()


def test_what_is_written(built: Built, outside: Built) -> None:
    folder, metrics = built
    names = {path.name for path in folder.iterdir()}
    side = {"contract.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"}
    assert names == {"model.onnx"} | side
    assert {path.name for path in outside[0].iterdir()} == names | {"model.onnx.data"}
    found = values(metrics)
    assert found["bytes"] == (folder / "model.onnx").stat().st_size
    assert found["bits_per_weight"] == 8 * found["bytes"] / found["parameters"]
    # tied embeddings are stored once
    assert 4 * found["parameters"] <= found["weight_bytes_float32"] < 4.01 * found["parameters"]
    assert found["parity_cosine"] > 0.999999
    assert found["parity_top1_agreement"] == 1
    whole = sum((outside[0] / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))
    assert values(outside[1])["bytes"] == whole


def test_the_contract_names_what_optimum_names(built: Built, outside: Built) -> None:
    from ingot.kit.contract import read_contract

    contract = read_contract(built[0])
    names = [port.name for port in contract.inputs]
    assert names[:3] == ["input_ids", "attention_mask", "position_ids"]
    assert names[3:5] == ["past_key_values.0.key", "past_key_values.0.value"]
    assert contract.inputs[3].shape == ("batch", 2, "past_sequence", 16)
    assert [port.name for port in contract.outputs][:3] == ["logits", "present.0.key", "present.0.value"]
    assert contract.outputs[1].shape == ("batch", 2, "total_sequence", 16)
    assert (contract.precision, contract.context, contract.layers) == ("float32", 256, 2)
    limited = read_contract(outside[0])
    assert (limited.inputs, limited.outputs, limited.context) == (contract.inputs, contract.outputs, 64)


def test_a_batch_with_padding_on_the_left(tiny: Path, built: Built) -> None:
    """Each row is as if it were alone, and what is hidden has no say."""
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(str(built[0] / "model.onnx"))
    ids = np.array([[5, 9, 40, 77, 12], [0, 0, 30, 31, 32]])
    seen = np.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    feed: dict[str, Any] = {"input_ids": ids, "attention_mask": seen}
    feed["position_ids"] = np.array([[0, 1, 2, 3, 4], [0, 0, 0, 1, 2]])
    nothing = np.zeros((2, 2, 0, 16), np.float32)
    feed |= {port.name: nothing for port in session.get_inputs()[3:]}
    found = session.run(["logits"], feed)[0]
    np.testing.assert_allclose(found[0], source_logits(tiny, [ids[0].tolist()])[0], atol=2e-3, rtol=1e-3)
    np.testing.assert_allclose(found[1, 2:], source_logits(tiny, [[30, 31, 32]])[0], atol=2e-3, rtol=1e-3)


def test_nothing_of_this_machine_is_in_the_files(built: Built, outside: Built, tiny: Path) -> None:
    import onnx
    import torch

    places = [str(Path(torch.__file__).parents[2]), str(Path(__file__).parents[2]), str(Path.home()), str(tiny.parent)]
    tells = [place.encode() for place in places] + [b"site-packages", b".py", b"Traceback", b"pytorch", b"pkg.torch"]
    for folder in (built[0], outside[0]):
        content = (folder / "model.onnx").read_bytes()
        assert [tell for tell in tells if tell in content] == []
        model = onnx.load(folder / "model.onnx", load_external_data=False)
        kept = {item.key: item.value for item in model.metadata_props}
        assert kept["ingot.model"] == digest_of(tiny)
        assert set(kept) == {f"ingot.{name}" for name in ("kind", "revision", "model", "precision", "quantization")}
        onnx.checker.check_model(str(folder / "model.onnx"), full_check=True)


def test_what_exporters_leave_behind_is_taken_out() -> None:
    """The exporter's own file has it all: paths, stack traces, names of modules."""
    import torch
    from onnx import helper

    from ingot.kit.onnx_model.files import clean
    from ingot.kit.onnx_model.graph import Assembled, Piece

    node = helper.make_node("Relu", ["x"], ["y"], doc_string="File /home/somebody/model.py")
    node.metadata_props.add(key="pkg.torch.onnx.stack_trace", value="File /home/somebody/model.py, line 1")
    assembled = Assembled()
    assembled.add(Piece([node], [], ["x"], ["y"], {"w": (torch.float32, (1,))}), "p", ["in"], ["out"], str)
    assert b"somebody" not in assembled.nodes[0].SerializeToString()
    graph = helper.make_graph([node], "/home/somebody", [], [], doc_string="/home/somebody")
    graph.name = "model"
    model = helper.make_model(graph, producer_name="somebody", doc_string="somebody")
    model.metadata_props.add(key="path", value="/home/somebody")
    assert b"somebody" in model.SerializeToString()
    clean(model)
    assert b"somebody" not in model.SerializeToString()


@pytest.mark.parametrize(
    ("params", "stored", "share"),
    [
        ({"precision": "float16"}, "float16", 2.0),
        ({"quantization": "int8", "products": "float"}, "uint8", 1.0),
        ({"quantization": "int4", "products": "float"}, "uint8", 0.5),
        ({"quantization": "int8_dynamic"}, "int8", 1.0),
    ],
    ids=["float16", "int8", "int4", "int8_dynamic"],
)
def test_smaller_weights(tiny: Path, tmp_path: Path, params: dict[str, Any], stored: str, share: float) -> None:
    import logging

    from ingot.kit.contract import read_contract

    handlers = list(logging.getLogger().handlers)
    out, metrics = run_stage("onnx", {**params, **QUICK}, {"model": tiny}, tmp_path)
    found = values(metrics)
    # the embedding, where it is not also the output layer, is in half
    assert 0.98 * share < found[f"weight_bytes_{stored}"] / found["parameters"] < 1.1 * share
    quantized = "quantization" in params
    assert read_contract(out).precision == params.get("quantization", "float16").removesuffix("_dynamic")
    assert found["weight_bytes_float16"] >= 2 * 305 * 64
    assert quantized or found["parity_cosine"] > 0.999
    # where weights alone were rounded, the rest is exact
    assert ("execution_cosine" in found) == (params.get("quantization") in {"int8", "int4"})
    assert found.get("execution_cosine", 1) > 0.99999
    assert logging.getLogger().handlers == handlers, "the tools' own are gone"


def test_blocks_that_do_not_divide(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(RefusedInput, match=r"q_proj has 64 inputs, which blocks of 128 do not divide") as caught:
        run_stage("onnx", {"quantization": "int4", "block_size": 128}, {"model": tiny}, tmp_path)
    assert caught.value.code == "E-ONNX-BLOCK"
    assert "16, 32" in str(caught.value)
    from ingot.kit.onnx_model.quantize import refuse_blocks

    with pytest.raises(RefusedInput) as caught:
        refuse_blocks({"down_proj": 172}, 32)
    # alone it would be refused where precision is float16
    assert "precision: float32" in (caught.value.hint or "")
    assert list((tmp_path / "out").iterdir()) == []


def test_other_refusals(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(RefusedInput, match="257 is above the model's context of 256") as caught:
        run_stage("onnx", {"max_length": 257}, {"model": tiny}, tmp_path, name="long")
    assert caught.value.code == "E-ONNX-LENGTH"
    other = tmp_path / "gpt2"
    shutil.copytree(tiny, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"architectures": ["GemmaForCausalLM"]}))
    with pytest.raises(RefusedInput, match="GemmaForCausalLM is not supported") as caught:
        run_stage("onnx", {}, {"model": other}, tmp_path, name="other")
    assert caught.value.code == "E-ONNX-ARCH"


@pytest.mark.parametrize(
    ("params", "what"),
    [
        ({"precision": "float16", "quantization": "int8_dynamic"}, "needs precision: float32"),
        ({"opset": 17}, "opset"),
        ({"opset": 24}, "opset"),
        ({"block_size": 48}, "block_size"),
        ({"optimization": "all"}, "optimization"),
        ({"external_data_bytes": 1 << 31}, "external_data_bytes"),
    ],
)
def test_wrong_parameters_are_refused(params: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        load_kind("onnx").model_validate_json(json.dumps(params), strict=True)


def test_a_graph_that_computes_something_else_fails(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A square matrix the wrong way round fits everywhere; only running it tells."""
    from ingot.kit.onnx_model import weights

    right = weights.source

    def wrong(weight: str, shape: Any) -> Any:
        found = right(weight, shape)
        return weights.Source(found.name, not found.turned) if weight == "layers.1.self_attn.o_proj.weight" else found

    monkeypatch.setattr(weights, "source", wrong)
    with pytest.raises(StageFailed, match="it began in layer 1") as caught:
        run_stage("onnx", QUICK, {"model": tiny}, tmp_path)
    assert caught.value.code == "E-PARITY"


def test_a_quantized_graph_that_computes_something_else_fails(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two products read each other's zero points: four bits may lose much, but not what the stored weights say."""
    from ingot.kit.onnx_model.quantize import Quantizer

    right = Quantizer.splice

    def wrong(self: Quantizer, model: Any) -> None:
        right(self, model)
        one, two = (
            next(node for node in model.graph.node if f"layers.1.self_attn.{name}_proj.weight.Q4" in node.input)
            for name in "qo"
        )
        one.input[3], two.input[3] = two.input[3], one.input[3]

    monkeypatch.setattr(Quantizer, "splice", wrong)
    lax = {"parity": {**QUICK["parity"], "kl": 100.0, "top1": 0.0, "cosine": 0.0}}
    with pytest.raises(StageFailed, match="own weights say") as caught:
        run_stage("onnx", {**QUICK, **lax, "quantization": "int4", "products": "float"}, {"model": tiny}, tmp_path)
    assert any("it began in layer 1" in fact for fact in [caught.value.what, *caught.value.facts])


@pytest.mark.parametrize(
    ("name", "change", "code"),
    [
        ("layers.0.mlp.up_proj.weight", None, "E-ONNX-TENSOR"),
        ("layers.0.mlp.up_proj.weight", (3, 3), "E-ONNX-TENSOR"),
        ("layers.0.mlp.extra.weight", (3, 3), "E-ONNX-TENSOR"),
        ("layers.0.mlp.up_proj.weight", 1e6, "E-ONNX-RANGE"),
    ],
)
def test_weights_that_do_not_fit(tiny: Path, name: str, change: Any, code: str) -> None:
    import torch

    from ingot.kit.decoder.shape import decoder_shape
    from ingot.kit.hf import iter_tensors, read_config
    from ingot.kit.onnx_model import weights

    shape = decoder_shape(read_config(tiny), "E-X")
    tensors = dict(iter_tensors(tiny))
    wanted = {
        key.removeprefix("model."): (
            torch.float16,
            tuple(tensor.T.shape if key.endswith("_proj.weight") else tensor.shape),
        )
        for key, tensor in tensors.items()
    }
    assert len(list(weights.stream(tensors.items(), wanted, shape))) == len(wanted) + 1
    key = f"model.{name}"
    if change is None:
        del tensors[key]
    else:
        tensors[key] = torch.ones(change) if isinstance(change, tuple) else tensors[key].float() * change
    with pytest.raises(RefusedInput) as caught:
        list(weights.stream(tensors.items(), wanted, shape))
    assert caught.value.code == code


def test_an_archive_of_torch_is_never_published(built: Built, tmp_path: Path) -> None:
    """TorchScript and ``torch.export`` archives hold pickles; one beside the model stops the publication."""
    import torch

    out = tmp_path / "out"
    shutil.copytree(built[0], out)
    forbidden = Forbidden(str(tmp_path / "staging"), str(tmp_path / "project"), "/nowhere")
    sweep(out, "onnx", forbidden)
    linear = torch.nn.Linear(2, 2)
    torch.jit.trace(linear, torch.zeros(1, 2)).save(str(out / "model.ts"))
    with pytest.raises(StageFailed) as caught:
        sweep(out, "onnx", forbidden)
    assert caught.value.code == "E-OUTPUT-PICKLE"
    (out / "model.ts").unlink()
    torch.export.save(torch.export.export(linear, (torch.zeros(1, 2),)), out / "model.pt2")
    with pytest.raises(StageFailed) as caught:
        sweep(out, "onnx", forbidden)
    assert caught.value.code == "E-OUTPUT-PICKLE"


def test_one_changed_byte_is_another_artifact(built: Built, tmp_path: Path) -> None:
    """What is edited by hand is found by the digest that the registry has: the artifact's name is its content."""
    edited = tmp_path / "edited"
    shutil.copytree(built[0], edited)
    assert digest_of(edited) == digest_of(built[0])
    content = bytearray((edited / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (edited / "model.onnx").write_bytes(content)
    assert digest_of(edited) != digest_of(built[0])


def test_rewritten_by_extended_fusions(tiny: Path, built: Built, tmp_path: Path) -> None:
    """It computes the same, has fewer nodes, and imports no operators that it does not use."""
    import onnx

    out, metrics = run_stage("onnx", {"optimization": "extended", **QUICK}, {"model": tiny}, tmp_path)
    found = values(metrics)
    assert found["nodes"] < values(built[1])["nodes"]
    assert found["parity_cosine"] > 0.999999
    model = onnx.load(out / "model.onnx")
    assert {item.domain for item in model.opset_import} == {node.domain for node in model.graph.node}


def test_a_saved_model_that_is_not_sound_is_found(built: Built, tmp_path: Path) -> None:
    import onnx

    from ingot.kit.onnx_model.export import check

    shutil.copytree(built[0], tmp_path / "copy")
    check(tmp_path / "copy", strict=True)
    model = onnx.load(tmp_path / "copy" / "model.onnx")
    next(node for node in model.graph.node if node.op_type == "Softmax").op_type = "Softmox"
    (tmp_path / "copy" / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(StageFailed, match="Softmox") as caught:
        check(tmp_path / "copy", strict=True)
    assert caught.value.code == "E-ONNX-SELFCHECK"


@pytest.mark.parametrize("scheme", ["int8", "int4", "int8_dynamic"])
def test_a_matrix_in_slices_is_as_in_one_go(scheme: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np
    from onnx import helper

    from ingot.kit.onnx_model import quantize

    weight = np.random.default_rng(0).normal(0, 1, (64, 100)).astype(np.float32)
    product = helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")

    def made() -> tuple[dict[str, tuple[Any, bytes]], list[str]]:
        tool = quantize.Quantizer(quantize.Plan(scheme, 21), tmp_path)
        parts = {name: (array.shape, array.tobytes()) for name, array in tool.quantize(product, weight)}
        return parts, [str(node) for node in tool.nodes["layer"]]

    whole = made()
    monkeypatch.setattr(quantize, "_AT_ONCE", 64 * 32)
    assert made() == whole
