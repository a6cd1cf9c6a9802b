"""The tokenizer of a GGUF as the files of a Hugging Face folder, giving the token ids that llama.cpp gives.

Built from the GGUF's own vocabulary and merges with the ``tokenizers`` library. How text is split before the merges
is named by ``tokenizer.ggml.pre`` (``pretokenizers``). An unknown or missing name is refused: a guess would give other
ids than the model was trained on. The fillers that a converter puts where the vocabulary is smaller than the embedding
are left out, as the tokenizers of the published models leave them out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from ingot.errors import RefusedInput
from ingot.kit.gguf.pretokenizers import DIGITS, GPT2, PUNCTUATION, RUNS, Rule, known_names, rule_named
from ingot.kit.gguf.sentencepiece import CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Settings, write_sentencepiece
from ingot.kit.gguf.spm_vocab import KEEPS_SPACE
from ingot.kit.gguf.tokenizer_folder import filler
from ingot.kit.hf import write_json


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
    """The roles of tokens in a GGUF, with llama.cpp's defaults; ids without a token count as absent."""
    tokens = metadata["tokenizer.ggml.tokens"]

    def find(name: str, default: int | None = None) -> int | None:
        value = metadata.get(f"tokenizer.ggml.{name}_token_id", default)
        known = isinstance(value, int) and value < len(tokens) and tokens[value] != filler(value)
        return int(value) if known and value is not None else None

    spm = metadata["tokenizer.ggml.model"] == "llama"
    rule = None if spm else rule_named(str(metadata.get("tokenizer.ggml.pre")))
    return Special(
        bos=find("bos", 1 if spm else None),
        eos=find("eos", 2 if spm else None),
        unk=find("unknown", 0 if spm else None),
        pad=find("padding"),
        end_of_turn=find("eot"),
        add_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", spm or (rule is not None and rule.add_bos))),
        add_eos=bool(metadata.get("tokenizer.ggml.add_eos_token", False)),
    )


def write_tokenizer(metadata: Mapping[str, Any], out: Path, *, max_length: int | None) -> Special:
    """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json, chat_template.jinja where there is one,
    and tokenizer.model for a SentencePiece vocabulary. ``max_length`` None: the model it is for is not known.

    RefusedInput: E-GGUF-TOKENIZER for a tokenizer model or pre-tokenizer that ingot does not know, or lists that
    do not fit together.
    """
    model = metadata.get("tokenizer.ggml.model")
    if model not in {"gpt2", "llama"}:
        raise _refuse(f"its tokenizer is of the kind {model!r}", "known: gpt2 (byte-level BPE), llama (SentencePiece)")
    tokens, types = _vocabulary(metadata)
    special = special_tokens(metadata)
    vocab = {token: index for index, token in enumerate(tokens) if token != filler(index)}
    tokenizer = _byte_level(metadata, vocab) if model == "gpt2" else _sentencepiece(metadata, tokens, vocab)
    # in two calls, since the library keeps special and other added tokens apart; ids come from the vocabulary
    stripping = _strips(metadata)
    for kinds in ({CONTROL, UNKNOWN}, {USER_DEFINED}):
        added = [
            AddedToken(token, special=CONTROL in kinds, normalized=False, rstrip=stripping and token not in KEEPS_SPACE)
            for token, index in vocab.items()
            if types[index] in kinds
        ]
        (tokenizer.add_special_tokens if CONTROL in kinds else tokenizer.add_tokens)(added)
    post = _post_processor(tokens, special)
    if post is not None:
        tokenizer.post_processor = post
    if tokenizer.get_vocab_size() != len(vocab):
        raise _refuse("its added tokens do not fit its vocabulary")
    tokenizer.save(str(out / "tokenizer.json"))
    if model == "llama":
        _write_model(metadata, (tokens, types), special, out / "tokenizer.model")
    _write_config(metadata, tokens, special, out, max_length)
    return special


def _strips(metadata: Mapping[str, Any]) -> bool:
    """Whether special tokens swallow the spaces after them: llama.cpp tells a Phi-3 by its name
    (``llama_vocab::impl::load``), since GGUF has no field for it."""
    name = str(metadata.get("general.name", "")).lower()
    return metadata.get("tokenizer.ggml.model") == "llama" and ("phi-3" in name or "phi3" in name)


