"""Budgets: what exports take where they run, by arithmetic; what cannot fit in the memory that a spec states."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from ingot.core.budgets import Budget, budgets
from ingot.core.graph import Node
from ingot.core.model_shape import ARCHITECTURES, ModelShape, model_shape
from ingot.core.plan import Planned
from ingot.core.quantities import size_of
from ingot.core.stage import Least, Serving
from ingot.core.store import Store
from ingot.stages._shape import PRESETS
from projectkit import Sandbox
from stagekit import stage_of

GB = 10**9
#: A Llama of 2 layers, 2 of 4 heads for keys and values, each of 8: 64 numbers a token.
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
WEIGHTS = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32) + 32 + 100 * 32
HEAD = """targets:
  texts: {kind: dataset, sources: [{python_stdlib: topics}]}
  tokens: {kind: tokenizer, from: {data: texts}, vocab_size: 64000}
"""
STUDENT = "kind: student, from: {data: texts, tokenizer: tokens}, steps: 1, weights: bfloat16"
ROLES = f"""{HEAD}  worker: {{{STUDENT}, preset: 9b, vocabulary: 64000, context: 16384}}
  q8: {{kind: gguf, from: {{model: worker}}, type: Q8_0}}
  q4: {{kind: gguf, from: {{model: worker}}, type: Q4_0}}
  half: {{kind: coreml, from: {{model: worker}}, weights: float16}}
