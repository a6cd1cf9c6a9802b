"""GGUF files compared with transformers through llama.cpp: sound ones pass, planted faults are found in their layer."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from samples import STORIES, TEMPLATE

from ingot.core.stage import Done, Given, Least, Virtual, load_kind
from ingot.errors import RefusedInput, StageFailed
from ingot.kit.gguf.reader import read_gguf
from ingot.kit.gguf.watch import GgmlTensor
from ingot.kit.hf import load_tokenizer
from ingot.kit.parity import gguf as parity_gguf
from ingot.kit.parity.gguf import Checks, LlamaCppRun, Origin, stored_weights
from ingot.kit.parity.limits import LIMITS
from ingot.kit.parity.reference import SourceModel
from ingot.stages._export import Parity
from ingot.stages._gguf_types import PLAIN, FileType, TensorType
from stagekit import Recorder, digest_of, run_done, stage_of

WORDS = {"texts": 3, "max_length": 32}


@pytest.fixture(scope="module")
def model(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained 260 K-parameter model, with a chat template."""
    folder = tmp_path_factory.mktemp("model") / "hf"
    shutil.copytree(stories, folder, ignore=shutil.ignore_patterns("*.gguf", "SOURCE*", "LICENSE*"))
    for path in folder.iterdir():
        path.chmod(0o644)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": TEMPLATE}))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rows = [{**row, "id": f"{number:03}"} for number, row in enumerate(STORIES)]
    (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "train.jsonl").write_text("")
    return folder


