"""Chat with a GGUF file through llama.cpp: ``python -m ingot.chat MODEL.gguf "What does textwrap.dedent do?"``.

The file's own chat template is used; a file without one is a plain language model, and the text is continued. Without a
question, lines are read from standard input, the answers before them remembered. Nothing touches the network.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ingot.errors import IngotError, MissingTool, RefusedInput, UsageError

_MAGIC = b"GGUF"
#: The exit code when the reader went away (``| head``): 128 + SIGPIPE, as a shell reports it.
_PIPE_CLOSED = 141
#: The likeliest token each time, repetitions made a little less likely: small models go round in circles otherwise.
_SAMPLING = {"temperature": 0.0, "repeat_penalty": 1.1}


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer on standard output; errors on standard error. Returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        model = open_model(Path(options.model), options.context)
        questions = [options.question] if options.question is not None else _asked()
        history: list[dict[str, str]] = []
        for question in questions:
            history.append({"role": "user", "content": question})
            answer = ""
            for piece in reply(model, history, options.tokens):
                answer += piece
                _write(piece)
            _write("\n")
            history.append({"role": "assistant", "content": answer})
    except IngotError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        _write("\n")
        return 130
    except BrokenPipeError:
        # Python flushes standard output once more at its end; give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE_CLOSED
    return 0


def open_model(path: Path, context: int) -> Any:
    """The model in llama.cpp.

    UsageError (E-FILE) without the file, RefusedInput (E-GGUF, E-GGUF-*, E-TEMPLATE-*) when it is none or unsound,
    MissingTool without llama.cpp.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
    except OSError as error:
        raise UsageError("E-FILE", f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    if magic != _MAGIC:
        raise RefusedInput("E-GGUF", f"{path} is not a GGUF file")
    try:
        import llama_cpp
    except ImportError as error:
        raise MissingTool(
            "E-MISSING-TOOL", "llama-cpp-python is not installed", hint="pip install 'ingot[gguf]'"
        ) from error
    _refuse_unsafe(path)
    try:
        llama_cpp.llama_log_set(_quiet(llama_cpp), ctypes.c_void_p(0))
        return llama_cpp.Llama(model_path=str(path), n_ctx=context, verbose=False)
    except ValueError as error:
        raise RefusedInput("E-GGUF", f"llama.cpp cannot open {path}: {error}") from error


def _refuse_unsafe(path: Path) -> None:
    """Check the file before llama.cpp parses it, and try its chat template before llama-cpp-python compiles it.

    RefusedInput: E-GGUF-*, E-TEMPLATE-UNSAFE, E-TEMPLATE-LIMIT.
    """
    from ingot.kit.chat import Template
    from ingot.kit.gguf.reader import read_gguf

    template = read_gguf(path).metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        try:
            Template(template).apply([{"role": "user", "content": "x"}], add_generation_prompt=True)
        except RefusedInput as error:
            if error.code != "E-CHAT-RENDER":  # a template may insist on more than one message
                raise


@cache
def _quiet(llama_cpp: Any) -> Any:
    """A log callback that says nothing; kept for the life of the process, because C code holds its address."""
    return llama_cpp.llama_log_callback(lambda *_: None)


def reply(model: Any, history: Sequence[dict[str, str]], tokens: int) -> Iterator[str]:
    """The answer, piece by piece, the likeliest token each time (the same question gives the same answer)."""
    try:
        if "tokenizer.chat_template" in model.metadata:
            for event in model.create_chat_completion(list(history), max_tokens=tokens, stream=True, **_SAMPLING):
                yield event["choices"][0]["delta"].get("content") or ""
        else:
            for event in model.create_completion(history[-1]["content"], max_tokens=tokens, stream=True, **_SAMPLING):
                yield event["choices"][0]["text"]
    except ValueError as error:
        raise UsageError("E-CONTEXT", str(error), hint="ask again in a new run, or give a larger --context") from error


def _asked() -> Iterator[str]:
    while True:
        if sys.stdin.isatty():
            _write("> ")
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ingot.chat", description="Chat with a GGUF file through llama.cpp."
    )
    parser.add_argument("model", metavar="MODEL.gguf")
    parser.add_argument("question", nargs="?", help="without one, lines of standard input are answered in turn")
    parser.add_argument("--tokens", type=int, default=200, help="at most this many tokens an answer (200)")
    parser.add_argument(
        "--context", type=int, default=2048, help="tokens of the conversation that are remembered (2048)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
