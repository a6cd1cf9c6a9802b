"""``contract.json``: what a program needs to know to run an export, beside the files that it needs to tokenize for it.

One form for every container. The tokenizer's files are those of the model; ``config.json`` is not among them: it marks
a Hugging Face folder, which an export is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ingot.core.digest import FileRecord, hash_file, tree_digest
from ingot.errors import RefusedInput
from ingot.kit import hf

NAME = "contract.json"
FORMAT = 1

_MAX_BYTES = 16 << 20
#: What of a model's folder describes its tokenizer and how text is generated with it.
_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "vocab.txt", "*.model", "*.tiktoken", "tekken.json", "chat_template.jinja", "generation_config.json",
)  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """An input or output: its name, its type in numpy's words, its sizes. A size that is free is given by its name."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Tokenizer:
    """The tokenizer files beside an export: what they are together, and the tokens at which an answer ends.

    ``digest`` is that of a folder which holds them alone (``docs/formats.md``).
    """

    digest: str
    files: tuple[str, ...]
    vocabulary: int
    template: str | None
    bos_token: str
    eos_token: str
    end_tokens: tuple[int, ...]


@dataclass(frozen=True)
class Contract:
    """What an export is. ``limits`` holds what calls must keep to: ``context`` in tokens, and what a container adds.

    ``precision`` names how the matrices are stored; ``compute`` what they are multiplied in.
    """

    container: Literal["coreml", "onnx"]
    architecture: str
    layers: int
    parameters: int
    precision: str
    compute: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    tokenizer: Tokenizer
    limits: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def context(self) -> int:
        """The longest text, in tokens."""
        return int(self.limits["context"])


def ship_tokenizer(model: Path, out: Path) -> Tokenizer:
    """Copy a model's tokenizer files beside its export, and read there what they are. RefusedInput: E-TOKENIZER."""
    names = sorted({path.name for pattern in _FILES for path in model.glob(pattern) if path.is_file()})
    for name in names:
        hf.copy_side_file(model / name, out / name)
    return _tokenizer(out, hf.load_lone_tokenizer(out), names)


def _tokenizer(folder: Path, tokenizer: Any, names: Sequence[str]) -> Tokenizer:
    from ingot.kit.chat import Template

    template = Template.of(tokenizer)
    ends = {tokenizer.eos_token_id}
    if "generation_config.json" in names:
        found = hf.read_json_file(folder / "generation_config.json").get("eos_token_id")
        ends |= set(found) if isinstance(found, list) else {found}
    return Tokenizer(
        digest=_digest(folder, names),
        files=tuple(names),
        vocabulary=len(tokenizer),
        template=template.source,
        bos_token=template.bos,
        eos_token=template.eos,
        end_tokens=tuple(sorted(int(token) for token in ends if token is not None)),
    )


def _digest(folder: Path, names: Sequence[str]) -> str:
    return tree_digest(FileRecord(name, *hash_file(folder / name)) for name in names)


def write_contract(folder: Path, contract: Contract) -> None:
    """Write ``contract.json``; equal contracts give equal bytes."""
    hf.write_json(folder / NAME, {"format": FORMAT, **asdict(contract)})


def read_contract(folder: Path) -> Contract:
    """The contract of an export's folder, its tokenizer files compared with it.

    RefusedInput (E-CONTRACT) when there is none, it is not of this form, or the tokenizer is another.
    """
    path = folder / NAME
    if not path.is_file():
        raise RefusedInput("E-CONTRACT", f"the folder holds no {NAME}, so it is no export of ingot")
    if path.stat().st_size > _MAX_BYTES:
        raise RefusedInput("E-CONTRACT", f"{NAME} has {path.stat().st_size} bytes, more than any that ingot writes")
    try:
        contract = _parsed(hf.read_json_file(path))
    except (KeyError, TypeError, ValueError) as error:
        raise RefusedInput("E-CONTRACT", f"{NAME} is not of the form that ingot writes: {error}") from error
    missing = [name for name in contract.tokenizer.files if not (folder / name).is_file()]
    if missing or _digest(folder, contract.tokenizer.files) != contract.tokenizer.digest:
        raise RefusedInput(
            "E-CONTRACT",
            f"the tokenizer beside the export is not the one that {NAME} names",
            facts=[f"missing: {', '.join(missing)}"] if missing else ["the digest of its files differs"],
            hint="build the export again",
        )
    return contract


def _parsed(value: dict[str, Any]) -> Contract:
    if value.pop("format", None) != FORMAT:
        raise ValueError(f"its format is not {FORMAT}")
    tokenizer = value.pop("tokenizer")
    for name in ("files", "end_tokens"):
        tokenizer[name] = tuple(tokenizer[name])
    inputs, outputs = (tuple(_tensor(item) for item in value.pop(name)) for name in ("inputs", "outputs"))
    contract = Contract(**value, inputs=inputs, outputs=outputs, tokenizer=Tokenizer(**tokenizer))
    numbers = contract.parameters, contract.layers, contract.limits["context"]
    if not all(isinstance(number, int) for number in numbers):
        raise ValueError("a number is none")
    if contract.container not in {"coreml", "onnx"} or not isinstance(contract.precision, str):
        raise ValueError("the container or the precision is none")
    if not all(isinstance(name, str) and Path(name).name == name for name in contract.tokenizer.files):
        raise ValueError("a tokenizer file is not in its folder")
    return contract


def _tensor(value: dict[str, Any]) -> Tensor:
    shape = tuple(value["shape"])
    if not all(isinstance(size, int | str) for size in shape):
        raise ValueError(f"the shape of {value['name']!r} is none")
    return Tensor(str(value["name"]), str(value["dtype"]), shape)
