"""Metrics that follow from an artifact's bytes, derived again: what a kind recorded must be what the bytes say.

One rule a kind, each giving name → value for the metrics that it can derive; the rest (perplexity, speed) were
measured by running something and are not derivable. Needs no torch and no numpy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ingot.core.digest import read_json, walk_files
from ingot.core.weights_facts import Tensor, WeightFacts, crowded, facts_of, zeros

Receipt = Mapping[str, Any]
#: The folder of a digest, or None when it is not present.
Folders = Callable[[str], Path | None]
Derived = dict[str, float]


def derive(receipt: Receipt, folders: Folders) -> Derived:
    """The metrics of a receipt that can be derived from what is present. ValueError, OSError: unreadable bytes."""
    rule = _RULES.get(receipt["kind"])
    folder = folders(str(receipt["digest"]))
    return {} if rule is None or folder is None else rule(receipt, folder, folders)


def disagreements(receipt: Receipt, derived: Mapping[str, float]) -> list[str]:
    """One sentence for each recorded metric that is not what was derived; metrics not recorded are passed over."""
    found = []
    for name, value in derived.items():
        record = receipt["metrics"].get(name)
        if record is not None and not _equal(record["value"], value):
            found.append(f"{name} is recorded as {record['value']}, the bytes say {value}")
    return found


def _equal(recorded: object, derived: float) -> bool:
    if isinstance(recorded, bool) or not isinstance(recorded, int | float):
        return False
    return math.isclose(recorded, derived, rel_tol=1e-9, abs_tol=0)


def _sizes(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_size for name in walk_files(folder)}


def _files(_receipt: Receipt, folder: Path, _folders: Folders) -> Derived:
    """``command`` and ``fetch``: files of any content, counted and never parsed."""
    sizes = _sizes(folder)
    return {"bytes": sum(sizes.values()), "files": len(sizes)}


def _dataset(_receipt: Receipt, folder: Path, _folders: Folders) -> Derived:
    return {f"documents_{split}": _rows(folder / f"{split}.jsonl") for split in ("train", "eval")}


def _rows(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _line in file)


def _coreml(receipt: Receipt, folder: Path, _folders: Folders) -> Derived:
    """The package's size, and bits a weight by the parameters that were recorded."""
    size = sum(size for name, size in _sizes(folder).items() if ".mlpackage/" in name)
    parameters = receipt["metrics"].get("parameters", {}).get("value")
    return {"bytes": size} | ({"bits_per_weight": 8 * size / parameters} if parameters else {})


def _onnx(receipt: Receipt, folder: Path, _folders: Folders) -> Derived:
    """The model's size, and bits a weight by the parameters that were recorded."""
    size = sum(size for name, size in _sizes(folder).items() if name in ("model.onnx", "model.onnx.data"))
    parameters = receipt["metrics"].get("parameters", {}).get("value")
    return {"bytes": size} | ({"bits_per_weight": 8 * size / parameters} if parameters else {})


def _convert(_receipt: Receipt, folder: Path, _folders: Folders) -> Derived:
    facts = facts_of(folder)
    result: Derived = {"parameters": facts.elements, "tensors": len(facts.tensors), "weight_bytes": facts.weight_bytes}
    if facts.tensor_bytes is not None and facts.elements:
        result["bits_per_weight"] = 8 * facts.tensor_bytes / facts.elements
    return result


def _merge(_receipt: Receipt, folder: Path, _folders: Folders) -> Derived:
    facts = facts_of(folder)
    result: Derived = {"parameters": facts.elements}
    if facts.tensor_bytes is not None:
        result["weight_bytes"] = facts.tensor_bytes
    return result


def _prune(receipt: Receipt, folder: Path, folders: Folders) -> Derived:
    """Zeros are counted in the layers that the artifact's own list names; of dropped layers, what is left."""
    name = f"{receipt['kind']}.json"
    listed = read_json((folder / name).read_bytes())
    facts = facts_of(folder)
    if isinstance(listed, dict) and listed.get("method") == "depth":
        before = _input_facts(receipt, "model", folders)
        result: Derived = {"parameters": facts.elements}
        return result | ({"parameters_before": before.elements} if before else {})
    modules = listed.get("modules") if isinstance(listed, dict) else None
    if not isinstance(modules, list):
        raise ValueError(f"{name} lists no modules")
    tensors = {tensor.name: tensor for tensor in facts.tensors}
    try:
        chosen = [tensors[f"{module['name']}.weight"] for module in modules]
        patterns = [str(module.get("pattern", "")) for module in modules]
        groups = [str(module.get("group", "")) for module in modules]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{name} names a layer that is not there: {error}") from error
    counts = [(zeros(tensor), tensor.elements) for tensor in chosen]
    return _sparsity(counts) | _of_groups(groups, counts) | _crowded(chosen, patterns)