"""


def by_target(sandbox: Sandbox) -> dict[str, Any]:
    return {item["target"].partition(":")[2]: item["budget"] for item in sandbox.json("plan")["targets"]}


def test_sessions_fit_by_arithmetic_before_anything_is_built(sandbox: Sandbox) -> None:
    sandbox.spec("budget: {memory: 64GB}\n" + ROLES)
    found = by_target(sandbox)
    assert found["worker"] is None, "it is no export"
    weights, token = 8_829_407_232, 48 * 2 * 4 * 128 * 2
    session = token * 16_384
    assert found["q8"] == {
        "weights_bytes": weights * 17 // 16,
        "measured": False,
        "token_bytes": token,
        "context": 16_384,
        "session_bytes": session,
        "memory_bytes": 64 * GB,
        "sessions": (64 * GB - weights * 17 // 16) // session,
        "fits": True,
    }
    assert found["half"]["weights_bytes"] == 2 * weights
    assert (found["half"]["session_bytes"], found["half"]["sessions"], found["half"]["fits"]) == (0, None, True)
    text = sandbox.ok("plan")
    assert re.search(r"s:q8 +≥ 9.4 GB +98.3 kB +16,384 +1.6 GB +≤ 33 in 64.0 GB\n", text)
    assert re.search(r"s:half +≥ 17.7 GB", text)
    assert "fits in 64.0 GB; keeps nothing between calls\n" in text


def test_what_cannot_fit_is_refused_before_the_first_stage(sandbox: Sandbox) -> None:
    sandbox.spec("budget: {memory: 10 GB, targets: {half: 16GiB}}\n" + ROLES)
    refused = {item["target"]: item for item in sandbox.json("plan")["refused"] if item["code"] == "E-BUDGET"}
    assert set(refused) == {"s:q8", "s:half"}
    assert refused["s:q8"]["needed_bytes"] == 8_829_407_232 * 17 // 16 + 98_304 * 16_384
    assert (refused["s:q8"]["available_bytes"], refused["s:half"]["available_bytes"]) == (10 * GB, 16 << 30)
    text = sandbox.ok("plan")
    assert "doit would refuse: E-BUDGET: s:q8 cannot run in its budget: its weights and one session of 16,384" in text
    assert "a session: 1.6 GB of keys and values, 98.3 kB a token" in text
    assert "does not fit in 10.0 GB" in text
    done = sandbox.doit()
    assert done.returncode == 2
    assert "E-BUDGET" in done.stdout + done.stderr
    assert not (sandbox.root / "registry").exists(), "nothing was built"


def test_without_a_budget_nothing_is_refused_and_the_figures_are_there(sandbox: Sandbox) -> None:
    sandbox.spec(ROLES)
    found = by_target(sandbox)
    assert (found["q8"]["memory_bytes"], found["q8"]["sessions"], found["q8"]["fits"]) == (None, None, None)
    assert found["q8"]["session_bytes"] == 98_304 * 16_384
    assert "E-BUDGET" not in sandbox.ok("plan")


def test_a_fetched_model_is_known_once_it_is_there(sandbox: Sandbox) -> None:
    """Before, nobody knows its shape, and nothing is made up."""
    sandbox.file("specs/config.json", json.dumps(CONFIG))
    text = "budget: {memory: 1MB}\ntargets:\n  base: {kind: command, command: [sh, -c, 'cp config.json {out}/'], "
    text += "files: [config.json]}\n  export: {kind: gguf, from: {model: base}, type: F16}\n"
    sandbox.spec(text)
    unknown = by_target(sandbox)["export"]
    assert {name for name, value in unknown.items() if value is None} == {
        "weights_bytes", "token_bytes", "context", "session_bytes", "sessions", "fits",
    }  # fmt: skip
    assert "not known before its model is built" in sandbox.ok("plan")
    sandbox.ok("s:base")
    known = by_target(sandbox)["export"]
    assert (known["weights_bytes"], known["token_bytes"], known["context"]) == (2 * WEIGHTS, 128, 64)
    assert known["sessions"] == (10**6 - 2 * WEIGHTS) // (128 * 64)
    sandbox.spec(text.replace("1MB", "20 kB"))
    assert [item["code"] for item in sandbox.json("plan")["refused"]] == ["E-BUDGET"]


def test_a_budget_is_part_of_no_key(sandbox: Sandbox) -> None:
    sandbox.file("specs/config.json", json.dumps(CONFIG))
    target = "targets:\n  base: {kind: command, command: [sh, -c, 'cp config.json {out}/'], files: [config.json]}\n"
    sandbox.spec(target)
    sandbox.ok()
    sandbox.spec("budget: {memory: 1GB}\n" + target)
    assert set(sandbox.states().values()) == {"fresh"}


class Folders:
    """A store whose objects are folders by digest."""

    def __init__(self, root: Path) -> None:
        self.object_path = root.joinpath


def recorded(digest: str, **metrics: int) -> dict[str, Any]:
    files = [{"path": "config.json", "size": 10}]
    return {"digest": digest, "files": files, "metrics": {name: {"value": it} for name, it in metrics.items()}}


def chain(**receipts: dict[str, Any]) -> dict[str, Planned]:
    """base → merged, which is virtual → export, each with what is recorded of it; base is here."""
    kinds = {"base": ("convert", "hf", {}), "merged": ("merge", "hf", {}), "export": ("gguf", "gguf", {"type": "F16"})}
    plan: dict[str, Planned] = {}
    before: tuple[str, ...] = ()
    for name, (kind, form, params) in kinds.items():
        inputs: dict[str, tuple[str, ...]] = {"model": before} if before else {}
        node = Node(kind, 1, "deterministic", form, params, spec="s", name=name, target=name, inputs=inputs)
        here = Planned(node, "fresh", receipt=receipts.get(name), presence="present" if name != "merged" else "missing")
        plan[f"s:{name}"] = here if name in receipts else replace(here, state="waiting", presence="missing")
        before = (name,)
    return plan


def test_of_an_export_that_is_at_hand_the_measured_bytes_count(tmp_path: Path) -> None:
    """A merged model that only flowed by has no config.json here: its kind says that its shape is the base's."""
    config(tmp_path / "b")
    store = cast("Store", Folders(tmp_path))
    receipts = {
        "base": recorded("b"),
        "merged": recorded("m", parameters=7000),
        "export": recorded("e", bytes=2345, parameters=1),
    }
    stated = {"s": {"memory": 10**6}}
    (found,) = budgets(chain(**receipts), (), store, stated).values()
    assert found == Budget(2345, 128, 64, measured=True, memory_bytes=10**6)
    del receipts["export"]
    (planned,) = budgets(chain(**receipts), {"s:export"}, store, stated).values()
    assert planned == Budget(14_000, 128, 64, memory_bytes=10**6)
    assert budgets({"s:base": chain(**receipts)["s:base"]}, (), store, stated) == {}


