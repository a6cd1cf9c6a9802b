"""``adapter``: fine-tune a LoRA adapter on a data set, completion-only, seeded."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from ingot.core.stage import Format, Given, Metric, Metrics, Progress, Reproducibility, Role, Stage

if TYPE_CHECKING:
    from ingot.kit.train.documents import Corpus
    from ingot.kit.train.loop import Step

_PER_TOKEN = "nats/token"  # noqa: S105 - a unit
_RESAMPLES = 2000
_TAIL = 8  # at most so many steps' mean loss stands for the start and for the end of training


class Adapter(Stage):
    """Trains LoRA matrices beside frozen weights, with a plain loop that is the same on every run.

    Documents are drawn in a seeded shuffle of their content; the loss is the mean over the scored tokens of a
    batch. Exactly one of ``steps`` and ``epochs`` is given. Writes PEFT's two files, ``training.json`` and
    ``ingot_adapter.json``, which names the base by its digest.
    """

    kind: ClassVar[str] = "adapter"
    revision: ClassVar[int] = 2
    reproducibility: ClassVar[Reproducibility] = "seeded"
    produces: ClassVar[Format] = "adapter"
    inputs: ClassVar[Mapping[str, Role]] = {
        "model": Role(accepts=("hf",)),
        "data": Role(accepts=("dataset",)),
    }
    tools: ClassVar[tuple[str, ...]] = ("torch", "transformers", "tokenizers", "peft")
    needs: ClassVar[tuple[str, ...]] = ("safetensors", "numpy", "jinja2", "accelerate")
    extra: ClassVar[str | None] = "ml"
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
    steps: Annotated[int, Field(ge=1)] | None = Field(default=None, description="Optimizer steps")
    epochs: Annotated[int, Field(ge=1)] | None = Field(default=None, description="Passes over the training documents")
    batch_size: Annotated[int, Field(ge=1)] = Field(default=4, description="Documents in one step")
    max_length: Annotated[int, Field(ge=8)] = Field(default=512, description="Tokens at which a document is cut")
    learning_rate: Annotated[float, Field(gt=0)] = Field(default=2e-4, description="Peak learning rate")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="How the learning rate falls after the warm-up"
    )
    warmup: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.1, description="Share of the steps in which the learning rate rises"
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(default=0.0, description="Weight decay of AdamW")
    gradient_clip: Annotated[float, Field(gt=0)] = Field(default=1.0, description="Largest norm of the gradient")
    completion_only: bool = Field(default=True, description="Learn the completion only, not the prompt")
    dtype: Literal["bfloat16", "float32"] = Field(
        default="bfloat16", description="Of the frozen weights; the adapter is always float32"
    )
    eval_documents: Annotated[int, Field(ge=0)] = Field(
        default=32, description="Held-out documents scored before and after"
    )
    eval_every: Annotated[int, Field(ge=0)] = Field(default=0, description="Steps between further scorings; 0: none")

    @model_validator(mode="after")
    def _check(self) -> Adapter:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("needs exactly one of 'steps' and 'epochs'")
        if isinstance(self.target_modules, tuple) and not self.target_modules:
            raise ValueError("target_modules is empty: name at least one layer, or use all-linear")
        return self

    def run(self, given: Given, out: Path, progress: Progress) -> Metrics:
        """Train; see the class."""
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(given.threads)
        torch.use_deterministic_algorithms(mode=True)
        try:
            return _Training(self, given, progress).run(out)
        finally:
            torch.use_deterministic_algorithms(mode=False)
            torch.set_num_threads(threads)


class _Training:
    """One run: what was loaded, and the curves as they grow."""

    def __init__(self, stage: Adapter, given: Given, progress: Progress) -> None:
        from ingot.kit import chat, hf

        self.stage = stage
        self.progress = progress
        self.seed = given.seed or 0
        self.base_digest = next(iter(given.digests.get("model", ())), None)
        self.history: list[Step] = []
        self.evals: list[tuple[int, list[float]]] = []
        self.seconds = 0.0
        progress.phase("load")
        self.rows = list(chat.read_rows(given.one("data"), "train"))
        self.held_rows = list(chat.read_rows(given.one("data"), "eval")) if stage.eval_documents else []
        self.corpus = self._corpus(hf.load_tokenizer(given.one("model")))
        self.model = self._attach(hf.load_model(given.one("model"), stage.dtype))
        self.limit = self._pass_tokens()

    def _corpus(self, tokenizer: Any) -> Corpus:
        from ingot.kit import chat
        from ingot.kit.train.documents import Corpus

        def encode(row: chat.Row) -> chat.Example:
            return chat.encode(tokenizer, row, max_length=self.stage.max_length)

        only = self.stage.completion_only
        self.held = Corpus(self.held_rows, encode, completion_only=only).first(self.stage.eval_documents)
        return Corpus(self.rows, encode, completion_only=only)

    def _attach(self, model: Any) -> Any:
        import torch
        from peft import LoraConfig, get_peft_model

        from ingot.kit.layers import linear_modules, no_linear
        from ingot.kit.lora.modules import match_modules, shortest

        stage = self.stage
        linear = linear_modules(model)
        if not linear:
            raise no_linear(model)
        named = linear if stage.target_modules == "all-linear" else stage.target_modules
        modules = match_modules(linear, named, "E-ADAPTER-MODULES")
        torch.manual_seed(self.seed)
        config = LoraConfig(
            r=stage.rank,
            lora_alpha=stage.alpha,
            lora_dropout=stage.dropout,
            target_modules=shortest(modules, [name for name, _ in model.named_modules()]),
            task_type="CAUSAL_LM",
        )
        return get_peft_model(model, config)

    def _pass_tokens(self) -> int:
        """Tokens of one forward pass: 1 (a document a pass) for a model that mixes packed documents."""
        from ingot.kit.train.documents import nothing_to_learn
        from ingot.kit.train.next_token import PACK_TOKENS, packs

        sample = []
        for doc in self.corpus.epoch(self.seed, 0):
            sample.append(doc)
            if len(sample) == 2:
                break
        if not sample:
            raise nothing_to_learn(len(self.rows), self.stage.max_length)
        self.model.eval()
        return PACK_TOKENS if packs(self.model.get_base_model(), sample) else 1

    def steps(self) -> int:
        if self.stage.steps is not None:
            return self.stage.steps
        usable = sum(1 for _ in self.corpus.epoch(self.seed, 0))
        return -(-usable * (self.stage.epochs or 1) // self.stage.batch_size)

    def run(self, out: Path) -> Metrics:
        self._evaluate(0)
        self._train(self.steps())
        self.progress.phase("write")
        self._write(out)
        return self._metrics()

    def _train(self, steps: int) -> None:
        from itertools import islice

        from ingot.kit.train.loop import Loop, far_worse
        from ingot.kit.train.schedule import Schedule

        stage, model = self.stage, self.model.get_base_model()
        loop = Loop(
            Schedule(stage.schedule, stage.learning_rate, steps, stage.warmup),
            stage.weight_decay,
            stage.gradient_clip,
            self.limit,
            model.config.get_text_config().vocab_size,
        )
        batches = islice(self.corpus.batches(self.seed, stage.batch_size), steps)
        self.progress.phase("train")
        started = time.perf_counter()
        for step in loop.run(model, batches):
            self.seconds += time.perf_counter() - started
            self.history.append(step)
            rate = sum(item.tokens for item in self.history) / self.seconds
            live = {"loss": step.loss, "lr": step.learning_rate, "tokens/s": rate}
            self.progress(step.step, steps, "steps", **live)
            if step.step == steps or (stage.eval_every and step.step % stage.eval_every == 0):
                self._evaluate(step.step)
            started = time.perf_counter()
        if not self.evals:
            return
        before, after = (self._held_loss(sums) for _, sums in (self.evals[0], self.evals[-1]))
        if far_worse(before, after):
            raise loop.diverged(f"held-out loss {before:.4g} before, {after:.4g} after training")

    def _held_loss(self, sums: list[float]) -> float:
        return sum(sums) / sum(doc.scored for doc in self.held)

    def _evaluate(self, step: int) -> None:
        from ingot.kit.train.next_token import evaluate

        if not self.held:
            return
        self.progress.phase("evaluate")
        total = len(self.held)
        sums = evaluate(
            self.model.get_base_model(), self.held, self.limit, lambda done: self.progress(done, total, "documents")
        )
        self.evals.append((step, sums))
        self.progress.phase("train")

    def _write(self, out: Path) -> None:
        from peft import get_peft_model_state_dict

        from ingot.kit import hf
        from ingot.kit.lora.files import Record, write_adapter

        tensors = get_peft_model_state_dict(self.model, save_embedding_layers=False)
        config = self.model.peft_config["default"].to_dict()
        write_adapter(out, config, tensors, Record(self.base_digest))
        hf.write_json(
            out / "training.json",
            {
                "format": 1,
                "loss_unit": _PER_TOKEN,
                "train": [step.to_dict() for step in self.history],
                "eval": [{"step": step, "loss": self._held_loss(sums)} for step, sums in self.evals],
                "eval_documents": len(self.held),
                "eval_tokens": sum(doc.scored for doc in self.held),
                "packed": self.limit > 1,
            },
        )

    def _metrics(self) -> dict[str, Metric]:
        tail = max(1, min(_TAIL, len(self.history) // 2))  # the start and the end share no step
        tokens = sum(step.tokens for step in self.history)
        trained = sum(weight.numel() for weight in self.model.parameters() if weight.requires_grad)
        found = {
            "train_loss_first": _mean_loss(self.history[:tail], f"mean over the first {tail} steps"),
            "train_loss_last": _mean_loss(self.history[-tail:], f"mean over the last {tail} steps"),
            "trainable_parameters": Metric(trained, "parameters", "counted in the model"),
            "steps": Metric(len(self.history), "1", "optimizer steps taken"),
            "tokens": Metric(tokens, "tokens", "read in training, prompts included"),
            "tokens_per_second": Metric(tokens / self.seconds, "tokens/s", "tokens over the time of the steps"),
            "train_seconds": Metric(self.seconds, "s", "wall time of the steps, without loading and scoring"),
        }
        return {**found, **self._eval_metrics()}

    def _eval_metrics(self) -> dict[str, Metric]:
        if not self.evals:
            return {}
        from ingot.kit.bootstrap import ratio_interval

        tokens = [doc.scored for doc in self.held]
        before, after = self.evals[0][1], self.evals[-1][1]
        change = [b - a for a, b in zip(before, after, strict=True)]
        values = {"eval_loss_before": before, "eval_loss_after": after, "eval_loss_change": change}
        method = f"held-out documents, token-weighted; interval by bootstrap over documents, {_RESAMPLES} resamples"
        return {
            name: Metric(
                sum(sums) / sum(tokens), _PER_TOKEN, ("paired by document; " if sums is change else "") + method,
                n=len(tokens), interval=ratio_interval(sums, tokens, _RESAMPLES),
            )
            for name, sums in values.items()
        }  # fmt: skip


def _mean_loss(steps: list[Step], method: str) -> Metric:
    """The token-weighted mean loss of some steps."""
    tokens = sum(step.scored_tokens for step in steps)
    value = sum(step.loss * step.scored_tokens for step in steps) / tokens
    return Metric(value, _PER_TOKEN, method, n=tokens)