def _of_groups(groups: Sequence[str], counts: Sequence[tuple[int, int]]) -> Derived:
    sums: dict[str, tuple[int, int]] = {}
    for group, (found, total) in zip(groups, counts, strict=True):
        before = sums.get(group, (0, 0))
        sums[group] = before[0] + found, before[1] + total
    return {f"{group}_sparsity": found / total for group, (found, total) in sums.items() if group and total}


def _crowded(chosen: Sequence[Tensor], patterns: Sequence[str]) -> Derived:
    """Blocks that hold more than the pattern that the artifact's list gives the layer."""
    found = [(tensor, pattern.split(":")) for tensor, pattern in zip(chosen, patterns, strict=True) if pattern]
    return {"crowded_blocks": sum(crowded(tensor, int(n), int(m)) for tensor, (n, m) in found)} if found else {}


def _sparsity(counts: Sequence[tuple[int, int]]) -> Derived:
    found, total = sum(count for count, _ in counts), sum(elements for _, elements in counts)
    shares = [count / elements for count, elements in counts if elements]
    result: Derived = {"zeros": found, "pruned_parameters": total, "pruned_layers": len(counts)}
    if shares:
        result |= {"sparsity": found / total, "sparsity_lowest": min(shares), "sparsity_highest": max(shares)}
    return result


def _quantize(receipt: Receipt, folder: Path, folders: Folders) -> Derived:
    size = facts_of(folder).weight_bytes
    result: Derived = {"weight_bytes": size}
    before = _input_facts(receipt, "model", folders)
    if before is not None and before.elements and before.tensor_bytes is not None:
        result |= {"bits_per_weight": 8 * size / before.elements, "compression": before.tensor_bytes / size}
    return result


def _gguf(receipt: Receipt, folder: Path, folders: Folders) -> Derived:
    facts = facts_of(folder)
    result: Derived = {"bytes": facts.weight_bytes}
    result |= {f"tensors_{name.lower()}": count for name, count in facts.types().items()}
    before = _input_facts(receipt, "model", folders)
    # of a quantized checkpoint the elements are those of its packed words, not its weights
    packed = before is not None and any(tensor.name.endswith(".weight_packed") for tensor in before.tensors)
    if before is not None and before.elements and not packed:
        result |= {"parameters": before.elements, "bits_per_weight": 8 * facts.weight_bytes / before.elements}
        if before.tensor_bytes is not None:
            result["compression"] = before.tensor_bytes / facts.weight_bytes
    return result


def _lora_gguf(_receipt: Receipt, folder: Path, _folders: Folders) -> Derived:
    facts = facts_of(folder)
    counts = {f"tensors_{name.lower()}": count for name, count in facts.types().items()}
    return {"bytes": facts.weight_bytes, "parameters": facts.elements, **counts}


def _evaluate(receipt: Receipt, folder: Path, folders: Folders) -> Derived:
    """The answers, and the size of what was evaluated. Parameters are those of the loaded model: of a GGUF only."""
    result = _answers(folder / "answers.jsonl")
    facts = _input_facts(receipt, "candidate", folders)
    if facts is None or not facts.tensors:
        return result
    result["bytes"] = facts.weight_bytes
    if facts.tensor_bytes is None:
        result |= {"parameters": facts.elements, "bits_per_weight": 8 * facts.weight_bytes / facts.elements}
    return result


