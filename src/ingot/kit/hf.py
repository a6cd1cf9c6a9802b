"""Hugging Face folders: read them with suspicion, write them with the same bytes every time."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ingot.core.redact import is_home_path
from ingot.errors import RefusedInput
from ingot.kit.architectures import refuse_unknown_architecture
from ingot.kit.code_guard import read_json_value, refuse_code
from ingot.kit.safetensors_check import Entry, check_file
from ingot.kit.stream.layout import header
from ingot.kit.stream.vocabulary import DTYPE_NAMES, Slot

_INDEX = "model.safetensors.index.json"
_WEIGHTS = "model.safetensors"
_ADAPTER = "adapter_config.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
_TOKENIZER_FILES = ("tokenizer.json", "*.model", "*.tiktoken", "vocab.json", "vocab.txt", "tekken.json")
_SIDE_SUFFIXES = frozenset({".json", ".jinja", ".model", ".txt", ".tiktoken"})

#: The dtypes that ingot reads and writes, by their name in config.json.
DTYPES: dict[str, torch.dtype] = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a config.json name. RefusedInput (E-DTYPE) for others."""
    try:
        return DTYPES[name]
    except KeyError:
        raise RefusedInput("E-DTYPE", f"unknown dtype {name!r}", facts=[f"known: {', '.join(DTYPES)}"]) from None


def read_json_file(path: Path) -> dict[str, Any]:
    """A JSON object from a file of bounded size. RefusedInput (E-JSON-LIMIT, E-NOT-HF) when it is none."""
    value = read_json_value(path)
    if not isinstance(value, dict):
        raise RefusedInput("E-NOT-HF", f"{path.name} is not a JSON object")
    return value


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder.

    RefusedInput: E-NOT-HF when there is none, or an adapter lies beside it; E-CONFIG-CODE, E-FORMAT-CODE and
    E-JSON-LIMIT as ``refuse_code`` has them.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise RefusedInput(
            "E-NOT-HF",
            "the folder holds no config.json, so it is not a Hugging Face model",
            facts=[f"files: {', '.join(sorted(p.name for p in folder.iterdir())[:12]) or 'none'}"],
            hint="a GGUF becomes a Hugging Face folder with 'kind: convert'",
        )
    if (folder / _ADAPTER).exists():
        # transformers would load the model that this file names, from wherever it lies, and not this folder's.
        raise RefusedInput(
            "E-NOT-HF",
            f"the folder holds {_ADAPTER} beside config.json: it is a model and an adapter at once",
            hint="keep the two in folders of their own; 'kind: merge' adds an adapter to its model",
        )
    refuse_code(folder)
    return read_json_file(path)


