"""``prune``: set the least important weights of linear layers to zero."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from ingot.core.stage import Done, Format, Given, Metric, Progress, Role, Stage
from ingot.errors import RefusedInput

if TYPE_CHECKING:
    import torch

    from ingot.kit.pruning import Pruning, Rule
    from ingot.kit.stream.vocabulary import Slot, Weights


class Prune(Stage):
    """Zeroes a share of the weights (``sparsity``), or leaves N of every M (``pattern``).

    ``magnitude`` scores a weight by its size and takes the share from each tensor; it streams, and holds no model.
    ``wanda`` multiplies by the norm of the input feature over the calibration documents and takes the share from
    each output row; it runs the model once, in memory. The result keeps the model's format: zeros are stored.
    ``prune.json`` lists the zeros counted while writing, layer by layer.
    """

    kind: ClassVar[str] = "prune"
    revision: ClassVar[int] = 2
    produces: ClassVar[Format] = "hf"
    inputs: ClassVar[Mapping[str, Role]] = {
        "model": Role(accepts=("hf",)),
        "calibration": Role(accepts=("dataset",), optional=True),
    }
    tools: ClassVar[tuple[str, ...]] = ("torch", "transformers", "tokenizers")
    needs: ClassVar[tuple[str, ...]] = ("safetensors", "numpy", "jinja2", "accelerate")
    extra: ClassVar[str | None] = "ml"
    preload: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    streams: ClassVar[tuple[str, ...]] = ("model",)

    method: Literal["magnitude", "wanda"] = Field(default="magnitude", description="How a weight is scored")
    sparsity: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="Share of the weights that become zero"
    )
    pattern: str | None = Field(default=None, description="N:M, such as 2:4: at most N of every M in a row stay")
    targets: Literal["all-linear"] | tuple[str, ...] = Field(
        default="all-linear", description="Linear layers by name or last part of it; all-linear leaves out lm_head"
    )
    allow_nonfinite: bool = Field(default=False, description="Take weights that are NaN or infinite as they are")
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

    def weightwise(self) -> bool:
        """wanda must run the whole model first."""
        return self.method == "magnitude"

    def run(self, given: Given, out: Path, progress: Progress) -> Done:
        """Prune; see the class. RefusedInput: E-PRUNE-*, E-QUANTIZED, E-NONFINITE."""
        from ingot.kit.stream.inputs import build

        return build(self, given, out, progress)

    def flow(self, given: Given, progress: Progress) -> Weights:
        """The pruned weights as a stream; the other files lie in the weights' folder."""
        import torch

        from ingot.kit import layers
        from ingot.kit.lora.modules import match_modules
        from ingot.kit.pruning import Pruning
        from ingot.kit.stream.chain import slots
        from ingot.kit.stream.inputs import open_input, side_folder, written

        if self.method == "wanda" and given.maybe("calibration") is None:
            raise RefusedInput(
                "E-PRUNE-CALIBRATION",
                "wanda looks at what flows through the model, so it needs calibration documents",
                hint="add 'calibration: DATASET' under 'from:', or use 'method: magnitude'",
            )
        passed: dict[str, Callable[[], Done]] = {}
        if self.method == "wanda":
            given, passed = written(given, "model", progress)
        weights = open_input(given, "model", progress, finite=not self.allow_nonfinite)
        layers.refuse_quantized(weights.folder, "prune")
        torch.set_num_threads(given.threads)
        found = slots(weights)
        linear = layers.linear_weights(weights.folder, {slot.name for slot in found})
        named = linear if self.targets == "all-linear" else self.targets
        chosen = match_modules(linear, named, "E-PRUNE-MODULES")
        self._check_shapes([slot for slot in found if slot.name.removesuffix(".weight") in set(chosen)])
        norms = self._norms(given, chosen, progress) if self.method == "wanda" else {}
        pruning = Pruning(chosen, self._rule(norms))
        folder = side_folder(given)
        layers.copy_model_files(weights.folder, folder)
        progress.phase("prune")
        weights.chain.append(pruning)
        weights.passed |= passed
        weights.folder = folder
        weights.measure = lambda _counted: _measured(pruning, folder)
        return weights

    def _check_shapes(self, found: Sequence[Slot]) -> None:
        if self.pattern is None:
            return
        _, block = _n_of_m(self.pattern)
        bad = [slot for slot in found if slot.shape[-1] % block]
        if bad:
            raise RefusedInput(
                "E-PRUNE-SHAPE",
                f"pattern {self.pattern} needs rows that are a multiple of {block}",
                facts=[f"{slot.name}: {slot.shape}" for slot in bad[:3]],
                hint="name the layers that fit under 'targets', or use 'sparsity'",
            )

    def _norms(self, given: Given, chosen: Sequence[str], progress: Progress) -> dict[str, torch.Tensor]:
        from ingot.kit import hf, wanda
        from ingot.kit.calibration import read_texts

        progress.phase("calibrate")
        model = given.one("model")
        tokenizer = hf.load_tokenizer(model)
        texts = read_texts(given.one("calibration"), tokenizer, documents=self.documents, max_length=self.max_length)
        norms: dict[str, torch.Tensor] = wanda.input_norms(
            hf.load_model(model), chosen, texts,
            lambda done, tokens: progress(done, len(texts), "documents", tokens=tokens),
        )  # fmt: skip
        return norms

    def _rule(self, norms: Mapping[str, torch.Tensor]) -> Rule:
        from ingot.kit import sparsity, wanda
        from ingot.kit.pruning import Rule

        share = self.sparsity or 0.0

        def mask(module: str, weight: torch.Tensor) -> torch.Tensor:
            if self.pattern is None and self.method == "magnitude":
                return sparsity.lowest(weight, share)
            scores = weight.float().abs() if self.method == "magnitude" else wanda.scores(weight, norms[module])
            if self.pattern is not None:
                return sparsity.n_of_m(scores, *_n_of_m(self.pattern))
            return sparsity.lowest_per_row(scores, share)

        def short(pruned: torch.Tensor) -> bool:
            if self.pattern is not None:
                return sparsity.crowded(pruned, *_n_of_m(self.pattern)) > 0
            return sparsity.zeros(pruned) < self._least(pruned)

        # What wanda drops depends on more than the weights.
        alone = f"magnitude {self.pattern or share}" if self.method == "magnitude" else None
        return Rule(mask, short, whole=self.pattern is None and self.method == "magnitude", identity=alone)

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


