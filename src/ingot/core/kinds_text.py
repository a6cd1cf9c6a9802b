"""What the reference of kinds says beyond what their classes hold: formats, metrics, the files of a command."""

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
    "adapter": "PEFT's files (`adapter`): `adapter_config.json`, `adapter_model.safetensors`, and `training.json`.",
    "gguf_adapter": "an adapter for llama.cpp (`gguf_adapter`): `adapter.gguf`.",
    "gguf": "one file (`gguf`): `model.gguf`; with `split_bytes` its parts, `model-00001-of-0000N.gguf`.",
    "imatrix": "an importance matrix (`imatrix`): `imatrix.gguf`, in llama.cpp's form.",
    "coreml": "a package (`coreml`): `model.mlpackage`.",
    "dataset": "a data set (`dataset`): `train.jsonl`, `eval.jsonl` and `dataset.json`, the counts of its rows.",
    "tokenizer": "a tokenizer (`tokenizer`): `tokenizer.json`, `tokenizer_config.json`, its chat template.",
    "packed": "a packed artifact (`packed`): `pack.json`, and each file below `zstd/` or, not shrunk, `stored/`.",
    "calibration": "a calibration of confidence (`calibration`): `calibration.json` and `reliability.svg`.",
    "evaluation": "an `evaluation`: `evaluation.json`, `documents.jsonl` with the sums of each document, and where "
    "questions were asked `answers.jsonl` with what was answered.",
    "report": "a `report`: `report.json`, one row a candidate.",
}

_ALWAYS, _HELD_OUT, _REFERENCE = "always", "with held-out documents", "with a reference"
_TEACHER = "with a teacher and held-out documents"
_ZEROED = "all but depth"
_DROPPED = "depth"
_ASKED = "with `answers`, unless nothing can run the candidate here"
_NATS = "nats/token"

#: What every training measures.
_TRAINING = (
    ("train_loss_first", _NATS, _ALWAYS),
    ("train_loss_last", _NATS, _ALWAYS),
    ("trainable_parameters", "parameters", _ALWAYS),
    ("steps", "1", _ALWAYS),
    ("tokens", "tokens", _ALWAYS),
    ("tokens_per_second", "tokens/s", _ALWAYS),
    ("train_seconds", "s", _ALWAYS),
    ("eval_loss_before", _NATS, _HELD_OUT),
    ("eval_loss_after", _NATS, _HELD_OUT),
    ("eval_loss_change", _NATS, _HELD_OUT),
    ("perplexity_before", "1", _HELD_OUT),
    ("perplexity_after", "1", _HELD_OUT),
    ("padding", "1", "unless pairs are learned"),
    ("device_peak_bytes", "B", "on a GPU"),
)

#: What those measure beside that may learn from a teacher.
_DISTILLED = (
    ("teacher_kl_before", _NATS, _TEACHER),
    ("teacher_kl_after", _NATS, _TEACHER),
    ("teacher_kl_change", _NATS, _TEACHER),
)