@pytest.fixture(scope="module")
def made(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One file without a data set, by its type."""
    root = tmp_path_factory.mktemp("made")
    found = {}
    for kind in ("F16", "Q8_0"):
        run_done("gguf", {"type": kind}, {"model": model}, root, name=kind)
        found[kind] = root / kind / "model.gguf"
    return found


def _checks(model: Path, data: Path, scratch: Path) -> Checks:
    return Checks(Origin(model, load_tokenizer(model), data, scratch, 2), lambda _: None)


def _prove(checks: Checks, path: Path, kind: str) -> Any:
    return checks.run(path, kind, Parity(**WORDS), finite=True)[1]


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
def test_every_type_is_within_its_limits(model: Path, data: Path, tmp_path: Path, kind: str) -> None:
    done = run_done("gguf", {"type": kind, "parity": WORDS}, {"model": model, "data": data}, tmp_path)
    metrics = {name: metric.value for name, metric in done.metrics.items()}
    assert metrics["parity_texts"] == 3
    assert metrics["parity_tokens"] == 1 + 9 + 32
    assert 0.9 < metrics["parity_cosine"] <= 1
    assert metrics["tokenizer_texts"] > 40
    assert ("execution_cosine" in metrics) == (kind not in PLAIN)
    notes: Any = json.loads(json.dumps(done.notes["parity"]))
    layers = notes["parity"]["runs"][f"{kind} in llama.cpp"]["layers"]
    assert len(layers["cosine"]) == 5 + 2
    assert notes["parity"]["golden"]["origin"] == "held-out rows"
    assert "Once upon" not in json.dumps(notes)
    if kind == "Q4_0":
        # what 4 bits cost is no fault of execution
        assert metrics["execution_cosine"] > 0.999 > metrics["parity_cosine"]
        assert metrics["execution_kl"] < 0.01 < metrics["parity_kl"]


def test_every_type_has_limits() -> None:
    names = {*FileType.__args__, *TensorType.__args__}  # type: ignore[attr-defined]
    assert names <= LIMITS.keys()
    order = ["F16", "Q8_0", "Q6_K", "Q4_0", "Q3_K_M", "Q2_K"]
    for finer, coarser in itertools.pairwise(order):
        assert LIMITS[finer].layer < LIMITS[coarser].layer
        assert LIMITS[finer].kl < LIMITS[coarser].kl


def test_without_a_data_set_nothing_is_compared(model: Path, tmp_path: Path) -> None:
    done = run_done("gguf", {"type": "F16"}, {"model": model}, tmp_path)
    assert not [name for name in done.metrics if name.startswith(("parity_", "execution_", "tokenizer_"))]
    assert "parity" not in done.notes


def test_the_file_is_the_same_with_and_without(model: Path, data: Path, made: dict[str, Path], tmp_path: Path) -> None:
    run_done("gguf", {"type": "Q8_0", "parity": WORDS}, {"model": model, "data": data}, tmp_path)
    assert (tmp_path / "out" / "model.gguf").read_bytes() == made["Q8_0"].read_bytes()


def test_a_key_without_parity_is_what_it_was() -> None:
    assert "parity" not in stage_of("gguf", {"type": "Q4_0"}).model_dump(mode="json")
    told = stage_of("gguf", {"type": "Q4_0", "parity": {"texts": 2}}).model_dump(mode="json")
    assert told["parity"]["texts"] == 2


def test_what_does_not_go_together() -> None:
    def misfits(params: dict[str, Any], roles: set[str]) -> list[str]:
        return [name for name, _ in stage_of("gguf", params).misfits(frozenset(roles))]

    assert misfits({"type": "F16", "parity": {}}, {"model"}) == ["parity"]
    assert misfits({"type": "F16", "parity": {}}, {"model", "data"}) == []
    assert misfits({"type": "F16", "allow_nonfinite": True}, {"model", "data"}) == ["allow_nonfinite"]
    for wrong in ({"texts": 0}, {"max_length": 0}, {"cosine": 1.5}, {"kl": 0.0}, {"unknown": 1}):
        with pytest.raises(ValidationError):
            stage_of("gguf", {"type": "F16", "parity": wrong})


def test_comparing_has_no_floor_and_baselines_have_the_model_in_fp32() -> None:
    model = Least(200, 100)
    assert stage_of("gguf", {"type": "Q4_0"}).least_memory({"model": model, "data": Least()}, "cpu") == 0
    timed = stage_of("gguf", {"type": "Q4_0", "benchmark": {"baselines": ["transformers"]}})
    assert timed.least_memory({"model": model}, "cpu") == 400


def _edited(path: Path, to: Path, name: str, change: Any) -> Path:
    """A copy of a file with the bytes of one tensor changed."""
    info = next(info for info in read_gguf(path).tensors if info.name == name)
    data = bytearray(path.read_bytes())
    raw = np.frombuffer(data, np.uint8)[info.begin : info.begin + info.size].copy()
    data[info.begin : info.begin + info.size] = change(raw).tobytes()
    to.write_bytes(data)
    return to


@pytest.mark.parametrize(
    "where",
    [
        ("token_embd.weight", "the embedding"),
        ("blk.2.ffn_down.weight", "layer 2"),
        ("blk.4.attn_output.weight", "layer 4"),
    ],
    ids=str,
)
def test_a_wrong_weight_is_found_in_its_layer(
    model: Path, data: Path, made: dict[str, Path], tmp_path: Path, where: tuple[str, str]
) -> None:
    """The file was not made of the source: llama.cpp executes it rightly, and it is another model."""

    tensor, place = where

    def negated(raw: Any) -> Any:
        values = raw.view(np.float16)
        return -values if "token" not in tensor else np.roll(values, 64)

    path = _edited(made["F16"], tmp_path / "model.gguf", tensor, negated)
    with pytest.raises(StageFailed, match="what its source computes") as caught:
        _prove(_checks(model, data, tmp_path), path, "F16")
    assert caught.value.code == "E-PARITY"
    assert any(fact.startswith(f"it began in {place}:") for fact in caught.value.facts), caught.value.facts


def test_a_file_that_llama_cpp_reads_otherwise_is_told_apart(
    model: Path, data: Path, made: dict[str, Path], tmp_path: Path
) -> None:
    """A wrong number among the metadata: the weights are right, and what is done with them is not."""
    raw = made["Q8_0"].read_bytes()
    key = b"llama.attention.layer_norm_rms_epsilon"
    at = raw.index(key) + len(key) + 4
    path = tmp_path / "model.gguf"
    path.write_bytes(raw[:at] + np.float32(1.0).tobytes() + raw[at + 4 :])
    with pytest.raises(StageFailed, match="what its own weights say") as caught:
        _prove(_checks(model, data, tmp_path), path, "Q8_0")
    assert any(fact.startswith("it began in layer 0:") for fact in caught.value.facts), caught.value.facts
    assert any(fact.startswith("so do") for fact in caught.value.facts)


def test_the_weights_of_a_file_are_the_sources_rounded(model: Path, made: dict[str, Path]) -> None:
    from ingot.kit.hf import iter_tensors

    stored = {name: read() for name, read in stored_weights(made["F16"]).items()}
    source = dict(iter_tensors(model))
    assert stored.keys() == source.keys() - {"lm_head.weight"}
    for name, tensor in stored.items():
        np.testing.assert_array_equal(tensor.half().numpy(), source[name].half().numpy(), err_msg=name)


def test_types_of_one_pass_share_the_sources_traces(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[bool] = []

    class Counting(SourceModel):
        def __init__(self, folder: Path, *, threads: int, weights: Any = None) -> None:
            opened.append(weights is not None)
            super().__init__(folder, threads=threads, weights=weights)

    monkeypatch.setattr(parity_gguf, "SourceModel", Counting)
    kinds = ("F32", "F16", "Q8_0")
    stages = [stage_of("gguf", {"type": kind, "parity": WORDS}) for kind in kinds]
    outs = [tmp_path / kind for kind in kinds]
    for out in [*outs, tmp_path / "scratch"]:
        out.mkdir()
    given = Given(
        {"model": (model,), "data": (data,)},
        {"model": (digest_of(model),), "data": (digest_of(data),)},
        tmp_path / "scratch",
        threads=2,
    )
    done = load_kind("gguf").run_many(stages, given, outs, Recorder())
    assert opened == [False, True]
    assert all(Done.of(each).metrics["parity_cosine"].value > 0.99 for each in done)


def test_a_virtual_model_is_held_in_scratch_to_be_compared(model: Path, data: Path, tmp_path: Path) -> None:
    convert = load_kind("convert").model_validate_json('{"dtype": "float16"}', strict=True)
    scratch, out = tmp_path / "scratch", tmp_path / "virtual"
    for folder in (scratch, scratch / "below", out):
        folder.mkdir()
    below = Given({"model": (model,)}, {"model": (digest_of(model),)}, scratch / "below", threads=2)
    given = Given(
        {"data": (data,)}, {"data": (digest_of(data),)}, scratch, threads=2, virtual={"model": Virtual(convert, below)}
    )
    done = Done.of(stage_of("gguf", {"type": "Q8_0", "parity": WORDS}).run(given, out, Recorder()))
    assert done.metrics["parity_cosine"].value > 0.99
    written = run_done("convert", {"dtype": "float16"}, {"model": model}, tmp_path, name="converted")
    assert {record.path for record in done.passed["model"].files} >= {record.path for record in written.files}
    run_done("gguf", {"type": "Q8_0"}, {"model": tmp_path / "converted"}, tmp_path, name="alone")
    assert digest_of(out) == digest_of(tmp_path / "alone")


def test_a_quantized_checkpoint_is_compared_as_its_users_get_it(model: Path, data: Path, tmp_path: Path) -> None:
    run_done("quantize", {"scheme": "W8A16"}, {"model": model}, tmp_path, name="quantized")
    inputs = {"model": tmp_path / "quantized", "data": data}
    done = run_done("gguf", {"type": "F16", "parity": WORDS}, inputs, tmp_path)
    assert done.metrics["parity_cosine"].value > 0.9999


def test_a_row_that_llama_cpp_reads_otherwise_is_not_told(
    model: Path, data: Path, made: dict[str, Path], tmp_path: Path
) -> None:
    tokenizer: Any = load_tokenizer(model)

    class Other:
        """The source's tokenizer, with other ids for one row."""

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def __call__(self, text: str, **more: Any) -> Any:
            found = tokenizer(text, **more)
            return {"input_ids": [*found["input_ids"], 5]} if "Tell me story 3." in text else found

    checks = Checks(Origin(model, Other(), data, tmp_path, 2), lambda _: None)
    with pytest.raises(StageFailed, match="other token ids") as caught:
        _prove(checks, made["F16"], "F16")
    assert "held-out row" in str(caught.value)
    assert "story" not in str(caught.value)


def test_what_has_no_golden_texts_is_refused_before_anything_is_written(
    stories: Path, data: Path, tmp_path: Path
) -> None:
    """A model without a chat template, and rows that are chats."""
    with pytest.raises(RefusedInput, match="no chat template") as caught:
        run_done("gguf", {"type": "F16"}, {"model": stories, "data": data}, tmp_path)
    assert caught.value.code == "E-CHAT-TEMPLATE"
    assert list((tmp_path / "out").iterdir()) == []


def test_an_empty_held_out_split_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "eval.jsonl").write_text("")
    with pytest.raises(RefusedInput, match="no tokens") as caught:
        run_done("gguf", {"type": "F16"}, {"model": model, "data": tmp_path / "data"}, tmp_path)
    assert caught.value.code == "E-DATASET-EMPTY"


def test_long_texts_come_in_several_batches(
    model: Path, made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ingot.kit import llama_cpp

    ids = [1, *range(300, 339)]
    run = LlamaCppRun(made["F16"], context=64, threads=1)
    whole = run.trace(ids, probes=True)
    run.close()
    monkeypatch.setattr(llama_cpp, "_BATCH", 16)
    run = LlamaCppRun(made["F16"], context=64, threads=1)
    parts = run.trace(ids, probes=True)
    assert run.trace(ids, probes=False).hidden == ()
    run.close()
    assert len(whole.hidden) == len(parts.hidden) == 6
    for one, two in zip((whole.logits, *whole.hidden), (parts.logits, *parts.hidden), strict=True):
        assert one.shape == two.shape
        np.testing.assert_allclose(one, two, atol=0.1)


def test_an_error_in_the_callback_is_raised(made: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, _node: GgmlTensor) -> None:
        raise StageFailed("E-X", "planted")

    monkeypatch.setattr(parity_gguf._Layers, "see", broken)
    run = LlamaCppRun(made["F16"], context=16, threads=1)
    with pytest.raises(StageFailed, match="planted"):
        run.trace([1, 2], probes=True)
    run.close()
