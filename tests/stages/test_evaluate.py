"""``evaluate``: figures equal to direct computations, and the faults that must not become figures."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from ingot.core.digest import is_digest
from ingot.errors import RefusedInput
from ingot.kit import energy, energy_per_token, hf
from ingot.kit.energy import Rapl
from quantref import quantize
from stagekit import digest_of, run_done, run_stage, stage_of
from tinymodels import copy_model, lettered

FAST = {"repeats": 1, "generation_tokens": 2, "prompt_tokens": 16, "resamples": 1000}
ENERGY = {"energy_per_token", "prompt_energy_per_token"}
TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


def write_rows(folder: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    folder.mkdir()
    text = "".join(json.dumps({"id": f"{index:016x}", **row}) + "\n" for index, row in enumerate(rows))
    (folder / "eval.jsonl").write_text(text, encoding="utf-8")
    (folder / "train.jsonl").write_text("", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def texts(shared_data: Path) -> list[str]:
    lines = (shared_data / "sets" / "tinystories" / "stories.clean.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


@pytest.fixture
def data(texts: list[str], tmp_path: Path) -> Path:
    return write_rows(tmp_path / "data", ({"text": text} for text in texts[:12]))


@pytest.fixture
def gguf(stories_gguf: Path, tmp_path: Path) -> Path:
    (tmp_path / "gguf").mkdir()
    shutil.copyfile(stories_gguf, tmp_path / "gguf" / "model.gguf")
    return tmp_path / "gguf"


def direct(folder: Path, texts: Iterable[str], length: int) -> tuple[float, int]:
    """(nll sum, tokens) by transformers alone: one BOS, one full pass, no cache, no segments."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    total, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"][:length]])
        assert ids[0, 0] == tokenizer.bos_token_id
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        count += ids.shape[1] - 1
    return total, count


def test_perplexity_equals_a_direct_computation(stories: Path, texts: list[str], data: Path, tmp_path: Path) -> None:
    """Documents longer than one segment included (512 > 256): the cache carries over exactly."""
    out, metrics = run_stage("evaluate", {**FAST, "max_length": 512}, {"candidate": stories, "data": data}, tmp_path)
    total, count = direct(stories, texts[:12], 512)
    assert metrics["tokens"].value == count
    assert metrics["documents"].value == 12
    assert metrics["nll"].value == pytest.approx(total / count, rel=1e-5)
    assert metrics["perplexity"].value == pytest.approx(math.exp(total / count), rel=1e-5)
    interval = metrics["perplexity"].interval
    assert interval is not None
    assert interval[0] < metrics["perplexity"].value < interval[1]
    assert max(json.loads(line)["tokens"] for line in (out / "documents.jsonl").read_text().splitlines()) > 256


@pytest.mark.slow
def test_the_known_figure_on_all_stories(stories: Path, texts: list[str], tmp_path: Path) -> None:
    data = write_rows(tmp_path / "data", ({"text": text} for text in texts))
    params = {**FAST, "max_length": 512, "documents": 903}
    _, metrics = run_stage("evaluate", params, {"candidate": stories, "data": data}, tmp_path)
    assert metrics["documents"].value == 903
    assert metrics["perplexity"].value == pytest.approx(4.236, abs=5e-4)


def test_a_model_does_not_diverge_from_itself(stories: Path, data: Path, tmp_path: Path) -> None:
    inputs = {"candidate": stories, "data": data, "reference": stories}
    out, metrics = run_stage("evaluate", FAST, inputs, tmp_path)
    assert metrics["kl_divergence"].value == 0
    assert metrics["kl_p99"].value == 0
    assert metrics["nll_difference"].value == 0
    assert metrics["nll_difference"].interval == (0, 0)
    assert metrics["top1_agreement"].value == 1
    evaluation = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    assert (evaluation["format"], evaluation["kind"]) == (2, "evaluate")
    assert evaluation["candidate"] == evaluation["reference"] == digest_of(stories)
    assert is_digest(evaluation["data"])
    assert (evaluation["container"], evaluation["precision"]) == ("hf", "float32")
    assert evaluation["metrics"] == {name: metric.to_dict() for name, metric in metrics.items()}
    assert evaluation["settings"]["documents"] == 24
    assert set(evaluation["not_measured"]) == ENERGY - set(metrics)


