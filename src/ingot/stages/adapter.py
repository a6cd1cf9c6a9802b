"""``adapter``: fine-tune an adapter of low rank on a data set, seeded: LoRA, rsLoRA, DoRA, QLoRA."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ingot.core.stage import Device, Done, Format, Frozen, Given, Least, Measure, Metric, Progress
from ingot.stages._training import Training

if TYPE_CHECKING:
    import torch

    from ingot.kit.train.outcome import Outcome


class Dpo(Frozen):
    """Direct preference optimization."""

    beta: Annotated[float, Field(gt=0)] = Field(
        default=0.1, description="How strongly a margin over the reference counts; larger stays closer to it"
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        default=0.0, description="Share of preferences that are taken for wrong"
    )
    sft_weight: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="Weight of the chosen answer's own loss, in nats by token, beside it"
    )


def _dpo(found: dict[str, Any]) -> Dpo | None:
    return Dpo() if found.get("objective") == "dpo" else None


class Adapter(Training):
    """Trains LoRA matrices beside frozen weights, with a plain loop that is the same on every run.

    ``rslora`` scales by the root of the rank, ``dora`` learns the length of each row beside its direction, ``qlora``
    trains LoRA over the base in NF4 (bitsandbytes, double quantization), which ``merge`` repeats. Documents are drawn
    in a seeded shuffle of their content; the loss is the mean over the scored tokens of a batch. Exactly one of
    ``steps`` and ``epochs`` is given. Writes PEFT's two files, ``training.json`` and ``ingot_adapter.json``, which
    names the base by its digest.
    """

    kind: ClassVar[str] = "adapter"
    revision: ClassVar[int] = 3
    produces: ClassVar[Format] = "adapter"
    tools: ClassVar[tuple[str, ...]] = ("torch", "transformers", "tokenizers", "peft")
    needs: ClassVar[tuple[str, ...]] = ("safetensors", "numpy", "jinja2", "accelerate")
    preload: ClassVar[tuple[str, ...]] = ("torch", "transformers", "peft")
    measures: ClassVar[tuple[Measure, ...]] = (
        *Training.measures,
        Measure("preferred_before", "1", "with held-out pairs and `objective: dpo`; losses are then in nats/pair"),
        Measure("preferred_after", "1", "as preferred_before"),
        Measure("preference_accuracy", "1", "as preferred_before"),
        Measure("preference_margin", "nats", "as preferred_before"),
    )

    objective: Literal["sft", "dpo"] = Field(
        default="sft",
        description="sft: learn the answers (of preferences the chosen ones); dpo: learn which answer was preferred",
    )
    dpo: Dpo | None = Field(default_factory=_dpo, description="Settings of the objective dpo")
    method: Literal["lora", "rslora", "dora", "qlora"] = Field(
        default="lora", description="What is trained: low-rank matrices, in one of four ways"
    )
    rank: Annotated[int, Field(ge=1, le=1024)] = Field(default=16, description="Rank r of the two matrices")
    alpha: Annotated[float, Field(gt=0)] = Field(
        default_factory=lambda found: float(2 * found.get("rank", 16)),
        description="Scale: the change is alpha / rank times B·A (rslora: alpha / √rank); twice the rank unless given",
    )
    rank_pattern: Mapping[str, Annotated[int, Field(ge=1, le=1024)]] = Field(
        default={}, description="Another rank for modules whose name ends so (a regular expression, as in PEFT)"
    )
    alpha_pattern: Mapping[str, Annotated[float, Field(gt=0)]] = Field(
        default={}, description="Another alpha for modules whose name ends so"
    )
    init: Literal["kaiming", "gaussian"] = Field(
        default="kaiming", description="How A begins; B begins at zero, so the model begins unchanged"
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="Dropout before A, in training")
    target_modules: Literal["all-linear"] | tuple[str, ...] = Field(
        default="all-linear", description="Linear layers by name or last part of it; all-linear leaves out lm_head"
    )
    dtype: Literal["bfloat16", "float32"] = Field(
        default="bfloat16", description="Of the frozen weights; the adapter is always float32"
    )

    def measured(self, roles: frozenset[str]) -> tuple[str, ...]:
        """What is preferred is measured where preferences are learned; of pairs there is no padding."""
        absent = {"padding"} if self.objective == "dpo" else {name for name, _, _ in self.measures[-4:]}
        return tuple(name for name in super().measured(roles) if name not in absent)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if isinstance(self.target_modules, tuple) and not self.target_modules:
            raise ValueError("target_modules is empty: name at least one layer, or use all-linear")
        if (self.dpo is None) != (self.objective == "sft"):
            raise ValueError("'dpo' holds the settings of 'objective: dpo'")
        if self.objective == "dpo" and not self.completion_only:
            raise ValueError("the objective dpo learns answers only: leave out completion_only")
        return self

    def tools_used(self) -> tuple[str, ...]:
        """With bitsandbytes where it quantizes the base."""
        used = super().tools_used()
        return used if self.method != "qlora" or "bitsandbytes" in used else (*used, "bitsandbytes")

    def least_memory(self, inputs: Mapping[str, Least], device: Device) -> int:
        """The frozen weights: a little more than half a byte each in four bits, else as wide as ``dtype``."""
        del device
        weights = inputs["model"].weights
        return weights // 2 if self.method == "qlora" else weights * (2 if self.dtype == "bfloat16" else 4)

    def run(self, given: Given, out: Path, progress: Progress) -> Done:
        """Train; see the class."""
        from ingot.kit.train import run

        with run.prepared(self, given) as device:
            progress.phase("load")
            model = self._attach(self._base(given.one("model")), device)
            if self.dpo is not None:
                outcome, further = self._prefer(model, given, progress, self.dpo)
            else:
                outcome, further = self._imitate(model, given, progress), {}
            progress.phase("write")
            self._write(model, given, out)
            outcome.write(out)
            return Done({**outcome.metrics(), **further}, notes=run.notes(self, device, outcome))

    def _imitate(self, model: Any, given: Given, progress: Progress) -> Outcome:
        """Learn to write the answers."""
        from ingot.kit.train import next_token, run, text
        from ingot.kit.train.settings import Settings

        base = model.get_base_model()
        texts = text.read(self, given, base)
        layout = next_token.layout_for(base, texts.sample, self.max_length, packing=self.packing)
        task = run.Task(
            base, next_token.NextToken(layout), texts.train, layout,
            held=texts.held, chance=next_token.chance(base), what="the model with its adapter",
        )  # fmt: skip
        return run.train(Settings.of(self), task, given, progress)

    def _prefer(
        self, model: Any, given: Given, progress: Progress, settings: Dpo
    ) -> tuple[Outcome, Mapping[str, Metric]]:
        """Learn which of two answers was preferred."""
        from ingot.kit.train import preference, run
        from ingot.kit.train.settings import Settings

        base = model.get_base_model()
        pairs = preference.read(self, given, base)
        objective = preference.Preference(model, **settings.model_dump())
        task = run.Task(
            base, objective, pairs.train, preference.LAYOUT, held=pairs.held, what="the model with its adapter"
        )
        outcome = run.train(Settings.of(self), task, given, progress)
        progress.phase("evaluate")
        return outcome, objective.metrics(pairs.held)

    def _base(self, folder: Path) -> Any:
        from ingot.kit import hf
        from ingot.kit.lora import four_bit

        if self.method == "qlora":
            return four_bit.load(folder, self.dtype, attention="sdpa")
        return hf.load_model(folder, self.dtype, attention="sdpa")

    def _attach(self, model: Any, device: torch.device) -> Any:
        from peft import LoraConfig, get_peft_model

        from ingot.kit.layers import linear_modules, no_linear
        from ingot.kit.lora import patterns
        from ingot.kit.lora.modules import match_modules, shortest

        linear = linear_modules(model)
        if not linear:
            raise no_linear(model)
        named = linear if self.target_modules == "all-linear" else self.target_modules
        modules = match_modules(linear, named, "E-ADAPTER-MODULES")
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            rank_pattern=patterns.checked("rank_pattern", self.rank_pattern, modules),
            alpha_pattern=patterns.checked("alpha_pattern", self.alpha_pattern, modules),
            use_rslora=self.method == "rslora",
            use_dora=self.method == "dora",
            init_lora_weights=True if self.init == "kaiming" else self.init,
            target_modules=shortest(modules, [name for name, _ in model.named_modules()]),
            task_type="CAUSAL_LM",
        )
        return get_peft_model(model, config).to(device)

    def _write(self, model: Any, given: Given, out: Path) -> None:
        from peft import get_peft_model_state_dict

        from ingot.kit.lora import four_bit
        from ingot.kit.lora.files import Record, write_adapter

        tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
        config = model.peft_config["default"].to_dict()
        over = four_bit.quantization(self.dtype) if self.method == "qlora" else None
        write_adapter(out, config, tensors, Record(next(iter(given.digests.get("model", ())), None), over, known=True))
