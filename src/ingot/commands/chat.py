"""``doit chat``: talk to a model that a target is, or that lies somewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ingot import registry
from ingot.commands.base import IngotCommand, keep_derived, remedy
from ingot.commands.screen import Screen
from ingot.errors import MissingTool, StoreDamaged, UsageError

if TYPE_CHECKING:
    from ingot.core.project import Project

#: What a target must be for somebody to talk to it; ``any`` may be a model.
_FORMATS = ("hf", "gguf", "onnx", "coreml", "any")
_DTYPES = ("float32", "bfloat16", "float16")


def _number(name: str, default: int, help_text: str) -> dict[str, Any]:
    return {"name": name, "long": name, "type": str, "default": str(default), "help": help_text}


class Chat(IngotCommand):
    """Stream answers of a model."""

    name = "chat"
    doc_purpose = "talk to a model: a target, a folder or a GGUF file"
    doc_usage = "SPEC:TARGET | PATH [QUESTION] [--tokens N] [--context N] [--dtype TYPE]"
    doc_description = (
        "Answers the question; without one, each line of standard input in turn, the answers before it remembered. "
        "The model's own chat template is used; a model without one is a plain language model, which continues each "
        "text. The answer is the likeliest token each time (repetitions a little less likely), so the same question "
        "gives the same answer. Hugging Face folders are run by transformers, GGUF by llama.cpp, ONNX by ONNX Runtime, "
        "Core ML by a Mac, and elsewhere by the reference interpreter, which is slow. The first argument is a target, "
        "whose newest result is taken and compared with the log, or a path, which works outside a project, too. "
        "Nothing touches the network."
    )
    arguments: ClassVar[tuple[int, int | None]] = (1, 2)
    cmd_options = (
        _number("tokens", 200, "at most this many tokens an answer [default: 200]"),
        _number("context", 2048, "tokens of the conversation that are read [default: 2048]"),
        {
            "name": "dtype",
            "long": "dtype",
            "type": str,
            "default": "float32",
            "choices": tuple((name, "") for name in _DTYPES),
            "help": "what Hugging Face models compute in [default: float32]",
        },
    )

    def run(self, screen: Screen, options: Mapping[str, Any], arguments: Sequence[str]) -> int:
        """0; 2 wrong use, never built or no room in the context; 3 refused; 4 missing or damaged in the store."""
        tokens, context = (self._count(options, name) for name in ("tokens", "context"))
        conversation = _open(_place(arguments[0]), context, options["dtype"])
        for question in [_text(arguments[1])] if len(arguments) > 1 else _asked(screen):
            try:
                for piece in conversation.ask(question, tokens):
                    screen.piece(piece)
            except KeyboardInterrupt:
                screen.piece("\n")
                raise
            screen.piece("\n")
            if conversation.cut:
                sys.stderr.write(f"note: the answer was cut: the context of {conversation.context} tokens is full\n")
        return 0

    def _count(self, options: Mapping[str, Any], name: str) -> int:
        text = str(options[name])
        if not text.isdecimal() or int(text) < 1:
            raise self._usage(f"--{name} is a whole number from 1 up, not {text!r}")
        return int(text)


def _place(name: str) -> Path:
    """Where the model lies that an argument means: a target of the project, unless it is the path of something."""
    if Path(name).exists():
        return Path(name)
    if "/" in name or name.endswith(".gguf"):
        raise UsageError("E-FILE", f"there is no file or folder {name!r}", hint="or name a target: SPEC:TARGET")
    project = registry.open_log()
    receipt = registry.receipt_of_target(project, name)
    _refuse_other(name, receipt)
    return _whole(project, name, receipt)


def _refuse_other(name: str, receipt: Mapping[str, Any]) -> None:
    from ingot.core.stage import kinds, load_kind

    kind = str(receipt["kind"])
    if kind in kinds() and load_kind(kind).produces not in _FORMATS:
        raise UsageError(
            "E-CHAT-KIND",
            f"{name} is of the kind {kind}, which is no model to talk to",
            hint="name a target that is a whole model: a Hugging Face folder, GGUF, ONNX or Core ML",
        )


def _whole(project: Project, name: str, receipt: Mapping[str, Any]) -> Path:
    """The folder of the artifact, its files compared with the log (read again where their stat is a new one)."""
    presence, damage = project.store.presence(str(receipt["digest"]), receipt["files"])
    keep_derived(project)
    hint = remedy(project, name)
    if presence == "missing":
        if not receipt.get("stored", True):
            hint = f"it is virtual, so it was never written: doit materialize {name}"
        raise StoreDamaged("E-OBJECT-MISSING", f"the artifact of {name} is not in the store", hint=hint)
    if presence == "damaged":
        facts = [f"{item.path} {item.detail}" for item in damage]
        raise StoreDamaged("E-OBJECT-DAMAGED", f"the artifact of {name} is damaged", facts=facts, hint=hint)
    return project.store.object_path(str(receipt["digest"]))


def _open(path: Path, context: int, dtype: str) -> Any:
    """The conversation with a model."""
    from ingot.core import procfs
    from ingot.core.environment import OFFLINE, UNTOLD

    # here they run in this very process, and not in a stage's environment
    os.environ.update({**OFFLINE, **UNTOLD, "TOKENIZERS_PARALLELISM": "false"})
    try:
        from ingot.kit.runtime import opening
        from ingot.kit.runtime.conversation import Conversation
    except ModuleNotFoundError as error:
        what = f"the package {error.name} is not installed"
        raise MissingTool("E-MISSING-TOOL", what, hint="pip install 'ingot[all]'") from error
    container, found = opening.find(path)
    if (note := opening.note(container)) is not None:
        sys.stderr.write(f"note: {note}\n")
    backend = opening.load(container, found, dtype=dtype, context=context, threads=procfs.processors())
    return Conversation(backend, context)


def _asked(screen: Screen) -> Iterator[str]:
    """The lines of standard input that say something; at a terminal each is asked for and can be edited."""
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")
    at_terminal = sys.stdin.isatty() and screen.is_terminal
    if at_terminal:
        with suppress(ImportError):
            import readline  # noqa: F401 - arrow keys and earlier lines, where Python has it
    try:
        for line in _lines() if at_terminal else sys.stdin:
            if line.strip():
                yield line.strip()
    except (EOFError, KeyboardInterrupt) as end:
        screen.piece("\n")
        if isinstance(end, KeyboardInterrupt):
            raise


def _lines() -> Iterator[str]:
    while True:
        yield input("> ")


def _text(argument: str) -> str:
    """An argument as text: what of it is no UTF-8 is replaced."""
    return argument.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