def test_zeros_are_counted_in_the_layers_that_are_pruned(stories: Path, gguf: Path, data: Path, tmp_path: Path) -> None:
    """As ``prune`` counts them, so that what a later step undoes is seen; a GGUF holds blocks, no numbers."""
    params = {"method": "magnitude", "sparsity": 0.25}
    model, pruned = run_stage("prune", params, {"model": stories}, tmp_path, name="p")
    few, found = {**FAST, "documents": 2, "max_length": 32}, {}
    for name, candidate in (("plain", stories), ("pruned", model), ("gguf", gguf)):
        _, metrics = run_stage("evaluate", few, {"candidate": candidate, "data": data}, tmp_path, name=f"of-{name}")
        found[name] = metrics["sparsity"].value if "sparsity" in metrics else None
    assert found == {"plain": 0, "pruned": pruned["sparsity"].value, "gguf": None}
    assert found["pruned"] == pytest.approx(0.25, abs=1e-3)


def test_llama_cpp_agrees_with_transformers_and_fewer_bits_diverge(
    stories: Path, gguf: Path, data: Path, tmp_path: Path
) -> None:
    params = {**FAST, "max_length": 128}
    _, same = run_stage("evaluate", params, {"candidate": gguf, "data": data, "reference": stories}, tmp_path)
    assert 0 <= same["kl_divergence"].value < 1e-5
    assert abs(same["nll_difference"].value) < 1e-3
    assert same["top1_agreement"].value > 0.99
    assert same["parameters"].value == 292_800  # the file stores the output layer apart
    assert same["bytes"].value == (gguf / "model.gguf").stat().st_size
    found = {}
    for name in ("Q8_0", "Q4_0"):
        (tmp_path / name).mkdir()
        quantize(gguf / "model.gguf", tmp_path / name / "model.gguf", name, threads=2)
        inputs = {"candidate": tmp_path / name, "data": data, "reference": stories}
        out, found[name] = run_stage("evaluate", params, inputs, tmp_path, name=f"out-{name}")
        assert json.loads((out / "evaluation.json").read_text())["precision"] == name
    assert same["kl_divergence"].value < found["Q8_0"]["kl_divergence"].value < found["Q4_0"]["kl_divergence"].value
    assert found["Q4_0"]["nll_difference"].value > 0
    assert found["Q4_0"]["bits_per_weight"].value < found["Q8_0"]["bits_per_weight"].value < 32


