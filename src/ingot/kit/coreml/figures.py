"""What is measured of a package without running it."""

from __future__ import annotations

from pathlib import Path

from ingot.core.stage import Metric
from ingot.kit.coreml.check import Facts
from ingot.kit.coreml.convert import Model


def figures(package: Path, model: Model, facts: Facts) -> dict[str, Metric]:
    """Sizes, and how many operations and stored bytes there are."""
    size = sum(path.stat().st_size for path in package.rglob("*") if path.is_file())
    parameters = model.checkpoint.parameters
    return {
        "bytes": Metric(size, "B", "size of all files of the package"),
        "parameters": Metric(parameters, "parameters", "weights of the model, tied ones counted once"),
        "bits_per_weight": Metric(8 * size / parameters, "1", "bits of the whole package over the parameters"),
        "operations": Metric(sum(facts.kinds.values()), "1", "operations of the saved program other than constants"),
        "operation_kinds": Metric(len(facts.kinds), "1", "different operations of the saved program"),
        **{
            f"weight_bytes_{kind}": Metric(count, "B", f"stored values of type {kind} in the saved program")
            for kind, count in facts.weight_bytes.items()
        },
        **{
            f"matrix_bytes_{kind}": Metric(count, "B", f"of these, what matrices are stored in: type {kind}")
            for kind, count in facts.matrix_bytes.items()
        },
    }
