"""How many bytes of text tokens stand for.

A token's bytes are those that it is decoded to; special tokens stand for none. What is counted so is compared with the
text: where a tokenizer changes its text (lower case, normal forms) nobody can say which bytes a token stands for, and
bits per byte are not measured.
"""

from __future__ import annotations

from collections.abc import Sequence

from ingot.kit import chat
from ingot.kit.backends import Piece, Scorable
from ingot.kit.chat import Example, Row

_WHOLE = 1 << 40

#: Why bits per byte are missing.
UNKNOWN = "the tokenizer changes the text, so the bytes that its tokens stand for are not known"


def of_text(backend: Scorable, ids: Sequence[int], text: str) -> list[int] | None:
    """The bytes of each token of a text, no begin token before it; None where they are not those of the text."""
    return _counted(backend.pieces(ids), len(text.encode("utf-8")))


def of_document(backend: Scorable, row: Row, example: Example) -> int | None:
    """The bytes that the scored tokens of a row stand for; None where that is not known."""
    counted = _of_row(backend, row, backend.encode(row, _WHOLE).ids)
    return None if counted is None else sum(counted[example.labels_from : len(example.ids)])


def same_text(backend: Scorable, row: Row, example: Example, size: int | None) -> tuple[Example, int | None]:
    """A row cut where another tokenizer's tokens, that stand for ``size`` bytes, end, and the bytes then scored.

    Not beyond it, so that it may end a token earlier. Where either is not known it stays as it was cut.
    """
    whole = backend.encode(row, _WHOLE)
    counted = _of_row(backend, row, whole.ids)
    if counted is None or size is None:
        return example, None
    end, found = whole.labels_from, 0
    while end < len(whole.ids) and found + counted[end] <= size:
        found += counted[end]
        end += 1
    return Example(whole.ids[: max(end, whole.labels_from + 1)], whole.labels_from), found


def _of_row(backend: Scorable, row: Row, ids: Sequence[int]) -> list[int] | None:
    pieces = backend.pieces(ids)
    _, full = chat.render(row, backend.template)
    # the begin token of a chat is in its text, that of other rows is the tokenizer's
    begun = bool(ids) and chat.special_tokens(row) and ids[0] == backend.begin
    literal = sum(piece.literal for piece in pieces[begun:] if piece.special)
    return _counted(pieces, len(full.encode("utf-8")) - literal)


def _counted(pieces: Sequence[Piece], size: int) -> list[int] | None:
    """Bytes token by token where they sum to ``size``; the space that some tokenizers put before a text is none."""
    found = [0 if piece.special else piece.literal for piece in pieces]
    over = sum(found) - size
    if over == 1:
        first = next(at for at, piece in enumerate(pieces) if not piece.special)
        found[first] -= 1
    return found if over in (0, 1) else None
