"""The decoder in three pieces that the exporter takes: what comes before the layers, one layer, what comes after.

Layers differ in their weights only, so one is exported and its graph repeated: exporting takes as long for 80 layers as
for one. The pieces hold no weights (they live on the ``meta`` device): the graph names them, ``weights`` writes them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ingot.kit.decoder.layers import HIDDEN, Attention, Decoder, Extras, Form, Place, PlainRmsNorm, Plan
from ingot.kit.decoder.shape import DecoderShape


@dataclass(frozen=True)
class Kind:
    """What of a model's graph can be chosen: the type that matrices are stored and multiplied in, and that in which the
    embedding is stored; whether keys and values of earlier tokens come in and go out; whether the output layer reads
    the embedding's own weights."""

    dtype: torch.dtype
    embedding: torch.dtype
    cached: bool
    shared_head: bool


class Matrix(nn.Module):  # type: ignore[misc]  # torch is Any to mypy here
    """A projection whose weight lies as it is multiplied, (inputs, outputs): runtimes then need no transposed copy."""

    def __init__(self, linear: nn.Linear, *, wide: bool, dtype: torch.dtype) -> None:
        """``wide``: the result joins the sum of all layers, which is kept in fp32."""
        super().__init__()
        self.wide = wide
        self.weight = nn.Parameter(torch.empty(linear.in_features, linear.out_features, dtype=dtype, device="meta"))
        self.bias = None if linear.bias is None else nn.Parameter(torch.empty_like(linear.bias, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, inputs) → (…, outputs)."""
        y = x @ self.weight
        y = y if self.bias is None else y + self.bias
        return y.float() if self.wide else y


class SharedHead(nn.Module):  # type: ignore[misc]  # torch is Any to mypy here
    """The output layer of a model with tied embeddings: multiplies by the embedding as it lies, (vocabulary, hidden).

    ONNX has an operator for that (Gemm with ``transB``), torch has no way to say it that keeps the one weight.
    """

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, n, hidden) → (batch, n, vocabulary)."""
        weight = self.embedding.weight
        rows = x.flatten(0, 1)
        attributes: dict[str, int | float | str | bool] = {"transB": 1}
        shape = (rows.shape[0], weight.shape[0])
        found = torch.onnx.ops.symbolic("Gemm", (rows, weight), attributes, dtype=x.dtype, shape=shape)
        return found.reshape(x.shape[0], x.shape[1], weight.shape[0]).float()


class WideNorm(PlainRmsNorm):
    """Computes in fp32, whose squares do not overflow; gives the type of the matrices."""

    def __init__(self, norm: PlainRmsNorm, dtype: torch.dtype) -> None:
        super().__init__(norm.weight.numel(), norm.eps)
        self.dtype = dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, size) → (…, size)."""
        return super().forward(x.float()).to(self.dtype)


class GroupedAttention(Attention):
    """Attention in which query heads that share a key-value head are rows of one product: nothing is repeated."""

    def forward(self, x: torch.Tensor, place: Place) -> torch.Tensor:
        """(batch, n, hidden) → (batch, n, hidden)."""
        batch, length = x.shape[0], x.shape[1]
        query = self._rotate(self.q_norm(self._split(self.q_proj(x), self.heads)), place) * self.size**-0.5
        key = self._rotate(self.k_norm(self._split(self.k_proj(x), self.kv_heads)), place)
        value = self._split(self.v_proj(x), self.kv_heads)
        if place.cache is not None:
            key, value = place.cache.extend(self.layer, key, value)
        times = self.heads // self.kv_heads
        query = query.reshape(batch, self.kv_heads, times * length, self.size)
        scores = (query @ key.transpose(-1, -2)).reshape(batch, self.heads, length, -1) + place.mask
        weights = torch.softmax(scores, dim=-1).reshape(batch, self.kv_heads, times * length, -1)
        mixed = (weights @ value).reshape(batch, self.heads, length, self.size)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))

    def _rotate(self, x: torch.Tensor, place: Place) -> torch.Tensor:
        half = self.size // 2
        turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
        return x * place.cos + turned * place.sin


class _Grown:
    """A layer's cache: what came in, and this call's keys and values behind it."""

    def __init__(self, past: tuple[torch.Tensor, torch.Tensor]) -> None:
        self.past = past

    def extend(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Cache``."""
        del layer
        self.past = torch.cat((self.past[0], keys), dim=2), torch.cat((self.past[1], values), dim=2)
        return self.past