# --- one budget --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "sessions", "fits"),
    [
        (Budget(100, 2, 10, memory_bytes=139), 1, True),
        (Budget(100, 2, 10, memory_bytes=140), 2, True),
        (Budget(100, 2, 10, memory_bytes=120), 1, True),
        (Budget(100, 2, 10, memory_bytes=119), 0, False),
        (Budget(100, 0, None, memory_bytes=100), None, True),
        (Budget(100, 0, None, memory_bytes=99), None, False),
        (Budget(100, None, None, memory_bytes=100), None, None),
        (Budget(100, None, None, memory_bytes=99), None, False),
        (Budget(None, 2, 10, memory_bytes=20), None, None),
        (Budget(None, 2, 10, memory_bytes=19), None, False),
        (Budget(100, 2, None, memory_bytes=500), None, None),
        (Budget(100, 2, 10), None, None),
    ],
)
def test_sessions_are_whole_and_one_must_fit(budget: Budget, sessions: int | None, fits: bool | None) -> None:
    assert (budget.sessions, budget.fits) == (sessions, fits)


CACHED = {"weights": "int4", "kv_cache": True, "sequence_lengths": [128], "minimum_deployment_target": "iOS18"}
MODEL = Least(weights=1000, cache=64, context=512)


@pytest.mark.parametrize(
    ("kind", "params", "model", "serving"),
    [
        ("gguf", {"type": "F16"}, MODEL, Serving(2000, 128, 512)),
        ("gguf", {"type": "Q8_0", "token_embedding_type": "Q4_0"}, MODEL, Serving(562, 128, 512)),
        ("gguf", {"type": "F16"}, Least(), Serving(None, None, None)),
        ("coreml", {"weights": "int8"}, MODEL, Serving(1000, 0, None)),
        ("coreml", {"weights": "float32", "compute_precision": "float32"}, MODEL, Serving(4000, 0, None)),
        ("onnx", {}, MODEL, Serving(4000, 256, 512)),
        ("onnx", {"precision": "float16", "quantization": "int4", "max_length": 64}, MODEL, Serving(500, 128, 64)),
        ("onnx", {"kv_cache": False, "quantization": "int8_dynamic"}, MODEL, Serving(1000, 0, None)),
        ("coreml", CACHED | {"context": 300}, MODEL, Serving(500, 128, 300)),
        ("quantize", {}, MODEL, None),
    ],
)
def test_what_a_kind_takes_where_it_runs(
    kind: str, params: dict[str, Any], model: Least, serving: Serving | None
) -> None:
    assert stage_of(kind, params).serving(model) == serving


def test_several_models_have_no_shape() -> None:
    assert Least.together([MODEL]) == MODEL
    assert Least.together([MODEL, MODEL]) == Least(0, 2000)
    assert Least.together([]) == Least()


# --- shapes ------------------------------------------------------------------------------------------------------


