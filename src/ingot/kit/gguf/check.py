"""Proof that llama.cpp reads a written GGUF as transformers reads its source: opens, same token ids, finite logits."""

from __future__ import annotations

import functools
import json
import re
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingot.errors import IngotError, StageFailed
from ingot.kit.gguf.pretokenizers import Rule, rule_named
from ingot.kit.gguf.reader import read_gguf
from ingot.kit.llama_cpp import Model, open_model
from ingot.kit.parity.probes import PROBES, special_texts


@dataclass(frozen=True)
class Checked:
    """What the check measured: probe texts compared, rows compared, tokens generated, seconds to open the file."""

    texts: int
    rows: int
    generated: int
    load_seconds: float


def check_gguf(path: Path, tokenizer: Any, *, threads: int, finite: bool = True, rows: Sequence[str] = ()) -> Checked:
    """Open, tokenize, generate. StageFailed (E-GGUF-SELFCHECK) at the first difference.

    Weights that were let through although they are no numbers give logits that are none: then not ``finite``.
    ``rows`` are texts of a data set, tokenized beside the probes and shown in no message.
    """
    start = time.perf_counter()
    try:
        # A few tokens are no reason to hold a second copy of the weights.
        model = open_model(path, context=64, threads=threads, repack=False)
    except IngotError as error:
        raise StageFailed(
            "E-GGUF-SELFCHECK", f"the written GGUF is not usable: {error.what}", facts=error.facts
        ) from error
    with model:
        seconds = time.perf_counter() - start
        texts = list(probe_texts(tokenizer, _rule_of(path)))
        real = list(_comparable(rows, tokenizer, _rule_of(path)))
        for probe in texts:
            _compare_ids(model, tokenizer, probe, repr(probe))
        for number, row in enumerate(real):
            _compare_ids(model, tokenizer, row, f"number {number} of the held-out rows, by id, that can be compared")
        prompt = model.tokenize(PROBES[0], bos=True)
        tokens, numbers = model.greedy(prompt, 8)
        if finite and not numbers:
            raise StageFailed("E-GGUF-SELFCHECK", "the written GGUF gives logits that are not finite numbers")
        return Checked(len(texts), len(real), len(tokens), seconds)


def probe_texts(tokenizer: Any, rule: Rule | None = None) -> Iterator[str]:
    """The probes, then ones made of the tokenizer's special tokens and chat template.

    What has no counterpart in llama.cpp is left out or tidied: characters that a normalizer composes, repeated spaces
    that one drops, text right after a special token where only the start of a text gets a space in front, and
    characters around which llama.cpp's form of the splitting ``rule`` is another.
    """
    return _comparable([*PROBES, *special_texts(tokenizer)], tokenizer, rule)


def _comparable(texts: Sequence[str], tokenizer: Any, rule: Rule | None) -> Iterator[str]:
    tidy = _tidier(tokenizer)
    special: list[str] = tokenizer.all_special_tokens if _spaces_the_start_alone(tokenizer) else []
    for text in texts:
        if (rule is None or rule.agrees_on(text)) and not any(token in text for token in special):
            yield tidy(text)


def _tidier(tokenizer: Any) -> Callable[[str], str]:
    normalizer = tokenizer.backend_tokenizer.normalizer
    steps: list[Callable[[str], str]] = []
    if normalizer is not None and normalizer.normalize_str("e\u0301") == normalizer.normalize_str("\u00e9"):
        steps.append(lambda text: unicodedata.normalize("NFC", text))
    if normalizer is not None and normalizer.normalize_str("a  b") == normalizer.normalize_str("a b"):
        steps.append(_tidied)
    return lambda text: functools.reduce(lambda done, step: step(done), steps, text)


def _spaces_the_start_alone(tokenizer: Any) -> bool:
    """Whether a space goes before a text but not before what follows a special token; llama.cpp knows both or none."""
    step = tokenizer.backend_tokenizer.pre_tokenizer
    pre = {} if step is None else json.loads(step.__getstate__())
    steps = pre.get("pretokenizers", [pre])
    return any(step.get("type") == "Metaspace" and step.get("prepend_scheme") == "first" for step in steps)


def _rule_of(path: Path) -> Rule | None:
    metadata = read_gguf(path).metadata
    byte_level = metadata.get("tokenizer.ggml.model") == "gpt2"
    return rule_named(str(metadata.get("tokenizer.ggml.pre"))) if byte_level else None


def _tidied(text: str) -> str:
    return re.sub(" +", " ", text).strip(" ")


def _compare_ids(model: Model, tokenizer: Any, text: str, name: str) -> None:
    for bos in (False, True):
        found = model.tokenize(text, special=True, bos=bos)
        # verbose: transformers warns of texts beyond the context
        wanted = list(tokenizer(text, add_special_tokens=bos, verbose=False)["input_ids"])
        if found != wanted:
            where = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), None)
            at = min(len(found), len(wanted)) if where is None else where
            raise StageFailed(
                "E-GGUF-SELFCHECK",
                "llama.cpp gives other token ids than the Hugging Face tokenizer",
                facts=[
                    f"text: {name}",
                    f"from token {at}: llama.cpp {found[at : at + 8]}, Hugging Face {wanted[at : at + 8]}",
                ],
            )
