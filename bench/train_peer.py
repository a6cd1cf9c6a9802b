"""The peer of ``train.py``: a bare TRL script that trains a LoRA on the same tokens in the same order.

    python bench/train_peer.py MODEL ROWS SETTINGS

``ROWS`` is a JSONL of ``input_ids`` and ``labels``, ``SETTINGS`` a JSON object. It prints one JSON object.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer


class Clock(TrainerCallback):
    """Seconds of the steps alone, as ingot counts them: without loading, saving and scoring."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.losses: list[float] = []
        self._since = 0.0

    def on_step_begin(self, *_arguments: Any, **_more: Any) -> None:
        """Start the clock."""
        self._since = time.perf_counter()

    def on_step_end(self, *_arguments: Any, **_more: Any) -> None:
        """Stop it."""
        self.seconds += time.perf_counter() - self._since

    def on_log(
        self, _args: Any, _state: Any, _control: Any, logs: dict[str, float] | None = None, **_more: Any
    ) -> None:
        """Keep the losses."""
        if logs and "loss" in logs:
            self.losses.append(logs["loss"])


def trainer(model: Path, rows: list[dict[str, list[int]]], settings: dict[str, Any], out: str) -> SFTTrainer:
    """TRL's trainer, set to what ingot does: no shuffling, no checkpoints, one log a step."""
    config = SFTConfig(
        output_dir=out,
        per_device_train_batch_size=settings["batch_size"],
        max_steps=settings["steps"],
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="cosine",
        warmup_steps=round(0.1 * settings["steps"]),
        max_grad_norm=1.0,
        weight_decay=0.0,
        gradient_checkpointing=False,
        train_sampling_strategy="sequential",
        max_length=None,
        bf16=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    return SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(str(model), dtype=torch.bfloat16),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(str(model)),
        peft_config=LoraConfig(
            r=settings["rank"], lora_alpha=2 * settings["rank"], target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )


def main() -> None:
    """Train and print what it took."""
    model, source, settings = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(1)
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    with tempfile.TemporaryDirectory() as out:
        made, clock = trainer(model, rows, settings, out), Clock()
        made.add_callback(clock)
        made.train()
    used = rows[: settings["steps"] * settings["batch_size"]]
    tokens = sum(len(row["input_ids"]) for row in used)
    print(json.dumps({"tokens": tokens, "seconds": clock.seconds, "losses": clock.losses}))


if __name__ == "__main__":
    main()
