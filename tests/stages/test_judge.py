"""Samples, matches and judgements as targets: over a trained model, under a report and written as such."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ingot.core.key import key_of, params_in_key
from ingot.core.rederive import derive, disagreements
from ingot.core.stage import Metric, load_kind
from ingot.errors import RefusedInput
from ingot.kit import samples
from speckit import Folder
from stagekit import digest_of, run_stage, stage_of
from tinymodels import chat_model

ASKED = {"documents": 3, "max_tokens": 16, "context": 128}
SPEC = """\
format: 1
name: s
seed: 1
targets:
  base: {kind: fetch, path: model}
  data: {kind: dataset, sources: [{path: rows.jsonl}]}
  one: {kind: gguf, from: {model: base}, type: Q8_0}
  two: {kind: gguf, from: {model: base}, type: Q4_0}
  report:
    kind: report
    from: {data: data, reference: base, candidates: [one, two], judge: base}
    documents: 2
    repeats: 1
    prompt_tokens: 8
    generation_tokens: 2
    tasks:
      said: {kind: samples, documents: 3, max_tokens: 16, context: 128}
      match: {kind: match, samples: {documents: 3, max_tokens: 16, context: 128}}
      better: {kind: judge, context: 512, samples: {documents: 3, max_tokens: 16, context: 128}}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of the beginnings of stories and what follows."""
    folder = tmp_path_factory.mktemp("data") / "data"
    folder.mkdir()
    texts = ("Once upon a time, there was a", "The little dog was very", "One day, Lily went to the", "Tom and Mia")
    rows = [{"id": f"{n:016x}", "prompt": text, "completion": " park. The end."} for n, text in enumerate(texts)]
    (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "train.jsonl").write_text("")
    return folder


def gguf(stories_gguf: Path, folder: Path) -> Path:
    folder.mkdir()
    shutil.copyfile(stories_gguf, folder / "model.gguf")
    return folder


def evaluation(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    return found


def rederived(kind: str, folder: Path, metrics: Mapping[str, Metric]) -> set[str]:
    """The metrics that the bytes tell again, all of them as recorded."""
    found = derive(
        {"kind": kind, "digest": digest_of(folder), "inputs": {}, "metrics": {}}, {digest_of(folder): folder}.get
    )
    assert disagreements({"metrics": {name: metric.to_dict() for name, metric in metrics.items()}}, found) == []
    return set(found)


class Built:
    """What is built in a folder: one artifact a node, equal keys once."""

    def __init__(self, tmp_path: Path, known: Mapping[str, Path]) -> None:
        self.tmp, self.known = tmp_path, known
        self.folders: dict[str, Path] = {}
        self.made: dict[str, Path] = {}
        self.metrics: dict[str, Mapping[str, Metric]] = {}
        self.ran: list[str] = []

    def run(self, spec: str) -> None:
        """Build every node that is not known, as what has the same key if anything has."""
        self.folders = dict(self.known)
        for node in Folder(self.tmp).load(spec).graph().nodes:
            if node.name in self.known:
                continue
            inputs = {role: [self.folders[name] for name in names] for role, names in node.inputs.items()}
            read = {role: [digest_of(path) for path in paths] for role, paths in inputs.items()}
            key = key_of({"kind": node.kind, "params": params_in_key(node), "inputs": read})
            if key not in self.made:
                name = f"{len(self.made)}"
                self.ran.append(node.name)
                self.made[key], self.metrics[node.name] = run_stage(
                    node.kind, node.params, inputs, self.tmp / "built", name=name
                )
            self.folders[node.name] = self.made[key]


def test_a_report_has_all_three_and_each_model_is_asked_once(
    stories: Path, stories_gguf: Path, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "specs").mkdir()
    (tmp_path / "q4").mkdir()
    one = gguf(stories_gguf, tmp_path / "one")
    two = chat_model(stories, tmp_path / "two")  # another digest; what it is does not matter here
    built = Built(tmp_path, {"base": stories, "data": data, "one": one, "two": two})
    built.run(SPEC)
    asked = [name for name in built.ran if name.endswith((".said", ".samples"))]
    assert asked == ["report.base.said", "report.one.said", "report.two.said"], "n + 1 generations, whoever reads them"
    report = json.loads((built.folders["report"] / "report.json").read_text(encoding="utf-8"))
    rows = {row["candidate"]: [task["kind"] for task in row["tasks"]] for row in report["rows"]}
    assert rows == {
        digest_of(stories): ["samples", "match"],
        digest_of(one): ["samples", "match", "judge"],
        digest_of(two): ["samples", "match", "judge"],
    }
    judged = built.metrics["report.one.better"]
    # the GGUF says what the checkpoint says, so nobody was asked
    assert {name: metric.value for name, metric in judged.items()} == {
        "pairs": 3, "win_rate": 0, "tie_rate": 1, "loss_rate": 0,
    }  # fmt: skip
    assert set(evaluation(built.folders["report.one.better"])["not_measured"]) == {
        "agreement", "agreement_kappa", "position_bias",
    }  # fmt: skip
    for name, metrics in built.metrics.items():
        if name.endswith((".said", ".match", ".better")):
            found = evaluation(built.folders[name])
            told = load_kind(found["kind"]).model_construct().measured(frozenset())
            assert set(metrics) | set(found["not_measured"]) == set(told)


def test_a_second_candidate_asks_that_one_alone(stories: Path, stories_gguf: Path, data: Path, tmp_path: Path) -> None:
    one = gguf(stories_gguf, tmp_path / "one")
    two = chat_model(stories, tmp_path / "two")
    built = Built(tmp_path, {"base": stories, "data": data, "one": one, "two": two})
    built.run(SPEC.replace("candidates: [one, two]", "candidates: [one]"))
    before = len(built.ran)
    built.run(SPEC)
    again = built.ran[before:]
    assert again == ["report.two", "report.two.said", "report.two.match", "report.two.better", "report"]


@pytest.fixture(scope="module")
def said(stories: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the model answers, sampled with a seed."""
    work = tmp_path_factory.mktemp("said")
    params = {**ASKED, "temperature": 0.9, "seed": 3}
    return run_stage("samples", params, {"candidate": stories, "data": data}, work)[0]


