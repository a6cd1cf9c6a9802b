"""The tokenizer that ships with an export gives the source's token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ingot.core.stage import Metric
from ingot.errors import StageFailed
from ingot.kit.chat import Template
from ingot.kit.parity.golden import Golden
from ingot.kit.parity.probes import PROBES, TURNS, special_texts


def check_tokenizer(shipped: Path, source: Any, texts: Golden) -> Metric:
    """Load the tokenizer in the folder ``shipped`` and compare it with the source's; ``tokenizer_texts`` of an export.

    StageFailed (E-PARITY) at the first text with other ids, or when a conversation is rendered otherwise.
    """
    from ingot.kit.hf import load_lone_tokenizer

    found = load_lone_tokenizer(shipped)
    own = [*PROBES, *special_texts(source)]
    for number, text in enumerate([*own, *texts.texts]):
        # a row of a data set is not told: messages go where prompts may not
        name = repr(text) if number < len(own) else f"held-out row {number - len(own)} in the order of ids"
        for special in (False, True):
            _compare(_ids(found, text, special=special), _ids(source, text, special=special), name)
    _compare_templates(Template.of(found), Template.of(source))
    method = "texts (probes, special tokens, held-out rows) to which the shipped tokenizer gives the source's token ids"
    return Metric(len(own) + len(texts.texts), "1", method)


def _ids(tokenizer: Any, text: str, *, special: bool) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])


def _compare(found: list[int], wanted: list[int], name: str) -> None:
    if found == wanted:
        return
    pairs = zip(found, wanted, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(found), len(wanted)))
    raise StageFailed(
        "E-PARITY",
        "the tokenizer that ships with the export gives other token ids than the source's",
        facts=[f"text: {name}", f"from token {at}: export {found[at : at + 8]}, source {wanted[at : at + 8]}"],
    )


def _compare_templates(found: Template, wanted: Template) -> None:
    if (found.source is None) != (wanted.source is None) or (
        wanted.source is not None and found.apply(TURNS) != wanted.apply(TURNS)
    ):
        raise StageFailed("E-PARITY", "the chat template that ships with the export renders another text")
