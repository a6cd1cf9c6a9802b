from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from ingot.core.stage import Done, Given, Least
from ingot.errors import RefusedInput
from ingot.kit import hf, student
from ingot.stages._shape import PRESETS, TRAINED_BYTES, Shape
from projectkit import Sandbox
from stagekit import Recorder, digest_of, run_done, run_stage, stage_of
from tinymodels import dataset, logits, state

SMALL: dict[str, Any] = {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "context": 128, "max_length": 96}
FAST: dict[str, Any] = {**SMALL, "steps": 12, "batch_size": 8, "learning_rate": 5e-3, "device": "cpu"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("data") / "data")


@pytest.fixture(scope="module")
def tokenizer(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp = tmp_path_factory.mktemp("tokenizer")
    return run_stage("tokenizer", {"vocab_size": 300}, {"data": data}, tmp)[0]


@pytest.fixture(scope="module")
def trained(data: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    inputs = {"data": data, "tokenizer": tokenizer}
    return run_stage("student", FAST, inputs, tmp_path_factory.mktemp("trained"), seed=7, threads=1)


# --- shapes ---------------------------------------------------------------------------------------------------------


def built(shape: Shape, rows: int) -> Any:
    class Tokens:
        bos_token_id, eos_token_id, pad_token_id = 0, 1, 2

    with torch.device("meta"):
        return student.new_model(shape.config(), rows, Tokens, deviation=0.02, seed=1)


@pytest.mark.parametrize("name", PRESETS)
def test_the_parameters_of_a_preset_are_those_of_the_built_model(name: str) -> None:
    shape, rows = PRESETS[name].shape, PRESETS[name].vocabulary
    assert list(shape.faults()) == []
    for each in (shape, replace(shape, tied=not shape.tied)):
        model = built(each, rows)
        assert each.parameters(rows) == sum(weight.numel() for weight in model.parameters())
    named = float(name[:-1]) * {"m": 1e6, "b": 1e9}[name[-1]]
    assert 0.8 * named < shape.parameters(rows) < 1.25 * named


def test_the_presets_that_are_published_models_have_their_parameters() -> None:
    counts = {name: preset.shape.parameters(preset.vocabulary) for name, preset in PRESETS.items()}
    assert counts["135m"] == 134_515_008
    assert counts["360m"] == 361_821_120
    assert counts["1b"] == 1_235_814_400
    assert counts["3b"] == 3_212_749_824
    assert counts["4b"] == 3_961_839_360
    assert counts["8b"] == 8_030_261_248
    assert counts["9b"] == 8_829_407_232


def test_a_preset_is_the_sizes_that_it_stands_for() -> None:
    named = stage_of("student", {"preset": "1m", "steps": 1})
    assert (named.layers, named.width, named.heads, named.kv_heads, named.feed_forward) == (5, 128, 8, 4, 352)  # type: ignore[attr-defined]
    other = stage_of("student", {"preset": "1m", "steps": 1, "layers": 2, "tied": False})
    assert (other.layers, other.width, other.tied) == (2, 128, False)  # type: ignore[attr-defined]
    free = stage_of("student", {"layers": 1, "width": 64, "heads": 2, "steps": 1})
    found = free.model_dump()
    assert (found["kv_heads"], found["feed_forward"], found["context"], found["tied"]) == (2, 192, 512, True)


@pytest.mark.parametrize(
    ("params", "what"),
    [
        ({}, "needs 'preset', or 'layers', 'width' and 'heads'"),
        ({"layers": 2, "heads": 2}, "missing: width"),
        ({"preset": "2m"}, "preset"),
        ({**SMALL, "heads": 3}, "width 32 does not divide into 3 heads"),
        ({**SMALL, "width": 36, "heads": 12, "kv_heads": 12}, "a head of 3 numbers"),
        ({**SMALL, "kv_heads": 3}, "4 heads do not divide into groups for 3 kv_heads"),
        ({**SMALL, "max_length": 200}, "max_length 200 is more than the context of 128 tokens"),
        ({**SMALL, "vocabulary": 1 << 21}, "vocabulary"),
        ({**SMALL, "layers": 0}, "layers"),
        ({**SMALL, "distill": {"temperature": 0}}, "temperature"),
        ({**SMALL, "distill": {"weight": 1.5}}, "weight"),
    ],
)
def test_a_shape_that_cannot_be_is_refused_with_the_spec(params: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        stage_of("student", {"steps": 1, **params})


def test_a_way_of_distilling_needs_a_teacher() -> None:
    plain = stage_of("student", {**SMALL, "steps": 1})
    mixed = stage_of("student", {**SMALL, "steps": 1, "distill": {"weight": 1.0}})
    assert list(plain.misfits(frozenset({"data", "tokenizer"}))) == []
    assert [name for name, _ in mixed.misfits(frozenset({"data", "tokenizer"}))] == ["distill"]
    assert list(mixed.misfits(frozenset({"data", "tokenizer", "teacher"}))) == []


def test_what_a_training_holds_is_planned_by_arithmetic() -> None:
    stage = stage_of("student", {"preset": "8b", "steps": 1, "vocabulary": 128_256, "weights": "bfloat16"})
    count = 8_030_261_248
    assert stage.least_memory({}, "cpu") == 16 * count
    taught = {"teacher": Least(bytes=1, weights=1000)}
    assert stage.least_memory(taught, "cuda") == 16 * count + 2 * 999
    assert stage.least_output({}) == Least(2 * count, count, cache=2 * 32 * 8 * 128, context=8192)
    unknown = stage_of("student", {"preset": "8b", "steps": 1, "optimizer": "adamw_8bit"})
    assert unknown.least_memory({}, "cpu") == 10 * (count - 2 * 128_256 * 4096), "the embedding is not known yet"


# --- training -------------------------------------------------------------------------------------------------------


def test_it_learns_and_measures_what_it_wrote(trained: tuple[Path, Any], tokenizer: Path) -> None:
    out, metrics = trained
    assert metrics["eval_loss_change"].value < -0.5
    assert metrics["vocabulary"].value == 300
    shape = Shape(2, 32, 4, 2, 96, 128, 10_000.0, tied=True)
    tensors = state(out)
    assert "lm_head.weight" not in tensors, "tied weights are written once"
    count = sum(tensor.numel() for tensor in tensors.values())
    assert metrics["parameters"].value == metrics["trainable_parameters"].value == count == shape.parameters(300)
    assert metrics["weight_bytes"].value == (out / "model.safetensors").stat().st_size
    assert json.loads((out / "tokenizer_config.json").read_text())["model_max_length"] == 128
    assert (out / "tokenizer.json").read_bytes() == (tokenizer / "tokenizer.json").read_bytes()
    config = json.loads((out / "config.json").read_text())
    assert (config["architectures"], config["dtype"], config["eos_token_id"]) == (["LlamaForCausalLM"], "float32", 3)
    model = hf.load_model(out, None)
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_equal_seeds_give_equal_bytes_and_others_do_not(
    trained: tuple[Path, Any], data: Path, tokenizer: Path, tmp_path: Path
) -> None:
    inputs = {"data": data, "tokenizer": tokenizer}
    again, _ = run_stage("student", FAST, inputs, tmp_path, seed=7, threads=1)
    assert digest_of(again) == digest_of(trained[0])
    other, _ = run_stage("student", FAST, inputs, tmp_path, seed=8, threads=1, name="other")
    assert digest_of(other) != digest_of(again)


def test_initial_weights_follow_from_the_seed(tokenizer: Path) -> None:
    tokens = hf.load_lone_tokenizer(tokenizer)
    shape = Shape(2, 32, 4, 2, 96, 128, 10_000.0, tied=False)
    one, same, other = (student.new_model(shape.config(), 300, tokens, deviation=0.1, seed=seed) for seed in (1, 1, 2))
    for name, weight in one.named_parameters():
        assert torch.equal(weight, same.get_parameter(name)), name
        if weight.dim() > 1:
            assert not torch.equal(weight, other.get_parameter(name)), name
            assert float(weight.detach().std()) == pytest.approx(0.1, rel=0.1)
        else:
            assert torch.equal(weight, torch.ones_like(weight))


def test_an_ended_training_goes_on_to_the_same_bytes(
    trained: tuple[Path, Any], data: Path, tokenizer: Path, tmp_path: Path
) -> None:
    class Ended(Exception):
        pass

    class UntilStep(Recorder):
        def __call__(self, done: float, total: float | None, unit: str, **live: float | str) -> None:
            super().__call__(done, total, unit, **live)
            if unit == "steps" and done == 7:
                raise Ended

    folders = {"data": (data,), "tokenizer": (tokenizer,)}
    stage = stage_of("student", {**FAST, "checkpoint_every": 0.0})
    whole = stage_of("student", FAST)
    assert whole.resumes
    digests = {role: (digest_of(path),) for role, (path,) in folders.items()}
    done: list[Done] = []
    for name, progress in (("first", UntilStep()), ("second", Recorder())):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}-scratch").mkdir()
        given = Given(
            folders, digests, tmp_path / f"{name}-scratch", seed=7, checkpoints=tmp_path / "kept", key="k" * 64
        )
        (tmp_path / "kept").mkdir(exist_ok=True)
        try:
            done.append(Done.of(stage.run(given, tmp_path / name, progress)))
        except Ended:
            assert name == "first"
    assert len(done) == 1
    steps = [event[0] for event in progress.events if event[2] == "steps"]
    assert steps[0] > 1, "it went on, it did not begin again"
    for file in ("model.safetensors", "training.json", "config.json"):
        assert (tmp_path / "second" / file).read_bytes() == (trained[0] / file).read_bytes(), file


def test_activations_that_are_computed_again_change_no_byte(
    trained: tuple[Path, Any], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    calls = [0]
    forward = LlamaMLP.forward

    def counted(self: Any, *args: Any) -> Any:
        calls[0] += 1
        return forward(self, *args)

    monkeypatch.setattr(LlamaMLP, "forward", counted)
    digests, counts = [], []
    for again in (False, True):
        calls[0] = 0
        params = {**PUPIL, "steps": 3, "eval_documents": 0, "gradient_checkpointing": again}
        params["distill"] = {"dtype": "float32", "hidden_weight": 0.5}
        inputs = {"data": data, "tokenizer": trained[0], "teacher": trained[0]}
        out, _ = run_stage("student", params, inputs, tmp_path, seed=7, threads=1, name=str(again))
        digests.append(digest_of(out))
        counts.append(calls[0])
    assert digests[0] == digests[1]
    assert counts[1] > counts[0], "the forward pass of each layer ran twice"


def test_a_chain_that_no_machine_can_hold_is_refused_before_it_starts(tmp_path: Path) -> None:
    sandbox = Sandbox.make(tmp_path)
    sandbox.file("specs/a.txt", "to be or not to be " * 50)
    huge = "layers: 1024, width: 65536, heads: 512, vocabulary: 1024, steps: 1, device: cpu"
    sandbox.spec(
        "targets:\n  texts: {kind: dataset, sources: [{path: a.txt}]}\n"
        "  tokens: {kind: tokenizer, from: {data: texts}, vocab_size: 512}\n"
        f"  big: {{kind: student, from: {{data: texts, tokenizer: tokens}}, {huge}}}\n"
    )
    printed = sandbox.ok("plan")
    shape = Shape(1024, 65_536, 512, 512, 174_784, 512, 10_000.0, tied=True)
    assert "E-MEMORY: s:big needs at least" in printed
    assert f"{16 * shape.parameters(1024) / 1e12:.2f} TB" in printed


def test_more_rows_than_tokens_and_not_fewer(data: Path, tokenizer: Path, tmp_path: Path) -> None:
    inputs = {"data": data, "tokenizer": tokenizer}
    params = {**FAST, "steps": 1, "eval_documents": 0}
    out, metrics = run_stage("student", {**params, "vocabulary": 320}, inputs, tmp_path, seed=7, threads=1)
    assert state(out)["model.embed_tokens.weight"].shape == (320, 32)
    assert metrics["vocabulary"].value == 320
    with pytest.raises(RefusedInput, match="no row for every token") as caught:
        run_stage("student", {**params, "vocabulary": 299}, inputs, tmp_path, seed=7, threads=1, name="few")
    assert caught.value.code == "E-STUDENT-VOCABULARY"
    assert list((tmp_path / "few").iterdir()) == []


@pytest.mark.parametrize(("dtype", "size"), [("bfloat16", 2), ("float16", 2)])
def test_weights_are_written_in_the_dtype_asked_for(
    data: Path, tokenizer: Path, tmp_path: Path, dtype: str, size: int
) -> None:
    params = {**FAST, "steps": 1, "eval_documents": 0, "weights": dtype, "dtype": "bfloat16"}
    out, _ = run_stage("student", params, {"data": data, "tokenizer": tokenizer}, tmp_path, seed=7, threads=1)
    assert {tensor.element_size() for tensor in state(out).values()} == {size}
    assert hf.load_model(out, None).dtype == hf.torch_dtype(dtype)


def test_a_tokenizer_is_taken_from_a_model_too(trained: tuple[Path, Any], data: Path, tmp_path: Path) -> None:
    params = {**FAST, "steps": 1, "eval_documents": 0, "context": 200}
    out, _ = run_stage("student", params, {"data": data, "tokenizer": trained[0]}, tmp_path, seed=7, threads=1)
    assert (out / "tokenizer.json").read_bytes() == (trained[0] / "tokenizer.json").read_bytes()
    assert hf.load_tokenizer(out).model_max_length == 200
    assert not (out / "prune.json").exists()


# --- with a teacher -------------------------------------------------------------------------------------------------

PUPIL: dict[str, Any] = {**FAST, "layers": 1, "width": 16, "heads": 2, "kv_heads": 1, "steps": 20}


def taught(trained: tuple[Path, Any], data: Path, tmp_path: Path, **distill: Any) -> tuple[Path, Any]:
    inputs = {"data": data, "tokenizer": trained[0], "teacher": trained[0]}
    params = {**PUPIL, "distill": {"dtype": "float32", **distill}}
    return run_stage("student", params, inputs, tmp_path, seed=7, threads=1, name="-".join(["out", *distill]))


def held_out(out: Path, teacher: Path, data: Path) -> tuple[float, float]:
    """KL(teacher ‖ student) and the student's loss in float64, a document at a time."""
    from ingot.kit import chat

    mine, theirs = hf.load_model(out, "float32"), hf.load_model(teacher, "float32")
    tokens = hf.load_tokenizer(out)
    apart = nll = count = 0.0
    for row in chat.read_rows(data, "eval"):
        ids = torch.tensor([chat.encode(tokens, row, max_length=96).ids])
        with torch.no_grad():
            p, q = (model(input_ids=ids).logits[0, :-1].double().log_softmax(-1) for model in (theirs, mine))
        apart += float((p.exp() * (p - q)).sum())
        nll -= float(q.gather(1, ids[0, 1:, None]).sum())
        count += ids.shape[1] - 1
    return apart / count, nll / count


def test_a_distilled_student_comes_closer_to_its_teacher(trained: tuple[Path, Any], data: Path, tmp_path: Path) -> None:
    out, metrics = taught(trained, data, tmp_path, weight=1.0, temperature=1.0)
    alone, _ = run_stage(
        "student", PUPIL, {"data": data, "tokenizer": trained[0]}, tmp_path, seed=7, threads=1, name="alone"
    )
    after = metrics["teacher_kl_after"]
    apart, nll = held_out(out, trained[0], data)
    assert after.value == pytest.approx(apart, rel=1e-4)
    assert after.value < 0.8 * held_out(alone, trained[0], data)[0]
    assert metrics["eval_loss_after"].value == pytest.approx(nll, rel=1e-4), "the plain loss, not the mix"
    assert after.interval is not None
    assert after.interval[0] <= after.value <= after.interval[1]
    change = metrics["teacher_kl_change"]
    assert change.value == pytest.approx(after.value - metrics["teacher_kl_before"].value)
    assert change.interval is not None
    assert change.interval[1] < 0
    curves = json.loads((out / "training.json").read_text())
    assert curves["eval"][-1]["loss"] == metrics["eval_loss_after"].value


def test_hidden_states_are_learned_and_the_projection_is_thrown_away(
    trained: tuple[Path, Any], data: Path, tmp_path: Path
) -> None:
    out, metrics = taught(trained, data, tmp_path, hidden_weight=1.0)
    assert not any("projection" in name for name in state(out))
    assert metrics["trainable_parameters"].value == metrics["parameters"].value + 16 * 32
    model = hf.load_model(out, None)
    assert sum(weight.numel() for weight in model.parameters()) == metrics["parameters"].value


def other_tokens(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    vocab = content["model"]["vocab"]
    first, second = list(vocab)[10:12]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    path.write_text(json.dumps(content))


def other_splitting(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["merges"] = content["model"]["merges"][:5]
    (folder / "tokenizer.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("plant", "what"),
    [(other_tokens, "vocabulary is not the student's"), (other_splitting, "splits texts into others")],
)
def test_a_teacher_of_another_vocabulary_is_refused_before_training(
    plant: Callable[[Path], None], what: str, trained: tuple[Path, Any], data: Path, tmp_path: Path
) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(trained[0], teacher)
    plant(teacher)
    inputs = {"data": data, "tokenizer": trained[0], "teacher": teacher}
    with pytest.raises(RefusedInput, match=what) as caught:
        run_stage("student", PUPIL, inputs, tmp_path, seed=7, threads=1)
    assert caught.value.code == "E-DISTILL-VOCABULARY"
    assert caught.value.facts
    assert not any("None" in fact for fact in caught.value.facts)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_teacher_that_reads_less_is_refused(trained: tuple[Path, Any], data: Path, tmp_path: Path) -> None:
    inputs = {"data": data, "tokenizer": trained[0], "teacher": trained[0]}
    with pytest.raises(RefusedInput, match="the teacher reads 128 tokens, and max_length is 256") as caught:
        run_stage("student", {**PUPIL, "context": 256, "max_length": 256}, inputs, tmp_path, seed=7)
    assert caught.value.code == "E-CONTEXT"


# --- what comes after -----------------------------------------------------------------------------------------------


def test_llama_cpp_computes_what_transformers_computes(trained: tuple[Path, Any], tmp_path: Path) -> None:
    from ingot.kit.llama_cpp import open_model

    done = run_done("gguf", {"type": "F32"}, {"model": trained[0]}, tmp_path)
    assert done.metrics["probe_texts"].value > 0, "tokenizes as transformers does"
    wanted = logits(hf.load_model(trained[0], "float32"), 300)[0].numpy()
    with open_model(tmp_path / "out" / "model.gguf", context=64, threads=1) as model:
        found = model.logits((torch.arange(40) * 7 % 300).tolist())
        assert np.abs(found - wanted).max() < 1e-3 < np.ptp(wanted)


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
@pytest.mark.parametrize(
    ("kind", "params"),
    [
        ("prune", {"method": "magnitude", "sparsity": 0.5}),
        ("quantize", {"group_size": 16}),
        ("convert", {"dtype": "float16"}),
    ],
)
def test_what_is_built_of_a_model_takes_a_student(
    kind: str, params: dict[str, Any], trained: tuple[Path, Any], tmp_path: Path
) -> None:
    out = run_stage(kind, params, {"model": trained[0]}, tmp_path)[0]
    assert hf.load_model(out, None)(input_ids=torch.tensor([[0, 5, 6]])).logits.shape == (1, 3, 300)
    assert not (out / "training.json").exists(), "what a stage wrote of its own result is not handed on"


def test_the_page_has_the_presets_as_they_are() -> None:
    page = (Path(__file__).parents[2] / "docs" / "students.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if re.match(r"\| `\d", line)]
    assert len(rows) == len(PRESETS)
    for row, (name, preset) in zip(rows, PRESETS.items(), strict=True):
        shape, count = preset.shape, preset.shape.parameters(preset.vocabulary)
        sizes = (shape.layers, shape.width, f"{shape.heads} / {shape.kv_heads}", shape.feed_forward, shape.context)
        more = (f"{shape.rope_theta:.0f}", "yes" if shape.tied else "no", preset.vocabulary, f"{count:,}")
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[:10] == [f"`{name}`", *map(str, sizes + more)]
        for cell, size in zip(cells[10:], (4 * count, TRAINED_BYTES["adamw"] * count), strict=True):
            number, unit = cell.split()
            assert float(number) * {"kB": 1e3, "MB": 1e6, "GB": 1e9}[unit] == pytest.approx(size, rel=0.05)