def config(folder: Path, **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
    merged = {name: value for name, value in (CONFIG | changes).items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(merged))
    return folder


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(
    "changes",
    [
        {}, {"head_dim": 16}, {"num_key_value_heads": ...}, {"tie_word_embeddings": False},
        {"sliding_window": 40}, {"sliding_window": 40, "use_sliding_window": True}, {"sliding_window": None},
    ],
)  # fmt: skip
def test_a_config_says_what_the_decoder_reads_in_it(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from ingot.kit.decoder.shape import SUPPORTED, decoder_shape

    assert set(ARCHITECTURES) == set(SUPPORTED)
    folder = config(tmp_path / "m", architectures=[name], **changes)
    read = decoder_shape(json.loads((folder / "config.json").read_text()), "E-X")
    found = model_shape(folder)
    assert found is not None
    assert (found.cache, found.context) == (2 * read.layers * read.kv_heads * read.head_dim, read.context)


@pytest.mark.parametrize("name", ["0.3m", "4b", "9b"])
def test_a_config_says_what_its_preset_says(name: str, tmp_path: Path) -> None:
    shape, rows = PRESETS[name].shape, PRESETS[name].vocabulary
    found = model_shape(config(tmp_path / "m", vocab_size=rows, **shape.config()))
    assert found == ModelShape(shape.parameters(rows), shape.cache, shape.context)


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["DeepseekV3ForCausalLM"]}, {"architectures": ...}, {"architectures": "LlamaForCausalLM"},
        {"num_hidden_layers": ...}, {"num_hidden_layers": 0}, {"hidden_size": -1}, {"vocab_size": "100"},
        {"num_attention_heads": 1.5}, {"num_key_value_heads": True}, {"hidden_size": 1 << 40},
    ],
)  # fmt: skip
def test_of_any_other_config_nothing_is_said(changes: dict[str, Any], tmp_path: Path) -> None:
    assert model_shape(config(tmp_path / "m", **changes)) is None


def test_what_is_no_config_says_nothing(tmp_path: Path) -> None:
    assert model_shape(tmp_path) is None
    for text in ("", "[]", "{", "[" * 100_000, '{"architectures": ["LlamaForCausalLM"]}', "x" * (1 << 21)):
        (tmp_path / "config.json").write_text(text)
        assert model_shape(tmp_path) is None


# --- as written --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64GB", 64 * GB), ("64 gb", 64 * GB), ("1.5TB", 1500 * GB), ("512 B", 512), ("8kB", 8000), ("3 MB", 3 * 10**6),
        ("16GiB", 16 << 30), ("1 KiB", 1024), ("64", None), ("GB", None), ("-1GB", None), ("1iB", None),
        ("1e3GB", None), ("64  GB", None), ("1GBs", None),
    ],
)  # fmt: skip
def test_sizes_are_read(text: str, size: int | None) -> None:
    assert size_of(text) == size


@pytest.mark.parametrize(
    ("written", "code"),
    [
        ("64GB", "E-SPEC-TYPE: budget: must be a mapping such as {memory: 64GB}"),
        ("{}", "E-SPEC-MISSING: budget: needs a memory: memory or targets"),
        ("{memory: 64}\nseed: 2.5", "E-SPEC-TYPE: seed"),
        ("{memory: many}", "E-SPEC-TYPE: budget.memory: must be a size, not 'many'"),
        ("{memory: 1.5}", "E-SPEC-TYPE: budget.memory: must be a size"),
        ("{memory: true}", "E-SPEC-TYPE: budget.memory: must be a size"),
        ("{memory: 0}", "E-SPEC-VALUE: budget.memory: must be at least 1 byte, not 0"),
        ("{memory: 0GB}", "E-SPEC-VALUE: budget.memory: must be at least 1 byte, not 0"),
        ("{memroy: 1GB}", "E-SPEC-FIELD: budget.memroy: unknown field 'memroy'"),
        ("{targets: 1GB}", "E-SPEC-TYPE: budget.targets: must be a mapping of targets to memory"),
        ("{targets: {haf: 1GB}}", "E-SPEC-VALUE: budget.targets.haf: there is no target 'haf'"),
        ("{targets: {half: big}}", "E-SPEC-TYPE: budget.targets.half: must be a size"),
    ],
)
def test_what_is_wrong_with_a_budget_is_said_with_its_place(sandbox: Sandbox, written: str, code: str) -> None:
    sandbox.spec(f"format: 1\nname: s\nbudget: {written}\n" + ROLES)
    done = sandbox.doit("plan")
    assert done.returncode == 2
    assert code in done.stderr


def test_editors_know_sizes_as_the_reader_does() -> None:
    from ingot.core.spec_budget import SIZE_PATTERN

    for text in ("64GB", "1.5 TB", "16GiB", "8kB", "512 B", "1iB", "GB", "64", "-1GB", "1e3GB"):
        assert bool(re.fullmatch(SIZE_PATTERN[1:-1], text)) == (size_of(text) is not None), text