#: Kind → (metric, unit, when it is measured); capitals stand for several names. A test compares this with real builds.
MEASURED: Mapping[str, tuple[tuple[str, str, str], ...]] = {
    "adapter": (
        *_TRAINING,
        ("preferred_before", "1", "with held-out pairs and `objective: dpo`; losses are then in nats/pair"),
        ("preferred_after", "1", "as preferred_before"),
        ("preference_accuracy", "1", "as preferred_before"),
        ("preference_margin", "nats", "as preferred_before"),
    ),
    "calibrate": (
        ("temperature", "1", _ALWAYS),
        ("platt_slope", "1", _ALWAYS),
        ("platt_offset", "1", _ALWAYS),
        ("documents_fitted", "documents", _ALWAYS),
        ("tokens_fitted", "tokens", _ALWAYS),
        ("documents_measured", "documents", _ALWAYS),
        ("tokens_measured", "tokens", _ALWAYS),
        ("accuracy", "1", _ALWAYS),
        ("nll_before", _NATS, _ALWAYS),
        ("nll_temperature", _NATS, _ALWAYS),
        ("ece_before", "1", _ALWAYS),
        ("ece_temperature", "1", _ALWAYS),
        ("ece_temperature_change", "1", _ALWAYS),
        ("ece_platt", "1", _ALWAYS),
        ("ece_platt_change", "1", _ALWAYS),
    ),
    "command": (("bytes", "B", _ALWAYS),),
    "convert": (
        ("parameters", "parameters", _ALWAYS),
        ("tensors", "tensors", _ALWAYS),
        ("weight_bytes", "B", _ALWAYS),
        ("bits_per_weight_in", "bits", _ALWAYS),
        ("bits_per_weight", "bits", _ALWAYS),
    ),
    "coreml": (
        ("bytes", "B", _ALWAYS),
        ("parameters", "parameters", _ALWAYS),
        ("bits_per_weight", "1", _ALWAYS),
        ("operations", "1", _ALWAYS),
        ("operation_kinds", "1", _ALWAYS),
        ("module_max_difference", "1", _ALWAYS),
        ("weight_bytes_TYPE", "B", "for each type of stored weights"),
    ),
    "dataset": (
        ("documents_read", "documents", _ALWAYS),
        ("documents_same_answers", "documents", "of preferences"),
        ("documents_too_short", "documents", _ALWAYS),
        ("documents_too_long", "documents", _ALWAYS),
        ("documents_exact_duplicates", "documents", _ALWAYS),
        ("documents_near_duplicates", "documents", _ALWAYS),
        ("documents_over_limit", "documents", _ALWAYS),
        ("documents_train", "documents", _ALWAYS),
        ("documents_eval", "documents", _ALWAYS),
        ("characters_train", "characters", _ALWAYS),
        ("characters_eval", "characters", _ALWAYS),
    ),
    "evaluate": (
        ("tokens", "tokens", "unless nothing can run the candidate here (`coreml`)"),
        ("documents", "documents", "as tokens"),
        ("nll", _NATS, "as tokens"),
        ("perplexity", "1", "as tokens"),
        ("nll_difference", _NATS, _REFERENCE),
        ("kl_divergence", _NATS, _REFERENCE),
        ("kl_p99", "nats", _REFERENCE),
        ("top1_agreement", "1", _REFERENCE),
        ("exact_match", "1", _ASKED),
        ("pattern_accuracy", "1", "as exact_match, where a row or `answers.pattern` tells what is right"),
        ("answers_ended", "1", _ASKED),
        ("bytes", "B", _ALWAYS),
        ("parameters", "parameters", _ALWAYS),
        ("bits_per_weight", "bits/parameter", _ALWAYS),
        ("prompt_tokens_per_second", "tokens/s", "as tokens"),
        ("generation_tokens_per_second", "tokens/s", "as tokens"),
    ),
    "fetch": (("bytes", "B", _ALWAYS), ("files", "files", _ALWAYS)),
    "full": (
        ("parameters", "parameters", _ALWAYS),
        ("weight_bytes", "B", _ALWAYS),
        *_TRAINING,
        *_DISTILLED,
    ),
    "gguf": (
        ("bytes", "B", _ALWAYS),
        ("bytes_read", "B", _ALWAYS),
        ("bytes_written", "B", _ALWAYS),
        ("parameters", "parameters", _ALWAYS),
        ("bits_per_weight", "1", _ALWAYS),
        ("compression", "1", _ALWAYS),
        ("fallback_tensors", "1", _ALWAYS),
        ("probe_texts", "1", _ALWAYS),
        ("load_s", "s", _ALWAYS),
        ("tensors_TYPE", "1", "for each type of tensors in the file"),
        ("reused_tensors", "1", "where tensors were copied from earlier results"),
        ("reused_bytes", "B", "as reused_tensors"),
        ("saved_s", "s", "as reused_tensors"),
    ),
    "imatrix": (
        ("entries", "1", _ALWAYS),
        ("chunks", "1", _ALWAYS),
        ("tokens", "tokens", _ALWAYS),
        ("bytes", "B", _ALWAYS),
    ),
    "lora_gguf": (
        ("bytes", "B", _ALWAYS),
        ("parameters", "parameters", _ALWAYS),
        ("adapted_tensors", "1", _ALWAYS),
        ("tensors_TYPE", "1", "for each type of tensors in the file"),
    ),
    "merge": (
        ("merged_tensors", "1", _ALWAYS),
        ("parameters", "parameters", _ALWAYS),
        ("weight_bytes", "B", _ALWAYS),
        ("relative_change", "1", "unless the adapted weights are all zero"),
        ("change_norm", "1", "as relative_change"),
        ("quantization_change", "1", "where the adapter was trained over a quantized base"),
    ),
    "pack": (
        ("bytes", "B", _ALWAYS),
        ("original_bytes", "B", _ALWAYS),
        ("files", "files", _ALWAYS),
        ("files_stored", "files", _ALWAYS),
        ("ratio", "1", "unless the input is empty"),
        ("saved", "1", "as ratio"),
        ("ratio_lowest", "1", "as ratio"),
        ("ratio_highest", "1", "as ratio"),
        ("dictionary_saved", "B", "with `dictionary`"),
    ),
    "prune": (
        ("sparsity", "1", _ZEROED),
        ("sparsity_lowest", "1", _ZEROED),
        ("sparsity_highest", "1", _ZEROED),
        ("GROUP_sparsity", "1", "for each group of modules that lost weights: attention, feed_forward, …"),
        ("zeros", "parameters", _ZEROED),
        ("pruned_parameters", "parameters", _ZEROED),
        ("pruned_layers", "1", _ZEROED),
        ("crowded_blocks", "1", "with a pattern; never above 0"),
        ("levels", "1", "with a schedule"),
        ("recovery_steps", "1", "with a schedule"),
        ("layers", "1", _DROPPED),
        ("layers_dropped", "1", _DROPPED),
        ("parameters", "parameters", _DROPPED),
        ("parameters_before", "parameters", _DROPPED),
        ("influence_dropped", "1", _DROPPED),
        ("influence_kept", "1", _DROPPED),
    ),
    "quantize": (
        ("weight_bytes", "B", _ALWAYS),
        ("bits_per_weight", "bits", _ALWAYS),
        ("compression", "1", _ALWAYS),
        ("layers_SCHEME", "1", "one a scheme that some modules have"),
        ("quantized_layers", "1", "unless all is a cast"),
        ("quantized_parameters", "parameters", "as quantized_layers"),
        ("max_error_steps", "1", "where integers of compressed-tensors were rounded to nearest"),
        ("relative_error", "1", "where anything was rounded"),
        ("relative_error_SCHEME", "1", "with several schemes"),
        ("reload_difference", "1", "of a model of at most 1 GiB as float32, unless it stays virtual"),
        ("reloaded_weights", "1", "unless it stays virtual"),
        ("calibration_documents", "documents", "gptq, awq"),
        ("calibration_tokens", "tokens", "gptq, awq"),
        ("smoothing_difference", "1", "awq"),
    ),
    "recover": (
        *_TRAINING,
        *_DISTILLED,
        ("sparsity_before", "1", _ALWAYS),
        ("sparsity", "1", _ALWAYS),
        ("sparsity_lowest", "1", _ALWAYS),
        ("sparsity_highest", "1", _ALWAYS),
        ("GROUP_sparsity", "1", "for each group of modules that have zeros"),
        ("zeros", "parameters", _ALWAYS),
        ("pruned_parameters", "parameters", _ALWAYS),
        ("pruned_layers", "1", _ALWAYS),
        ("crowded_blocks", "1", "where a module's zeros have a pattern; never above 0"),
    ),
    "report": (
        ("rows", "candidates", _ALWAYS),
        ("smallest_bytes", "B", _ALWAYS),
        ("best_perplexity", "1", "where a candidate has a perplexity"),
        ("worst_kl_divergence", _NATS, _REFERENCE),
    ),
    "student": (
        ("parameters", "parameters", _ALWAYS),
        ("vocabulary", "tokens", _ALWAYS),
        ("weight_bytes", "B", _ALWAYS),
        *_TRAINING,
        *_DISTILLED,
    ),
    "tokenizer": (
        ("vocabulary", "tokens", _ALWAYS),
        ("merges", "1", _ALWAYS),
        ("bytes_per_token", "B/token", _HELD_OUT),
        ("documents_read_back", "documents", _HELD_OUT),
    ),
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
