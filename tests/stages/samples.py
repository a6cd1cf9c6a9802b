"""One small real build of every kind, chained: what the contract suite runs, in a process of its own.

    python samples.py STORIES WORK [EARLIER]

builds each kind's sample below WORK over the trained 260 K-parameter model. What a kind that measures speed wrote is
replaced by what it wrote below EARLIER, so that the kinds after it get the same input twice. Prints one JSON object:
``{kind: {"digest", "metrics", "strays", "inputs_changed", "floor", "written", "memory"}}``.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harnesskit import all_forms
from ingot.core.stage import Done, Given, Least, load_kind
from ingot.core.weights_facts import facts_of
from stagekit import Recorder, digest_of

STORIES = [
    {"messages": [{"role": "user", "content": f"Tell me story {n}."}, {"role": "assistant", "content": text}]}
    for n, text in enumerate(
        f"Once upon a time there was a {size} {animal} who liked to {verb} in the {place}."
        for size in ("little", "big")
        for animal in ("cat", "dog", "bird", "fox")
        for verb in ("play", "run", "sleep")
        for place in ("garden", "house")
    )
]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@dataclass(frozen=True)
class Sample:
    """The parameters of a kind's sample and where its inputs come from: names of other samples."""

    params: Mapping[str, Any]
    inputs: Mapping[str, str | tuple[str, ...]]
    sources: tuple[str, ...] = ()


SAMPLES: dict[str, Sample] = {
    "fetch": Sample({"path": "model"}, {}, ("model",)),
    "convert": Sample({"dtype": "float32"}, {"model": "gguf"}),
    "dataset": Sample({"sources": [{"path": "rows.jsonl"}], "split": {"eval": 0.3}}, {}, ("rows.jsonl",)),
    "tokenizer": Sample({"vocab_size": 320}, {"data": "dataset"}),
    "adapter": Sample(
        {"rank": 4, "steps": 3, "batch_size": 2, "learning_rate": 1e-3, "dtype": "float32"},
        {"model": "fetch", "data": "dataset"},
    ),
    "student": Sample(
        {"preset": "0.3m", "layers": 1, "steps": 3, "batch_size": 2, "max_length": 128},
        {"data": "dataset", "tokenizer": "fetch", "teacher": "fetch"},
    ),
    "full": Sample(
        {"steps": 3, "batch_size": 2, "learning_rate": 1e-3, "dtype": "float32"}, {"model": "fetch", "data": "dataset"}
    ),
    "merge": Sample({}, {"model": "fetch", "adapter": "adapter"}),
    "lora_gguf": Sample({"type": "Q8_0"}, {"model": "fetch", "adapter": "adapter"}),
    "prune": Sample({"method": "wanda", "sparsity": 0.25}, {"model": "merge", "calibration": "dataset"}),
    "recover": Sample(
        {"steps": 3, "batch_size": 2, "dtype": "float32", "device": "cpu"}, {"model": "prune", "data": "dataset"}
    ),
    "quantize": Sample({"scheme": "W8A16"}, {"model": "prune"}),
    "imatrix": Sample({"context": 64}, {"model": "fetch", "calibration": "dataset"}),
    "gguf": Sample({"type": "Q8_0"}, {"model": "fetch", "data": "dataset"}),
    "coreml": Sample(
        {
            "sequence_lengths": [16],
            "kv_cache": True,
            "context": 32,
            "minimum_deployment_target": "iOS18",
            "weights": "palettized6",
            "parity": {"cosine": 0.9, "top1": 0.5, "kl": 1.0},
        },
        {"model": "student", "data": "dataset"},
    ),
    "onnx": Sample({"parity": {"texts": 2, "max_length": 16}}, {"model": "quantize"}),
    "calibrate": Sample({"documents": 8}, {"model": "fetch", "data": "dataset"}),
    "pack": Sample({"level": 3}, {"artifact": "fetch"}),
    "command": Sample({"command": ["sh", "-c", "cat a.txt > {out}/b.txt"], "files": ["a.txt"]}, {}, ("files",)),
    "harness": Sample(
        {"path": "tasks", "tasks": ["ending"], "limit": 3, "metrics": ["acc"]}, {"candidate": "fetch"}, ("tasks",)
    ),
    "logits": Sample({"documents": 4}, {"reference": "fetch", "data": "dataset"}),
    "evaluate": Sample({"documents": 4}, {"candidate": "fetch", "data": "dataset", "reference": "logits"}),
    "samples": Sample({"documents": 2, "max_tokens": 30, "context": 128}, {"candidate": "fetch", "data": "dataset"}),
    "match": Sample({}, {"candidate": "fetch", "data": "dataset", "samples": "samples"}),
    "judge": Sample(
        {},
        {
            "candidate": "fetch",
            "reference": "fetch",
            "samples": "samples",
            "reference_samples": "samples",
            "judge": "merge",
        },
    ),
    "report": Sample(
        {"documents": 4},
        {"data": "dataset", "reference": "fetch", "candidates": ("fetch",), "evaluations": ("evaluate",)},
    ),
}


