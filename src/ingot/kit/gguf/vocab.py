"""The tokenizer of a Hugging Face folder as GGUF fields.

Byte-level BPE becomes ``gpt2`` with the id of its pre-tokenizer; SentencePiece (tokenizer.model, or a tokenizer.json
made from one) becomes ``llama``. What cannot be said in GGUF is refused; whether llama.cpp then gives the same ids is
checked on the written file (``gguf.check``).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ingot.errors import RefusedInput
from ingot.kit.chat import Template
from ingot.kit.gguf.names import special_ids
from ingot.kit.gguf.writer import Field, f32s, flag, i32s, text, texts, u32
from ingot.kit.hf import read_json_file

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_SPACE = "▁"

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

#: The steps of a byte-level pre-tokenizer → llama.cpp's id of it. "gpt2" stands for the pattern that the
#: ByteLevel step itself applies.
_PRE: Mapping[tuple[str, ...], str] = {
    ("gpt2",): "gpt-2",
    ("digits", "gpt2"): "smollm",
    (_LLAMA3,): "llama-bpe",
    (_QWEN2,): "qwen2",
}


def vocabulary_fields(folder: Path, config: Mapping[str, Any], tokenizer: Any) -> list[Field]:
    """All ``tokenizer.*`` fields. ``tokenizer`` is transformers' own, loaded from the same folder.

    RefusedInput: E-GGUF-TOKENIZER when there is no tokenizer or it is of a kind that GGUF cannot say.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise _refuse("the folder holds no tokenizer.json")
    data = read_json_file(path)
    size = int(config["vocab_size"])
    model = data.get("model") or {}
    if model.get("type", "BPE") != "BPE":
        raise _refuse(f"its model is {model.get('type')}", "supported: BPE, byte-level or SentencePiece")
    if _byte_level_steps(data.get("pre_tokenizer")) is not None:
        fields = _bpe_fields(data, size)
    else:
        fields = _spm_fields(folder, data, size)
    fields += [u32(key, value) for key, value in special_ids(config, tokenizer) if value < size]
    fields += _added_around(tokenizer)
    source = Template.of(tokenizer).source
    return [*fields, *([text("tokenizer.chat_template", source)] if source else [])]


def _added_around(tokenizer: Any) -> Iterator[Field]:
    """Whether the tokenizer puts a begin or end token around a text, observed rather than read from its settings."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    start = len(whole) - len(plain)
    first = whole[:1] == [tokenizer.bos_token_id] and start > 0 and whole[1 : 1 + len(plain)] == plain
    last = whole[-1:] == [tokenizer.eos_token_id] and start - first > 0
    if whole != ([tokenizer.bos_token_id] * first + plain + [tokenizer.eos_token_id] * last):
        raise _refuse("it adds other tokens than one begin and one end token to a text")
    yield flag("tokenizer.ggml.add_bos_token", value=first)
    yield flag("tokenizer.ggml.add_eos_token", value=last)


def _byte_level_steps(step: Mapping[str, Any] | None) -> tuple[str, ...] | None:
    """The steps before byte-level BPE; None when the pre-tokenizer is not byte-level."""
    steps = (step or {}).get("pretokenizers", [step]) if step else []
    if not steps or steps[-1].get("type") != "ByteLevel":
        return None
    found = [_step(item) for item in steps[:-1]]
    if steps[-1].get("add_prefix_space"):
        raise _refuse("its ByteLevel step adds a space before a text, which llama.cpp does not")
    return (*found, "gpt2") if steps[-1].get("use_regex", True) else tuple(found)


def _step(item: Mapping[str, Any]) -> str:
    if item.get("type") == "Digits" and item.get("individual_digits"):
        return "digits"
    pattern = item.get("pattern", {}).get("Regex")
    if item.get("type") == "Split" and pattern and str(item.get("behavior")).lower() == "isolated":
        return str(pattern)
    return f"{item.get('type')} {item.get('pattern', '')}".strip()


def _bpe_fields(data: Mapping[str, Any], size: int) -> list[Field]:
    steps = _byte_level_steps(data["pre_tokenizer"])
    pre = _PRE.get(steps or ())
    if pre is None:
        raise _refuse(
            "llama.cpp's name of its pre-tokenizer is not known",
            f"its steps: {' | '.join(steps or ())}",
            f"known: {', '.join(_PRE.values())}",
        )
    tokens, types = _tokens_of(data, size)
    merges = [_merge(item) for item in data["model"].get("merges", [])]
    return [
        flag("tokenizer.ggml.add_space_prefix", value=False),
        text("tokenizer.ggml.model", "gpt2"),
        text("tokenizer.ggml.pre", pre),
        texts("tokenizer.ggml.tokens", tokens),
        i32s("tokenizer.ggml.token_type", types),
        texts("tokenizer.ggml.merges", merges),
    ]


def _merge(item: object) -> str:
    """A merge as ``left right``; a space inside a part is written as byte-level BPE writes it."""
    if isinstance(item, str):
        return item
    assert isinstance(item, Sequence)
    return " ".join(str(part).replace(" ", "Ġ") for part in item)


def _tokens_of(data: Mapping[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Texts and types of all ids; ids without a token are ``[PAD…]``, unused, as llama.cpp's converter has them."""
    tokens = [f"[PAD{index}]" for index in range(size)]
    types = [UNUSED] * size
    for piece, index in data["model"]["vocab"].items():
        if index >= size:
            raise _refuse(f"token {index} lies beyond the model's vocabulary of {size}")
        tokens[index], types[index] = piece, NORMAL
    for index, content, special in _added(data):
        if index >= size:
            raise _refuse(f"added token {index} lies beyond the model's vocabulary of {size}")
        # llama.cpp splits text at both kinds; it only prints the second
        tokens[index], types[index] = content, CONTROL if special or _looks_special(content) else USER_DEFINED
    return tokens, types


