"""Tasks of lm-eval over candidates: its own scores on its own model, on every container, and what a spec sees."""

from __future__ import annotations

import bz2
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from harnesskit import all_forms, code_task, write
from ingot.core.stage import Metric
from ingot.errors import RefusedInput
from stagekit import run_stage, stage_of

ALL = ("ending", "letters", "sums", "story")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the harness and what it loads


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def asked(
    candidate: Path, folder: Path, tmp_path: Path, tasks: Sequence[str], **params: Any
) -> tuple[dict[str, Any], Mapping[str, Metric], list[dict[str, Any]]]:
    """The harness's own figures as the stage writes them, its metrics, its items."""
    given = {"path": "tasks", "tasks": list(tasks), **params}
    out, metrics = run_stage("harness", given, {"candidate": candidate}, tmp_path, sources=[folder], threads=1)
    return json.loads((out / "harness.json").read_text(encoding="utf-8")), metrics, lines(out / "items.jsonl")


def directly(
    model: Path, folder: Path, tmp_path: Path, tasks: Sequence[str], patch: pytest.MonkeyPatch, **more: Any
) -> dict[str, Any]:
    """``simple_evaluate`` by itself, with its own class for transformers; its files need paths that it finds."""
    from lm_eval import evaluator
    from lm_eval.tasks import TaskManager

    copy = tmp_path / "direct"
    shutil.copytree(folder, copy)
    for path in (path for path in copy.iterdir() if path.suffix != ".jsonl"):
        text = path.read_text(encoding="utf-8")
        for data in copy.glob("*.jsonl"):
            text = text.replace(f" {data.name}", f" {data}")
        path.write_text(text, encoding="utf-8")
    patch.setenv("HF_HUB_OFFLINE", "1")
    patch.setattr(evaluator, "add_env_info", lambda results: None)  # runs pip and compilers
    found: dict[str, Any] = evaluator.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(model), "dtype": "float32"},
        device="cpu",
        tasks=list(tasks),
        task_manager=TaskManager(include_path=str(copy), include_defaults=False),
        bootstrap_iters=2000,
        **more,
    )
    return found


def same(ours: dict[str, Any], items: list[dict[str, Any]], theirs: dict[str, Any]) -> int:
    """Every figure is theirs as the harness prints it, every item's result is theirs; how many figures."""
    count = 0
    for task, figures in ours["results"].items():
        told = {key: value for key, value in theirs["results"][task].items() if "," in key}
        assert set(figures) == set(told)
        for key, value in figures.items():
            count += isinstance(value, float)
            assert value == (pytest.approx(told[key], rel=1e-5) if isinstance(value, float) else told[key]), key
            assert str(value)[:6] == str(told[key])[:6], key
    for task, samples in theirs["samples"].items():
        mine = {(item["filter"], item["item"]): item for item in items if item["task"] == task}
        assert len(mine) == len(samples)
        for sample in samples:
            item = mine[sample["filter"], sample["doc_id"]]
            assert item["doc"] == sample["doc_hash"]
            for name in sample["metrics"]:
                value = sample[name]
                value = list(value) if isinstance(value, tuple) else value
                assert item["results"][name] == pytest.approx(value, rel=1e-5), (task, name)
            if "answers" in item:
                assert item["answers"] == list(sample["filtered_resps"])
    return count


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return all_forms(tmp_path_factory.mktemp("tasks") / "tasks")


