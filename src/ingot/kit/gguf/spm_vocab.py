"""A SentencePiece tokenizer as GGUF fields."""

from __future__ import annotations

from collections.abc import Iterator

from ingot.kit.gguf.sentencepiece import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Piece,
    read_sentencepiece,
)
from ingot.kit.gguf.tokenizer_folder import LLAMAS, SPACE, Added, TokenizerFolder, filler, refuse
from ingot.kit.gguf.writer import Field, f32s, flag, i32s, text, texts
from ingot.kit.hf import read_json_file

_REWRITES = frozenset({"Replace", "Prepend", "Strip", "NFC"})
#: Tokens after which a Phi-3 keeps a space.
KEEPS_SPACE = frozenset({"<unk>", "<s>", "<|endoftext|>"})


def spm_fields(here: TokenizerFolder) -> list[Field]:
    """The fields of a tokenizer of pieces and scores. RefusedInput: E-GGUF-TOKENIZER."""
    here.refuse_normalizers_but(_REWRITES)
    tokens, scores, types = zip(*_pieces(here), strict=True)
    return [
        *_name(here),
        *_prefix(here),
        text("tokenizer.ggml.model", "llama"),
        text("tokenizer.ggml.pre", "default"),
        texts("tokenizer.ggml.tokens", tokens),
        f32s("tokenizer.ggml.scores", scores),
        i32s("tokenizer.ggml.token_type", types),
    ]


def _pieces(here: TokenizerFolder) -> list[Piece]:
    path = here.path / "tokenizer.model"
    if path.is_file():
        pieces = list(read_sentencepiece(path.read_bytes()))
    elif here.model.get("byte_fallback"):
        pieces = _pieces_from_merges(here)
    else:
        raise refuse("it is neither byte-level BPE nor SentencePiece")
    rows: list[Piece] = [(filler(index), -10000.0, UNUSED) for index in range(here.size)]
    for index, (piece, score, kind) in enumerate(pieces[: here.size]):
        rows[index] = (piece, score, NORMAL if kind == USER_DEFINED else kind)
    for token in here.added():
        before, _, kind = rows[here.fits(token.index, "added token")]
        # what tokenizer.json lists again of the model's own special pieces stays as it is
        if before != token.content or kind not in {UNKNOWN, CONTROL}:
            rows[token.index] = _added_piece(here, token)
    for token in _listed(here):
        rows[token.index] = _added_piece(here, token)
    return rows


def _listed(here: TokenizerFolder) -> Iterator[Added]:
    """Tokens that llama.cpp's converter takes from these files in any case, even where they repeat a piece."""
    side = here.path / "added_tokens.json"
    if side.is_file():
        for content, index in read_json_file(side).items():
            if index < here.size:
                yield Added(index, content, special=False)
    for index, item in (here.settings.get("added_tokens_decoder") or {}).items():
        if int(index) < here.size:
            yield Added(int(index), str(item["content"]), bool(item.get("special")))
    if _phi(here):
        yield from here.added()


def _phi(here: TokenizerFolder) -> bool:
    return here.architecture == "Phi3ForCausalLM"


def _added_piece(here: TokenizerFolder, token: Added) -> Piece:
    control = token.special if _phi(here) else token.looks_special
    # llama.cpp looks for user-defined tokens in the text itself, before spaces are replaced
    content = token.content if control or _phi(here) else token.content.replace(SPACE, " ")
    return content, -1000.0, CONTROL if control else USER_DEFINED


def _name(here: TokenizerFolder) -> list[Field]:
    """llama.cpp lets special tokens swallow the spaces after them where the file's name says Phi-3: GGUF has no
    field for it (``llama_vocab::impl::load``)."""
    swallowing = {token.content for token in here.added() if token.rstrip}
    kept = {token.content for token in here.added()} - KEEPS_SPACE
    return [text("general.name", "Phi-3")] if swallowing and swallowing == kept else []


def _prefix(here: TokenizerFolder) -> list[Field]:
    """``add_space_prefix`` where a text gets no space in front, or where tokenizer_config.json speaks of it."""
    adds = _adds_space(here)
    stated = here.architecture in LLAMAS and here.settings.get("add_prefix_space") is not None
    return [flag("tokenizer.ggml.add_space_prefix", value=adds)] if stated or not adds else []


def _adds_space(here: TokenizerFolder) -> bool:
    """Whether a text gets a space in front: by a Prepend normalizer or a Metaspace pre-tokenizer."""
    if any(item.get("type") == "Prepend" for item in here.normalizers()):
        return True
    pre = here.data.get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers", [pre])
    return any(
        item.get("type") == "Metaspace" and item.get("prepend_scheme", "always") in {"always", "first"}
        for item in steps
    )


def _pieces_from_merges(here: TokenizerFolder) -> list[Piece]:
    """Pieces with scores from a BPE vocabulary: an earlier merge has the higher score, as SentencePiece orders them."""
    model = here.model
    rank: dict[str, int] = {}
    for place, item in enumerate(model.get("merges", []), 1):
        left, right = item.split(" ") if isinstance(item, str) else item
        rank.setdefault(left + right, place)
    by_id = sorted(model["vocab"].items(), key=lambda item: item[1])
    if [index for _, index in by_id] != list(range(len(by_id))):
        raise refuse("its vocabulary has gaps")
    unknown = model.get("unk_token")
    special = {token.content for token in here.added() if token.special}
    pieces = []
    for piece, _ in by_id:
        kind = BYTE if _is_byte(piece) else CONTROL if piece in special else NORMAL
        pieces.append((piece, -float(rank.get(piece, 0)), UNKNOWN if piece == unknown else kind))
    return pieces


def _is_byte(piece: str) -> bool:
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")