def _measured(pruning: Pruning, folder: Path) -> Done:
    """The metrics, and ``prune.json`` with the zeros of each layer."""
    from ingot.kit import hf

    counts = {module: pruning.counts[module] for module in pruning.modules}
    modules = [{"name": name, "zeros": zeros, "parameters": total} for name, (zeros, total) in counts.items()]
    hf.write_json(folder / "prune.json", {"format": 1, "modules": modules})
    return Done(_metrics(counts))


def _metrics(counts: Mapping[str, tuple[int, int]]) -> dict[str, Metric]:
    zeros = sum(count for count, _ in counts.values())
    parameters = sum(total for _, total in counts.values())
    lowest = min(count / total for count, total in counts.values())
    highest = max(count / total for count, total in counts.values())
    return {
        "sparsity": Metric(zeros / parameters, "1", "zeros over weights of the pruned layers, counted while writing"),
        "sparsity_lowest": Metric(lowest, "1", "of the least sparse of these layers"),
        "sparsity_highest": Metric(highest, "1", "of the sparsest of these layers"),
        "zeros": Metric(zeros, "parameters", "weights that are zero in the pruned layers, counted while writing"),
        "pruned_parameters": Metric(parameters, "parameters", "weights of the pruned layers"),
        "pruned_layers": Metric(len(counts), "1", "layers pruned"),
    }