def _vocabulary(metadata: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens or len(set(tokens)) != len(tokens):
        raise _refuse("its vocabulary is missing, empty or names a token twice")
    types = metadata.get("tokenizer.ggml.token_type")
    kinds = [NORMAL] * len(tokens) if types is None else [int(item) for item in types]
    if len(kinds) != len(tokens):
        raise _refuse(f"it has {len(tokens)} tokens but {len(kinds)} token types")
    return tokens, kinds


def _byte_level(metadata: Mapping[str, Any], vocab: dict[str, int]) -> Tokenizer:
    pre = metadata.get("tokenizer.ggml.pre")
    if pre is None:
        raise _refuse("it does not say how it splits text (tokenizer.ggml.pre)", "llama.cpp would guess")
    rule = rule_named(str(pre))
    if rule is None:
        raise _refuse(f"it splits text by the unknown rule {pre!r}", f"known: {known_names()}")
    merges = metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, list):
        raise _refuse("it has no merges")
    pairs = [tuple(merge.split(" ")) for merge in merges]
    if not all(len(pair) == 2 and {*pair, "".join(pair)} <= vocab.keys() for pair in pairs):
        raise _refuse("one of its merges is not of two tokens that give a third")
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=pairs, ignore_merges=rule.ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer(rule)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def pre_tokenizer(rule: Rule) -> Any:
    """The pre-tokenizer of a rule as the ``tokenizers`` library has it."""
    parts: list[Any] = []
    for step in rule.steps:
        if step in {DIGITS, RUNS}:
            parts.append(pre_tokenizers.Digits(individual_digits=step == DIGITS))
        elif step == PUNCTUATION:
            parts.append(pre_tokenizers.Punctuation(behavior="contiguous"))
        elif step == GPT2:
            parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True))
        else:
            parts.append(pre_tokenizers.Split(Regex(step), behavior="isolated", invert=False))
    if GPT2 not in rule.steps:
        parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False))
    return parts[0] if len(parts) == 1 else pre_tokenizers.Sequence(parts)


def _sentencepiece(metadata: Mapping[str, Any], tokens: Sequence[str], vocab: dict[str, int]) -> Tokenizer:
    scores = metadata.get("tokenizer.ggml.scores")
    if scores is None or len(scores) != len(tokens):
        raise _refuse("its tokens have no scores")
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


def _write_model(
    metadata: Mapping[str, Any], vocabulary: tuple[Sequence[str], Sequence[int]], special: Special, path: Path
) -> None:
    """tokenizer.model with the exact scores; left out where there is no unknown token, which the format demands.

    tokenizer.json cannot hold scores: without this file a converter could only number the merges.
    """
    if special.unk is None:
        return
    tokens, types = vocabulary
    size = max(index for index, token in enumerate(tokens) if token != filler(index)) + 1
    pieces = []
    for index, score in enumerate(metadata["tokenizer.ggml.scores"][:size]):
        kind = UNUSED if tokens[index] == filler(index) else CONTROL if types[index] == UNKNOWN else types[index]
        piece = tokens[index].replace(" ", "▁") if kind == USER_DEFINED else tokens[index]
        # the format has exactly one unknown piece
        pieces.append((piece, float(score), UNKNOWN if index == special.unk else kind))
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    settings = Settings(prefix, special.unk, special.bos, special.eos, special.pad)
    path.write_bytes(write_sentencepiece(pieces, settings))


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
    metadata: Mapping[str, Any], tokens: Sequence[str], special: Special, out: Path, max_length: int | None
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
        **({} if max_length is None else {"model_max_length": max_length}),
    }
    write_json(out / "tokenizer_config.json", config)
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str) and template:
        (out / "chat_template.jinja").write_text(template, encoding="utf-8", newline="")


def _refuse(what: str, *facts: str) -> RefusedInput:
    return RefusedInput("E-GGUF-TOKENIZER", f"the GGUF's tokenizer cannot be kept: {what}", facts=facts)
