"""The contract that every kind keeps. A new kind needs one line in ``samples.py`` and no other file."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from samples import SAMPLES

from ingot.core.stage import Stage, kinds, load_kind

HERE = Path(__file__).parent
Results = dict[str, dict[str, Any]]


def build_all(folders: list[Path], hash_seed: str) -> subprocess.Popen[str]:
    env = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(HERE.parent), "HF_HUB_OFFLINE": "1"}
    env |= {"OMP_NUM_THREADS": "2", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, str(HERE / "samples.py"), *map(str, folders)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def two_runs(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Results]:
    """Every kind built twice, in two folders, under two hash seeds."""
    results = []
    first, second = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    for seed, folders in (("1", [stories, first]), ("2", [stories, second, first])):
        process = build_all(folders, seed)
        printed, noise = process.communicate(timeout=300)
        assert process.returncode == 0, noise[-4000:]
        results.append(json.loads(printed.splitlines()[-1]))
    return results[0], results[1]


def sample(kind: str) -> Stage:
    return load_kind(kind).model_validate_json(json.dumps(dict(SAMPLES[kind].params)), strict=True)


def test_every_kind_has_a_sample() -> None:
    assert set(SAMPLES) == set(kinds())


@pytest.mark.parametrize("kind", kinds())
def test_the_class_says_what_the_file_name_says(kind: str) -> None:
    cls = load_kind(kind)
    assert cls.kind == kind
    assert (cls.__doc__ or "").strip()
    assert cls.revision >= 1


@pytest.mark.parametrize("kind", kinds())
def test_parameters_survive_json_and_are_frozen(kind: str) -> None:
    stage = sample(kind)
    again = load_kind(kind).model_validate_json(json.dumps(stage.model_dump(mode="json")), strict=True)
    assert again == stage
    assert again.model_dump(mode="json") == stage.model_dump(mode="json")
    field = next(iter(type(stage).model_fields), None)
    if field is not None:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(stage, field, None)


@pytest.mark.parametrize("kind", kinds())
def test_an_unknown_parameter_is_refused(kind: str) -> None:
    params = dict(SAMPLES[kind].params) | {"no_such_parameter": 1}
    with pytest.raises(ValidationError, match="no_such_parameter"):
        load_kind(kind).model_validate_json(json.dumps(params), strict=True)


@pytest.mark.parametrize("kind", kinds())
def test_every_parameter_is_described(kind: str) -> None:
    missing = [name for name, field in load_kind(kind).model_fields.items() if not field.description]
    assert missing == []


@pytest.mark.parametrize("kind", kinds())
def test_what_measures_a_model_can_be_told_where_to_compute(kind: str) -> None:
    """One that is asked on a GPU is not measured on the processor by the next kind."""
    stage = sample(kind)
    asks = stage.produces in {"calibration", "evaluation", "logits", "samples"} and "torch" in stage.preload
    assert not asks or stage.device_wanted() == stage.model_dump()["device"]


@pytest.mark.parametrize("kind", kinds())
def test_it_writes_only_below_out_and_leaves_its_inputs_alone(kind: str, two_runs: tuple[Results, Results]) -> None:
    assert two_runs[0][kind]["strays"] == []
    assert two_runs[0][kind]["inputs_changed"] == []


@pytest.mark.parametrize("kind", kinds())
def test_two_runs_give_one_digest_or_the_kind_says_why_not(kind: str, two_runs: tuple[Results, Results]) -> None:
    if load_kind(kind).reproducibility == "device_dependent":
        # Kinds that measure speed, run a program of which nothing is known, or add in the order of the processor.
        kinds_of_candidates = {"classify", "evaluate", "harness", "judge", "samples", "tool_calls"}
        assert kind in {*kinds_of_candidates, "calibrate", "command", "imatrix", "logits"}
    if kind not in {"command", "evaluate"}:  # on one machine the order is one
        assert two_runs[0][kind]["digest"] == two_runs[1][kind]["digest"]


@pytest.mark.parametrize("kind", kinds())
def test_metrics_say_their_unit_and_how_they_were_measured(kind: str, two_runs: tuple[Results, Results]) -> None:
    metrics = two_runs[0][kind]["metrics"]
    assert metrics
    for name, metric in metrics.items():
        assert name.replace("_", "").isalnum(), name
        assert name == name.lower()
        assert metric["unit"], name
        assert metric["method"], name
        assert isinstance(metric["value"], int | float), name


@pytest.mark.parametrize("kind", kinds())
def test_what_it_says_at_the_least_is_never_more_than_it_takes(kind: str, two_runs: tuple[Results, Results]) -> None:
    """Else a chain that could run would be refused."""
    found = two_runs[0][kind]
    (size, weights), (written, elements) = found["floor"], found["written"]
    assert size <= written
    assert weights <= elements or kind == "quantize", "which packs several weights into one number"
    least, peak = found["memory"]
    assert least <= peak


@pytest.mark.parametrize("kind", kinds())
def test_the_reference_names_what_is_measured(kind: str, two_runs: tuple[Results, Results]) -> None:
    measured = {name: metric["unit"] for name, metric in two_runs[0][kind]["metrics"].items()}
    told = load_kind(kind).measures
    patterns = {re.sub("[A-Z]+", "[a-z0-9_]+", name): (unit, when) for name, unit, when in told}
    for name, unit in measured.items():
        assert [found for pattern, (found, _) in patterns.items() if re.fullmatch(pattern, name)] == [unit], name
    roles = frozenset(SAMPLES[kind].inputs)
    allowed = [re.sub("[A-Z]+", "[a-z0-9_]+", name) for name in sample(kind).measured(roles)]
    for name in measured:
        assert any(re.fullmatch(pattern, name) for pattern in allowed), f"a gate on {name} would be refused"
    for pattern, (_, when) in patterns.items():
        assert when != "always" or any(re.fullmatch(pattern, name) for name in measured), pattern


@pytest.mark.parametrize("kind", kinds())
def test_importing_it_loads_nothing_heavy(kind: str) -> None:
    heavy = (
        "('torch', 'numpy', 'transformers', 'gguf', 'llama_cpp', 'coremltools', 'peft', 'safetensors', 'onnx', "
        "'onnxruntime')"
    )
    program = f"import sys, ingot.stages.{kind}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
