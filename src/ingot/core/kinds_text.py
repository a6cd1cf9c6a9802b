"""What the reference of kinds says beyond what their classes hold: formats, and the files of a command."""

from __future__ import annotations

from collections.abc import Mapping

HEAD = """\
# Kinds

A target of a spec has a `kind`. This page is made from the kinds themselves by
`python -m ingot.core.kinds_doc > docs/kinds.md`; a test keeps it current. `doit schema` prints the same for editors.

Beside its parameters, every target takes `from` (role → target), `matrix` (parameter → list of values, one instance
for each combination) and `virtual`. With `virtual: true` a target is not written: it streams into what is built from
it, and is measured on the way; what cannot read it so gets a copy for the time of the run. That is for kinds that map
weights tensor by tensor: `convert`, `merge`, `quantize` by rounding to nearest, and `prune` by magnitude.

Default "depends" means that other parameters decide; the meaning says how.
"""

#: What each format is on disk.
FORMATS: Mapping[str, str] = {
    "any": "files of any form; they fit every role and are checked when they are read.",
    "hf": "a Hugging Face folder (`hf`): `config.json`, the tokenizer, the weights as safetensors.",
    "adapter": "PEFT's files (`adapter`): `adapter_config.json`, `adapter_model.safetensors`, and the curves.",
    "gguf_adapter": "an adapter for llama.cpp (`gguf_adapter`): `adapter.gguf`.",
    "gguf": "one file (`gguf`): `model.gguf`; with `split_bytes` its parts, `model-00001-of-0000N.gguf`.",
    "imatrix": "an importance matrix (`imatrix`): `imatrix.gguf`, in llama.cpp's form.",
    "coreml": "a package (`coreml`): `model.mlpackage`, `contract.json` and the tokenizer's files.",
    "onnx": "an ONNX model (`onnx`): `model.onnx`, with the weights of a large one in a file beside it.",
    "dataset": "a data set (`dataset`): `train.jsonl`, `eval.jsonl` and `dataset.json`, the counts of its rows.",
    "tokenizer": "a tokenizer (`tokenizer`): `tokenizer.json`, `tokenizer_config.json`, its chat template.",
    "packed": "a packed artifact (`packed`): `pack.json`, and each file below `zstd/` or, not shrunk, `stored/`.",
    "calibration": "a calibration of confidence (`calibration`): `calibration.json` and `reliability.svg`.",
    "samples": "answers of a model (`samples`): `samples.jsonl`, and `evaluation.json` with what was counted in them.",
    "logits": "a reference's `logits`: `logits.json`, `units.jsonl` and `logits.bin`, its next-token distributions.",
    "evaluation": "an `evaluation`: `evaluation.json`, and JSON lines with what was found of each document, item or "
    "question (`documents.jsonl`, `items.jsonl`, `answers.jsonl`).",
    "report": "a `report`: `report.json`, one row a candidate.",
}

COMMAND_FILES = """\
### How a command sees files

The program does not run in the project. It runs in a private copy that holds the files declared under `files` and
nothing else, at their paths relative to the spec: `files: [tools/make.py]` is `tools/make.py` there. The working
folder is the folder of the spec in that copy. Without `files` it is an empty scratch folder. A file that the program
reads must be declared: a change of any other file makes no target stale.

In the words of `command` and the values of `env`, placeholders stand for:

| placeholder | variable | value |
|---|---|---|
| `{out}` | `INGOT_OUT` | the folder to write into |
| `{scratch}` | `INGOT_SCRATCH` | an empty folder, dropped afterwards |
| `{threads}` | `INGOT_THREADS` | how many threads to use |
| `{ROLE}` | `INGOT_IN_ROLE` | the folder of the target in the role; read only |

A word of `command` that is the placeholder of a list role alone becomes one word a target; anywhere else the folders
are joined as in `PATH`. The name of the variable is in capitals: role `data` is `INGOT_IN_DATA`. Other placeholders
are refused when the spec is read. The environment is a fixed one, not that of your shell, and `env` adds to it.
"""
