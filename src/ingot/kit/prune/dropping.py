"""A model without some of its layers, as it flows by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ingot.core.stage import Done, Given, Metric, Progress
from ingot.kit import hf, layers
from ingot.kit.prune import depth
from ingot.kit.prune.zeroing import How, calibrated
from ingot.kit.stream.chain import slots
from ingot.kit.stream.inputs import side_folder
from ingot.kit.stream.vocabulary import Counted, Weights


def drop_layers(weights: Weights, given: Given, progress: Progress, how: How, wanted: float) -> Weights:
    """The flow without the ``wanted`` layers of the lowest influence. RefusedInput: E-PRUNE-DEPTH, E-DATASET-EMPTY."""
    model, texts = calibrated(how, given, progress)
    stack = depth.stack_of(model)
    values = depth.influences(
        model, stack, texts, lambda done, tokens: progress(done, len(texts), "documents", tokens=tokens)
    )
    dropped = depth.lowest(values, wanted)
    config = depth.config_without(hf.read_config(weights.folder), model.config.to_dict(), dropped)
    before = sum(slot.elements for slot in slots(weights))
    folder = side_folder(given)
    layers.copy_model_files(weights.folder, folder, config=config)
    progress.phase("drop layers")
    weights.chain.append(depth.DropLayers(stack, dropped))
    weights.folder = folder
    tokens = sum(map(len, texts))
    weights.measure = lambda counted: _measured(values, dropped, tokens, (before, counted), folder)
    return weights


def _measured(
    values: Sequence[float], dropped: Sequence[int], tokens: int, sizes: tuple[int, Counted], folder: Path
) -> Done:
    gone = set(dropped)
    told = [{"layer": layer, "influence": value, "dropped": layer in gone} for layer, value in enumerate(values)]
    hf.write_json(folder / "prune.json", {"format": 1, "method": "depth", "layers": told})
    before, counted = sizes
    how = "1 minus the cosine of a layer's input and output, mean over tokens:"
    kept = [value for layer, value in enumerate(values) if layer not in gone]
    return Done(
        {
            "layers": Metric(len(kept), "1", "layers that are left"),
            "layers_dropped": Metric(len(gone), "1", "layers left out"),
            "parameters": Metric(counted.parameters, "parameters", "elements of the tensors written"),
            "parameters_before": Metric(before, "parameters", "elements of the tensors read"),
            "influence_dropped": Metric(
                max(values[layer] for layer in gone), "1", f"{how} the highest of the layers left out", n=tokens
            ),
            "influence_kept": Metric(min(kept), "1", f"{how} the lowest of those that stay", n=tokens),
        }
    )