def test_every_score_is_that_of_the_harness_on_its_own_model(
    stories: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, metrics, items = asked(stories, folder, tmp_path, ALL)
    theirs = directly(stories, folder, tmp_path, ALL, monkeypatch)
    assert same(ours, items, theirs) >= 14
    assert any(item["answers"] != ["[invalid]"] for item in items if item["task"] == "sums"), "words were said"
    assert metrics["items"].value == 6 + 12 + 5 + 6
    assert metrics["ending_acc"].value == theirs["results"]["ending"]["acc,none"]
    assert metrics["letters_acc"].value == theirs["results"]["letters"]["acc,none"]
    assert metrics["letters_one_acc"].n == 6 and metrics["letters_acc"].n == 12
    assert metrics["story_bits_per_byte"].unit == "bits/byte"


def test_examples_limits_and_lengths_are_those_of_the_harness(
    stories: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Contexts of many examples do not fit into 96 tokens, and lose their beginning."""
    wish = {"num_fewshot": 3, "limit": 3}
    ours, metrics, items = asked(stories, folder, tmp_path, ["ending", "sums"], max_length=96, **wish)
    from lm_eval.models.huggingface import HFLM

    monkeypatch.setattr(HFLM, "max_length", 96)
    theirs = directly(stories, folder, tmp_path, ["ending", "sums"], monkeypatch, **wish)
    assert same(ours, items, theirs) >= 6
    assert metrics["items"].value == 6
    assert metrics["truncated"].value > 0


def test_a_chat_template_is_applied_as_the_harness_applies_it(
    stories: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "chat"
    shutil.copytree(stories, model, ignore=shutil.ignore_patterns("*.gguf"))
    config = json.loads((model / "tokenizer_config.json").read_text())
    template = "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"
    (model / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    prefixed = write(tmp_path / "tasks", {path.name: path.read_text() for path in folder.iterdir()})
    task = (prefixed / "sums.yaml").read_text()
    (prefixed / "sums.yaml").write_text(f"{task}gen_prefix: 'The answer'\n")
    wish = {"apply_chat_template": True, "system_instruction": "Be short."}
    ours, _, items = asked(model, prefixed, tmp_path, ["ending", "sums"], **wish)
    theirs = directly(model, prefixed, tmp_path, ["ending", "sums"], monkeypatch, fewshot_as_multiturn=True, **wish)
    assert same(ours, items, theirs) >= 6


@pytest.fixture
def gguf(stories_gguf: Path, tmp_path: Path) -> Path:
    (tmp_path / "gguf").mkdir()
    shutil.copyfile(stories_gguf, tmp_path / "gguf" / "model.gguf")
    return tmp_path / "gguf"


def test_a_gguf_of_the_same_weights_scores_the_same(stories: Path, gguf: Path, folder: Path, tmp_path: Path) -> None:
    one, _, _ = asked(stories, folder, tmp_path / "one", ALL, max_length=96)  # the file says 128
    other, metrics, _ = asked(gguf, folder, tmp_path / "other", ALL, max_length=96)
    for task, figures in one["results"].items():
        for key, value in figures.items():
            assert other["results"][task][key] == (
                pytest.approx(value, rel=2e-3) if isinstance(value, float) else value
            )
    assert metrics["story_bits_per_byte"].interval is not None


@pytest.mark.slow
def test_an_onnx_model_is_asked_the_same_questions(stories: Path, folder: Path, tmp_path: Path) -> None:
    """It cannot go back in what it read, so every text is read as a whole."""
    exported, _ = run_stage(
        "onnx", {"parity": {"texts": 1, "max_length": 16}}, {"model": stories}, tmp_path, name="onnx"
    )
    one, _, _ = asked(stories, folder, tmp_path / "one", ["ending", "sums"], limit=3)
    other, _, _ = asked(exported, folder, tmp_path / "other", ["ending", "sums"], limit=3)
    assert other["results"] == one["results"]


def test_real_items_of_gsm8k_and_hellaswag_score_as_in_the_harness(
    stories: Path, shared_data: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forms of the published files: GSM8K's JSON lines as they are, HellaSwag's six lines an item."""
    with bz2.open(shared_data / "sets" / "hellaswag" / "hellaswag_val_full.txt.bz2", "rt", encoding="utf-8") as file:
        found = [line.rstrip("\n") for line in (file.readline() for _ in range(6 * 8))]
    endings = [
        {"query": found[at], "label": int(found[at + 1]), "choices": found[at + 2 : at + 6]} for at in range(0, 48, 6)
    ]
    problems = [
        json.loads(line)
        for line in (shared_data / "sets" / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()[:3]
    ]
    real = write(
        tmp_path / "real",
        {path.name: path.read_text() for path in folder.iterdir()} | {"endings.jsonl": endings, "sums.jsonl": problems},
    )
    ours, metrics, items = asked(stories, real, tmp_path, ["ending", "sums"])
    theirs = directly(stories, real, tmp_path, ["ending", "sums"], monkeypatch)
    assert same(ours, items, theirs) >= 8
    assert metrics["ending_acc_norm"].n == 8


class Forgetful:
    """A backend that cannot go back in what it read."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        if name == "resumed":
            raise AttributeError(name)
        return getattr(self._backend, name)


def test_what_texts_begin_with_in_common_is_read_once(stories: Path, gguf: Path) -> None:
    from ingot.kit.backends import open_backend
    from ingot.kit.harness.reading_on import Reader, Resuming

    texts = [[1, 5, 9, 7, 8, 30], [1, 5, 9, 7, 8, 31, 40], [1, 5, 9, 7, 8, 31, 40, 41], [1, 5, 60, 61]]
    for candidate in (stories, gguf):
        backend: Any = open_backend(candidate, dtype="float32", context=64, threads=1)
        whole = Reader(Forgetful(backend))
        assert not isinstance(Forgetful(backend), Resuming)
        fresh = [next(whole.rows(ids, len(ids) - 1)) for ids in texts]
        assert whole.fed == sum(map(len, texts))
        reader = Reader(backend)
        for ids, expected in zip(texts, fresh, strict=True):
            (found,) = reader.rows(ids, len(ids) - 1)
            assert found.shape == expected.shape
            assert (found - expected).abs().max() < 1e-3
        assert reader.fed == 6 + 2 + 1 + 2
        assert abs(reader.prefill(texts[2]) - fresh[2][-1].numpy()).max() < 1e-3
        assert reader.step(3).shape == reader.prefill([*texts[2], 3]).shape
        assert reader.fed == 11 + 6 + 1 + 1, "the last token of a prompt is read for what follows it"


def test_a_backend_that_cannot_go_back_scores_the_same(
    stories: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ingot.kit import backends

    one, _, _ = asked(stories, folder, tmp_path / "one", ALL)
    opened = backends.open_backend
    monkeypatch.setattr(backends, "open_backend", lambda *args, **more: Forgetful(opened(*args, **more)))
    other, _, _ = asked(stories, folder, tmp_path / "other", ALL)
    for task, figures in one["results"].items():
        assert other["results"][task] == {
            key: pytest.approx(value, rel=1e-5) if isinstance(value, float) else value for key, value in figures.items()
        }


def test_programs_of_a_model_run_in_the_sandbox_alone(stories: Path, tmp_path: Path) -> None:
    folder = code_task(tmp_path / "tasks")
    ours, metrics, items = asked(stories, folder, tmp_path, ["code"], run_code={})
    assert metrics["pass_at_1"].value == 0.5
    assert metrics["pass_at_1"].n == 4
    low, high = metrics["pass_at_1"].interval or (0, 0)
    assert 0.1 < low < 0.2 and 0.8 < high < 0.9
    assert [item["results"]["pass@1"] for item in items] == [1.0, 1.0, 0.0, 0.0]
    assert ours["programs"] == {"AssertionError": 1, "ZeroDivisionError": 1, "passed": 2}


def test_an_artifact_holds_no_path_and_settings_tell_the_content(stories: Path, folder: Path, tmp_path: Path) -> None:
    written = []
    for name in ("one", "two"):
        params = {"path": f"somewhere/{name}", "tasks": ["ending"], "limit": 2}
        out, _ = run_stage("harness", params, {"candidate": stories}, tmp_path, sources=[folder], name=name)
        assert sorted(path.name for path in out.iterdir()) == ["evaluation.json", "harness.json", "items.jsonl"]
        written.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert written[0] == written[1]
    evaluation = json.loads(written[0]["evaluation.json"])
    assert len(evaluation["settings"]["path"]) == 64
    assert evaluation["kind"] == "harness" and evaluation["container"] == "hf"


def test_only_the_metrics_that_are_asked_for_are_kept(stories: Path, folder: Path, tmp_path: Path) -> None:
    params = {"path": "tasks", "tasks": ["ending"], "limit": 2, "metrics": ["acc_norm", "acc_norn"]}
    out, metrics = run_stage("harness", params, {"candidate": stories}, tmp_path, sources=[folder])
    assert set(metrics) == {"items", "truncated", "acc_norm"}
    missing = json.loads((out / "evaluation.json").read_text())["not_measured"]
    assert missing == {"acc_norn": "the tasks do not give it: they give acc, acc_norm"}


def test_what_a_spec_may_gate_is_what_will_be_measured() -> None:
    params = {"path": "tasks", "tasks": ["ending"]}
    told = stage_of("harness", params).measured(frozenset())
    assert {"acc", "exact_match", "exact_match_FILTER", "TASK_acc", "pass_at_K"} <= set(told)
    named = stage_of("harness", params | {"metrics": ["my_own"]}).measured(frozenset())
    assert named == ("items", "truncated", "my_own")


def test_an_answer_that_leaves_no_room_is_refused(stories: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RefusedInput) as caught:
        asked(stories, folder, tmp_path, ["sums"], max_tokens=512)
    assert caught.value.code == "E-HARNESS-CONTEXT"
    assert not list((tmp_path / "out").iterdir())


def test_task_code_that_wants_the_network_is_one_clear_error(stories: Path, folder: Path, tmp_path: Path) -> None:
    task = (folder / "ending.yaml").read_text()
    bad = write(
        tmp_path / "bad",
        {
            "ending.yaml": f"{task}custom_dataset: !function far.items\n",
            "endings.jsonl": (folder / "endings.jsonl").read_text(),
            "far.py": "def items(**_):\n    raise ConnectionError('offline mode is enabled')\n",
        },
    )
    with pytest.raises(RefusedInput) as caught:
        asked(stories, bad, tmp_path, ["ending"])
    assert caught.value.code == "E-HARNESS-TASK"
    assert "ConnectionError: offline mode is enabled" in str(caught.value)
    assert not list(bad.glob("__pycache__")), "the folder of the sources is left as it is"


def test_a_failure_of_a_task_template_is_one_clear_error(stories: Path, folder: Path, tmp_path: Path) -> None:
    bad = write(tmp_path / "bad", {path.name: path.read_text() for path in folder.iterdir()})
    (bad / "ending.yaml").write_text((folder / "ending.yaml").read_text().replace("{{query}}", "{{qwery}}"))
    with pytest.raises(RefusedInput) as caught:
        asked(stories, bad, tmp_path, ["ending"])
    assert caught.value.code == "E-HARNESS-TASK"
    assert "qwery" in str(caught.value)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """As stages are."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
