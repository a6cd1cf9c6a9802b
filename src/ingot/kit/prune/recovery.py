"""Recovery: a pruned model learns again and keeps its zeros, which is proved on the weights as they are written."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ingot.core.stage import Done, Given, Metric, Progress
from ingot.errors import RefusedInput, StageFailed
from ingot.kit import hf, layers, sparsity
from ingot.kit.prune import held as holding
from ingot.kit.prune.goals import Prunable
from ingot.kit.prune.held import Held
from ingot.kit.prune.zeroing import count_metrics
from ingot.kit.stream.inputs import open_input, side_folder, write
from ingot.kit.stream.vocabulary import TORCH_DTYPES, MapRows, Route, Slot, unchanged


@dataclass
class Recovery:
    """A pruned model that is to learn: in float32, its zeros held."""

    model: Any
    prunable: Prunable
    held: Held
    #: N:M by module, of those that have one.
    patterns: Mapping[str, str]
    #: The dtype of each tensor in the model's folder.
    stored: Mapping[str, torch.dtype]
    lora: bool
    #: The weights that may have changed, once it is finished.
    learned: dict[str, torch.Tensor] = field(default_factory=dict)

    def put_back(self) -> None:
        """After an optimizer step: zeros are zeros. A low-rank change is masked where it is used."""
        if not self.lora:
            self.held.put_back(self.model)

    def finish(self) -> None:
        """Merge what was trained and round it to how it is stored: the model is then the one that is written."""
        learned = {name for name, weight in self.model.named_parameters() if weight.requires_grad}
        if self.lora:
            holding.merge(self.model)
            learned = {f"{name}.weight" for name in self.held.masks}
        with torch.no_grad():
            for name, weight in self.model.named_parameters(remove_duplicate=False):
                if name in self.stored and (name in learned or self._tied_to(weight, learned)):
                    weight.copy_(weight.to(self.stored[name]))
                    self.learned[name] = weight.detach()

    def _tied_to(self, weight: torch.Tensor, names: set[str]) -> bool:
        return any(found is weight for name, found in self.model.named_parameters() if name in names)


def prepare(folder: Path, device: torch.device, *, lora: tuple[int, float] | None, everything: bool) -> Recovery:
    """The model of a folder, ready to be trained: ``lora`` (rank, alpha) or the weights themselves.

    ``everything``: all weights learn, not only those of modules that have zeros.
    RefusedInput: E-QUANTIZED; E-RECOVER-DENSE when no module has a zero to hold.
    """
    layers.refuse_quantized(folder, "recover")
    names = hf.tensor_names(folder)
    prunable = Prunable(tuple(layers.linear_weights(folder, names)), tuple(layers.embedding_weights(folder, names)))
    model = hf.load_model(folder, "float32").to(device)
    held = Held.of(model, prunable.all)
    if not held.masks:
        raise RefusedInput(
            "E-RECOVER-DENSE",
            "the model has no zeros to hold",
            facts=[f"{len(prunable.all)} linear layers and embeddings, none with a weight that is zero"],
            hint="prune it first ('kind: prune'), or train it with 'kind: full' or 'kind: adapter'",
        )
    found = holding.patterns(held, _listed(folder))
    stored = {entry.name: TORCH_DTYPES[entry.dtype] for _, entry in hf.entries(folder)}
    recovery = Recovery(model, prunable, held, found, stored, lora is not None)
    if lora is not None:
        holding.attach(model, held, *lora)
    else:
        for name, weight in model.named_parameters():
            weight.requires_grad_(requires_grad=everything or name.removesuffix(".weight") in held.masks)
        held.hold(model)
    return recovery


def _listed(folder: Path) -> Sequence[Mapping[str, Any]]:
    """The modules that a pruning or an earlier recovery lists."""
    for name in ("recover.json", "prune.json"):
        if (folder / name).is_file():
            modules = hf.read_json_file(folder / name).get("modules")
            return [module for module in modules if isinstance(module, dict)] if isinstance(modules, list) else []
    return []


@dataclass
class Written:
    """Puts trained weights in the place of those that flow by, and compares the zeros of both, row by row."""

    weights: Mapping[str, torch.Tensor]
    modules: Sequence[str]
    patterns: Mapping[str, str]
    #: By module: zeros that came, zeros that went on, weights.
    counts: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)
    crowded: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, slots: Sequence[Slot]) -> None:
        """See ``Transform``."""
        del slots

    def routes(self, slot: Slot) -> Sequence[Route]:
        """See ``Transform``."""
        if slot.name in self.weights or slot.name.removesuffix(".weight") in self.modules:
            return [Route(slot, self._take(slot.name))]
        return [Route(slot, unchanged, identity="")]

    def finish(self) -> None:
        """See ``Transform``. StageFailed (E-RECOVER-MASK): a zero is none any more, or a pattern does not hold."""
        missing = set(self.modules) - self.counts.keys()
        if self.lost or self.crowded or missing:
            raise StageFailed(
                "E-RECOVER-MASK",
                "training did not keep the zeros of the pruned model",
                facts=[
                    *(f"{module}: {count} weights that were zero are not" for module, count in self.lost.items()),
                    *(
                        [f"{self.crowded} blocks hold more weights than their pattern lets them"]
                        if self.crowded
                        else []
                    ),
                    *(f"{module} never came" for module in sorted(missing)),
                ][:5],
            )

    def _take(self, name: str) -> MapRows:
        module = name.removesuffix(".weight")

        def take(rows: torch.Tensor, start: int) -> torch.Tensor:
            weight = self.weights.get(name)
            new = rows if weight is None else weight[start : start + len(rows)].to("cpu", rows.dtype)
            if module in self.modules:
                self._compare(module, rows, new)
            return new

        return take

    def _compare(self, module: str, rows: torch.Tensor, new: torch.Tensor) -> None:
        lost = int(((rows == 0) & (new != 0)).sum())
        keep, _, block = self.patterns.get(module, "").partition(":")
        crowded = sparsity.crowded(new, int(keep), int(block)) if block else 0
        found = sparsity.zeros(rows), sparsity.zeros(new), new.numel()
        with self._lock:
            before = self.counts.get(module, (0, 0, 0))
            self.counts[module] = before[0] + found[0], before[1] + found[1], before[2] + found[2]
            self.crowded += crowded
            if lost:
                self.lost[module] = self.lost.get(module, 0) + lost


def write_recovered(recovery: Recovery, given: Given, out: Path, progress: Progress) -> Done:
    """The recovered model as a folder: what was learned in the place of what was there, the rest as it was.

    StageFailed (E-RECOVER-MASK): what flowed by has lost a zero.
    """
    weights = open_input(given, "model", progress)
    written = Written(recovery.learned, tuple(recovery.held.masks), recovery.patterns)
    folder = side_folder(given)
    layers.copy_model_files(weights.folder, folder)
    weights.chain.append(written)
    weights.folder = folder
    weights.measure = lambda _counted: Done(_measured(recovery, written, folder))
    return write(weights, given, out, progress)


def _measured(recovery: Recovery, written: Written, folder: Path) -> dict[str, Metric]:
    """The metrics of zeros, and ``recover.json`` with those of each module."""
    counts = {module: written.counts[module] for module in recovery.held.masks}
    modules = [
        {
            "name": name,
            "group": recovery.prunable.group(name),
            **({"pattern": recovery.patterns[name]} if name in recovery.patterns else {}),
            "zeros_before": before,
            "zeros": zeros,
            "parameters": total,
        }
        for name, (before, zeros, total) in counts.items()
    ]
    method = "lora" if recovery.lora else "masked"
    hf.write_json(folder / "recover.json", {"format": 1, "method": method, "modules": modules})
    before, total = sum(count[0] for count in counts.values()), sum(count[2] for count in counts.values())
    after = {name: (zeros, total) for name, (_, zeros, total) in counts.items()}
    return {
        "sparsity_before": Metric(before / total, "1", "of these layers in the input, as it was read"),
        **count_metrics(recovery.prunable, after, written.crowded if recovery.patterns else None),
    }