def test_both_runtimes_answer_alike(stories: Path, stories_gguf: Path, data: Path, tmp_path: Path) -> None:
    found = []
    for number, model in enumerate((stories, gguf(stories_gguf, tmp_path / "gguf"))):
        out, metrics = run_stage("samples", ASKED, {"candidate": model, "data": data}, tmp_path, name=f"out{number}")
        found.append([(item.prompt, item.answer.strip(), item.tokens) for item in samples.read(out)])
        assert rederived("samples", out, metrics) == {"samples", "tokens", "ended"}
        assert metrics["samples"].value == 3
    assert found[0] == found[1]
    assert found[0][0][0] == "Once upon a time, there was a"
    assert all(tokens == 16 for _, _, tokens in found[0])


def test_prompts_of_the_spec_need_no_data(stories: Path, tmp_path: Path) -> None:
    params = {"prompts": ["Once upon a time", "The dog"], "max_tokens": 60, "context": 128, "stop": ["."]}
    out, metrics = run_stage("samples", params, {"candidate": stories}, tmp_path)
    found = samples.read(out)
    assert [item.prompt for item in found] == ["Once upon a time", "The dog"]
    assert all("." not in item.answer for item in found)
    assert {item.ended for item in found} == {"stop"}
    assert metrics["ended"].value == 1
    assert evaluation(out)["data"] is None


