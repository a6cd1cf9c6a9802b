"""The tokenizer of a GGUF as the files of a Hugging Face folder, giving the token ids that llama.cpp gives.

Built from the GGUF's own vocabulary and merges with the ``tokenizers`` library. How text is split before the merges
is named by ``tokenizer.ggml.pre``; the patterns are those of llama.cpp's ``llm_tokenizer_bpe``
(https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp). An unknown name is refused: a guess would
give other ids than the model was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from ingot.errors import RefusedInput
from ingot.kit.hf import write_json

_NORMAL, _UNKNOWN, _CONTROL, _USER, _BYTE = 1, 2, 3, 4, 6

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

#: ``tokenizer.ggml.pre`` → the splits before byte-level BPE: "digits" is every digit by itself, "gpt2" the pattern of
#: GPT-2, anything else a pattern.
_PRE: Mapping[str, tuple[str, ...]] = {
    "gpt-2": ("gpt2",),
    "smollm": ("digits", "gpt2"),
    "starcoder": ("digits", "gpt2"),
    "refact": ("digits", "gpt2"),
    "command-r": ("digits", "gpt2"),
    "codeshell": ("digits", "gpt2"),
    "llama-bpe": (_LLAMA3,),
    "llama3": (_LLAMA3,),
    "llama-v3": (_LLAMA3,),
}


@dataclass(frozen=True)
class Special:
    """The tokens with a role: ids of begin, end, unknown and padding, and whether text gets a begin or end token."""

    bos: int | None
    eos: int | None
    unk: int | None
    pad: int | None
    end_of_turn: int | None
    add_bos: bool
    add_eos: bool


def special_tokens(metadata: Mapping[str, Any]) -> Special:
    """The roles of tokens in a GGUF, with llama.cpp's defaults; ids outside the vocabulary count as absent."""
    size = len(metadata["tokenizer.ggml.tokens"])

    def find(name: str, default: int | None = None) -> int | None:
        value = metadata.get(f"tokenizer.ggml.{name}_token_id", default)
        return int(value) if isinstance(value, int) and value < size else None

    spm = metadata["tokenizer.ggml.model"] == "llama"
    llama3 = metadata.get("tokenizer.ggml.pre") in {"llama-bpe", "llama3", "llama-v3"}
    return Special(
        bos=find("bos", 1 if spm else None),
        eos=find("eos", 2 if spm else None),
        unk=find("unknown", 0 if spm else None),
        pad=find("padding"),
        end_of_turn=find("eot"),
        add_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", spm or llama3)),
        add_eos=bool(metadata.get("tokenizer.ggml.add_eos_token", False)),
    )


def write_tokenizer(metadata: Mapping[str, Any], out: Path, *, max_length: int) -> Special:
    """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json and chat_template.jinja where there is one.

    RefusedInput: E-GGUF-TOKENIZER for a tokenizer model or pre-tokenizer that ingot does not know, or lists that
    do not fit together.
    """
    model = metadata.get("tokenizer.ggml.model")
    if model not in {"gpt2", "llama"}:
        raise _refuse(f"its tokenizer is of the kind {model!r}", "known: gpt2 (byte-level BPE), llama (SentencePiece)")
    tokens, types = _vocabulary(metadata)
    special = special_tokens(metadata)
    tokenizer = _byte_level(metadata, tokens) if model == "gpt2" else _sentencepiece(metadata, tokens)
    # in two calls, since the library keeps special and other added tokens apart; ids come from the vocabulary
    tokenizer.add_special_tokens(_added(tokens, types, {_CONTROL, _UNKNOWN}, special=True))
    tokenizer.add_tokens(_added(tokens, types, {_USER}, special=False))
    post = _post_processor(tokens, special)
    if post is not None:
        tokenizer.post_processor = post
    if tokenizer.get_vocab_size() != len(tokens):
        raise _refuse("its added tokens do not fit its vocabulary")
    tokenizer.save(str(out / "tokenizer.json"))
    _write_config(metadata, tokens, special, out, max_length)
    return special


