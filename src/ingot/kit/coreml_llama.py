"""A Llama as a plain torch module that coremltools converts: int32 ids in, logits of every position out.

Everything that depends on the position is a table (cosines, sines, the additive causal mask), sliced to the length of
the input; nothing else in the graph depends on data. The names of its parameters are those of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from ingot.errors import RefusedInput
from ingot.kit.llama_config import LlamaShape, Rope

#: What a position that must not be seen adds to its score: exp of it is 0 in fp16, and no sum overflows.
_HIDDEN = -1e4


def rope_tables(rope: Rope, head_dim: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines (length, head_dim) for heads laid in two halves, as transformers has them."""
    frequency = 1.0 / rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim)
    if (divisors := rope.divisors(head_dim)) is not None:
        frequency = frequency / torch.tensor(divisors, dtype=torch.float32, device="cpu")
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
        # a tensor, since Core ML's ``inverse`` (a number over a tensor) adds an epsilon of its own
        self.register_buffer("root_eps", torch.tensor([eps**0.5], device="cpu"), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, size) → (…, size)."""
        peak = x.abs().amax(dim=-1, keepdim=True) + 1e-3
        scaled = x / peak
        small = self.root_eps / peak
        return scaled * torch.rsqrt((scaled * scaled).mean(dim=-1, keepdim=True) + small * small) * self.weight


class Attention(nn.Module):  # type: ignore[misc]  # torch is Any to mypy here
    """Causal attention with grouped key-value heads."""

    def __init__(self, shape: LlamaShape, bias: bool) -> None:  # noqa: FBT001 - as the checkpoint has it
        """``bias``: whether the projections have one."""
        super().__init__()
        self.heads, self.kv_heads, self.size = shape.heads, shape.kv_heads, shape.head_dim
        self.q_proj = nn.Linear(shape.hidden, shape.heads * shape.head_dim, bias=bias)
        self.k_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head_dim, bias=bias)
        self.v_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head_dim, bias=bias)
        self.o_proj = nn.Linear(shape.heads * shape.head_dim, shape.hidden, bias=bias)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(1, n, hidden) → (1, n, hidden)."""
        query = self._rotate(self._split(self.q_proj(x), self.heads), cos, sin) * self.size**-0.5
        key = self._repeat(self._rotate(self._split(self.k_proj(x), self.kv_heads), cos, sin))
        value = self._repeat(self._split(self.v_proj(x), self.kv_heads))
        weights = torch.softmax(query @ key.transpose(-1, -2) + mask, dim=-1)
        seen = (weights @ value).transpose(1, 2)
        return self.o_proj(seen.reshape(1, -1, self.heads * self.size))

    def _split(self, x: torch.Tensor, heads: int) -> torch.Tensor:
        return x.view(1, -1, heads, self.size).transpose(1, 2)

    def _rotate(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-second, first), dim=-1) * sin

    def _repeat(self, x: torch.Tensor) -> torch.Tensor:
        """Each key-value head as often as query heads share it."""
        times = self.heads // self.kv_heads
        if times == 1:
            return x
        copies = x.unsqueeze(2).repeat(1, 1, times, 1, 1)
        return copies.view(1, self.heads, -1, self.size)


class Mlp(nn.Module):  # type: ignore[misc]  # torch is Any to mypy here
    """``down(silu(gate(x)) · up(x))``."""

    def __init__(self, shape: LlamaShape, bias: bool) -> None:  # noqa: FBT001 - as the checkpoint has it
        """``bias``: whether the projections have one."""
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.feed_forward, bias=bias)
        self.up_proj = nn.Linear(shape.hidden, shape.feed_forward, bias=bias)
        self.down_proj = nn.Linear(shape.feed_forward, shape.hidden, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(1, n, hidden) → (1, n, hidden)."""
        return self.down_proj(torch.nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):  # type: ignore[misc]  # torch is Any to mypy here
    """Attention and feed-forward, each on the normed input and added to it."""

    def __init__(self, shape: LlamaShape, biases: tuple[bool, bool]) -> None:
        """``biases``: of attention and feed-forward."""
        super().__init__()
        self.input_layernorm = RmsNorm(shape.hidden, shape.eps)
        self.self_attn = Attention(shape, biases[0])
        self.post_attention_layernorm = RmsNorm(shape.hidden, shape.eps)
        self.mlp = Mlp(shape, biases[1])

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(1, n, hidden) → (1, n, hidden)."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):  # type: ignore[misc]  # torch is Any to mypy here
    """The whole model for inputs of up to ``length`` tokens."""

    def __init__(self, shape: LlamaShape, length: int, biases: tuple[bool, bool]) -> None:
        """Tables are made for ``length`` positions; weights come from ``load``."""
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(Block(shape, biases) for _ in range(shape.layers))
        self.norm = RmsNorm(shape.hidden, shape.eps)
        self.lm_head = nn.Linear(shape.hidden, shape.vocabulary, bias=False)
        #: Whether inputs always fill the tables: coremltools cannot slice by the size of a fixed shape.
        self.whole = False
        # the tables are real even where the weights are still on the meta device
        self.cos: torch.Tensor
        self.sin: torch.Tensor
        self.mask: torch.Tensor
        cos, sin = rope_tables(shape.rope, shape.head_dim, length)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.register_buffer("mask", torch.full((length, length), _HIDDEN, device="cpu").triu(1), persistent=False)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """int32 ids (1, n) → logits (1, n, vocabulary)."""
        cos, sin, mask = self.cos, self.sin, self.mask
        if not self.whole:
            length = input_ids.shape[1]
            cos, sin, mask = cos[:length], sin[:length], mask[:length, :length]
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(x, cos, sin, mask)
        return self.lm_head(self.norm(x))


def build_llama(shape: LlamaShape, tensors: Iterable[tuple[str, torch.Tensor]], length: int) -> Llama:
    """The module with a checkpoint's weights in fp32. RefusedInput (E-COREML-TENSOR) when they do not fit."""
    state = {name: tensor.float() for name, tensor in tensors if not name.endswith("rotary_emb.inv_freq")}
    state = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    if shape.tied:
        state.setdefault("lm_head.weight", state.get("embed_tokens.weight", torch.empty(0)))
    biases = (any(".self_attn.q_proj.bias" in name for name in state), any(".mlp.up_proj.bias" in n for n in state))
    with torch.device("meta"):
        module = Llama(shape, length, biases)
    try:
        module.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        facts = [line.strip() for line in str(error).splitlines()[1:6]]
        raise RefusedInput("E-COREML-TENSOR", "the weights do not fit the configuration", facts=facts) from error
    module.eval().requires_grad_(requires_grad=False)
    return module