def _answers(path: Path) -> Derived:
    """The shares of right answers, from what was found of each."""
    if not path.is_file():
        return {}
    answers = _lines(path)
    exact = [answer.get("exact") is True for answer in answers]
    patterns = [answer.get("pattern") for answer in answers]
    result: Derived = {
        "exact_match": sum(exact) / len(answers),
        "answers_ended": sum(answer.get("ended") is True for answer in answers) / len(answers),
    }
    if any(pattern is not None for pattern in patterns):
        right = sum(same if pattern is None else pattern is True for same, pattern in zip(exact, patterns, strict=True))
        result["pattern_accuracy"] = right / len(answers)
    return result


def _samples(_receipt: Receipt, folder: Path, _folders: Folders) -> Derived:
    """How many answers, of how many tokens, and how many of them ended."""
    found = _lines(folder / "samples.jsonl")
    ended = sum(item.get("ended") in ("end", "stop") for item in found)
    return {"samples": len(found), "tokens": sum(_numbers(found, "tokens")), "ended": ended / len(found)}


def _match(_receipt: Receipt, folder: Path, _folders: Folders) -> Derived:
    """The shares and means of what was found of each answer; BLEU is no mean."""
    found = _lines(folder / "items.jsonl")
    result: Derived = {"exact_match": sum(item.get("exact") is True for item in found) / len(found)}
    if any(item.get("rouge_l") is None for item in found):
        return result
    return result | {"rouge_l": sum(_numbers(found, "rouge_l")) / len(found)}


def _judge(_receipt: Receipt, folder: Path, _folders: Folders) -> Derived:
    """What counts of each pair, from the two verdicts on it."""
    if not (folder / "pairs.jsonl").read_bytes():
        return {}
    pairs = [(item.get("first_shown"), item.get("second_shown")) for item in _lines(folder / "pairs.jsonl")]
    won, lost = pairs.count(("first", "second")), pairs.count(("second", "first"))
    asked = [pair for pair in pairs if None not in pair]
    count = len(pairs)
    result: Derived = {
        "pairs": count,
        "win_rate": won / count,
        "loss_rate": lost / count,
        "tie_rate": (count - won - lost) / count,
    }
    if asked:
        bias = sum(pair.count("first") - pair.count("second") for pair in asked)
        agreed = won + lost + asked.count(("tie", "tie"))
        result |= {"position_bias": bias / (2 * len(asked)), "agreement": agreed / len(asked)}
    return result


def _lines(path: Path) -> list[Mapping[str, Any]]:
    """The JSON objects of a file, one a line and at least one. ValueError where it is not that."""
    lines = [read_json(line) for line in path.read_bytes().splitlines()]
    found: list[Mapping[str, Any]] = [line for line in lines if isinstance(line, dict)]
    if not found or len(found) != len(lines):
        raise ValueError(f"{path.name} does not list objects")
    return found


def _numbers(found: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    values = [item.get(name) for item in found]
    if not all(isinstance(value, int | float) for value in values):
        raise ValueError(f"a line has no number for {name}")
    return values  # type: ignore[return-value]  # checked above


def _input_facts(receipt: Receipt, role: str, folders: Folders) -> WeightFacts | None:
    value = receipt["inputs"].get(role)
    folder = folders(str(value["digest"])) if isinstance(value, Mapping) else None
    return None if folder is None else facts_of(folder)


def _pack(_receipt: Receipt, folder: Path, _folders: Folders) -> Derived:
    listed = read_json((folder / "pack.json").read_bytes())
    if not isinstance(listed, dict) or not isinstance(listed.get("files"), list):
        raise ValueError("pack.json lists no files")
    size, original = sum(_sizes(folder).values()), sum(item["size"] for item in listed["files"])
    stored = sum(item["method"] == "stored" for item in listed["files"])
    result: Derived = {"bytes": size, "original_bytes": original, "files": len(listed["files"]), "files_stored": stored}
    return result | ({"ratio": original / size} if original else {})


_RULES: Mapping[str, Callable[[Receipt, Path, Folders], Derived]] = {
    "command": _files,
    "convert": _convert,
    "coreml": _coreml,
    "dataset": _dataset,
    "evaluate": _evaluate,
    "fetch": _files,
    "gguf": _gguf,
    "judge": _judge,
    "lora_gguf": _lora_gguf,
    "match": _match,
    "merge": _merge,
    "onnx": _onnx,
    "pack": _pack,
    "prune": _prune,
    "quantize": _quantize,
    "recover": _prune,
    "samples": _samples,
}
