"""A byte-level BPE tokenizer as GGUF fields."""

from __future__ import annotations

from collections.abc import Sequence

from ingot.kit.gguf.pretokenizers import Rule, known_names, rules_of
from ingot.kit.gguf.sentencepiece import CONTROL, NORMAL, UNUSED, USER_DEFINED
from ingot.kit.gguf.tokenizer_folder import LLAMAS, SPACE, TokenizerFolder, filler, refuse
from ingot.kit.gguf.writer import Field, flag, i32s, text, texts

#: What may rewrite a text: composed characters are left to whoever gives llama.cpp the text, as llama.cpp leaves them.
_HARMLESS = frozenset({"NFC"})


def bpe_fields(here: TokenizerFolder, steps: tuple[str, ...]) -> list[Field]:
    """The fields of a tokenizer that splits by ``steps``. RefusedInput: E-GGUF-TOKENIZER."""
    here.refuse_normalizers_but(_HARMLESS)
    rule = _rule(here, steps)
    tokens, types = _tokens_of(here)
    prefix = here.settings.get("add_prefix_space") if here.architecture in LLAMAS else None
    return [
        *([] if prefix is None else [flag("tokenizer.ggml.add_space_prefix", value=bool(prefix))]),
        text("tokenizer.ggml.model", "gpt2"),
        text("tokenizer.ggml.pre", rule.names[0]),
        texts("tokenizer.ggml.tokens", tokens),
        i32s("tokenizer.ggml.token_type", types),
        texts("tokenizer.ggml.merges", [merge_text(item) for item in here.model.get("merges", [])]),
    ]


def _rule(here: TokenizerFolder, steps: tuple[str, ...]) -> Rule:
    """llama.cpp's rule of these steps. One that treats whole words otherwise will do where that changes nothing."""
    whole = bool(here.model.get("ignore_merges"))
    rules = sorted(rules_of(steps), key=lambda rule: rule.ignore_merges != whole)
    if not rules:
        raise refuse(
            "llama.cpp's name of its pre-tokenizer is not known",
            f"its steps: {' | '.join(steps)}",
            f"known: {known_names()}",
        )
    if rules[0].ignore_merges != whole and not _merges_reach_all(here):
        raise refuse(f"it sets ignore_merges to {whole}, unlike llama.cpp's rule {rules[0].names[0]!r}")
    return rules[0]


def _merges_reach_all(here: TokenizerFolder) -> bool:
    """Whether merging makes every token out of its own text: then taking whole words unmerged changes nothing."""
    from tokenizers.models import BPE

    vocab = here.model["vocab"]
    merges = [(left, right) for left, right in (merge_text(item).split(" ") for item in here.model.get("merges", []))]
    model = BPE(vocab=vocab, merges=merges, ignore_merges=False)
    added = {token.content for token in here.added()}
    return all([t.id for t in model.tokenize(piece)] == [index] for piece, index in vocab.items() if piece not in added)


def merge_text(item: object) -> str:
    """A merge as ``left right``; a space inside a part is written as byte-level BPE writes it."""
    if isinstance(item, str):
        return item
    assert isinstance(item, Sequence)
    return " ".join(str(part).replace(" ", "Ġ") for part in item)


def _tokens_of(here: TokenizerFolder) -> tuple[list[str], list[int]]:
    """Texts and types of all ids; ids without a token are ``[PAD…]``, unused, as llama.cpp's converter has them."""
    tokens, types = [filler(index) for index in range(here.size)], [UNUSED] * here.size
    for piece, index in here.model["vocab"].items():
        tokens[here.fits(index, "token")], types[index] = piece, NORMAL
    for token in here.added():
        # llama.cpp splits text at both kinds; it only prints the second
        control = token.looks_special
        tokens[here.fits(token.index, "added token")] = token.content if control else token.content.replace(SPACE, " ")
        types[token.index] = CONTROL if control else USER_DEFINED
    return tokens, types
