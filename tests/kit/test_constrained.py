"""Answers held to a schema, by a real model that knows nothing of JSON, as transformers and llama.cpp run it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ingot.errors import RefusedInput
from ingot.kit.backends import Backend, open_backend
from ingot.kit.constrained import Vocabulary
from ingot.kit.generate import Decoding, Generation, generate
from ingot.kit.schemas import Schema
from ingot.kit.tool_calls.functions import Function
from ingot.kit.tool_calls.play import calls_schema
from stagekit import run_stage, stage_of
from toolskit import MAIL, WEATHER

CARD: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "mood": {"enum": ["glad", "sad", 3]},
        "age": {"type": "integer", "minimum": 1, "maximum": 120},
        "friends": {"type": "array", "items": {"type": "string", "maxLength": 8}, "minItems": 1, "maxItems": 2},
    },
    "required": ["name", "mood", "age", "friends"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module", params=["hf", "gguf"])
def backend(request: pytest.FixtureRequest, stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Backend:
    folder = tmp_path_factory.mktemp(request.param)
    for path in stories.iterdir():
        if (path.suffix == ".gguf") == (request.param == "gguf") and path.name != "tokenizer.model":
            shutil.copy(path, folder / path.name)
    return open_backend(folder, dtype="float32", context=512, threads=1)


@pytest.fixture(scope="module")
def vocabulary(backend: Backend) -> Vocabulary:
    return Vocabulary(backend)


def said(backend: Backend, vocabulary: Vocabulary, schema: Mapping[str, Any], decoding: Decoding) -> Generation:
    ids = backend.question({"prompt": "Once upon a time", "completion": ""})
    return generate(backend, ids, decoding, vocabulary.json(schema))


@pytest.mark.parametrize("seed", range(4))
def test_what_ends_by_itself_is_json_of_the_schema(backend: Backend, vocabulary: Vocabulary, seed: int) -> None:
    how = Decoding(110, temperature=1.2 if seed else 0.0, seed=seed)
    found = said(backend, vocabulary, CARD, how)
    assert found.ended == "end"
    assert Schema(CARD, "it").faults(json.loads(found.text)) == []
    free = generate(backend, backend.question({"prompt": "Once upon a time", "completion": ""}), how)
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(free.text)


def test_what_ends_by_the_limit_is_the_beginning_of_such(backend: Backend, vocabulary: Vocabulary) -> None:
    found = said(backend, vocabulary, CARD, Decoding(6))
    assert found.ended == "limit"
    assert '{"name":"'.startswith(found.text) and found.text
    with pytest.raises(ValueError, match=r"Unterminated|Expecting"):
        json.loads(found.text)


def test_the_calls_of_a_question_are_calls_of_its_functions(backend: Backend, vocabulary: Vocabulary) -> None:
    functions = {function.name: function for function in (Function(told, "here") for told in (WEATHER, MAIL))}
    schema = calls_schema(functions, 1, 1)
    schema = json.loads(
        json.dumps(schema)
        .replace('"type": "string"', '"type": "string", "maxLength": 9')
        .replace('"type": "integer"', '"type": "integer", "minimum": 0, "maximum": 9')
    )
    found = said(backend, vocabulary, schema, Decoding(110))
    (made,) = json.loads(found.text)
    assert functions[made["name"]].schema["required"][0] in made["arguments"]
    assert json.loads(said(backend, vocabulary, calls_schema({}, 0, 3), Decoding(9)).text) == []


def test_a_choice_of_texts_is_one_of_them(backend: Backend, vocabulary: Vocabulary) -> None:
    ids = backend.question({"prompt": "Once upon a time", "completion": ""})
    texts = ["a cat", 'a "dog"', "a fox with 3 tails"]
    found = generate(backend, ids, Decoding(40), vocabulary.one_of(texts))
    assert (found.text.strip() in texts, found.ended) == (True, "end")


def test_an_end_is_allowed_where_the_json_is_complete_alone(backend: Backend, vocabulary: Vocabulary) -> None:
    mask = vocabulary.json({"type": "integer"})
    ends = [token for token in range(512) if backend.ends(token)]
    assert not mask([])[ends].any()
    (digit,) = [token for token in range(512) if backend.text([token]) == "7"][:1]
    allowed = mask([digit])
    assert allowed[ends].any() and allowed[digit]
    assert mask([digit]).tolist() == allowed.tolist(), "asked twice, it says the same"


@pytest.mark.parametrize(
    "schema",
    [{"type": "colour"}, {"type": "integer", "multipleOf": 0}, {"$ref": "#/nowhere"}, {"minimum": 3, "maximum": 1}],
)
def test_a_schema_that_holds_nothing_is_refused(vocabulary: Vocabulary, schema: Mapping[str, Any]) -> None:
    with pytest.raises(RefusedInput) as caught:
        vocabulary.json(schema if "minimum" not in schema else {"type": "integer", **schema})
    assert caught.value.code == "E-SCHEMA"


def test_a_model_that_never_ends_cannot_be_held_to_a_schema(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "ends", lambda token: False)
    with pytest.raises(RefusedInput) as caught:
        Vocabulary(backend)
    assert caught.value.code == "E-CONSTRAINED-TOKENS"


def test_the_mask_is_as_wide_as_the_vocabulary(backend: Backend, vocabulary: Vocabulary) -> None:
    mask = vocabulary.json(CARD)([])
    assert mask.shape == (512,)
    assert mask.dtype == np.dtype(np.bool_)


def test_samples_are_held_to_the_schema_of_a_spec(stories: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(stories, model, ignore=shutil.ignore_patterns("*.gguf", "SOURCE*", "LICENSE*"))
    asked: dict[str, Any] = {"prompts": ["Once upon a time", "Tom had"], "max_tokens": 110, "context": 256}
    held, metrics = run_stage("samples", {**asked, "json_schema": CARD}, {"candidate": model}, tmp_path, name="held")
    answers = [json.loads(line) for line in (held / "samples.jsonl").read_text().splitlines()]
    whole = [item["answer"] for item in answers if item["ended"] == "end"]
    assert metrics["json_valid"].value == len(whole) / 2 > 0
    assert all(Schema(CARD, "it").faults(json.loads(text)) == [] for text in whole)
    _, free = run_stage("samples", asked, {"candidate": model}, tmp_path, name="free")
    assert "json_valid" not in free
    plain, bound = stage_of("samples", asked), stage_of("samples", {**asked, "json_schema": CARD})
    assert set(bound.tools_used()) - set(plain.tools_used()) == {"jsonschema", "llguidance"}
    assert set(bound.measured(frozenset())) - set(plain.measured(frozenset())) == {"json_valid"}
    with pytest.raises(RefusedInput) as caught:
        run_stage("samples", {**asked, "json_schema": {"type": "colour"}}, {"candidate": model}, tmp_path, name="bad")
    assert caught.value.code == "E-SCHEMA"
