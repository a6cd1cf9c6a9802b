"""A bad model planted in front of every kind that reads one, and templates that would run or never end."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ggufkit import raw_gguf, tensor_info, text
from harnesskit import all_forms
from ingot.core.stage import kinds, load_kind
from ingot.errors import IngotError, RefusedInput
from ingot.kit.render import Renderer
from plantkit import pickled, zipped
from stagekit import run_stage
from tinymodels import chat_model, dataset


def duplicate_key(folder: Path) -> None:
    """A name twice in the header: one reader sees the first, another the second."""
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    name, _, rest = raw[8 : 8 + length].decode()[1:].partition("}")
    header = "{" + name + "}," + name + "}" + rest
    path.write_bytes(len(header.encode()).to_bytes(8, "little") + header.encode() + raw[8 + length :])


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def code_in_the_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["rope_scaling"] = {"deep": [{"auto_map": {"AutoModel": "code.M"}}]}
    (folder / "config.json").write_text(json.dumps(config))


def code_in_another_config(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"custom_generate": "someone/decoding"}')


def a_program(folder: Path) -> None:
    (folder / "modeling_llama.py").write_text("raise SystemExit('run')")


def an_adapter_config(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "/etc", "peft_type": "LORA"}')


def a_pickle_by_that_name(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(zipped({"archive/data.pkl": pickled(2)}))


HF_PLANTS: dict[Callable[[Path], None], str] = {
    duplicate_key: "E-ST-DUPKEY",
    truncated: "E-ST-BOUNDS",
    code_in_the_config: "E-CONFIG-CODE",
    code_in_another_config: "E-CONFIG-CODE",
    a_program: "E-FORMAT-CODE",
    an_adapter_config: "E-NOT-HF",
    a_pickle_by_that_name: "E-ST-SIZE",
}
#: What only a reader of the weights can meet.
WEIGHT_PLANTS = {duplicate_key, truncated, a_pickle_by_that_name}
#: Kinds and roles that read a model's configuration and no weights.
CONFIG_READERS = {("lora_gguf", "model"), ("student", "tokenizer")}
STUDENT: dict[str, Any] = {"layers": 1, "width": 16, "heads": 1, "steps": 1}
JUDGED = ("candidate", "reference", "samples", "reference_samples")
#: Kind, parameters, the role that reads the planted model, what the other roles get.
READERS: tuple[tuple[str, dict[str, Any], str, tuple[str, ...]], ...] = (
    ("convert", {"dtype": "float32"}, "model", ()),
    ("adapter", {"steps": 1, "rank": 2}, "model", ("data",)),
    ("full", {"steps": 1}, "model", ("data",)),
    ("full", {"steps": 1}, "teacher", ("model", "data")),
    ("student", STUDENT, "tokenizer", ("data",)),
    ("student", STUDENT, "teacher", ("tokenizer", "data")),
    ("merge", {}, "model", ("adapter",)),
    ("prune", {"method": "magnitude", "sparsity": 0.5}, "model", ()),
    ("prune", {"method": "wanda", "sparsity": 0.5}, "model", ("calibration",)),
    ("prune", {"method": "sparsegpt", "sparsity": 0.5}, "model", ("calibration",)),
    ("prune", {"method": "depth", "drop_layers": 1}, "model", ("calibration",)),
    ("recover", {"steps": 1}, "model", ("data",)),
    ("recover", {"steps": 1}, "teacher", ("model", "data")),
    ("quantize", {}, "model", ()),
    ("quantize", {"method": "gptq"}, "model", ("calibration",)),
    ("gguf", {"type": "F16"}, "model", ()),
    ("imatrix", {"documents": 4, "context": 32}, "model", ("calibration",)),
    ("lora_gguf", {}, "model", ("adapter",)),
    ("coreml", {"sequence_lengths": [16]}, "model", ()),
    ("onnx", {}, "model", ()),
    ("calibrate", {"documents": 4}, "model", ("data",)),
    ("evaluate", {}, "candidate", ("data",)),
    ("evaluate", {}, "reference", ("data", "candidate")),
    ("harness", {"path": "tasks", "tasks": ["story"]}, "candidate", ()),
    ("logits", {}, "reference", ("data",)),
    ("samples", {"documents": 1, "max_tokens": 2}, "candidate", ("data",)),
    ("judge", {}, "judge", JUDGED),
)
#: Kinds and roles that take a model and read nothing of it: what it said lies in another role.
BY_DIGEST = {("match", "candidate"), ("judge", "candidate"), ("judge", "reference")}


@pytest.fixture(scope="module")
def good(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A sound input for each role."""
    folder = tmp_path_factory.mktemp("good")
    dense = chat_model(stories, folder / "dense")
    model, _ = run_stage("prune", {"sparsity": 0.05}, {"model": dense}, folder, name="model")  # recover wants zeros
    rows = dataset(folder / "rows")
    adapter, _ = run_stage("adapter", {"steps": 1, "rank": 2}, {"model": model, "data": rows}, folder, seed=1)
    asked = {"documents": 1, "max_tokens": 2, "context": 64}
    said, _ = run_stage("samples", asked, {"candidate": model, "data": rows}, folder, name="said")
    return {
        "model": model,
        "candidate": model,
        "reference": model,
        "samples": said,
        "reference_samples": said,
        "data": rows,
        "calibration": rows,
        "adapter": adapter,
        "tokenizer": model,
        "tasks": all_forms(folder / "tasks"),
    }


