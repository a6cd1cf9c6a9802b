"""TorchScript and torch.export of the decoder of all exports: made, proven and run; nobody publishes them.

What is traced is one call of the decoder in float32 with the keys and values of earlier tokens as inputs and all of
them as outputs (a cache that grows by concatenation), and logits of the last position only. One program reads prompts
and single tokens alike. torch.export's program is loaded with its assertions on sizes left out: they refuse a call
with one token that the program computes rightly, which is proven when it is made.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ingot.errors import StageFailed
from ingot.kit import hf
from ingot.kit.backends import Next
from ingot.kit.decoder.build import build_decoder
from ingot.kit.decoder.layers import HIDDEN, Decoder, Form, Place, rope_tables
from ingot.kit.decoder.shape import DecoderShape, decoder_shape
from ingot.kit.quant.plain import iter_plain_tensors

_CODE = "E-BENCHMARK"
_WORDS = {
    "torchscript": "TorchScript in float32 (traced with a growing cache)",
    "torch_export": "torch.export in float32 (one program with a growing cache)",
}
#: The lengths of the prompts, and the tokens after each, on which an archive is compared with the decoder.
_PROOF = ((1, 3), (2, 2), (9, 3))
_TOLERANCE = 1e-4


class _Growing:
    """A cache of the decoder: earlier keys and values, layer by layer, and with those of a call appended."""

    def __init__(self, past: Sequence[torch.Tensor]) -> None:
        self.past = past
        self.present: list[torch.Tensor] = []

    def extend(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        keys = torch.cat((self.past[2 * layer], keys), dim=2)
        values = torch.cat((self.past[2 * layer + 1], values), dim=2)
        self.present += [keys, values]
        return keys, values


class Call(nn.Module):  # type: ignore[misc]  # torch is Any to mypy here
    """One call of the decoder: (ids, cosines, sines, mask, *past) → (logits of the last position, *present)."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self, ids: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor, *past: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """(1, n), twice (n, head size), (n, all), 2 x layers (1, key-value heads, before, head size)."""
        cache = _Growing(past)
        place = Place(cos, sin, mask, cache)
        x = self.decoder.embed_tokens(ids)
        for layer in self.decoder.layers:
            x = layer(x, place)
        return self.decoder.lm_head(self.decoder.norm(x[:, -1:]))[0, -1], *cache.present


class CallRunner:
    """Anything that takes and gives what ``Call`` does, as a runner."""

    def __init__(self, call: Callable[..., Sequence[torch.Tensor]], shape: DecoderShape) -> None:
        self._call, self._shape = call, shape
        # a few hundred kilobytes; made longer where a text is
        self._tables = rope_tables(shape.rope, shape.head_dim, 512)
        self._past: tuple[torch.Tensor, ...] = ()

    def prefill(self, ids: Sequence[int]) -> Next:
        """Read a prompt into an empty cache; the logits of the next token."""
        shape = self._shape
        empty = torch.empty(1, shape.kv_heads, 0, shape.head_dim)
        self._past = (empty,) * (2 * shape.layers)
        return self._advance(ids)

    def step(self, token: int) -> Next:
        """Append one token; the logits of the next one."""
        return self._advance([token])

    def arguments(self, ids: Sequence[int], past: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """The inputs of a call."""
        before = past[0].shape[2]
        total = before + len(ids)
        if total > len(self._tables[0]):
            self._tables = rope_tables(self._shape.rope, self._shape.head_dim, 2 * total)
        cos, sin = (table[before:total] for table in self._tables)
        mask = torch.full((len(ids), total), HIDDEN).triu(before + 1)
        return torch.tensor([list(ids)], dtype=torch.int32), cos, sin, mask, *past

    def _advance(self, ids: Sequence[int]) -> Next:
        with torch.inference_mode():
            logits, *past = self._call(*self.arguments(ids, self._past))
        self._past = tuple(past)
        row: Next = logits.numpy()
        return row


def make(name: str, model: Path, archive: Path, threads: int) -> None:
    """Write an archive of the decoder with a model's weights into an empty folder, and compare what it computes.

    RefusedInput (E-BENCHMARK) for an architecture that the decoder is not; StageFailed (E-BENCHMARK) for an archive
    that computes something else.
    """
    torch.set_num_threads(threads)
    shape = decoder_shape(hf.read_config(model), _CODE)
    decoder = build_decoder(shape, iter_plain_tensors(model), Form(scaled_norm=False), _CODE)
    (archive / "config.json").write_text(json.dumps(hf.read_config(model)))
    call = Call(decoder).eval()
    source = CallRunner(call, shape)
    # each a tensor of its own: inputs that are one tensor become one input of the program
    past = [torch.zeros(1, shape.kv_heads, 5, shape.head_dim) for _ in range(2 * shape.layers)]
    example = source.arguments([0] * 7, past)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        _SAVE[name](call, example, archive)
    prove(source, open_archive(name, archive, threads)[0], shape.vocabulary)


def open_archive(name: str, archive: Path, threads: int) -> tuple[CallRunner, str]:
    """A runner over an archive, and in words what runs."""
    torch.set_num_threads(threads)
    shape = decoder_shape(json.loads((archive / "config.json").read_text()), _CODE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CallRunner(_LOAD[name](archive), shape), _WORDS[name]


def prove(source: CallRunner, made: CallRunner, vocabulary: int) -> None:
    """Compare the logits of two runners on texts of other lengths than the traced one. StageFailed (E-BENCHMARK)."""
    numbers = torch.Generator().manual_seed(0)
    for length, steps in _PROOF:
        ids = torch.randint(vocabulary, (length + steps,), generator=numbers).tolist()
        _same(source.prefill(ids[:length]), made.prefill(ids[:length]))
        for token in ids[length:]:
            _same(source.step(token), made.step(token))


def _same(wanted: Next, found: Next) -> None:
    difference = float(abs(wanted - found).max())
    if not difference <= _TOLERANCE * max(1.0, float(abs(wanted).max())):
        what = "the archive does not compute what the model computes"
        raise StageFailed(_CODE, what, facts=[f"largest difference of the logits {difference:.3g}"])


def _save_script(call: Call, example: tuple[torch.Tensor, ...], archive: Path) -> None:
    torch.jit.save(torch.jit.trace(call, example, check_trace=False), str(archive / "model.pt"))


def _save_program(call: Call, example: tuple[torch.Tensor, ...], archive: Path) -> None:
    import torch.fx.experimental._config as symbols

    free = torch.export.Dim.DYNAMIC
    past = tuple({2: free} for _ in example[4:])
    # sizes of 0 and 1 are sizes like any other: the first call has nothing before it, and later ones have one token
    with symbols.patch(backed_size_oblivious=True):
        program = torch.export.export(
            call, example, dynamic_shapes=({1: free}, {0: free}, {0: free}, {0: free, 1: free}, past)
        )
    torch.export.save(program, archive / "model.pt2")


def _load_script(archive: Path) -> Any:
    return torch.jit.load(str(archive / "model.pt"))


def _load_program(archive: Path) -> Any:
    return torch.export.load(archive / "model.pt2").module(check_guards=False)


_SAVE = {"torchscript": _save_script, "torch_export": _save_program}
_LOAD: dict[str, Callable[[Path], Any]] = {"torchscript": _load_script, "torch_export": _load_program}
