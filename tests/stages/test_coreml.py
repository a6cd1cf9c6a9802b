"""Core ML packages: right module, reproducible bytes, a self-check that finds planted faults."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tiny_llama import make_llama

from ingot.core.stage import load_kind
from ingot.errors import RefusedInput, StageFailed
from stagekit import digest_of, run_stage

#: One conversion of two layers takes a few seconds; equal settings share theirs.
INT8: dict[str, Any] = {"weights": "int8", "sequence_lengths": [8, 16]}

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


_SCRIPT = """
import json, sys
from pathlib import Path
from stagekit import digest_of, run_stage
out, metrics = run_stage("coreml", json.loads(sys.argv[1]), {"model": Path(sys.argv[2])}, Path(sys.argv[3]))
print(json.dumps({"digest": digest_of(out), "metrics": {k: m.value for k, m in metrics.items()}}))
"""


def _in_process(model: Path, folder: Path, seed: str) -> dict[str, Any]:
    paths = os.pathsep.join([str(Path(__file__).parent.parent), str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, json.dumps(INT8), str(model), str(folder)],
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def built(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """A package built in this process, and its metrics."""
    out, metrics = run_stage("coreml", INT8, {"model": tiny}, tmp_path_factory.mktemp("built"))
    return out / "model.mlpackage", {name: metric.value for name, metric in metrics.items()}


@pytest.fixture
def package(built: tuple[Path, dict[str, float]]) -> Path:
    return built[0]


def test_equal_bytes_in_a_process_with_another_hash_seed(
    tiny: Path, built: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    package, metrics = built
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    assert _in_process(tiny, tmp_path, seed)["digest"] == digest_of(package.parent)
    files = sorted(str(path.relative_to(package)) for path in package.rglob("*") if path.is_file())
    root = "Data/com.apple.CoreML"
    assert files == [f"{root}/model.mlmodel", f"{root}/weights/weight.bin", "Manifest.json"]
    program = (package / root / "model.mlmodel").read_bytes()
    assert str(package.parent.parent).encode() not in program
    assert b"conversion_date" not in program
    _metrics_are_those_of_the_files(metrics, package)


def _metrics_are_those_of_the_files(metrics: dict[str, float], package: Path) -> None:
    assert metrics["bytes"] == sum(path.stat().st_size for path in package.rglob("*") if path.is_file())
    assert metrics["bits_per_weight"] == 8 * metrics["bytes"] / metrics["parameters"]
    blob = (package / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size
    stored = sum(count for name, count in metrics.items() if name.startswith("weight_bytes_"))
    # every stored value has a header of 64 bytes and is aligned to 64; nothing else lies in the file
    assert 0 < stored < blob < stored + 200 * metrics["operations"]
    assert metrics["weight_bytes_int8"] > 60_000
    assert 0 < metrics["module_max_difference"] < 1e-3
    assert metrics["operation_kinds"] < 30


def test_a_fixed_shape_in_float32(tiny: Path, tmp_path: Path) -> None:
    import coremltools as ct

    params = {"weights": "float32", "compute_precision": "float32", "sequence_lengths": [8]}
    out, metrics = run_stage("coreml", {**params, "minimum_deployment_target": "iOS18"}, {"model": tiny}, tmp_path)
    spec = ct.utils.load_spec(str(out / "model.mlpackage/Data/com.apple.CoreML/model.mlmodel"))
    array = spec.description.input[0].type.multiArrayType
    assert list(array.shape) == [1, 8]
    assert not array.enumeratedShapes.shapes
    assert spec.specificationVersion == 9  # of iOS 18
    assert "weight_bytes_int8" not in metrics
    # the embedding is also the output layer and is stored once
    assert metrics["weight_bytes_float32"].value < 1.2 * 4 * metrics["parameters"].value


@pytest.mark.parametrize(
    "sizes",
    [
        {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True},
        {"num_key_value_heads": 4, "head_dim": 8},
        {
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
            }
        },
    ],
    ids=["untied-biased", "no-grouping", "llama3"],
)  # fmt: skip
def test_the_module_computes_what_transformers_computes(tmp_path: Path, sizes: dict[str, Any]) -> None:
    import torch

    from ingot.kit.coreml.prefill import Prefill
    from ingot.kit.decoder.build import build_decoder
    from ingot.kit.decoder.layers import Form
    from ingot.kit.decoder.shape import decoder_shape
    from ingot.kit.hf import iter_tensors, load_model, read_config

    folder = make_llama(tmp_path / "hf", **sizes)
    shape = decoder_shape(read_config(folder), "E-COREML-ARCH")
    module = Prefill(build_decoder(shape, iter_tensors(folder), Form(), "E-COREML-TENSOR"), 64)
    reference = load_model(folder, "float32")
    for length in (1, 7, 64):
        ids = torch.randint(300, (1, length), generator=torch.Generator().manual_seed(length))
        with torch.no_grad():
            torch.testing.assert_close(module(ids.int()), reference(input_ids=ids).logits, atol=2e-4, rtol=1e-4)


def test_the_module_survives_large_activations_in_float16() -> None:
    """Squares of 1,000 overflow in fp16; the norm divides first."""
    import torch

    from ingot.kit.decoder.layers import RmsNorm

    norm = RmsNorm(64, 1e-5)
    for scale in (1e-4, 1.0, 3e4):
        x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)).clamp(-2, 2) * scale
        wanted = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
        torch.testing.assert_close(norm(x), wanted)
        torch.testing.assert_close(norm.half()(x.half()).float(), wanted, atol=2e-3, rtol=5e-3)
        norm.float()


@pytest.mark.parametrize("scheme", ["W8A16", "W8A8"])
def test_a_compressed_checkpoint_is_accepted(tiny: Path, tmp_path: Path, scheme: str) -> None:
    """Its weights are taken. That W8A8 rounds inputs, too, is no difference of the module."""
    quantized, _ = run_stage("quantize", {"scheme": scheme}, {"model": tiny}, tmp_path, name="quantized")
    _, metrics = run_stage("coreml", {**INT8, "sequence_lengths": [8]}, {"model": quantized}, tmp_path)
    assert metrics["weight_bytes_int8"].value > 60_000


def test_a_module_that_computes_something_else_is_found(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ingot.kit.decoder import build, layers

    tables = layers.rope_tables
    monkeypatch.setattr(build, "rope_tables", lambda *args: tuple(reversed(tables(*args))))
    with pytest.raises(StageFailed, match="does not compute what transformers computes") as caught:
        run_stage("coreml", INT8, {"model": tiny}, tmp_path)
    assert caught.value.code == "E-COREML-SELFCHECK"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"lengths": (8, 32)}, "another interface"),
        ({"lengths": (8,)}, "another interface"),
        ({"precision": "float32"}, "another interface"),
        ({"int8": False}, "not stored as float16"),
    ],
)
def test_a_package_that_is_not_what_was_asked_for_is_found(package: Path, change: dict[str, Any], what: str) -> None:
    from ingot.kit.coreml.package import Settings, check

    right: dict[str, Any] = {"lengths": (16, 8), "precision": "float16", "int8": True, "target": "iOS17"}
    assert check(package, (300, 64), Settings(**right)).operations > 50
    with pytest.raises(StageFailed, match=what) as caught:
        check(package, (300, 64), Settings(**{**right, **change}))
    assert caught.value.code == "E-COREML-SELFCHECK"


@pytest.mark.parametrize("fault", ["renamed output", "weight outside"])
def test_a_changed_program_is_found(package: Path, tmp_path: Path, fault: str) -> None:
    import coremltools as ct

    from ingot.kit.coreml import package as coreml_package

    root = Path("Data/com.apple.CoreML/model.mlmodel")
    spec = ct.utils.load_spec(str(package / root))
    if fault == "renamed output":
        spec.description.output[0].name = "probabilities"
    else:
        operation = next(op for op in coreml_package._operations(spec) if coreml_package._stored_values(op))
        coreml_package._stored_values(operation)[0].blobFileValue.fileName = "/etc/weights.bin"
    (tmp_path / root).parent.mkdir(parents=True)
    (tmp_path / root).write_bytes(spec.SerializeToString())
    with pytest.raises(StageFailed, match=r"other inputs or outputs|outside of the package"):
        coreml_package.check(
            tmp_path, (300, 64), coreml_package.Settings((8, 16), "float16", int8=True, target="iOS17")
        )


def test_a_length_above_the_context_is_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(RefusedInput, match="257 is above the model's context of 256") as caught:
        run_stage("coreml", {"sequence_lengths": [257]}, {"model": tiny}, tmp_path)
    assert caught.value.code == "E-COREML-LENGTH"


def test_weights_that_do_not_fit_are_refused(tiny: Path) -> None:
    import torch

    from ingot.kit.decoder.build import build_decoder
    from ingot.kit.decoder.layers import Form
    from ingot.kit.decoder.shape import decoder_shape
    from ingot.kit.hf import iter_tensors, read_config

    shape = decoder_shape(read_config(tiny), "E-COREML-ARCH")
    tensors = dict(iter_tensors(tiny)) | {"model.layers.0.self_attn.r_norm.weight": torch.ones(16)}
    with pytest.raises(RefusedInput, match="do not fit") as caught:
        build_decoder(shape, tensors.items(), Form(), "E-COREML-TENSOR")
    assert caught.value.code == "E-COREML-TENSOR"


@pytest.mark.parametrize(
    ("params", "what"),
    [
        ({"sequence_lengths": []}, "sequence_lengths"),
        ({"sequence_lengths": [8, 8]}, "twice"),
        ({"weights": "float16", "compute_precision": "float32"}, "compute_precision: float16"),
        ({"weights": "int2"}, "weights"),
        ({"minimum_deployment_target": "iOS12"}, "minimum_deployment_target"),
    ],
)
def test_wrong_parameters_are_refused(params: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        load_kind("coreml").model_validate_json(json.dumps(params), strict=True)