def _vocabulary(metadata: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens or len(set(tokens)) != len(tokens):
        raise _refuse("its vocabulary is missing, empty or names a token twice")
    types = metadata.get("tokenizer.ggml.token_type")
    kinds = [_NORMAL] * len(tokens) if types is None else [int(item) for item in types]
    if len(kinds) != len(tokens):
        raise _refuse(f"it has {len(tokens)} tokens but {len(kinds)} token types")
    return tokens, kinds


def _added(tokens: Sequence[str], types: Sequence[int], kinds: set[int], *, special: bool) -> list[AddedToken]:
    return [
        AddedToken(token, special=special, normalized=False)
        for token, kind in zip(tokens, types, strict=True)
        if kind in kinds
    ]


def _byte_level(metadata: Mapping[str, Any], tokens: Sequence[str]) -> Tokenizer:
    pre = metadata.get("tokenizer.ggml.pre", "gpt-2")
    if pre not in _PRE:
        raise _refuse(f"it splits text by the unknown rule {pre!r}", f"known: {', '.join(_PRE)}")
    merges = metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, list):
        raise _refuse("it has no merges")
    pairs = [tuple(merge.split(" ")) for merge in merges]
    vocab = {token: index for index, token in enumerate(tokens)}
    if not all(len(pair) == 2 and {*pair, "".join(pair)} <= vocab.keys() for pair in pairs):
        raise _refuse("one of its merges is not of two tokens that give a third")
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=pairs, ignore_merges=_PRE[pre] == (_LLAMA3,)))
    tokenizer.pre_tokenizer = _pre_tokenizer(_PRE[pre])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _pre_tokenizer(steps: Sequence[str]) -> Any:
    parts: list[Any] = []
    for step in steps:
        if step == "digits":
            parts.append(pre_tokenizers.Digits(individual_digits=True))
        elif step != "gpt2":
            parts.append(pre_tokenizers.Split(Regex(step), behavior="isolated", invert=False))
    use_regex = steps[-1] == "gpt2"
    parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=use_regex))
    return parts[0] if len(parts) == 1 else pre_tokenizers.Sequence(parts)


def _sentencepiece(metadata: Mapping[str, Any], tokens: Sequence[str]) -> Tokenizer:
    scores = metadata.get("tokenizer.ggml.scores")
    if scores is None or len(scores) != len(tokens):
        raise _refuse("its tokens have no scores")
    vocab = {token: index for index, token in enumerate(tokens)}
    special = special_tokens(metadata)
    unk = tokens[special.unk] if special.unk is not None else None
    merges = _merges_by_score(vocab, [float(score) for score in scores])
    bpe = BPE(vocab=vocab, merges=merges, unk_token=unk, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    space = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space]) if prefix else space
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return tokenizer


def _merges_by_score(vocab: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Merges that join two pieces to the best-scored piece first, as SentencePiece does; equal scores by id."""
    found = []
    for piece, index in vocab.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocab and right in vocab:
                found.append((-scores[index], index, vocab[left], vocab[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def _post_processor(tokens: Sequence[str], special: Special) -> Any:
    first = [tokens[special.bos]] if special.add_bos and special.bos is not None else []
    last = [tokens[special.eos]] if special.add_eos and special.eos is not None else []
    if not first and not last:
        return None
    single = [*first, "$A", *last]
    pair = [*single, *(f"{token}:1" for token in first), "$B:1", *(f"{token}:1" for token in last)]
    used = sorted({(token, tokens.index(token)) for token in first + last})
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=used)


def _write_config(
    metadata: Mapping[str, Any], tokens: Sequence[str], special: Special, out: Path, max_length: int
) -> None:
    ids = {"bos_token": special.bos, "eos_token": special.eos, "unk_token": special.unk, "pad_token": special.pad}
    roles = {name: tokens[index] for name, index in ids.items() if index is not None}
    write_json(out / "special_tokens_map.json", roles)
    config = {
        **roles,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": special.add_bos,
        "add_eos_token": special.add_eos,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
    }
    write_json(out / "tokenizer_config.json", config)
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str) and template:
        (out / "chat_template.jinja").write_text(template, encoding="utf-8", newline="")


def _refuse(what: str, *facts: str) -> RefusedInput:
    return RefusedInput("E-GGUF-TOKENIZER", f"the GGUF's tokenizer cannot be kept: {what}", facts=facts)