def test_matches_are_of_the_rows_own_answers(stories: Path, data: Path, said: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (said / "samples.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in (data / "eval.jsonl").read_text().splitlines()]
    right = tmp_path / "right"
    right.mkdir()
    told = {row["id"]: row for row in rows} | {
        line["id"]: {"id": line["id"], "prompt": line["prompt"], "completion": line["answer"]} for line in lines[:2]
    }
    (right / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told.values()))
    (right / "train.jsonl").write_text("")
    out, metrics = run_stage("match", {}, {"candidate": stories, "data": right, "samples": said}, tmp_path)
    assert metrics["exact_match"].value == 2 / 3
    assert metrics["bleu"].value > 10
    assert rederived("match", out, metrics) == {"exact_match", "rouge_l"}
    assert evaluation(out)["settings"]["samples"]["temperature"] == 0.9
    assert evaluation(out)["container"] == "hf"


def test_what_another_model_said_is_refused(
    stories: Path, stories_gguf: Path, data: Path, said: Path, tmp_path: Path
) -> None:
    other = gguf(stories_gguf, tmp_path / "gguf")
    theirs = {"reference": stories, "reference_samples": said, "judge": stories}
    for number, (kind, inputs) in enumerate(
        (
            ("match", {"candidate": other, "data": data, "samples": said}),
            ("judge", {"candidate": other, "samples": said, **theirs}),
        )
    ):
        with pytest.raises(RefusedInput) as caught:
            run_stage(kind, {}, inputs, tmp_path, name=f"out{number}")
        assert caught.value.code == "E-SAMPLES-OTHER"


@pytest.fixture(scope="module")
def contest(stories: Path, data: Path, said: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A candidate whose answers differ from those of the reference, and all that a judge reads."""
    work = tmp_path_factory.mktemp("contest")
    candidate = chat_model(stories, work / "candidate")
    params = {**ASKED, "temperature": 0.9, "seed": 3}
    answers, _ = run_stage("samples", params, {"candidate": candidate, "data": data}, work)
    # the weights are the same, so what they say is: make it say something else
    lines = [json.loads(line) for line in (answers / "samples.jsonl").read_text().splitlines()]
    (answers / "samples.jsonl").write_text(
        "".join(json.dumps(line | {"answer": f"and {line['answer']}"}) + "\n" for line in lines)
    )
    return {"candidate": candidate, "reference": stories, "samples": answers, "reference_samples": said}


@pytest.mark.parametrize("form", ["hf", "chat", "gguf"])
def test_a_local_model_judges_and_its_bias_shows(
    form: str, contest: Mapping[str, Path], stories: Path, stories_gguf: Path, tmp_path: Path
) -> None:
    """The model was never told what a judge is, so what it says depends on the order alone."""
    judge = stories if form == "hf" else tmp_path / "judge"
    if form == "gguf":
        gguf(stories_gguf, judge)
    if form == "chat":
        template = "{% for m in messages %}{{ m['role'] }} says: {{ m['content'] }}\n{% endfor %}"
        config = json.loads((chat_model(stories, judge) / "tokenizer_config.json").read_text())
        (judge / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    short = {"criteria": "", "template": "{prompt}: A {first} or B {second}? C is neither.", "context": 128}
    out, metrics = run_stage("judge", short, {**contest, "judge": judge}, tmp_path)
    assert metrics["pairs"].value == 3
    assert metrics["win_rate"].value + metrics["tie_rate"].value + metrics["loss_rate"].value == pytest.approx(1)
    assert {"pairs", "win_rate", "tie_rate", "loss_rate", "position_bias", "agreement"} == rederived(
        "judge", out, metrics
    )
    lines = [json.loads(line) for line in (out / "judgements.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    again, read = run_stage("judge", {}, {**contest, "judgements": out}, tmp_path, name="again")
    assert {name: metric.value for name, metric in read.items()} == {n: m.value for n, m in metrics.items()}
    assert evaluation(again)["settings"]["judgements"] == digest_of(out)
    told = "the reference itself judges" if form == "hf" else f"a {'gguf' if form == 'gguf' else 'hf'} model judges"
    assert told in metrics["win_rate"].method
    assert "made elsewhere" in read["win_rate"].method


def test_judgements_of_what_was_said_before_are_refused(contest: Mapping[str, Path], tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    digests = {"first": "a" * 64, "second": "b" * 64}
    ids = [item.id for item in samples.read(contest["samples"])]
    (old / "judgements.jsonl").write_text(
        "".join(json.dumps({"id": name, **digests, "verdict": "first"}) + "\n" for name in ids)
    )
    with pytest.raises(RefusedInput) as caught:
        run_stage("judge", {}, {**contest, "judgements": old}, tmp_path)
    assert caught.value.code == "E-JUDGEMENTS-OTHER"
    assert list((tmp_path / "out").iterdir()) == []


def test_none_judges_its_own_answers(contest: Mapping[str, Path], tmp_path: Path) -> None:
    for number, judge in enumerate(({"judge": contest["candidate"]}, {})):
        out, metrics = run_stage("judge", {}, {**contest, **judge}, tmp_path, name=f"out{number}")
        assert not metrics
        missing = evaluation(out)["not_measured"]
        assert set(missing) == set(stage_of("judge", {}).measured(frozenset()))
        assert "own answers" in missing["win_rate"]
        assert rederived("judge", out, metrics) == set()


def test_models_that_were_asked_otherwise_are_not_compared(
    contest: Mapping[str, Path], stories: Path, data: Path, tmp_path: Path
) -> None:
    other, _ = run_stage("samples", ASKED, {"candidate": stories, "data": data}, tmp_path, name="greedy")
    with pytest.raises(RefusedInput) as caught:
        run_stage("judge", {}, {**contest, "reference_samples": other, "judge": stories}, tmp_path)
    assert caught.value.code == "E-JUDGE-PAIRS"


@pytest.mark.parametrize(
    ("old", "new", "field", "what"),
    [
        (", judge: base}", "}", "from.judge", "nobody judges"),
        ("judge: base}", "judge: base, judgements: data}", "from.judgements", "either a model judges"),
        ("reference: base, ", "", "from.reference", "needs the role 'reference'"),
        ("match, samples: {", "match, samples: {prompts: [a], ", "tasks.match.samples", "no 'prompts'"),
        ("{kind: judge, ", "{kind: judge, template: hi, ", "tasks.better", "has no {prompt}"),
        ("{kind: judge, ", "{kind: judge, verdicts: {tie: D}, ", "tasks.better", "name the verdict 'D'"),
        ("{kind: judge, ", "{kind: judge, verdicts: {tie: AB}, ", "tasks.better.verdicts", "beginning of"),
        ("said: {kind: samples, ", "said: {kind: samples, prompts: [a, a], ", "tasks.said.prompts", "twice"),
        ("512, samples: {documents: 3,", "512, samples: {documents: 0,", "tasks.better.samples.documents", "1"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused_when_the_spec_is_read(
    old: str, new: str, field: str, what: str, tmp_path: Path
) -> None:
    assert old in SPEC
    (tmp_path / "specs").mkdir()
    found = [(problem.field, problem.what) for problem in Folder(tmp_path).error(SPEC.replace(old, new)).problems]
    assert [place for place, _ in found] == [f"targets.report.{field}"]
    assert what in found[0][1]


def test_they_can_be_written_as_targets(tmp_path: Path) -> None:
    (tmp_path / "specs").mkdir()
    text = SPEC.partition("  report:")[0] + (
        "  said: {kind: samples, from: {candidate: one, data: data}}\n"
        "  match: {kind: match, from: {candidate: one, data: data}, samples: {documents: 3}}\n"
        "  better: {kind: judge, from: {candidate: one, reference: base, data: data, judge: two}, samples: {seed: 4}}\n"
    )
    nodes = {node.name: node for node in Folder(tmp_path).load(text).graph().nodes}
    assert nodes["match"].inputs["samples"] == ("match.one.samples",)
    assert nodes["match.one.samples"].params["documents"] == 3
    better = nodes["better"].inputs
    assert (better["samples"], better["reference_samples"]) == (("better.one.samples",), ("better.base.samples",))
    assert nodes["better.base.samples"].inputs == {"candidate": ("base",), "data": ("data",)}
    for wrong, field in (
        ("{candidate: one}}", "from.data"),
        ("{candidate: one, data: data}, prompts: [a]}", "from.data"),
    ):
        bad = text.replace("{kind: samples, from: {candidate: one, data: data}}", f"{{kind: samples, from: {wrong}")
        assert Folder(tmp_path).error(bad).problems[0].field == f"targets.said.{field}"


def test_how_models_were_asked_is_in_the_key_of_the_samples_alone() -> None:
    for kind in ("match", "judge"):
        stage = load_kind(kind).model_validate_json('{"samples": {"documents": 7}}')
        assert list(stage.keyless()) == ["/samples"]


DOC = Path(__file__).parents[2] / "docs" / "judge.md"


def blocks(language: str) -> list[str]:
    return [part.partition("```")[0] for part in DOC.read_text(encoding="utf-8").split(f"```{language}\n")[1:]]


def test_the_specs_of_the_page_are_read(tmp_path: Path) -> None:
    report, better = blocks("yaml")
    targets = SPEC.partition("  report:")[0].replace("  one: {kind: gguf, from: {model: base}, type: Q8_0}\n", "")
    targets = targets.replace("  two:", "  gguf:").replace("type: Q4_0}", "matrix: {type: [Q8_0, Q4_0]}}")
    (tmp_path / "specs").mkdir()
    names = [node.name for node in Folder(tmp_path).load(targets + report).graph().nodes]
    assert {"report.base.said", "report.base.match.samples", "report.base.better.samples"} <= set(names)
    _, old, _ = report.partition("      better: {kind: judge, samples: {documents: 12, max_tokens: 64}}\n")
    assert old
    Folder(tmp_path).load(targets + report.replace(old, better)).graph()


def test_the_command_of_the_page_gives_the_digest_of_an_answer(said: Path) -> None:
    (command,) = (block for block in blocks("sh") if "hashlib" in block)
    done = subprocess.run(command, shell=True, cwd=said, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == samples.read(said)[0].digest