def _added(data: Mapping[str, Any]) -> Iterator[tuple[int, str, bool]]:
    for item in data.get("added_tokens") or []:
        yield int(item["id"]), str(item["content"]), bool(item.get("special"))


def _looks_special(content: str) -> bool:
    """Tokens such as ``<|name|>`` that some models forget to mark as special (the rule of llama.cpp's converter)."""
    return content.startswith(("<|", "<｜")) and content.endswith(("|>", "｜>"))


def _spm_fields(folder: Path, data: Mapping[str, Any], size: int) -> list[Field]:
    path = folder / "tokenizer.model"
    if path.is_file():
        pieces = list(read_sentencepiece(path.read_bytes()))
    elif data["model"].get("byte_fallback"):
        pieces = _pieces_from_merges(data)
    else:
        raise _refuse("it is neither byte-level BPE nor SentencePiece")
    tokens = [f"[PAD{index}]" for index in range(size)]
    scores, types = [-10000.0] * size, [UNUSED] * size
    for index, (piece, score, kind) in enumerate(pieces[:size]):
        tokens[index], scores[index], types[index] = piece, score, NORMAL if kind == USER_DEFINED else kind
    for index, content, special in _added(data):
        if index >= size:
            raise _refuse(f"added token {index} lies beyond the model's vocabulary of {size}")
        if types[index] in {UNKNOWN, CONTROL} and tokens[index] == content:
            continue
        types[index] = CONTROL if special or _looks_special(content) else USER_DEFINED
        tokens[index] = content if types[index] == CONTROL else content.replace(_SPACE, " ")
        scores[index] = -1000.0
    prefix = [] if _adds_space(data) else [flag("tokenizer.ggml.add_space_prefix", value=False)]
    return [
        *prefix,
        text("tokenizer.ggml.model", "llama"),
        text("tokenizer.ggml.pre", "default"),
        texts("tokenizer.ggml.tokens", tokens),
        f32s("tokenizer.ggml.scores", scores),
        i32s("tokenizer.ggml.token_type", types),
    ]


def _adds_space(data: Mapping[str, Any]) -> bool:
    """Whether a text gets a space in front: by a Prepend normalizer or a Metaspace pre-tokenizer."""
    normalizer = data.get("normalizer") or {}
    if any(item.get("type") == "Prepend" for item in normalizer.get("normalizers", [normalizer])):
        return True
    pre = data.get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers", [pre])
    return any(
        item.get("type") == "Metaspace" and item.get("prepend_scheme", "always") in {"always", "first"}
        for item in steps
    )


def _pieces_from_merges(data: Mapping[str, Any]) -> list[tuple[str, float, int]]:
    """Pieces with scores from a BPE vocabulary: an earlier merge has the higher score, as SentencePiece orders them."""
    model = data["model"]
    rank: dict[str, int] = {}
    for place, item in enumerate(model.get("merges", []), 1):
        left, right = item.split(" ") if isinstance(item, str) else item
        rank.setdefault(left + right, place)
    by_id = sorted(model["vocab"].items(), key=lambda item: item[1])
    if [index for _, index in by_id] != list(range(len(by_id))):
        raise _refuse("its vocabulary has gaps")
    unknown = model.get("unk_token")
    special = {content for _, content, marked in _added(data) if marked}
    pieces = []
    for piece, _ in by_id:
        kind = BYTE if _is_byte(piece) else CONTROL if piece in special else NORMAL
        pieces.append((piece, -float(rank.get(piece, 0)), UNKNOWN if piece == unknown else kind))
    return pieces


def _is_byte(piece: str) -> bool:
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")


def read_sentencepiece(data: bytes) -> Iterator[tuple[str, float, int]]:
    """(piece, score, type) of a SentencePiece model; its types are numbered as GGUF's.

    The file is a protobuf ``ModelProto`` whose repeated field 1 is a piece: 1 text, 2 float score, 3 type
    (https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto).
    RefusedInput (E-GGUF-TOKENIZER) when it is not.
    """
    try:
        for number, value in _protobuf(data):
            if number == 1:
                assert isinstance(value, bytes)
                parts = dict(_protobuf(value))
                score = struct.unpack("<f", parts[2])[0] if 2 in parts else 0.0
                yield parts.get(1, b"").decode("utf-8"), float(score), int(parts.get(3, NORMAL))
    except (IndexError, ValueError, struct.error, AssertionError, AttributeError) as error:
        raise _refuse("tokenizer.model is not a SentencePiece model") from error


def _protobuf(data: bytes) -> Iterator[tuple[int, Any]]:
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        else:
            size = {1: 8, 5: 4}.get(kind, -1)
        if size < 0 or at + size > len(data):
            raise ValueError("a field passes the end")
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def _refuse(what: str, *facts: str) -> RefusedInput:
    return RefusedInput("E-GGUF-TOKENIZER", f"the tokenizer cannot be written to a GGUF: {what}", facts=facts)