def test_only_completions_count(stories: Path, texts: list[str], tmp_path: Path) -> None:
    """The prompt conditions and is not scored: other than scoring all, and equal to the direct computation."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    prompt, completion = texts[0][:120], texts[0][120:300]
    rows = [{"prompt": prompt, "completion": completion}, {"prompt": texts[1][:90], "completion": texts[1][90:200]}]
    data = write_rows(tmp_path / "data", rows)
    out, _ = run_stage("evaluate", FAST, {"candidate": stories, "data": data}, tmp_path)
    document = json.loads((out / "documents.jsonl").read_text().splitlines()[0])
    tokenizer = AutoTokenizer.from_pretrained(str(stories))
    ids = [*tokenizer(prompt + completion)["input_ids"], tokenizer.eos_token_id]
    first = next(i for i, (a, b) in enumerate(zip(tokenizer(prompt)["input_ids"] + [-1], ids, strict=False)) if a != b)
    model = AutoModelForCausalLM.from_pretrained(str(stories), dtype=torch.float32)
    with torch.inference_mode():
        log = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = -sum(float(log[i - 1, ids[i]]) for i in range(first, len(ids)))
    assert document["tokens"] == len(ids) - first
    assert document["nll"] == pytest.approx(expected, rel=1e-5)


def test_documents_come_in_content_order_and_hold_no_text(stories: Path, texts: list[str], tmp_path: Path) -> None:
    rows = [{"id": f"{9 - index:016x}", "text": text} for index, text in enumerate(texts[:6])]
    data = write_rows(tmp_path / "data", rows)
    out, _ = run_stage("evaluate", {**FAST, "documents": 3}, {"candidate": stories, "data": data}, tmp_path)
    lines = (out / "documents.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [f"{index:016x}" for index in (4, 5, 6)]
    assert {key for line in lines for key in json.loads(line)} == {
        "agree", "bytes", "id", "kl", "nll", "ref_bytes", "ref_nll", "tokens",
    }  # fmt: skip
    assert sorted(path.name for path in out.iterdir()) == ["documents.jsonl", "evaluation.json"]


def test_another_tokenizer_is_refused(stories: Path, gguf: Path, data: Path, tmp_path: Path) -> None:
    other = copy_model(stories, tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["e"], vocabulary["a"] = vocabulary["a"], vocabulary["e"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    for index, candidate in enumerate((other, gguf)):
        reference = stories if candidate is other else other
        inputs = {"candidate": candidate, "data": data, "reference": reference}
        with pytest.raises(RefusedInput, match="other tokens") as refused:
            run_stage("evaluate", {**FAST, "max_length": 64}, inputs, tmp_path, name=f"out{index}")
        assert refused.value.code == "E-EVAL-TOKENS"
        assert "first difference at token" in refused.value.facts[0]


def test_another_tokenizer_is_compared_in_bits_per_byte(stories: Path, data: Path, tmp_path: Path) -> None:
    """On the bytes that the reference read; what is a number per token has its reason instead."""
    other = lettered(stories, tmp_path / "other")
    inputs = {"candidate": other, "data": data, "reference": stories}
    params: dict[str, Any] = {**FAST, "max_length": 48}
    with pytest.raises(RefusedInput) as refused:
        run_stage("evaluate", params, inputs, tmp_path, name="refused")
    assert refused.value.code == "E-EVAL-TOKENS"
    assert "other_tokenizer: bits_per_byte" in (refused.value.hint or "")
    params["other_tokenizer"] = "bits_per_byte"
    scoring = {name: params[name] for name in ("max_length",)}
    stored, _ = run_stage("logits", scoring, {"reference": stories, "data": data}, tmp_path, name="logits")
    for number, reference in enumerate((stories, stored)):
        out, metrics = run_stage("evaluate", params, {**inputs, "reference": reference}, tmp_path, name=f"o{number}")
        evaluation = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
        gone = {"nll_difference", "kl_divergence", "kl_p99", "top1_agreement"}
        assert set(evaluation["not_measured"]) == gone | (ENERGY - set(metrics))
        assert "other tokens" in evaluation["not_measured"]["kl_p99"]
        assert not gone & set(metrics)
        lines = [json.loads(line) for line in (out / "documents.jsonl").read_text(encoding="utf-8").splitlines()]
        assert all(line["ref_bytes"] - 4 <= line["bytes"] <= line["ref_bytes"] for line in lines)
        assert all(line["tokens"] > 48 for line in lines)
        ours, theirs = (
            sum(line[nll] for line in lines) / math.log(2) / sum(line[size] for line in lines)
            for nll, size in (("nll", "bytes"), ("ref_nll", "ref_bytes"))
        )
        assert metrics["bits_per_byte"].value == pytest.approx(ours, rel=1e-12)
        assert metrics["bits_per_byte_difference"].value == pytest.approx(ours - theirs, rel=1e-9)
        interval = metrics["bits_per_byte_difference"].interval
        assert interval is not None
        assert 0 < interval[0] < metrics["bits_per_byte_difference"].value < interval[1]


@pytest.mark.parametrize("plant", ["ünïcödé 日本語 text 🙂 with\n\nlines", "plain"])
def test_bytes_are_those_of_the_text(plant: str, stories: Path, gguf: Path, tmp_path: Path) -> None:
    """Whatever the letters; the same by both tokenizers."""
    data = write_rows(tmp_path / "data", [{"text": plant}, {"text": f"{plant} {plant}"}])
    for name, candidate in (("hf", stories), ("gguf", gguf)):
        out, metrics = run_stage("evaluate", FAST, {"candidate": candidate, "data": data}, tmp_path, name=f"o-{name}")
        lines = [json.loads(line) for line in (out / "documents.jsonl").read_text(encoding="utf-8").splitlines()]
        size = len(plant.encode())
        assert [line["bytes"] for line in lines] == [size, 2 * size + 1]
        assert metrics["bits_per_byte"].n == 3 * size + 1


def test_bits_per_byte_need_a_tokenizer_that_keeps_the_text(stories: Path, texts: list[str], tmp_path: Path) -> None:
    """This one makes one space of two: nobody can say of which bytes a token then is."""
    data = write_rows(tmp_path / "data", [{"text": "  two  spaces "}, {"text": texts[0]}])
    out, metrics = run_stage("evaluate", FAST, {"candidate": stories, "data": data}, tmp_path)
    assert "bits_per_byte" not in metrics
    reasons = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))["not_measured"]
    assert "changes the text" in reasons["bits_per_byte"]


def test_another_chat_template_is_refused(stories: Path, gguf: Path, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Tell a story."}, {"role": "assistant", "content": "Once upon a time."}]
    data = write_rows(tmp_path / "data", [{"messages": turns}, {"messages": turns[::-1][:1] + turns}])
    reference, candidate = (copy_model(stories, tmp_path / name) for name in ("reference", "candidate"))
    (reference / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    inputs = {"candidate": candidate, "data": data, "reference": reference}
    for index, template in enumerate((TEMPLATE.replace("assistant:", "bot:"), None)):
        if template is not None:
            (candidate / "chat_template.jinja").write_text(template, encoding="utf-8")
        else:
            inputs["candidate"] = gguf  # the file holds no template
        with pytest.raises(RefusedInput, match="template") as refused:
            run_stage("evaluate", {**FAST, "max_length": 128}, inputs, tmp_path, name=f"out{index}")
        assert refused.value.code == "E-EVAL-TEMPLATE"
    (candidate / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    inputs["candidate"] = candidate
    _, metrics = run_stage("evaluate", {**FAST, "max_length": 128}, inputs, tmp_path)
    assert metrics["kl_divergence"].value == 0


def test_broken_weights_give_no_figure(stories: Path, data: Path, tmp_path: Path) -> None:
    broken = copy_model(stories, tmp_path / "broken")
    tensors = dict(hf.iter_tensors(stories))
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], math.nan)
    (broken / "model.safetensors").unlink()
    hf.write_safetensors(broken / "model.safetensors", tensors)
    with pytest.raises(RefusedInput, match="not finite") as refused:
        run_stage("evaluate", FAST, {"candidate": broken, "data": data}, tmp_path)
    assert refused.value.code == "E-EVAL-NAN"


def test_text_beyond_the_context_is_refused(gguf: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(RefusedInput, match="context is 128") as refused:
        run_stage("evaluate", {**FAST, "max_length": 200}, {"candidate": gguf, "data": data}, tmp_path)
    assert refused.value.code == "E-EVAL-CONTEXT"


def test_nothing_to_score_is_refused(stories: Path, texts: list[str], tmp_path: Path) -> None:
    data = write_rows(tmp_path / "data", [{"prompt": texts[0], "completion": "The end."}])
    with pytest.raises(RefusedInput, match="none of the 1 held-out rows") as refused:
        run_stage("evaluate", {**FAST, "max_length": 32}, {"candidate": stories, "data": data}, tmp_path)
    assert refused.value.code == "E-EVAL-EMPTY"


def test_something_else_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("no model", encoding="utf-8")
    with pytest.raises(RefusedInput, match="neither") as refused:
        run_stage("evaluate", FAST, {"candidate": tmp_path / "other", "data": data}, tmp_path)
    assert refused.value.code == "E-EVAL-FORMAT"
    assert "notes.txt" in refused.value.facts[0]


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`:UserWarning")
def test_a_quantized_folder_is_read_as_what_it_is(stories: Path, data: Path, tmp_path: Path) -> None:
    """Scales are bytes but no parameters: bits per weight count the architecture's weights."""
    quantized, made = run_stage("quantize", {"scheme": "W8A16"}, {"model": stories}, tmp_path, name="quantized")
    inputs = {"candidate": quantized, "data": data, "reference": stories}
    out, metrics = run_stage("evaluate", FAST, inputs, tmp_path)
    assert json.loads((out / "evaluation.json").read_text(encoding="utf-8"))["precision"] == "W8A16"
    assert metrics["parameters"].value == 260_032
    assert metrics["bytes"].value == made["weight_bytes"].value
    assert 0 < metrics["kl_divergence"].value < 0.01


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`:UserWarning")
def test_a_model_written_untied_counts_its_weights_once_and_tells_both_dtypes(
    stories: Path, data: Path, tmp_path: Path
) -> None:
    """Only the embeddings are of one byte; ``quantize`` and ``evaluate`` divide by the same number of weights."""
    params = {"scheme": "FP16", "overrides": [{"modules": ["embed_tokens", "lm_head"], "scheme": "W8A16"}]}
    quantized, made = run_stage("quantize", params, {"model": stories}, tmp_path, name="quantized")
    out, metrics = run_stage("evaluate", FAST, {"candidate": quantized, "data": data}, tmp_path)
    assert json.loads((out / "evaluation.json").read_text(encoding="utf-8"))["precision"] == "W8A16+float16"
    assert metrics["parameters"].value == 260_032
    assert metrics["bits_per_weight"].value == pytest.approx(made["bits_per_weight"].value)


_CONVERT = """
import sys
from pathlib import Path
from stagekit import run_stage
run_stage("coreml", {"weights": "int8", "sequence_lengths": [16, 64]}, {"model": Path(sys.argv[1])}, Path(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def package(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Core ML package, written in a process of its own: coremltools leaves its warnings to the exit."""
    folder = tmp_path_factory.mktemp("coreml")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-c", _CONVERT, str(stories), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / "out"


def test_energy_is_measured_where_counters_can_be_read_and_has_its_reason_elsewhere(
    stories: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zone = tmp_path / "sys/class/powercap/intel-rapl:0"
    zone.mkdir(parents=True)
    for name, text in (("name", "package-0"), ("max_energy_range_uj", str(10**12)), ("energy_uj", "0")):
        (zone / name).write_text(text)
    plain, inputs = Rapl.open, {"candidate": stories, "data": data}
    monkeypatch.setattr(energy_per_token, "_LEAST_S", 0.0)
    monkeypatch.setattr(Rapl, "open", lambda _root: plain(tmp_path / "none"))
    out, metrics = run_stage("evaluate", FAST, inputs, tmp_path, name="none-out")
    unknown = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))["not_measured"]
    assert not ENERGY & set(metrics)
    assert set(unknown) == ENERGY
    assert "RAPL" in unknown["energy_per_token"]

    counter = iter(range(10**6, 10**9, 10**6))
    monkeypatch.setattr(Rapl, "open", lambda _root: plain(tmp_path))
    monkeypatch.setattr(energy, "_number", lambda path: next(counter) if path.name == "energy_uj" else 10**12)
    out, metrics = run_stage("evaluate", FAST, inputs, tmp_path)
    # the counter takes a joule at each look: one for each prompt alone and one for a run with its answer
    assert metrics["prompt_energy_per_token"].unit == "J/token"
    assert "prompt_energy_per_token" in json.loads((out / "evaluation.json").read_text())["metrics"]
    assert metrics["prompt_energy_per_token"].value > 0


def test_a_device_is_asked_for_and_noted(stories: Path, data: Path, tmp_path: Path) -> None:
    inputs = {"candidate": stories, "data": data}
    done = run_done("evaluate", {**FAST, "device": "cpu"}, inputs, tmp_path)
    assert done.notes == {"device": "cpu", "runtime": "transformers computing in float32"}
    assert stage_of("evaluate", {"device": "cuda"}).device_wanted() == "cuda"
    if not torch.cuda.is_available():
        with pytest.raises(RefusedInput) as caught:
            run_stage("evaluate", {**FAST, "device": "cuda"}, inputs, tmp_path, name="cuda")
        assert caught.value.code == "E-DEVICE"


def test_core_ml_is_measured_by_the_interpreter_and_its_speed_is_not(
    package: Path, stories: Path, data: Path, tmp_path: Path
) -> None:
    params = {**FAST, "max_length": 64, "documents": 3}
    roles = {"candidate": package, "data": data, "reference": stories}
    out, metrics = run_stage("evaluate", params, roles, tmp_path / "coreml")
    plain = run_stage("evaluate", params, {**roles, "candidate": stories}, tmp_path / "hf")[1]
    evaluation = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    assert (evaluation["container"], evaluation["precision"]) == ("coreml", "int8")
    speeds = {"prompt_tokens_per_second", "generation_tokens_per_second"}
    assert set(evaluation["not_measured"]) == speeds | ENERGY
    assert set(metrics) == set(plain) - speeds - ENERGY - {"sparsity"}
    assert "runs on a Mac only" in evaluation["not_measured"]["prompt_tokens_per_second"]
    # of int8 rows on a model of 260,000 weights
    assert 1e-7 < metrics["kl_divergence"].value < 0.01
    assert metrics["top1_agreement"].value > 0.95
    assert abs(metrics["nll"].value - plain["nll"].value) < 0.01
    assert metrics["parameters"].value == plain["parameters"].value
    files = (package / "model.mlpackage").rglob("*")
    assert metrics["bytes"].value == sum(path.stat().st_size for path in files if path.is_file())


def test_a_core_ml_package_answers_questions(package: Path, stories: Path, tmp_path: Path) -> None:
    rows = [
        {"id": str(number), "prompt": f"{name} had a", "completion": " dog."}
        for number, name in enumerate(["Tim", "Lily"])
    ]
    asked = tmp_path / "asked"
    asked.mkdir()
    (asked / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    params = {**FAST, "max_length": 32, "documents": 2, "answers": {"documents": 2, "max_tokens": 6}}
    answers = {}
    for name, candidate in (("coreml", package), ("hf", stories)):
        out, metrics = run_stage("evaluate", params, {"candidate": candidate, "data": asked}, tmp_path / name)
        lines = (out / "answers.jsonl").read_text(encoding="utf-8").splitlines()
        answers[name] = [json.loads(line)["answer"] for line in lines]
        assert "answers_ended" in metrics
    assert answers["coreml"] == answers["hf"]


def test_a_text_beyond_the_largest_shape_is_refused(package: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(RefusedInput, match="the model's context is 64") as refused:
        run_stage("evaluate", {**FAST, "max_length": 512}, {"candidate": package, "data": data}, tmp_path)
    assert refused.value.code == "E-EVAL-CONTEXT"


def _damaged(package: Path, folder: Path) -> Path:
    shutil.copytree(package, folder)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def test_a_damaged_core_ml_package_is_refused(package: Path, data: Path, tmp_path: Path) -> None:
    damaged = _damaged(package, tmp_path / "damaged")
    (weights,) = damaged.rglob("weight.bin")
    content = bytearray(weights.read_bytes())
    content[64:68] = bytes(4)
    weights.write_bytes(content)
    with pytest.raises(RefusedInput, match="no sound blob at byte 64") as refused:
        run_stage("evaluate", FAST, {"candidate": damaged, "data": data}, tmp_path)
    assert refused.value.code == "E-MIL-BLOB"


def test_a_core_ml_package_without_its_contract_is_refused(package: Path, data: Path, tmp_path: Path) -> None:
    damaged = _damaged(package, tmp_path / "damaged")
    (damaged / "contract.json").unlink()
    with pytest.raises(RefusedInput, match=r"no contract\.json and no tokenizer") as refused:
        run_stage("evaluate", FAST, {"candidate": damaged, "data": data}, tmp_path)
    assert refused.value.code == "E-CONTRACT"


def test_a_core_ml_package_with_another_interface_is_refused(package: Path, data: Path, tmp_path: Path) -> None:
    damaged = _damaged(package, tmp_path / "damaged")
    contract = json.loads((damaged / "contract.json").read_text(encoding="utf-8"))
    contract["inputs"].append({"name": "position", "dtype": "int32", "shape": [1]})
    (damaged / "contract.json").write_text(json.dumps(contract), encoding="utf-8")
    with pytest.raises(RefusedInput, match="other inputs or outputs than") as refused:
        run_stage("evaluate", FAST, {"candidate": damaged, "data": data}, tmp_path)
    assert refused.value.code == "E-CONTRACT"