def test_every_kind_that_reads_a_model_is_here() -> None:
    found = {
        (kind, role)
        for kind in kinds()
        for role, what in load_kind(kind).inputs.items()
        # A report reads evaluations only, a command is the user's own, pack reads bytes, and an importance matrix is
        # no model.
        if {"hf", "gguf", "any"} & set(what.accepts) and kind not in {"report", "command", "pack"} and role != "imatrix"
    }
    assert found - BY_DIGEST == {(kind, role) for kind, _params, role, _others in READERS}
    assert found >= BY_DIGEST


@pytest.mark.fault("M4", "a bad model folder in front of every kind that reads one")
@pytest.mark.parametrize("plant", HF_PLANTS, ids=lambda plant: plant.__name__)
def test_no_kind_hands_a_bad_folder_to_a_library(
    plant: Callable[[Path], None], good: dict[str, Path], tmp_path: Path, cases: Callable[[int], None]
) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(good["model"], bad)
    plant(bad)
    tried = [case for case in READERS if not (plant in WEIGHT_PLANTS and (case[0], case[2]) in CONFIG_READERS)]
    for number, (kind, params, role, others) in enumerate(tried):
        inputs = {**{name: good[name] for name in others}, role: bad}
        sources = [good["tasks"]] if kind == "harness" else []
        with pytest.raises(RefusedInput) as caught:
            run_stage(kind, params, inputs, tmp_path, sources=sources, seed=1, name=f"out{number}")
        assert caught.value.code == HF_PLANTS[plant], f"{kind} {role}: {caught.value}"
        assert list((tmp_path / f"out{number}").rglob("*.safetensors")) == []
    cases(len(tried))