def prepare(stories: Path, work: Path) -> None:
    """The project files that the samples read: a chat-capable model folder, rows, a file."""
    model = work / "src" / "model"
    shutil.copytree(stories, model, ignore=shutil.ignore_patterns("*.gguf", "SOURCE*", "LICENSE*"))
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": TEMPLATE}))
    (work / "src" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in STORIES))
    all_forms(work / "src" / "tasks")
    (work / "src" / "files").mkdir()
    (work / "src" / "files" / "a.txt").write_text("a\n")


def run(kind: str, work: Path) -> dict[str, Any]:
    """Build one kind's sample below ``work``, where its inputs were built before."""
    sample = SAMPLES[kind]
    stage = load_kind(kind).model_validate_json(json.dumps(dict(sample.params)), strict=True)
    out, scratch = work / kind / "out", work / kind / "scratch"
    out.mkdir(parents=True)
    scratch.mkdir()
    names = {role: (value,) if isinstance(value, str) else value for role, value in sample.inputs.items()}
    inputs = {role: tuple(work / name / "out" for name in value) for role, value in names.items()}
    given = Given(
        inputs=inputs,
        digests={role: tuple(digest_of(path) for path in paths) for role, paths in inputs.items()},
        scratch=scratch,
        sources=tuple(work / "src" / name for name in sample.sources),
        seed=7 if stage.reproducibility == "seeded" else None,
        threads=2,
    )
    before = _tree(work, out, scratch)
    os.chdir(scratch)
    metrics = Done.of(stage.run(given, out, Recorder())).metrics
    after = _tree(work, out, scratch)
    changed = [
        role for role, paths in inputs.items() if tuple(digest_of(path) for path in paths) != given.digests[role]
    ]
    strays = sorted(after - before)
    has = {role: added(paths) for role, paths in inputs.items()}
    floor, written = stage.least_output(has), added([out])
    return {
        "floor": [floor.bytes, floor.weights],
        "written": [written.bytes, written.weights],
        "memory": [stage.least_memory(has, "cpu"), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024],
        "digest": digest_of(out),
        "metrics": {name: metric.to_dict() for name, metric in metrics.items()},
        "strays": strays,
        "inputs_changed": changed,
    }


def added(folders: Sequence[Path]) -> Least:
    """What these folders have together."""
    facts = [facts_of(folder) for folder in folders]
    return Least(sum(each.total_bytes for each in facts), sum(each.elements for each in facts))


def _tree(work: Path, out: Path, scratch: Path) -> set[str]:
    return {
        str(path.relative_to(work))
        for path in work.rglob("*")
        if not path.is_relative_to(out) and not path.is_relative_to(scratch)
    }


def order() -> list[str]:
    """The kinds so that inputs come first."""
    done: list[str] = []

    def visit(kind: str) -> None:
        for value in SAMPLES[kind].inputs.values():
            for name in (value,) if isinstance(value, str) else value:
                visit(name)
        if kind not in done:
            done.append(kind)

    for kind in SAMPLES:
        visit(kind)
    return done


def main() -> None:
    """Build all samples and print what became of them."""
    stories, work, *earlier = (Path(argument).resolve() for argument in sys.argv[1:])
    prepare(stories, work)
    printed = {}
    for kind in order():
        printed[kind] = run(kind, work)
        if earlier and load_kind(kind).reproducibility == "device_dependent":
            shutil.rmtree(work / kind / "out")
            shutil.copytree(earlier[0] / kind / "out", work / kind / "out")
    sys.stdout.write("\n" + json.dumps(printed) + "\n")


if __name__ == "__main__":
    main()
