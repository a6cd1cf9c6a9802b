"""A Llama-like decoder as plain torch modules that exporters trace without data-dependent Python.

Positions come in as cosines, sines and an additive mask, and what was seen before through a ``Cache``: what these are
(tables, states, inputs) is the exporter's business. The names of its parameters are those of the checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from ingot.kit.decoder.shape import DecoderShape, Rope

#: What a position that must not be seen adds to its score: exp of it is 0 in fp16, and no sum overflows.
HIDDEN = -1e4


class Cache(Protocol):
    """Keys and values of earlier tokens. An exporter brings its own: states of Core ML, inputs and outputs of ONNX."""

    def extend(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Take those of this call, (batch, key-value heads, n, head size); give all that the mask speaks of."""
        ...


def rope_frequencies(rope: Rope, head_dim: int) -> torch.Tensor:
    """By what a position is multiplied to give the angles of a head's halves: (head_dim / 2) in fp32."""
    frequency = 1.0 / rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim)
    if (divisors := rope.divisors(head_dim)) is not None:
        frequency = frequency / torch.tensor(divisors, dtype=torch.float32, device="cpu")
    return frequency


def rope_tables(rope: Rope, head_dim: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines (length, head_dim) for heads laid in two halves, as transformers has them."""
    frequency = rope_frequencies(rope, head_dim)
    angle = torch.outer(torch.arange(length, dtype=torch.float32, device="cpu"), frequency)
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos(), angle.sin()


class RmsNorm(nn.Module):  # type: ignore[misc]  # torch is Any to mypy here
    """``w · x / sqrt(mean(x²) + eps)``, computed on ``x`` over a little more than its largest magnitude.

    The division changes nothing but keeps squares of large activations from overflowing in fp16.
    """

    def __init__(self, size: int, eps: float) -> None:
        """``size`` features; ``eps`` as in config.json."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.root_eps: torch.Tensor
        self.floor: torch.Tensor
        # tensors, since Core ML's ``inverse`` (a number over a tensor) adds an epsilon of its own, and its converter
        # would compute in fp32 with a number
        self.register_buffer("root_eps", torch.tensor([eps**0.5], device="cpu"), persistent=False)
        self.register_buffer("floor", torch.tensor([1e-3], device="cpu"), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, size) → (…, size)."""
        peak = x.abs().amax(dim=-1, keepdim=True) + self.floor
        # back to its own type: Core ML's converter divides in fp32
        scaled = (x / peak).type_as(x)
        small = (self.root_eps / peak).type_as(x)
        return scaled * torch.rsqrt((scaled * scaled).mean(dim=-1, keepdim=True) + small * small) * self.weight


class PlainRmsNorm(nn.Module):  # type: ignore[misc]  # torch is Any to mypy here
    """``w · x / sqrt(mean(x²) + eps)`` as transformers writes it, which runtimes recognize and fuse."""

    def __init__(self, size: int, eps: float) -> None:
        """``size`` features; ``eps`` as in config.json."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, size) → (…, size)."""
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


@dataclass(frozen=True)
class Form:
    """How the modules are written down, which changes nothing of what they compute.

    ``batched``: any number of sequences; else one, which keeps sizes constant in a traced graph. ``scaled_norm``:
    ``RmsNorm`` (safe in fp16) in place of ``PlainRmsNorm``.
    """

    batched: bool = False
    scaled_norm: bool = True

    def norm(self, size: int, eps: float) -> nn.Module:
        """A norm of this form."""
        return RmsNorm(size, eps) if self.scaled_norm else PlainRmsNorm(size, eps)


@dataclass(frozen=True)
class Extras:
    """Which parts beyond Llama's a checkpoint's layers have: biases, by projection; norms of queries and keys."""

    biased: frozenset[str] = frozenset()
    head_norms: bool = False


@dataclass(frozen=True)
class Plan:
    """All that a layer is made by."""

    shape: DecoderShape
    form: Form
    extras: Extras

    def linear(self, name: str, inputs: int, outputs: int) -> nn.Linear:
        """A projection, with a bias where the checkpoint has one."""
        return nn.Linear(inputs, outputs, bias=name in self.extras.biased)


class Attention(nn.Module):  # type: ignore[misc]  # torch is Any to mypy here
    """Causal attention with grouped key-value heads."""

    def __init__(self, plan: Plan, layer: int) -> None:
        """``layer`` is its number, by which the cache knows it."""
        super().__init__()
        shape = plan.shape
        self.layer, self.batched = layer, plan.form.batched
        self.heads, self.kv_heads, self.size = shape.heads, shape.kv_heads, shape.head_dim
        self.q_proj = plan.linear("q_proj", shape.hidden, shape.heads * shape.head_dim)
        self.k_proj = plan.linear("k_proj", shape.hidden, shape.kv_heads * shape.head_dim)
        self.v_proj = plan.linear("v_proj", shape.hidden, shape.kv_heads * shape.head_dim)
        self.o_proj = plan.linear("o_proj", shape.heads * shape.head_dim, shape.hidden)
        self.scale: torch.Tensor
        self.register_buffer("scale", torch.tensor([shape.head_dim**-0.5], device="cpu"), persistent=False)
        if plan.extras.head_norms:
            self.q_norm = plan.form.norm(shape.head_dim, shape.eps)
            self.k_norm = plan.form.norm(shape.head_dim, shape.eps)
        else:
            self.q_norm = self.k_norm = nn.Identity()

    def forward(self, x: torch.Tensor, place: Place) -> torch.Tensor:
        """(batch, n, hidden) → (batch, n, hidden)."""
        query = self._rotate(self.q_norm(self._split(self.q_proj(x), self.heads)), place) * self.scale
        key = self._rotate(self.k_norm(self._split(self.k_proj(x), self.kv_heads)), place)
        value = self._split(self.v_proj(x), self.kv_heads)
        if place.cache is not None:
            key, value = place.cache.extend(self.layer, key, value)
        key, value = self._repeat(key), self._repeat(value)
        weights = torch.softmax(query @ key.transpose(-1, -2) + place.mask, dim=-1)
        return self.o_proj((weights @ value).transpose(1, 2).flatten(2))

    def _split(self, x: torch.Tensor, heads: int) -> torch.Tensor:
        batch = x.shape[0] if self.batched else 1
        return x.view(batch, -1, heads, self.size).transpose(1, 2)

    def _rotate(self, x: torch.Tensor, place: Place) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * place.cos + torch.cat((-second, first), dim=-1) * place.sin

    def _repeat(self, x: torch.Tensor) -> torch.Tensor:
        """Each key-value head as often as query heads share it."""
        times = self.heads // self.kv_heads
        return x if times == 1 else x.unsqueeze(2).repeat(1, 1, times, 1, 1).flatten(1, 2)


class Mlp(nn.Module):  # type: ignore[misc]  # torch is Any to mypy here
    """``down(silu(gate(x)) · up(x))``."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        shape = plan.shape
        self.gate_proj = plan.linear("gate_proj", shape.hidden, shape.feed_forward)
        self.up_proj = plan.linear("up_proj", shape.hidden, shape.feed_forward)
        self.down_proj = plan.linear("down_proj", shape.feed_forward, shape.hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, n, hidden) → (batch, n, hidden)."""
        return self.down_proj(torch.nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):  # type: ignore[misc]  # torch is Any to mypy here
    """Attention and feed-forward, each on the normed input and added to it."""

    def __init__(self, plan: Plan, layer: int) -> None:
        """``layer`` is its number."""
        super().__init__()
        self.input_layernorm = plan.form.norm(plan.shape.hidden, plan.shape.eps)
        self.self_attn = Attention(plan, layer)
        self.post_attention_layernorm = plan.form.norm(plan.shape.hidden, plan.shape.eps)
        self.mlp = Mlp(plan)

    def forward(self, x: torch.Tensor, place: Place) -> torch.Tensor:
        """(batch, n, hidden) → (batch, n, hidden)."""
        x = x + self.self_attn(self.input_layernorm(x), place)
        return x + self.mlp(self.post_attention_layernorm(x))


@dataclass(frozen=True)
class Place:
    """Where the tokens of a call stand: cosines and sines, (…, n, head size); the additive mask, (…, n, all that is
    seen); and what was seen before, if anything can have been."""

    cos: torch.Tensor
    sin: torch.Tensor
    mask: torch.Tensor
    cache: Cache | None = None


class Decoder(nn.Module):  # type: ignore[misc]  # torch is Any to mypy here
    """The whole model: ids (batch, n) and their ``Place`` → logits (batch, n, vocabulary)."""

    def __init__(self, plan: Plan) -> None:
        """Weights come from ``decoder.build``."""
        super().__init__()
        shape = plan.shape
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(Block(plan, layer) for layer in range(shape.layers))
        self.norm = plan.form.norm(shape.hidden, shape.eps)
        self.lm_head = nn.Linear(shape.hidden, shape.vocabulary, bias=False)

    def forward(self, input_ids: torch.Tensor, place: Place) -> torch.Tensor:
        """Logits of every position, in the type of the weights."""
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(x, place)
        return self.lm_head(self.norm(x))