@pytest.mark.fault("M8", "an adapter that asks for code, or is no adapter")
@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("adapter_config.json", b'{"auto_mapping": {"parent_library": "evil"}}', "E-CONFIG-CODE"),
        ("adapter_model.safetensors", pickled(), "E-ST-SIZE"),
        ("hook.py", b"raise SystemExit", "E-FORMAT-CODE"),
    ],
)  # fmt: skip
def test_a_bad_adapter(name: str, content: bytes, code: str, good: dict[str, Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(good["adapter"], bad)
    (bad / name).write_bytes(content)
    with pytest.raises(RefusedInput) as caught:
        run_stage("merge", {}, {"model": good["model"], "adapter": bad}, tmp_path)
    assert caught.value.code == code


INFO = tensor_info("a", [32], 0, 0)
BAD_GGUFS = {
    "an array of 2^60 texts": raw_gguf([text("k") + struct.pack("<IIQ", 9, 8, 1 << 60)]),
    "tensors that share bytes": raw_gguf((), [INFO, tensor_info("b", [32], 0, 96)], b"\0" * 224),
    "bytes at the end": raw_gguf((), [INFO], b"\0" * 128 + zipped({"data.pkl": pickled(2)})),
    "a text that is no UTF-8": raw_gguf([struct.pack("<Q", 2) + b"\xff\xfe" + struct.pack("<II", 4, 1)]),
}


@pytest.mark.fault("M6", "a bad GGUF in front of every kind that reads one, and of the chat")
@pytest.mark.parametrize("what", BAD_GGUFS)
def test_no_kind_hands_a_bad_gguf_to_a_library(
    what: str, good: dict[str, Path], tmp_path: Path, cases: Callable[[int], None]
) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "model.gguf").write_bytes(BAD_GGUFS[what])
    readers = (
        ("convert", {"model": bad}),
        ("evaluate", {"candidate": bad, "data": good["data"]}),
        ("calibrate", {"model": bad, "data": good["data"]}),
        ("samples", {"candidate": bad, "data": good["data"]}),
        ("judge", {**{role: good[role] for role in JUDGED}, "judge": bad}),
    )
    for kind, inputs in readers:
        with pytest.raises(RefusedInput) as caught:
            run_stage(kind, {}, inputs, tmp_path, name=kind)
        assert caught.value.code.startswith("E-GGUF-")
    chat = [sys.executable, "-m", "doit", "chat", str(bad / "model.gguf"), "hello"]
    done = subprocess.run(chat, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith(caught.value.code)
    cases(6)


@pytest.mark.fault("M1", "a pickle under any name is fetched")
@pytest.mark.parametrize(
    "name", ["model.safetensors", "model.gguf", "tokenizer.json", "weights.npy", "pytorch_model.bin", "notes.txt"]
)
def test_fetch_takes_no_pickle(name: str, tmp_path: Path) -> None:
    source = tmp_path / name
    for content in (pickled(0), pickled(5), zipped({"a/data.pkl": pickled(2)})):
        source.write_bytes(content)
        with pytest.raises(RefusedInput) as caught:
            run_stage("fetch", {"path": name}, {}, tmp_path, sources=[source], name=f"out{len(content)}")
        assert caught.value.code == "E-FORMAT-PICKLE"


@pytest.fixture(scope="module")
def renderer() -> Any:
    made = Renderer(cpu_seconds=1)
    yield made
    made.close()


@pytest.mark.fault("M10", "a chat template that reaches for Python's internals")
@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ messages|attr('__class__')|attr('__base__') }}",
        "{{ raise_exception.__globals__ }}",
        "{{ messages.append(1) }}",
    ],
)
def test_a_template_stays_in_its_sandbox(source: str, renderer: Renderer) -> None:
    try:
        said = renderer.render(source, {"messages": []})
    except RefusedInput as error:
        said = error.code
    # What it may not see is nothing to it: printed, it is the empty text.
    assert said in {"", "E-TEMPLATE-UNSAFE"}


@pytest.mark.fault("M11", "a chat template that never ends, or wants all memory")
@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 10 ** (10 ** 9) }}",
        "{{ ('a' * 4000000000)|length }}",
        "{% set n = namespace(x='a') %}{% for a in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{{ '%999999999d'|format(1) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_a_template_bomb_is_stopped(source: str, renderer: Renderer) -> None:
    started = time.monotonic()
    with pytest.raises(IngotError) as caught:
        renderer.render(source, {"messages": []})
    assert caught.value.code == "E-TEMPLATE-LIMIT"
    assert "4000000000" not in source or "MemoryError" in caught.value.what, "by its memory, before its time is over"
    assert time.monotonic() - started < 60
    assert renderer.render("{{ messages|length }}", {"messages": [1, 2]}) == "2", "and the next one is rendered"