class Front(nn.Module):  # type: ignore[misc]  # torch is Any to mypy here
    """Ids, the mask of all tokens and the positions of these → embeddings, cosines, sines, additive mask."""

    def __init__(self, decoder: Decoder, dtype: torch.dtype) -> None:
        super().__init__()
        self.embed_tokens = decoder.embed_tokens
        self.frequencies = nn.Parameter(torch.empty(decoder.shape.head_dim // 2, device="meta"))
        self.dtype = dtype

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """(batch, n), (batch, all), (batch, n) → (batch, n, hidden), twice (batch, 1, n, size), (batch, 1, n, all)."""
        total, length = attention_mask.shape[1], input_ids.shape[1]
        column = torch.arange(total, device=input_ids.device)
        row = torch.arange(total - length, total, device=input_ids.device)
        seen = (column[None, None, :] <= row[None, :, None]) & (attention_mask[:, None, :] > 0)
        mask = torch.where(seen, 0.0, HIDDEN)[:, None].to(self.dtype)
        # in fp32: in fp16 the positions from 2,048 on are not all different
        angle = position_ids[:, None, :, None].float() * self.frequencies
        angle = torch.cat((angle, angle), dim=-1)
        return self.embed_tokens(input_ids).float(), angle.cos().to(self.dtype), angle.sin().to(self.dtype), mask


class Layer(nn.Module):  # type: ignore[misc]  # torch is Any to mypy here
    """One layer; with a cache also the keys and values that were, and in the outputs those that are."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(
        self,
        hidden: torch.Tensor,
        place: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        past: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> tuple[torch.Tensor, ...]:
        """Hidden states; cosines, sines and mask; keys and values or None → hidden states, keys, values."""
        cache = None if past is None else _Grown(past)
        hidden = self.block(hidden, Place(*place, cache))
        return (hidden,) if cache is None else (hidden, *cache.past)


class Tail(nn.Module):  # type: ignore[misc]  # torch is Any to mypy here
    """The last norm and the output layer."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.norm, self.lm_head = decoder.norm, decoder.lm_head

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, n, hidden) → logits in fp32."""
        return self.lm_head(self.norm(hidden))


def pieces(shape: DecoderShape, extras: Extras, kind: Kind) -> tuple[Front, Layer, Tail]:
    """The three pieces of a model of one layer, without weights."""
    plan = Plan(shape, Form(batched=True, scaled_norm=False), extras)
    with torch.device("meta"):
        decoder = Decoder(plan)
        attention = GroupedAttention(plan, 0)
    decoder.layers[0].self_attn = attention
    _replace(decoder, kind)
    if kind.shared_head:
        decoder.lm_head = SharedHead(decoder.embed_tokens)
    decoder.eval().requires_grad_(requires_grad=False)
    return Front(decoder, kind.dtype), Layer(decoder.layers[0]), Tail(decoder)


def _replace(module: nn.Module, kind: Kind) -> None:
    """Write projections, norms and the embedding down as an ONNX graph has them, in the type they are stored in."""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear):
            # the sum of all layers and the logits are in fp32: in fp16 some models leave its range
            wide = name in {"o_proj", "down_proj", "lm_head"}
            setattr(module, name, Matrix(child, wide=wide, dtype=kind.dtype))
        elif isinstance(child, PlainRmsNorm):
            with torch.device("meta"):
                setattr(module, name, WideNorm(child, kind.dtype))
        else:
            _replace(child, kind)
            if isinstance(child, nn.Embedding):
                child.weight = nn.Parameter(child.weight.to(kind.embedding))
