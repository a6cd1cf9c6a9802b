"""The shape of a Llama-like model by arithmetic: presets, sizes, parameters, and the memory that training it takes at
least. Nothing is imported for it, so that a plan can ask.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

#: Bytes of a weight while it is trained: itself, its gradient and the two moments of the optimizer.
TRAINED_BYTES: Mapping[str, int] = {"adamw": 4 + 4 + 2 * 4, "adamw_8bit": 4 + 4 + 2}
#: Bytes of a number.
SIZES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Shape:
    """Sizes of a model: ``layers`` blocks of attention and SwiGLU over ``width`` numbers a token.

    Grouped-query attention: ``heads`` queries share ``kv_heads`` keys and values, each ``width / heads`` wide.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    feed_forward: int
    context: int
    rope_theta: float
    tied: bool

    @property
    def head_size(self) -> int:
        """Numbers a head has."""
        return self.width // self.heads

    def parameters(self, vocabulary: int) -> int:
        """Weights of the model; the tied output embedding counts once.

        A block: queries and output width², keys and values width times kv_heads heads, three feed-forward matrices,
        two norms.
        """
        keys = self.kv_heads * self.head_size
        attention = 2 * self.width * self.width + 2 * self.width * keys
        block = attention + 3 * self.width * self.feed_forward + 2 * self.width
        return self.layers * block + self.width + vocabulary * self.width * (1 if self.tied else 2)

    @property
    def cache(self) -> int:
        """Numbers that the keys and values of a token are, over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_size

    def config(self) -> dict[str, object]:
        """The fields of a Llama's config.json that say so."""
        return {
            "hidden_size": self.width,
            "intermediate_size": self.feed_forward,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_size,
            "max_position_embeddings": self.context,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "tie_word_embeddings": self.tied,
        }

    def faults(self) -> Iterator[str]:
        """What cannot be, a sentence each."""
        if self.width % self.heads:
            yield f"width {self.width} does not divide into {self.heads} heads"
        elif self.head_size % 2:
            yield f"a head of {self.head_size} numbers (width / heads) is odd: rotary positions turn pairs of numbers"
        if self.heads % self.kv_heads:
            yield f"{self.heads} heads do not divide into groups for {self.kv_heads} kv_heads"


@dataclass(frozen=True)
class Preset:
    """A shape under a name, and a vocabulary for which it is meant (that of the tokenizer counts)."""

    shape: Shape
    vocabulary: int


#: The small ones are made for small vocabularies and edge devices: their rows are multiples of 32, so that every type
#: of llama.cpp with blocks of 32 fits. From 135m on they are the shapes of published models: SmolLM2 135M and 360M,
#: Llama 3.2 1B and 3B, H2O-Danube3 4B, Llama 3.1 8B, Yi 9B.
PRESETS: Mapping[str, Preset] = {
    "0.3m": Preset(Shape(5, 64, 8, 4, 192, 512, 10_000.0, tied=True), 512),
    "0.6m": Preset(Shape(5, 96, 6, 3, 256, 512, 10_000.0, tied=True), 1024),
    "1m": Preset(Shape(5, 128, 8, 4, 352, 512, 10_000.0, tied=True), 1024),
    "3m": Preset(Shape(6, 192, 6, 3, 512, 1024, 10_000.0, tied=True), 4096),
    "15m": Preset(Shape(8, 384, 6, 2, 1024, 1024, 10_000.0, tied=True), 8192),
    "60m": Preset(Shape(16, 512, 8, 4, 1536, 2048, 10_000.0, tied=True), 16_384),
    "135m": Preset(Shape(30, 576, 9, 3, 1536, 8192, 100_000.0, tied=True), 49_152),
    "360m": Preset(Shape(32, 960, 15, 5, 2560, 8192, 100_000.0, tied=True), 49_152),
    "1b": Preset(Shape(16, 2048, 32, 8, 8192, 8192, 500_000.0, tied=True), 128_256),
    "3b": Preset(Shape(28, 3072, 24, 8, 8192, 8192, 500_000.0, tied=True), 128_256),
    "4b": Preset(Shape(24, 3840, 32, 8, 10_240, 8192, 100_000.0, tied=False), 32_000),
    "8b": Preset(Shape(32, 4096, 32, 8, 14_336, 8192, 500_000.0, tied=False), 128_256),
    "9b": Preset(Shape(48, 4096, 32, 4, 11_008, 4096, 10_000.0, tied=False), 64_000),
}
