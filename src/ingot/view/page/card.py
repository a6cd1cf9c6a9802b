"""A model card in Hugging Face's form: metadata that their library reads back, and the report in words.

Only what the log or an artifact says is claimed. A licence and a language are taken over where a fetched model's own
card states them, a base model where it was fetched from the hub; else the fields are left out and the body says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ingot.core.quantities import size_text
from ingot.errors import MissingTool, RefusedInput, UsageError
from ingot.view.page import markdown
from ingot.view.page.book import Score
from ingot.view.page.facts import Page, Row
from ingot.view.page.lineage import Node
from ingot.view.page.markdown import name, plain
from ingot.view.page.measures import interval, measure, written

Json = Mapping[str, Any]
#: What a card of a fetched model may say of it that goes for what is made of it.
_INHERITED = ("license", "license_name", "license_link", "language")
#: The word of the hub for what a step makes of its base model, by the kind of the last step that tells.
_RELATIONS = {
    "adapter": "adapter", "merge": "finetune", "full": "finetune", "recover": "finetune", "quantize": "quantized",
    "gguf": "quantized",
}  # fmt: skip
_LIBRARIES = {"gguf": "llama.cpp", "onnx": "onnx", "coreml": "coreml"}
_BROUGHT = ("fetch",)
#: How fast and how large it is stands in the card's table; results are of its quality.
_NO_RESULTS = ("bytes", "speed", "seconds", "count")
_SIZES = ("bits_per_weight", "energy_per_token", "answers_ended")
#: The parameters that pin what was fetched.
_PINS = ("pypi", "hf", "url", "revision", "sha256", "member")


def chosen(page: Page, wanted: str | None) -> Row:
    """The candidate of a card: the named one; else the active one, else the last that is no reference.

    UsageError (E-TARGET) with the nearest names.
    """
    if wanted is None:
        from ingot.core.standing import Standing

        folds = Standing(page.book.project, page.book.lookup)
        active = [row for row in page.rows for it in row.names if _is_active(folds.active(f"{page.spec}:{it}"), row)]
        return next(iter(active), [row for row in page.rows if not row.is_reference or len(page.rows) == 1][-1])
    known = {each: row for row in page.rows for each in row.names}
    bare = wanted.removeprefix(f"{page.spec}:")
    if bare not in known:
        from difflib import get_close_matches

        near = get_close_matches(bare, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"its candidates are {', '.join(known)}"
        raise UsageError("E-TARGET", f"{page.target} has no candidate {bare!r}", hint=hint)
    return known[bare]


def _is_active(decision: Any, row: Row) -> bool:
    return decision is not None and decision.digest == row.digest


def card(page: Page, row: Row) -> str:
    """README.md of a candidate; RefusedInput (E-CARD) where the library would not read it back as it is written."""
    hub = _library()
    base = _base(page, row)
    data = hub.ModelCardData(
        **_metadata(page, row, base), eval_results=list(_results(hub, page, row)), model_name=_title(page, row)
    )
    text = f"---\n{data.to_yaml()}\n---\n\n{_body(page, row, base)}"
    back = hub.ModelCard(text, ignore_metadata_errors=False)
    if back.data.to_dict() != data.to_dict():
        raise RefusedInput("E-CARD", f"the card of {row.name} does not read back as it is written")
    return text


def _library() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        what = "a model card needs huggingface-hub, which is not installed"
        raise MissingTool("E-MISSING-TOOL", what, hint="pip install 'ingot[report]'") from error
    return huggingface_hub


def _title(page: Page, row: Row) -> str:
    return f"{page.spec} {row.name}"


def _base(page: Page, row: Row) -> Node | None:
    """The fetched model that a candidate was made from; None where there is none, or not one."""
    found = [node for node in page.lineage.ancestors(row.digest) if node.kind in _BROUGHT]
    return found[0] if len(found) == 1 else None


def _metadata(page: Page, row: Row, base: Node | None) -> dict[str, Any]:
    found: dict[str, Any] = {"tags": ["ingot"]}
    library = _LIBRARIES.get(row.form.partition(" ")[0])
    if library:
        found["library_name"] = library
    elif row.form.startswith("hf"):
        found["library_name"] = "transformers"
    if base is not None:
        stated = _stated(page, base)
        found |= {key: stated[key] for key in _INHERITED if key in stated}
        repository = _params(base).get("hf")
        if isinstance(repository, str):
            found["base_model"] = repository.partition("@")[0]
            found |= _relation(page, row)
    return found


def _relation(page: Page, row: Row) -> dict[str, str]:
    kinds = [_RELATIONS[node.kind] for node in page.lineage.ancestors(row.digest) if node.kind in _RELATIONS]
    return {"base_model_relation": kinds[-1]} if kinds else {}


def _params(node: Node) -> Json:
    return {} if node.entry is None else node.entry.receipt["key_parts"].get("params", {})


def _stated(page: Page, base: Node) -> dict[str, Any]:
    """The metadata of the card that a fetched folder brought along; nothing where it brought none."""
    folder = page.book.folder(base.entry)
    if folder is None or not (folder / "README.md").is_file():
        return {}
    try:
        text = (folder / "README.md").read_text("utf-8")
        stated = _library().ModelCard(text, ignore_metadata_errors=True).data.to_dict()
    except (OSError, ValueError):
        return {}
    return dict(stated)


def _results(hub: Any, page: Page, row: Row) -> Iterator[Any]:
    """The measured numbers as the hub lists them; sizes and counts are no results."""
    data = page.spec if page.data is None else page.data.target.partition(":")[2]
    for metric, score in row.scores.items():
        task, _, bare = metric.rpartition(".")
        if measure(bare).better == "" or measure(bare).form in _NO_RESULTS or bare in _SIZES:
            continue
        entry = score.entry
        yield hub.EvalResult(
            task_type="text-generation",
            dataset_type=task or data,
            dataset_name=task or f"{data}, held out",
            metric_type=bare,
            metric_name=measure(bare).title,
            metric_value=score.value,
            dataset_split=None if task else "eval",
            dataset_revision=None if task or page.data is None else page.data.digest,
            metric_args=None if entry is None else {"log_entry": f"{entry.receipt['origin']}#{entry.receipt['index']}"},
        )


def _body(page: Page, row: Row, base: Node | None) -> str:
    parts = [
        f"# {plain(_title(page, row))}",
        _what(page, row),
        "## How it was made",
        _made(page, row),
        "## Measured results",
        _measured(page, row),
        "## Limits",
        "\n".join(f"- {text}" for text in _limits(page, row, base)),
        "## Provenance",
        _provenance(page, row),
    ]
    return "\n\n".join(parts) + "\n"


def _what(page: Page, row: Row) -> str:
    size = f", {size_text(row.scores['bytes'].value)} of weights" if "bytes" in row.scores else ""
    parameters = row.scores.get("parameters")
    count = f", {written('parameters', parameters.value)} parameters" if parameters else ""
    against = f" Compared with {name(page.reference.name)}." if page.reference and not row.is_reference else ""
    return f"{name(row.name)} of the spec {name(page.spec)}: {plain(row.form)}{size}{count}.{against}"


def _made(page: Page, row: Row) -> str:
    rows = []
    for node in page.lineage.ancestors(row.digest):
        said = ", ".join(f"{key}: {value}" for key, value in sorted(_params(node).items()) if _is_short(value))
        rows.append([name(node.name), plain(node.kind), plain(said), name(node.digest[:12])])
    return markdown.table(["step", "kind", "parameters", "digest"], rows)


def _is_short(value: object) -> bool:
    return value is not None and value not in ("", [], {}) and len(str(value)) <= 60


def _measured(page: Page, row: Row) -> str:
    rows = [[name(metric), *_cells(metric, score)] for metric, score in sorted(row.scores.items())]
    text = markdown.table(["metric", "value", "95 % interval", "n", "how it was measured"], rows, (1, 2, 3))
    others = [each for each in page.rows if each.digest != row.digest]
    if not others:
        return text
    return f"{text}\n\nBeside the others of the report:\n\n{markdown.results(page.rows, page.columns(), marks=False)}"


def _cells(metric: str, score: Score) -> Sequence[str]:
    count = score.metric.get("n")
    shown = written(metric, score.metric["value"])
    return (
        shown,
        plain(interval(metric, score.metric)),
        "" if count is None else f"{count:,}",
        plain(score.metric["method"]),
    )


def _limits(page: Page, row: Row, base: Node | None) -> Iterator[str]:
    for verdict in page.verdicts:
        if not verdict.passed and any(f".{each}." in f".{verdict.gate}" for each in row.names):
            yield f"Gate: {plain(verdict)}."
    for mark in row.marks:
        yield f"{plain(mark.word[:1].upper() + mark.word[1:])}: {plain(mark.detail)}."
    for metric, reason in sorted(row.not_measured.items()):
        yield f"{name(metric)} was not measured: {plain(reason)}."
    if base is None:
        yield "It was made from no single fetched model, so no base model is named."
    else:
        stated = _stated(page, base)
        if not stated.get("license"):
            yield "No licence is stated here, since what was fetched states none: ask who published the base model."
        yield "What its base model was trained on is not known here, so neither whether it saw the evaluation data."


def _provenance(page: Page, row: Row) -> str:
    lines = [f"- artifact {name(row.digest)}"]
    if row.entry is not None:
        lines.append(f"- log entry {name(row.entry.place)}, key {name(row.entry.receipt['key'])}")
    for node in page.lineage.ancestors(row.digest):
        pinned = [f"{key} {name(value)}" for key, value in sorted(_params(node).items()) if key in _PINS and value]
        if node.kind in _BROUGHT and pinned:
            lines.append(f"- {name(node.name)}: {', '.join(pinned)}")
    lines.append(f"- report {name(page.target)}, {name(page.entry.digest)}, log entry {name(page.entry.place)}")
    return "\n".join(lines)
