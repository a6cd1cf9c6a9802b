"""``prune``: set the least important weights of linear layers to zero."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from ingot.core.stage import Format, Given, Metric, Metrics, Progress, Role, Stage
from ingot.errors import RefusedInput, StageFailed

if TYPE_CHECKING:
    import torch


class Prune(Stage):
    """Zeroes a share of the weights (``sparsity``), or leaves N of every M (``pattern``).

    ``magnitude`` scores a weight by its size and takes the share from each tensor; it streams, and holds no model.
    ``wanda`` multiplies by the norm of the input feature over the calibration documents and takes the share from
    each output row; it runs the model once, in memory. The result keeps the model's format: zeros are stored.
    ``prune.json`` lists the zeros counted in the written file, layer by layer.
    """

    kind: ClassVar[str] = "prune"
    revision: ClassVar[int] = 1
    produces: ClassVar[Format] = "hf"
    inputs: ClassVar[Mapping[str, Role]] = {
        "model": Role(accepts=("hf",)),
        "calibration": Role(accepts=("dataset",), optional=True),
    }
    tools: ClassVar[tuple[str, ...]] = ("torch", "transformers", "tokenizers")
    needs: ClassVar[tuple[str, ...]] = ("safetensors", "numpy", "jinja2", "accelerate")
    extra: ClassVar[str | None] = "ml"
    preload: ClassVar[tuple[str, ...]] = ("torch", "transformers")

    method: Literal["magnitude", "wanda"] = Field(default="magnitude", description="How a weight is scored")
    sparsity: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="Share of the weights that become zero"
    )
    pattern: str | None = Field(default=None, description="N:M, such as 2:4: at most N of every M in a row stay")
    targets: Literal["all-linear"] | tuple[str, ...] = Field(
        default="all-linear", description="Linear layers by name or last part of it; all-linear leaves out lm_head"
    )
    documents: Annotated[int, Field(ge=1)] = Field(default=32, description="Calibration documents (wanda)")
    max_length: Annotated[int, Field(ge=8)] = Field(default=512, description="Tokens at which one is cut (wanda)")

    @field_validator("pattern")
    @classmethod
    def _check_pattern(cls, value: str | None) -> str | None:
        if value is not None:
            _n_of_m(value)
        return value

    @model_validator(mode="after")
    def _check(self) -> Prune:
        if (self.sparsity is None) == (self.pattern is None):
            raise ValueError("needs exactly one of 'sparsity' and 'pattern'")
        return self

    def tools_used(self) -> tuple[str, ...]:
        """Magnitude runs no model and reads no text."""
        return self.tools if self.method == "wanda" else ("torch",)

    def needs_used(self) -> tuple[str, ...]:
        """Magnitude takes only the model's structure from transformers."""
        return self.needs if self.method == "wanda" else ("safetensors", "numpy", "transformers")

    def misfits(self, roles: frozenset[str]) -> Iterator[tuple[str, str]]:
        """wanda looks at what flows through the model."""
        if self.method == "wanda" and "calibration" not in roles:
            yield "calibration", "the role 'calibration' is not filled, and 'method: wanda' needs its documents"

    def run(self, given: Given, out: Path, progress: Progress) -> Metrics:
        """Prune; see the class. RefusedInput: E-PRUNE-*, E-QUANTIZED."""
        import torch

        from ingot.kit import hf, layers
        from ingot.kit.lora.modules import match_modules

        model = given.one("model")
        layers.refuse_quantized(model, "prune")
        if self.method == "wanda" and given.maybe("calibration") is None:
            raise RefusedInput(
                "E-PRUNE-CALIBRATION",
                "wanda looks at what flows through the model, so it needs calibration documents",
                hint="add 'calibration: DATASET' under 'from:', or use 'method: magnitude'",
            )
        torch.set_num_threads(given.threads)
        linear = layers.linear_weights(model)
        named = linear if self.targets == "all-linear" else self.targets
        chosen = match_modules(linear, named, "E-PRUNE-MODULES")
        self._check_shapes(model, chosen)
        norms = self._norms(given, chosen, progress) if self.method == "wanda" else {}
        progress.phase("prune")
        hf.write_model(out, self._pruned(model, set(chosen), norms, progress))
        layers.copy_model_files(model, out)
        progress.phase("verify")
        return self._proof(out, chosen)

    def _check_shapes(self, model: Path, chosen: Sequence[str]) -> None:
        if self.pattern is None:
            return
        from ingot.kit import hf

        _, block = _n_of_m(self.pattern)
        wanted = {f"{module}.weight" for module in chosen}
        bad = [entry for _, entry in hf.entries(model) if entry.name in wanted and entry.shape[-1] % block]
        if bad:
            raise RefusedInput(
                "E-PRUNE-SHAPE",
                f"pattern {self.pattern} needs rows that are a multiple of {block}",
                facts=[f"{entry.name}: {tuple(entry.shape)}" for entry in bad[:3]],
                hint="name the layers that fit under 'targets', or use 'sparsity'",
            )

    def _norms(self, given: Given, chosen: Sequence[str], progress: Progress) -> dict[str, torch.Tensor]:
        from ingot.kit import chat, hf, training, wanda

        progress.phase("calibrate")
        model = given.one("model")
        tokenizer = hf.load_tokenizer(model)
        rows = sorted(chat.read_rows(given.one("calibration"), "train"), key=training.row_id)[: self.documents]
        encoded = [chat.encode(tokenizer, row, max_length=self.max_length).ids for row in rows]
        texts = [ids for ids in encoded if ids]
        if not texts:
            raise RefusedInput(
                "E-DATASET-EMPTY", "the calibration data set has no rows in its train split", facts=["train.jsonl"]
            )
        norms: dict[str, torch.Tensor] = wanda.input_norms(
            hf.load_model(model), chosen, texts,
            lambda done, tokens: progress(done, len(texts), "documents", tokens=tokens),
        )  # fmt: skip
        return norms

    def _pruned(
        self, model: Path, chosen: set[str], norms: Mapping[str, torch.Tensor], progress: Progress
    ) -> Iterator[tuple[str, torch.Tensor]]:
        from ingot.kit import hf

        total = len(hf.tensor_names(model))
        for done, (name, tensor) in enumerate(hf.iter_tensors(model), 1):
            module = name.removesuffix(".weight")
            yield name, self._sparse(tensor, norms.get(module)) if module in chosen else tensor
            progress(done, total, "tensors")

    def _sparse(self, weight: torch.Tensor, norms: torch.Tensor | None) -> torch.Tensor:
        from ingot.kit import sparsity, wanda

        scores = weight.float().abs() if norms is None else wanda.scores(weight, norms)
        if self.pattern is not None:
            mask = sparsity.n_of_m(scores, *_n_of_m(self.pattern))
        elif self.method == "wanda":
            mask = sparsity.lowest_per_row(scores, self.sparsity or 0.0)
        else:
            mask = sparsity.lowest(scores, self.sparsity or 0.0)
        pruned: torch.Tensor = weight.masked_fill(mask, 0)
        return pruned

    def _proof(self, out: Path, chosen: Sequence[str]) -> Metrics:
        """Count zeros in what was written; StageFailed (E-PRUNE-VERIFY) when that is not what was asked for."""
        from ingot.kit import hf, sparsity

        wanted = {f"{module}.weight": module for module in chosen}
        counts: dict[str, tuple[int, int]] = {}
        for name, tensor in hf.iter_tensors(out):
            if name not in wanted:
                continue
            counts[wanted[name]] = (sparsity.zeros(tensor), tensor.numel())
            crowded = sparsity.crowded(tensor, *_n_of_m(self.pattern)) if self.pattern else 0
            short = self.sparsity is not None and counts[wanted[name]][0] < self._least(tensor)
            if crowded or short:
                raise StageFailed(
                    "E-PRUNE-VERIFY",
                    f"{name!r} was written with fewer zeros than asked for",
                    facts=[f"zeros {counts[wanted[name]][0]} of {tensor.numel()}, blocks over the pattern: {crowded}"],
                )
        modules = [{"name": module, "zeros": counts[module][0], "parameters": counts[module][1]} for module in chosen]
        hf.write_json(out / "prune.json", {"format": 1, "modules": modules})
        return _metrics(counts)

    def _least(self, weight: torch.Tensor) -> int:
        share = self.sparsity or 0.0
        if self.method == "wanda":
            return int(weight.shape[0]) * round(share * int(weight.shape[1]))
        return round(share * int(weight.numel()))