def tensor_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, in order of their names.

    RefusedInput: E-FORMAT-PICKLE when the only weights are pickles, E-NOT-HF when there are none,
    E-ST-INDEX when the index names a file that is missing or outside the folder.
    """
    index = folder / _INDEX
    if index.is_file():
        weight_map = read_json_file(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise RefusedInput("E-ST-INDEX", f"{_INDEX} has no weight_map")
        names = {str(name) for name in weight_map.values()}
        for name in sorted(names):
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors", name) or not (folder / name).is_file():
                raise RefusedInput("E-ST-INDEX", f"{_INDEX} names {name!r}, which is not a file of the folder")
        if _WEIGHTS not in names and (folder / _WEIGHTS).exists():
            # transformers would take this one and not those that the index names.
            raise RefusedInput("E-ST-INDEX", f"{_WEIGHTS} lies beside {_INDEX}, which does not name it")
        return [folder / name for name in sorted(names)]
    files = sorted(folder.glob("*.safetensors"))
    if files:
        _refuse_missing_parts(files)
        return files
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise RefusedInput(
            "E-FORMAT-PICKLE",
            f"the weights are a pickle ({pickles[0]}), which can run code when it is read",
            hint="ask the publisher for safetensors, or pin a revision that has them",
        )
    raise RefusedInput("E-NOT-HF", "the folder holds no safetensors weights")


def _refuse_missing_parts(files: list[Path]) -> None:
    """Without an index the names alone say how many files a model has."""
    counts = {int(found[1]) for path in files if (found := re.search(r"-\d{5}-of-(\d{5})\.safetensors$", path.name))}
    if counts and counts != {len(files)}:
        what = f"the folder holds {len(files)} safetensors files, whose names speak of {max(counts)}"
        raise RefusedInput("E-ST-INDEX", what, facts=[f"files: {_some([path.name for path in files])}"])


def files_with_entries(folder: Path) -> Iterator[tuple[Path, tuple[Entry, ...]]]:
    """Every file with its header's entries, in the order of their bytes; each header is checked first.

    RefusedInput (E-ST-*) for an unsound header, a tensor that two files hold, or one that the index has elsewhere.
    """
    seen: set[str] = set()
    index = folder / _INDEX
    listed = dict(read_json_file(index)["weight_map"]) if index.is_file() and tensor_files(folder) else None
    for path in tensor_files(folder):
        found = check_file(path)
        for entry in found:
            if entry.name in seen:
                raise RefusedInput("E-ST-INDEX", f"tensor {entry.name!r} is in more than one file")
            seen.add(entry.name)
            if listed is not None and listed.pop(entry.name, None) != path.name:
                raise RefusedInput("E-ST-INDEX", f"tensor {entry.name!r} is in {path.name}, where {_INDEX} has it not")
        yield path, found
    if listed:
        missing = min(listed)
        raise RefusedInput("E-ST-INDEX", f"tensor {missing!r} is not in {listed[missing]}, where {_INDEX} has it")


def entries(folder: Path) -> Iterator[tuple[Path, Entry]]:
    """Every tensor's file and header entry, in file order then name order; see ``files_with_entries``."""
    for path, found in files_with_entries(folder):
        for entry in sorted(found, key=lambda entry: entry.name):
            yield path, entry


def tensor_names(folder: Path) -> list[str]:
    """The names of all tensors, in the order of ``iter_tensors``."""
    return [entry.name for _, entry in entries(folder)]


def iter_tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every (name, tensor) of a model folder, loaded one by one, in file order then name order."""
    for path in tensor_files(folder):
        names = sorted(entry.name for entry in check_file(path))
        with safe_open(path, framework="pt") as file:
            for name in names:
                yield name, file.get_tensor(name)


def write_safetensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write one safetensors file with the metadata ``{"format": "pt"}``; equal content gives equal bytes."""
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    slots = [Slot(name, tuple(tensors[name].shape), DTYPE_NAMES[tensors[name].dtype]) for name in order]
    with path.open("xb") as file:
        file.write(header(slots))
        for name in order:
            tensor = tensors[name].detach().cpu().contiguous().flatten()
            file.write(memoryview(tensor.view(torch.uint8).numpy()))


