"""``adapter``: fine-tune a LoRA adapter on a data set, completion-only, seeded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ingot.core.stage import Done, Format, Given, Progress
from ingot.stages._training import Training

if TYPE_CHECKING:
    import torch


class Adapter(Training):
    """Trains LoRA matrices beside frozen weights, with a plain loop that is the same on every run.

    Documents are drawn in a seeded shuffle of their content; the loss is the mean over the scored tokens of a
    batch. Exactly one of ``steps`` and ``epochs`` is given. Writes PEFT's two files, ``training.json`` and
    ``ingot_adapter.json``, which names the base by its digest.
    """

    kind: ClassVar[str] = "adapter"
    revision: ClassVar[int] = 3
    produces: ClassVar[Format] = "adapter"
    tools: ClassVar[tuple[str, ...]] = ("torch", "transformers", "tokenizers", "peft")
    needs: ClassVar[tuple[str, ...]] = ("safetensors", "numpy", "jinja2", "accelerate")
    preload: ClassVar[tuple[str, ...]] = ("torch", "transformers", "peft")

    method: Literal["lora"] = Field(default="lora", description="What is trained: low-rank matrices")
    rank: Annotated[int, Field(ge=1, le=1024)] = Field(default=16, description="Rank r of the two matrices")
    alpha: Annotated[float, Field(gt=0)] = Field(
        default_factory=lambda found: float(2 * found.get("rank", 16)),
        description="Scale: the change is alpha / rank times B·A; twice the rank unless given",
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="Dropout before A, in training")
    target_modules: Literal["all-linear"] | tuple[str, ...] = Field(
        default="all-linear", description="Linear layers by name or last part of it; all-linear leaves out lm_head"
    )
    dtype: Literal["bfloat16", "float32"] = Field(
        default="bfloat16", description="Of the frozen weights; the adapter is always float32"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if isinstance(self.target_modules, tuple) and not self.target_modules:
            raise ValueError("target_modules is empty: name at least one layer, or use all-linear")
        return self

    def run(self, given: Given, out: Path, progress: Progress) -> Done:
        """Train; see the class."""
        from ingot.kit import hf
        from ingot.kit.train import next_token, run, text
        from ingot.kit.train.settings import Settings

        with run.prepared(self, given) as device:
            progress.phase("load")
            model = self._attach(hf.load_model(given.one("model"), self.dtype), device)
            base = model.get_base_model()
            texts = text.read(self, given, base)
            layout = next_token.layout_for(base, texts.sample, self.max_length, packing=self.packing)
            task = run.Task(
                base, next_token.NextToken(layout), texts.train, layout,
                held=texts.held, chance=next_token.chance(base), what="the model with its adapter",
            )  # fmt: skip
            outcome = run.train(Settings.of(self), task, given, progress)
            progress.phase("write")
            self._write(model, given, out)
            outcome.write(out)
            return Done(outcome.metrics(), notes=run.notes(self, device, outcome))

    def _attach(self, model: Any, device: torch.device) -> Any:
        from peft import LoraConfig, get_peft_model

        from ingot.kit.layers import linear_modules, no_linear
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
            target_modules=shortest(modules, [name for name, _ in model.named_modules()]),
            task_type="CAUSAL_LM",
        )
        return get_peft_model(model, config).to(device)

    def _write(self, model: Any, given: Given, out: Path) -> None:
        from peft import get_peft_model_state_dict

        from ingot.kit.lora.files import Record, write_adapter

        tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
        config = model.peft_config["default"].to_dict()
        write_adapter(out, config, tensors, Record(next(iter(given.digests.get("model", ())), None)))