def _n_of_m(pattern: str) -> tuple[int, int]:
    """(N, M) of ``"N:M"``. ValueError unless 1 ≤ N < M ≤ 64."""
    found = re.fullmatch(r"([1-9][0-9]?):([1-9][0-9]?)", pattern)
    if not found:
        raise ValueError(f"{pattern!r} is not of the form N:M, such as 2:4")
    keep, block = int(found[1]), int(found[2])
    if not keep < block <= 64:
        raise ValueError(f"{pattern!r}: N must be less than M, and M at most 64")
    return keep, block


def _metrics(counts: Mapping[str, tuple[int, int]]) -> dict[str, Metric]:
    zeros = sum(count for count, _ in counts.values())
    parameters = sum(total for _, total in counts.values())
    lowest = min(count / total for count, total in counts.values())
    highest = max(count / total for count, total in counts.values())
    return {
        "sparsity": Metric(zeros / parameters, "1", "zeros over weights of the pruned layers, counted in the file"),
        "sparsity_lowest": Metric(lowest, "1", "of the least sparse of these layers"),
        "sparsity_highest": Metric(highest, "1", "of the sparsest of these layers"),
        "zeros": Metric(zeros, "parameters", "weights that are zero in the pruned layers, counted in the file"),
        "pruned_parameters": Metric(parameters, "parameters", "weights of the pruned layers"),
        "pruned_layers": Metric(len(counts), "1", "layers pruned"),
    }