def write_json(path: Path, value: object) -> None:
    """Write JSON in the one form that artifacts use: sorted keys, two spaces, a final line break."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def copy_side_files(src: Path, out: Path, *, config: dict[str, Any] | None = None) -> None:
    """Copy everything but the weights: configs, tokenizer, chat template.

    ``config`` replaces config.json. Where a library left a path behind (``_name_or_path``, a path into somebody's home
    folder in tokenizer_config.json) it is dropped.
    """
    value = dict(read_config(src) if config is None else config)
    for path in sorted(src.iterdir()):
        if path.suffix in _SIDE_SUFFIXES and path.is_file() and path.name not in {"config.json", _INDEX}:
            copy_side_file(path, out / path.name)
    value = _without_paths(value)
    value.pop("_name_or_path", None)
    write_json(out / "config.json", value)


def copy_side_file(path: Path, target: Path) -> None:
    """Copy a side file; of a JSON config the fields that are paths of whoever made it are left out."""
    if path.suffix == ".json":
        value = read_json_value(path)
        if isinstance(value, dict) and value != (clean := _without_paths(value)):
            write_json(target, clean)
            return
    shutil.copyfile(path, target)


def _without_paths(value: dict[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if not (isinstance(item, str) and is_home_path(item))}


def load_model(folder: Path, dtype: str | None = None, *, quantized: Any = None, attention: str = "eager") -> Any:
    """The causal language model of a folder, in eval mode, on the CPU; nothing is downloaded.

    ``dtype`` None keeps that of the config. A quantized checkpoint is loaded dequantized. ``quantized`` is a
    transformers quantization config, by which the linear layers of a plain checkpoint are quantized as they are read.
    """
    return load_with_report(folder, dtype, quantized=quantized, attention=attention)[0]


def load_with_report(
    folder: Path, dtype: str | None = None, *, quantized: Any = None, attention: str = "eager"
) -> tuple[Any, dict[str, Any]]:
    """As ``load_model``, and what transformers reports of tensors that were missing, unexpected or of another shape."""
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = read_config(folder)
    refuse_unknown_architecture(config)
    for _ in entries(folder):  # every header is sound before a library parses one
        pass
    more: dict[str, Any] = {}
    method = (config.get("quantization_config") or {}).get("quant_method")
    if method == "compressed-tensors":
        more["quantization_config"] = CompressedTensorsConfig(dequantize=True)
    if quantized is not None:
        more["quantization_config"] = quantized
    if quantized is not None or method == "bitsandbytes":
        more["device_map"] = {"": "cpu"}  # else it takes a GPU where there is one
    wanted = "auto" if dtype is None else torch_dtype(dtype)
    with warnings.catch_warnings():
        # That the folder has a quantization of its own is why it is told to dequantize it.
        warnings.filterwarnings("ignore", message="You passed `quantization_config`", category=UserWarning)
        model, report = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype="auto" if method == "bitsandbytes" else wanted,
            attn_implementation=attention,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **more,
        )
    if method == "compressed-tensors":
        from compressed_tensors.offload import remove_dispatch

        remove_dispatch(model)  # its modules are wrapped, and would stay on the CPU whatever they are moved to
    if method == "bitsandbytes":
        from ingot.kit.quant.bnb import refuse_misread

        refuse_misread(model)
        model = model.dequantize(dtype=model.dtype)
        model = model if dtype is None else model.to(torch_dtype(dtype))
    return model.eval(), dict(report)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder; nothing is downloaded and no code of the folder runs.

    RefusedInput (E-TOKENIZER) when the folder holds none, or one that cannot be read.
    """
    read_config(folder)
    return _tokenizer_of(folder)


def load_lone_tokenizer(folder: Path) -> Any:
    """The tokenizer of a ``tokenizer`` artifact, or of a model's folder; see ``load_tokenizer``."""
    if (folder / "config.json").is_file():
        return load_tokenizer(folder)
    refuse_code(folder)
    return _tokenizer_of(folder)


def _tokenizer_of(folder: Path) -> Any:
    from transformers import AutoTokenizer

    here = sorted(path.name for path in folder.iterdir())
    if not any(path.match(pattern) for path in folder.iterdir() for pattern in _TOKENIZER_FILES):
        raise RefusedInput(
            "E-TOKENIZER",
            "the model's folder holds no tokenizer",
            facts=["missing: tokenizer.json (or tokenizer.model, vocab.json, vocab.txt)", f"files: {_some(here)}"],
            hint="take these files from where the model comes from; under 'fetch', 'files' may leave them out",
        )
    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (ValueError, LookupError, TypeError, OSError, ImportError) as error:
        raise RefusedInput(
            "E-TOKENIZER",
            "the model's tokenizer cannot be read",
            facts=[" ".join(f"{type(error).__name__}: {error}".split()), f"files: {_some(here)}"],
            hint="a tokenizer.json is read by every version of transformers; others may need sentencepiece",
        ) from error


def _some(names: list[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
