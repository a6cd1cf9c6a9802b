"""Each guard is taken out, one at a time: what it refuses must then get through, else the guard guards nothing.

A guard is a line of a function. Its test plants the fault, sees the refusal, swaps the function's code for the same
without that line, plants the fault again and sees that nothing refuses it in those words.
"""

from __future__ import annotations

import inspect
import os
import struct
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import pytest

import exportplants as exports
from ggufkit import raw_gguf, tensor_info, text
from ingot.core import (
    budgets,
    digest,
    executor,
    extends,
    files,
    matrix,
    names,
    pickles,
    redact,
    scalars,
    sources,
    spec,
    sweep,
)
from ingot.core import yaml_reader as reader
from ingot.core.environment import environment
from ingot.core.sources import SourceReader
from ingot.core.statcache import StatCache
from ingot.core.sweep import Forbidden
from ingot.errors import IngotError, RefusedInput, SpecError, StageFailed
from ingot.kit import code_guard, hf, render, safetensors_check
from ingot.kit.coreml import traced
from ingot.kit.gguf import reader as gguf_reader
from ingot.kit.lora.read import read_adapter
from ingot.kit.mil import blobs, package
from ingot.kit.onnx_model import read as onnx_read
from ingot.kit.parity import prove, tokenizers
from plantkit import F32, KEY, model_folder, pickled, put, safetensors, tarred, zipped
from speckit import Folder, head, kinds_in_use

Plant = Callable[[Path], object]


@dataclass(frozen=True)
class Guard:
    """``old`` is the line of ``function`` that refuses ``plant`` with ``code``; ``new`` stands in its place."""

    code: str
    function: Any
    old: str
    plant: Plant
    new: str = "if False:"


def yaml(data: str | bytes) -> Plant:
    """Read a YAML text; its problems are raised."""

    def plant(_folder: Path) -> None:
        _document, problems = reader.read_yaml(data if isinstance(data, bytes) else data.encode(), "a.yaml")
        if problems:
            raise SpecError(problems)

    return plant


def a_spec(*lines: str, name: str = "s", files: dict[str, bytes] | None = None) -> Plant:
    """Load a spec of these targets."""

    def plant(folder: Path) -> None:
        with kinds_in_use():
            place = Folder(folder)
            for file, data in (files or {}).items():
                put(folder / file, data)
            place.load(head(*lines).replace("name: s", f"name: {name}"))

    return plant


def a_source(make: Callable[[Path], object], path: str = "x") -> Plant:
    """Digest and copy a source of a project that ``make`` fills."""

    def plant(folder: Path) -> None:
        project = folder / "project"
        project.mkdir(exist_ok=True)
        make(project)
        found = SourceReader(project, StatCache(folder / "stat.json"))
        found.snapshot({"path": path}, folder / f"copy{len(os.listdir(folder))}")
        found.digest({"path": path})

    return plant


def a_file(function: Callable[[Path], object], data: bytes, name: str = "x") -> Plant:
    """Hand one file to a function."""
    return lambda folder: function(put(folder / name, data))


def a_folder(function: Callable[[Path], object], **files: object) -> Plant:
    """Hand a model folder to a function; ``files`` as ``model_folder`` has them, bytes under their own name."""

    def plant(folder: Path) -> None:
        code_guard._check.cache_clear()
        place = model_folder(folder / "m", **{name: value for name, value in files.items() if "." not in name})
        for name, value in files.items():
            if "." in name:
                assert isinstance(value, bytes)
                put(place / name, value)
        function(place)

    return plant


def an_output(kind: str = "merge", **written: bytes) -> Plant:
    """Sweep an output; '__' in a name stands for '.', '{staging}' and so on in a file for the places."""
    places = {"staging": "/data/cache/staging/0123", "project": "/data/someone/project", "home": "/data/homes/someone"}
    forbidden = Forbidden(**places, secrets=("the-canary-value",))

    def plant(folder: Path) -> None:
        for name, data in written.items():
            filled = data
            for place, value in places.items():
                filled = filled.replace(b"{" + place.encode() + b"}", value.encode())
            put(folder / "out" / name.replace("__", "."), filled)
        sweep.sweep(folder / "out", kind, forbidden)

    return plant


def the_environment(_folder: Path) -> None:
    """A variable of the user must not reach a stage."""
    os.environ["CANARY_VARIABLE"] = "1"
    try:
        if "CANARY_VARIABLE" in environment(network=False) or "CANARY_VARIABLE" in environment(network=True):
            raise StageFailed("E-TEST", "the variable is there")
    finally:
        del os.environ["CANARY_VARIABLE"]


def a_template(source: str) -> Plant:
    """Render a template in this process."""

    def plant(_folder: Path) -> None:
        render._compiled.cache_clear()
        answer = render._answer(source, {"messages": []})
        if "text" not in answer:
            raise RefusedInput(answer["code"], answer["why"])

    return plant


ST = safetensors_check.check_file
GG = gguf_reader.read_gguf
PICKLE = pickles.refuse_pickles
INFO = tensor_info("a", [32], 0, 0)
HUGE = struct.pack("<Q", 1 << 60)
IN_WORDS = "E-FORMAT-PICKLE"
DATASET = "d: {{kind: dataset, sources: [{{path: {}}}]}}"


def st(header: Any, data: bytes = b"\0" * 8, **more: Any) -> Plant:
    return a_file(ST, safetensors(header, data, **more))


def gg(keys: Any = (), tensors: Any = (), data: bytes = b"", **more: Any) -> Plant:
    return a_file(GG, raw_gguf(keys, tensors, data, **more))


def one(**changes: Any) -> dict[str, Any]:
    return {"a": {**F32, **changes}}


def outside(project: Path) -> None:
    put(project.parent / "secret" / "x", b"not the project's")
    link = project / "link"
    if not link.is_symlink():
        link.symlink_to(project.parent / "secret")


def sparse(project: Path) -> None:
    with (project / "x").open("wb") as file:
        file.truncate(2 << 30)


def shows_key(plant: Plant, folder: Path) -> None:
    """Raises E-TEST when a spec's problems are told without showing the key."""
    with pytest.raises(SpecError) as caught:
        plant(folder)
    if KEY[4:12] not in str(caught.value):
        raise StageFailed("E-TEST", "not shown")


def inverted(plant: Plant, folder: Path) -> None:
    """Raises E-TEST when a plant, which raises E-TEST on a leak, does not."""
    try:
        plant(folder)
    except StageFailed:
        return
    raise StageFailed("E-TEST", "no leak")


def error_text(_folder: Path) -> None:
    """An exception's words with a key in them, as a stage may raise it."""
    if KEY not in executor._redacted(StageFailed("E-STAGE", f"401 for Bearer {KEY}")).what:
        raise StageFailed("E-TEST", "not shown")


def sparse_only(folder: Path) -> None:
    sparse(folder)
    files.refuse_sparse("x", os.stat(folder / "x"))


def opened(folder: Path, make: Callable[[Path], object]) -> None:
    path = folder / "x"
    if not path.exists():
        make(path)
    try:
        os.close(files.open_regular(path))
    except OSError as error:
        raise RefusedInput("E-SOURCE", str(error)) from error


def deep(folder: Path) -> Path:
    path = folder.joinpath(*["d"] * 80)
    path.mkdir(parents=True, exist_ok=True)
    (path / "x").touch()
    return folder


def many(folder: Path) -> None:
    for index in range(5):
        (folder / str(index)).touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digest, "MAX_FILES", 3)
        list(digest.walk_files(folder))


def dtype(folder: Path) -> None:
    try:
        st(one(dtype="PICKLE"))(folder)
    except KeyError:
        return


def gguf_array(folder: Path) -> None:
    data = raw_gguf([text("k") + struct.pack("<II", 9, 8) + HUGE])
    try:
        a_file(GG, data)(folder)
    except MemoryError:
        return
    except RefusedInput as error:
        if "claims" in error.what:
            raise


GUARDS: dict[str, Guard] = {
    # --- specs -------------------------------------------------------------------------------------------------
    "Y size": Guard("E-YAML-SIZE", reader._decode, "if len(data) > MAX_BYTES:", yaml("a: 1 #" + "x" * (1 << 20))),
    "Y depth": Guard(
        "E-YAML-DEPTH", reader._Reader._open, "if len(self._stack) >= MAX_DEPTH:", yaml("a: " + "[" * 40 + "]" * 40)
    ),
    "Y nodes": Guard("E-YAML-NODES", reader._Reader.walk, "if count >= MAX_EVENTS:", yaml(f"a: [{'1,' * 20_000}]")),
    "Y scalar": Guard(
        "E-YAML-SCALAR", reader._Reader._scalar, "if len(text) > MAX_SCALAR:", yaml("a: " + "x" * (1 << 17))
    ),
    "Y anchor": Guard("E-YAML-ALIAS", reader._Reader._check_marks, "if event.anchor is not None:", yaml("a: &x 1\n")),
    "Y tag": Guard(
        "E-YAML-TAG",
        reader._Reader._check_marks,
        'if getattr(event, "ctag", None) is not None:',
        yaml("a: !!python/object/apply:os.system [ls]\n"),
    ),
    "Y merge": Guard(
        "E-YAML-MERGE", reader._Reader._key, 'if text == "<<" and event.style is None:', yaml("<<: {b: 1}\n")
    ),
    "Y duplicate": Guard(
        "E-YAML-DUPKEY", reader._Reader._key, "elif text in frame.items:", yaml("a: 1\na: 2\n"), "elif False:"
    ),
    "Y documents": Guard(
        "E-YAML-MULTIDOC", reader._Reader._start_document, "if self._rooted:", yaml("a: 1\n---\nb: 2\n")
    ),
    "Y lone surrogate": Guard(
        "E-YAML-UTF8",
        reader._Reader._scalar,
        'if any("\\ud800" <= char <= "\\udfff" for char in text):',
        yaml('a: "\\uD800"\n'),
    ),
    "Y no": Guard("E-SPEC-AMBIGUOUS", scalars.plain, "if text.lower() not in _WORDS:", yaml("a: no\n"), "if True:"),
    "Y 010": Guard("E-SPEC-AMBIGUOUS", scalars._number, "if _ODD_BASE.fullmatch(text):", yaml("a: 010\n")),
    "Y date": Guard("E-SPEC-AMBIGUOUS", scalars._number, "if _DATE.fullmatch(text):", yaml("a: 2024-01-31\n")),
    "Y 1:20": Guard(
        "E-SPEC-AMBIGUOUS",
        scalars._number,
        "if _BASE_60.fullmatch(text) or _GROUPED.fullmatch(text):",
        yaml("a: 1:20\n"),
    ),
    "Y nan": Guard(
        "E-SPEC-NUMBER", scalars._number, "if math.isfinite(value) else _no_number(text)", yaml("a: .nan\n"), ""
    ),
    "Y 2^53": Guard("E-SPEC-NUMBER", scalars._number, "abs(int(text)) <= MAX_INTEGER", yaml(f"a: {2**53}\n"), "True"),
    "Y secret in a value": Guard(
        "E-SECRET-LITERAL",
        reader._Reader._check_secret,
        "(named or holds_secret(text))",
        yaml("a: gT7x9Qm2Lw8Zr4Vb6Nk1Yc3Hd5Jf0PsA\n"),
        "False",
    ),
    "Y secret by its field": Guard(
        "E-SECRET-LITERAL",
        reader._Reader._check_secret,
        "(named or holds_secret(text))",
        yaml("env: {API_KEY: correcthorse}\n"),
        "holds_secret(text)",
    ),
    "Y secret in a key": Guard(
        "E-SECRET-LITERAL",
        reader._Reader._key,
        "if holds_secret(text):",
        yaml("gT7x9Qm2Lw8Zr4Vb6Nk1Yc3Hd5Jf0PsA: 1\n"),
    ),
    "Y secret in a comment": Guard(
        "E-SECRET-LITERAL", reader._in_comments, "if has_known_form(line):", yaml(f"a: 1  # {KEY}\n")
    ),
    "Y random text": Guard(
        "E-SECRET-LITERAL",
        redact.holds_secret,
        "or any(_is_random(match[0]) for match in _TOKEN.finditer(text))",
        yaml("a: gT7x9Qm2Lw8Zr4Vb6Nk1Yc3Hd5Jf0PsA\n"),
        "",
    ),
    "Y command name": Guard(
        "E-SPEC-NAME", names.spec_name_problem, "if name in COMMANDS:", a_spec("w: {kind: fetch}", name="plan")
    ),
    "Y device name": Guard(
        "E-SPEC-NAME", names.spec_name_problem, "if is_device(name):", a_spec("w: {kind: fetch}", name="con.x")
    ),
    "Y device target": Guard(
        "E-SPEC-NAME", names.target_name_problem, "if is_device(name):", a_spec("nul: {kind: fetch}")
    ),
    "Y twin labels": Guard(
        "E-SPEC-MATRIX",
        matrix._axis,
        "elif twin := twins([*labels, label]):",
        a_spec("w: {kind: fetch, matrix: {note: [Q8, q8]}}"),
        "elif False:",
    ),
    "Y .. in a path": Guard(
        "E-PATH",
        extends.clean_path,
        'joined in (".", "..") or joined.startswith("../")',
        a_spec(DATASET.format("../../x")),
        "False",
    ),
    "Y absolute path": Guard(
        "E-PATH", extends.clean_path, "not path or absolute", a_spec(DATASET.format("~/x")), "not path"
    ),
    "Y NUL in a path": Guard(
        "E-PATH", extends.clean_path, "or not path.isprintable()", a_spec(DATASET.format('"a\\0b"')), ""
    ),
    "Y secret in another message": Guard(
        "E-TEST",
        spec.load_spec,
        "redacted(problem)",
        lambda folder: shows_key(
            a_spec(f"w: {{kind: fetch, matrix: {{note: [{KEY}]}}}}", "b: {kind: convert, from: {model: w@x}}"), folder
        ),
        "problem",
    ),
    # --- sources -----------------------------------------------------------------------------------------------
    "Y link out of the project": Guard(
        "E-PATH",
        sources.SourceReader._refuse_outside,
        "!= os.path.realpath(self._root):",
        a_source(outside, "link/x"),
        "is None:",
    ),
    "Y link out of the project by a glob": Guard(
        "E-PATH",
        sources.SourceReader._refuse_outside,
        "!= os.path.realpath(self._root):",
        a_source(outside, "l*/x"),
        "is None:",
    ),
    "M18 sparse": Guard("E-LIMIT", files.refuse_sparse, "status.st_size >= _SPARSE_BYTES", sparse_only, "False"),
    "M18 pipe": Guard(
        "E-SOURCE",
        files.open_regular,
        "if not stat.S_ISREG(os.fstat(descriptor).st_mode):",
        lambda folder: opened(folder, os.mkfifo),
    ),
    "M18 depth": Guard(
        "E-LIMIT",
        digest._scan,
        'if prefix.count("/") >= MAX_DEPTH:',
        lambda folder: list(digest.walk_files(deep(folder))),
    ),
    "M18 number of files": Guard("E-LIMIT", digest.walk_files, "if len(found) > MAX_FILES:", many, "if False:"),
    # --- pickles -----------------------------------------------------------------------------------------------
    **{
        f"M1 protocol {protocol}": Guard(
            IN_WORDS, pickles._look, "if _runs_code(file, whole=True):", a_file(PICKLE, pickled(protocol))
        )
        for protocol in range(6)
    },
    "M1 import after a long text": Guard(
        IN_WORDS,
        pickles._argument,
        "if length > 256:",
        a_file(PICKLE, b"(X" + struct.pack("<I", 200_000) + b"x" * 200_000 + b"0" + pickled(0)),
    ),
    "M1 no end": Guard(
        IN_WORDS,
        pickles._runs_code,
        "if imported and opcode.name in _CALLS:",
        a_file(PICKLE, b"cos\nsystem\n(S'true'\ntR\xff" + b"\0" * 10),
    ),
    "M1 object array": Guard(
        IN_WORDS,
        pickles._look,
        "if _object_array(head):",
        a_file(
            PICKLE, b"\x93NUMPY\x01\0\x46\0{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(80) + b"\n"
        ),
    ),
    "M1 zip": Guard(
        IN_WORDS,
        pickles._in_archive,
        "if zipfile.is_zipfile(file):",
        a_file(PICKLE, zipped({"archive/data.pkl": pickled(2)}), "model.safetensors"),
    ),
    "M1 zip with another name inside": Guard(
        IN_WORDS,
        pickles._in_zip,
        "if _member(member.read(_UNPACKED), depth):",
        a_file(PICKLE, zipped({"a.txt": b"x", "weights": pickled(2)})),
    ),
    "M1 zip behind other bytes": Guard(
        IN_WORDS,
        pickles._in_archive,
        "if zipfile.is_zipfile(file):",
        a_file(PICKLE, safetensors({"a": F32}) + zipped({"data.pkl": pickled(2)})),
    ),
    "M1 tar": Guard(
        IN_WORDS, pickles._in_archive, "if _is_tar(head):", a_file(PICKLE, tarred({"weights": pickled(2)}))
    ),
    "M1 nemo": Guard(
        IN_WORDS,
        pickles._in_archive,
        "if magic.match(head):",
        a_file(PICKLE, tarred({"model_weights.ckpt": zipped({"x/data.pkl": pickled(2)})}, "w:gz"), "m.nemo"),
    ),
    "M1 keras": Guard(
        IN_WORDS,
        pickles._in_zip,
        'if "config.json" in names and any(name.endswith(".weights.h5") for name in names):',
        a_file(PICKLE, zipped({"config.json": b"{}", "model.weights.h5": b"x"})),
    ),
    "M1 keras h5": Guard(
        IN_WORDS,
        pickles._look,
        'if head.startswith(b"\\x89HDF\\r\\n\\x1a\\n"):',
        a_file(PICKLE, b"\x89HDF\r\n\x1a\n" + b"\0" * 64 + b"keras_version" + b"model_config"),
    ),
    # --- safetensors -------------------------------------------------------------------------------------------
    "M4 length past the end": Guard(
        "E-ST-SIZE", ST, "if length > _MAX_HEADER or length > size - 8:", st({"a": F32}, length=1 << 63)
    ),
    "M4 bytes past the end": Guard(
        "E-ST-BOUNDS", safetensors_check._check_cover, "if entry.end > size:", st({"a": F32}, b"\0" * 4)
    ),
    "M4 hole or overlap": Guard(
        "E-ST-OVERLAP", safetensors_check._check_cover, "if entry.begin != position:", st({"a": F32, "b": F32})
    ),
    "M4 trailing": Guard(
        "E-ST-OVERLAP", safetensors_check._check_cover, "if position != size:", st({"a": F32}, b"\0" * 99)
    ),
    "M4 dtype": Guard("E-ST-DTYPE", safetensors_check._entry, "dtype not in DTYPE_BITS", dtype, "False"),
    "M4 shape": Guard(
        "E-ST-HEADER", safetensors_check._naturals, "0 <= item < 1 << 53", st(one(shape=[-1, -2])), "True"
    ),
    "M4 size of the shape": Guard(
        "E-ST-BOUNDS",
        safetensors_check._entry,
        "if end - begin != math.prod(shape) * DTYPE_BITS[dtype] // 8:",
        st(one(shape=[3])),
    ),
    "M5 duplicate": Guard(
        "E-ST-DUPKEY",
        digest.read_json,
        "if len(result) != len(items):",
        st(
            b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
        ),
    ),
    "M5 white space": Guard(
        "E-ST-HEADER",
        safetensors_check._entries,
        'not raw.startswith(b"{")',
        st(b'        {"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'),
        "False",
    ),
    "M5 UTF-16": Guard(
        "E-ST-HEADER",
        digest.read_json,
        'data.decode("utf-8")',
        st('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'.encode("utf-16-le")),
        "data",
    ),
    "M5 name": Guard("E-ST-NAME", safetensors_check._entries, "if not _is_plain(name):", st({"../../x": F32})),
    # --- GGUF --------------------------------------------------------------------------------------------------
    "M6 magic": Guard(
        "E-GGUF-MAGIC", GG, 'if cursor.take(4) != b"GGUF":', gg(magic=b"GGML"), 'if cursor.take(4) == b"":'
    ),
    "M6 version": Guard("E-GGUF-VERSION", GG, "if version not in (2, 3):", gg(version=9)),
    "M6 counts": Guard(
        "E-GGUF-COUNT",
        GG,
        "if n_tensors > _MAX_TENSORS or n_keys > _MAX_KEYS:",
        a_file(GG, b"GGUF" + struct.pack("<IQQ", 3, 1 << 63, 0)),
    ),
    "M6 length past the end": Guard(
        "E-GGUF-LENGTH",
        gguf_reader._Cursor.take,
        "if length > len(self.data) - self.at:",
        gg([text("k") + struct.pack("<I", 8) + struct.pack("<Q", 1 << 20)]),
    ),
    "M6 array of 2^60": Guard(
        "E-GGUF-LENGTH",
        gguf_reader._Cursor.array,
        "if count * least > len(self.data) - self.at:",
        gguf_array,
    ),
    "M6 nested arrays": Guard(
        "E-GGUF-VALUE",
        gguf_reader._Cursor.array,
        "if kind not in _SCALARS:",
        gg([text("k") + struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQ", 9, 1) * 3]),
    ),
    "M6 duplicate key": Guard(
        "E-GGUF-DUPLICATE",
        gguf_reader._metadata,
        "if key in metadata:",
        gg([text("k") + struct.pack("<II", 4, 1)] * 2),
    ),
    "M6 duplicate tensor": Guard(
        "E-GGUF-DUPLICATE", gguf_reader._place, "if name in tensors:", gg((), [INFO, INFO], b"\0" * 128)
    ),
    "M6 UTF-8": Guard(
        "E-GGUF-VALUE",
        gguf_reader._Cursor.string,
        "self.take(length).decode()",
        gg([struct.pack("<Q", 2) + b"\xff\xfe" + struct.pack("<II", 4, 1)]),
        "self.take(length).decode('latin-1')",
    ),
    "M6 alignment": Guard(
        "E-GGUF-VALUE",
        gguf_reader._alignment,
        "if type(value) is not int or not 1 <= value <= 1 << 20 or value & (value - 1):",
        gg([text("general.alignment") + struct.pack("<II", 4, 24)]),
    ),
    "M6 dimensions": Guard(
        "E-GGUF-VALUE",
        gguf_reader._tensor_info,
        "if not 1 <= dims <= _MAX_DIMS:",
        gg((), [tensor_info("a", [1] * 99, 0, 0)], b"\0" * 64),
    ),
    "M6 product": Guard(
        "E-GGUF-VALUE",
        gguf_reader._tensor_info,
        "if 0 in shape or math.prod(shape) >= 1 << 48:",
        gg((), [tensor_info("a", [1 << 40, 1 << 40], 0, 0)]),
    ),
    "M6 zero dimension": Guard(
        "E-GGUF-VALUE",
        gguf_reader._tensor_info,
        "if 0 in shape or math.prod(shape) >= 1 << 48:",
        gg((), [tensor_info("a", [0], 0, 0)]),
    ),
    "M6 unknown type": Guard(
        "E-GGUF-TYPE",
        gguf_reader._bytes_of,
        "known = GGMLQuantizationType(kind)",
        gg((), [tensor_info("a", [32], 4000, 0)], b"\0" * 128),
        "known = GGMLQuantizationType(0)",
    ),
    "M6 bounds": Guard(
        "E-GGUF-BOUNDS",
        gguf_reader._place,
        "if offset % alignment or start + offset + size > len(cursor.data):",
        gg((), [INFO], b"\0" * 64),
    ),
    "M6 overlap": Guard(
        "E-GGUF-OVERLAP",
        gguf_reader._place,
        "if before.begin + before.size > after.begin:",
        gg((), [INFO, tensor_info("b", [32], 0, 96)], b"\0" * 224),
    ),
    "M6 trailing": Guard(
        "E-GGUF-TRAILING",
        gguf_reader._refuse_unused,
        "if len(cursor.data) - position >= alignment:",
        gg((), [INFO], b"\0" * 256),
    ),
    "M6 gap": Guard(
        "E-GGUF-TRAILING",
        gguf_reader._refuse_unused,
        "if info.begin - position >= alignment:",
        gg((), [INFO, tensor_info("b", [32], 0, 256)], b"\0" * 384),
    ),
    # --- model folders -----------------------------------------------------------------------------------------
    **{
        f"M8 {file} {key}": Guard(
            "E-CONFIG-CODE",
            code_guard._refuse_keys,
            "if _asks_for_code(str(key), item):",
            a_folder(hf.read_config, **{file: {"a": [{key: value}]}}),
        )
        for file, key, value in (
            ("config", "auto_map", {"AutoModel": "code.M"}),
            ("config", "_attn_implementation_internal", "someone/kernel"),
            ("config", "attn_implementation", "someone/kernel:run"),
            ("config", "kernel_config", {"RMSNorm": "someone/kernel:RMSNorm"}),
            ("config", "transformers_weights", "other.safetensors"),
            ("tokenizer_config", "auto_map", {"AutoTokenizer": ["code.T", None]}),
            ("generation_config", "custom_generate", "someone/decoding"),
            ("preprocessor_config", "custom_pipelines", {"x": {"impl": "a.B"}}),
        )
    },
    "M8 adapter": Guard(
        "E-CONFIG-CODE",
        code_guard._refuse_keys,
        "if _asks_for_code(str(key), item):",
        a_folder(
            read_adapter,
            adapter_config={"auto_mapping": {"parent_library": "evil"}},
            **{"adapter_model.safetensors": safetensors({"a": F32})},
        ),
    ),
    **{
        f"M8 {name}": Guard(
            "E-FORMAT-CODE",
            code_guard.refuse_code,
            "if name.lower().endswith(_PROGRAMS):",
            a_folder(hf.read_config, **{name: b"x"}),
        )
        for name in ("modeling.py", "kernel.so", "lib/x.DYLIB")
    },
    "M9 index": Guard(
        "E-ST-INDEX",
        hf.tensor_files,
        'if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*\\.safetensors", name)',
        a_folder(
            hf.tensor_files, **{"model.safetensors.index.json": b'{"weight_map": {"a": "../m/model.safetensors"}}'}
        ),
        "if False",
    ),
    "M9 a file that is missing": Guard(
        "E-ST-INDEX",
        hf._refuse_missing_parts,
        "if counts and counts != {len(files)}:",
        a_folder(hf.tensor_files, **{"model-00001-of-00003.safetensors": safetensors({"b": F32})}),
    ),
    "M9 a tensor where the index has it not": Guard(
        "E-ST-INDEX",
        hf.files_with_entries,
        "if listed is not None and listed.pop(entry.name, None) != path.name:",
        a_folder(
            lambda folder: list(hf.entries(folder)),
            **{"model.safetensors.index.json": b'{"weight_map": {"b": "model.safetensors"}}'},
        ),
    ),
    "M9 a tensor that only the index has": Guard(
        "E-ST-INDEX",
        hf.files_with_entries,
        "if listed:",
        a_folder(
            lambda folder: list(hf.entries(folder)),
            **{"model.safetensors.index.json": b'{"weight_map": {"a": "model.safetensors", "c": "model.safetensors"}}'},
        ),
    ),
    "M9 another file than the index's": Guard(
        "E-ST-INDEX",
        hf.tensor_files,
        "if _WEIGHTS not in names and (folder / _WEIGHTS).exists():",
        a_folder(
            hf.tensor_files,
            **{
                "model.safetensors.index.json": b'{"weight_map": {"a": "b.safetensors"}}',
                "b.safetensors": safetensors({"a": F32}),
            },
        ),
    ),
    "M9 adapter beside the model": Guard(
        "E-NOT-HF",
        hf.read_config,
        "if (folder / _ADAPTER).exists():",
        a_folder(hf.read_config, adapter_config={"base_model_name_or_path": "/etc"}),
    ),
    "M15 size": Guard(
        "E-JSON-LIMIT",
        code_guard.read_json_value,
        "if path.stat().st_size > _MAX_JSON:",
        a_folder(hf.read_config, **{"tokenizer.json": b" " * (65 << 20) + b"{}"}),
    ),
    "M10 template": Guard(
        "E-TEMPLATE-UNSAFE",
        render._compiled,
        "env = ImmutableSandboxedEnvironment(",
        a_template("{{ ''.__class__.__mro__[1].__subclasses__() }}"),
        "import jinja2; env = jinja2.Environment(",
    ),
    # --- exports -----------------------------------------------------------------------------------------------
    "M21 weights above the model": Guard(
        "E-ONNX-EXTERNAL",
        onnx_read._check,
        "if _inside(location) else None",
        exports.an_onnx(location="../secret"),
        "",
    ),
    "M21 weights behind a link": Guard(
        "E-ONNX-EXTERNAL",
        onnx_read._plain_size,
        "path.lstat()",
        exports.an_onnx(location="weights", link=True),
        "path.stat()",
    ),
    "M21 weights beyond the file": Guard(
        "E-ONNX-EXTERNAL",
        onnx_read._check,
        "if not 0 <= offset <= end <= size:",
        exports.an_onnx(location="weights", offset="4096", length="16"),
    ),
    "M21 weights of a graph within a node": Guard(
        "E-ONNX-EXTERNAL",
        onnx_read._of_attribute,
        "for graph in (attribute.g, *attribute.graphs):",
        exports.an_onnx(location="../secret", inner=True),
        "for graph in ():",
    ),
    "M22 weights behind a link": Guard(
        "E-MIL-PACKAGE",
        package._inside,
        "or found.resolve() != package.resolve() / found.relative_to(package)",
        exports.a_package(exports.linked),
        "",
    ),
    "M22 weights without a mark": Guard(
        "E-MIL-BLOB", blobs.blob_of, "mark == _MARK and", exports.a_package(exports.unmarked), ""
    ),
    "M22 weights cut off": Guard("E-MIL-BLOB", blobs.blob_of, "<= end", exports.a_package(exports.cut), ""),
    "P1 other logits": Guard("E-PARITY", prove.prove, "if broken:", exports.an_export(lambda logits: -logits)),
    "P1 logits turned a little": Guard(
        "E-PARITY",
        prove._broken,
        "if limits.cosine is not None and not found.cosine() >= limits.cosine:",
        exports.an_export(lambda logits: logits + np.array([[0.15, 0, 0, 0, 0], *[[0.0] * 5] * 7], np.float32)),
    ),
    "P1 sharper logits": Guard(
        "E-PARITY", prove._broken, "if not found.kl() <= limits.kl:", exports.an_export(lambda logits: 1.5 * logits)
    ),
    "P1 other token ids": Guard(
        "E-PARITY", tokenizers._compare, "if found == wanted:", lambda _: tokenizers._compare([1], [2], "x"), "if True:"
    ),
    "P2 int64 before attention": Guard(
        "E-COREML-INT64", traced.refuse_wide_integers, "if names:", exports.wide_integers
    ),
    "P3 no room for a session": Guard(
        "E-BUDGET",
        vars(budgets.Budget)["fits"].fget,
        "if self.needed_bytes > self.memory_bytes:",
        exports.above_its_budget,
    ),
    # --- outputs -----------------------------------------------------------------------------------------------
    "M3 pickle in an output": Guard(
        "E-OUTPUT-PICKLE",
        sweep.sweep,
        "if what := find_pickle(path):",
        an_output("command", training_args__bin=pickled()),
    ),
    "M18 twins": Guard(
        "E-OUTPUT-NAME",
        sweep._refuse_names,
        "if found := twins(",
        an_output(a__txt=b"", A__txt=b""),
        "if (found := None) and twins(",
    ),
    "M18 device": Guard(
        "E-OUTPUT-NAME",
        sweep._refuse_names,
        'if is_device(part) or part.endswith((".", " ")):',
        an_output(con__txt=b""),
    ),
    "S1 secret in an output": Guard(
        "E-OUTPUT-SECRET",
        sweep._look,
        "if any(secret.encode() in data for secret in forbidden.secrets):",
        an_output("command", rows__jsonl=b'{"text": "the-canary-value"}'),
    ),
    "S1 key in a config": Guard(
        "E-OUTPUT-SECRET",
        sweep._look,
        'has_known_form(data.decode("utf-8", "replace"))',
        an_output(config__json=b'{"token": "%s"}' % KEY.encode()),
        "False",
    ),
    "S1 key in the metadata of weights": Guard(
        "E-OUTPUT-SECRET",
        sweep._look,
        "any(map(has_known_form, values.values()))",
        an_output(model__safetensors=safetensors({"a": F32, "__metadata__": {"by": KEY}})),
        "False",
    ),
    "S3 staging": Guard(
        "E-OUTPUT-PATH",
        sweep._places,
        'yield "its staging folder", forbidden.staging',
        an_output("fetch", config__json=b'{"a": "{staging}/out"}'),
        "pass",
    ),
    "S3 project in rows": Guard(
        "E-OUTPUT-PATH",
        sweep._places,
        'if place.count("/") > 1',
        an_output(rows__jsonl=b'{"text": "see {project}/x.py"}'),
        "if False",
    ),
    "S3 home in a GGUF": Guard(
        "E-OUTPUT-PATH",
        sweep._places,
        'if place.count("/") > 1',
        an_output(
            model__gguf=raw_gguf(
                [text("quantize.imatrix.file") + struct.pack("<I", 8) + text("/data/homes/someone/im")]
            )
        ),
        "if False",
    ),
    "S3 somebody's home in a config": Guard(
        "E-OUTPUT-PATH",
        sweep._look,
        "if is_home_path(value):",
        an_output(config__json=b'{"name": "/home/tom/m"}'),
    ),
    "S1 secret in the entry": Guard(
        "E-OUTPUT-SECRET",
        sweep.sweep_text,
        "if any(secret in text for secret in forbidden.secrets):",
        lambda _folder: sweep.sweep_text(
            "x the-canary-value", Forbidden("/a/b", "/c/d", "/e/f", ("the-canary-value",))
        ),
    ),
    # --- stages ------------------------------------------------------------------------------------------------
    "S2 environment": Guard(
        "E-TEST",
        environment,
        "env = {name: os.environ[name] for name in _PASSED if name in os.environ}",
        lambda folder: inverted(the_environment, folder),
        "env = dict(os.environ)",
    ),
    "S6 error text": Guard(
        "E-TEST", executor._redacted, "error.what = redact(error.what, secrets)", error_text, "pass"
    ),
}


def said_without(guard: Guard, folder: Path) -> tuple[str, str] | None:
    """Code and sentence of the refusal that the plant meets without its guard; None without one."""
    try:
        guard.plant(folder)
    except IngotError as error:
        return error.code, error.what
    except Exception:  # noqa: BLE001 - without the guard anything may happen
        return None
    return None


def code_without(function: Any, old: str, new: str) -> Any:
    """The code of a function in which ``old``, which is there once, is ``new``."""
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{function.__qualname__} has no longer the one line {old!r}: change it here, too"
    bare = "\n".join(line for line in source.replace(old, new).splitlines() if not line.startswith("@"))
    namespace: dict[str, Any] = {}
    program = compile(f"from __future__ import annotations\n{bare}", f"<without {old}>", "exec")
    exec(program, dict(function.__globals__), namespace)
    return namespace[function.__name__].__code__


def bare(function: Any) -> FunctionType:
    """The function below its decorators."""
    found = inspect.unwrap(function)
    assert isinstance(found, FunctionType)
    return found


@pytest.fixture
def fresh(tmp_path: Path) -> tuple[Path, Path]:
    """Two empty folders: one for each planting."""
    first, second = tmp_path / "1", tmp_path / "2"
    first.mkdir()
    second.mkdir()
    return first, second


#: What the plants of one id do, in the words of the table.
PLANTS = {
    "Y": "a spec or a source for each guard of the reader, the names, the paths and the secrets",
    "M1": "pickles, and containers of them, for each way to know one",
    "M3": "a pickle in what a target writes",
    "M4": "a safetensors header for each rule of the layout",
    "M5": "a safetensors header that the reference reader accepts",
    "M6": "a GGUF for each rule of the layout",
    "M8": "a config that asks for code, or a program file, in a model folder",
    "M9": "an index or an adapter that leads to other weights than those that were checked",
    "M10": "a chat template that reaches for Python's internals",
    "M15": "a tokenizer of 65 MiB",
    "M21": "an ONNX model whose weights lie elsewhere",
    "M22": "a Core ML package whose weights lie elsewhere, or are not there",
    "P1": "an export that computes something else, or whose tokenizer reads otherwise",
    "P2": "a traced graph with integers that Core ML does not have",
    "P3": "an export that cannot hold a session in the memory that the spec states",
    "M18": "pipes, holes, depths, numbers and names that are no content",
    "S1": "a secret in what a target writes, by value and by form",
    "S2": "a variable of the user",
    "S3": "a path of this machine in what a target writes",
    "S6": "a key in the words of an exception",
}


def _parametrized() -> Iterator[Any]:
    for name in GUARDS:
        number = name.split()[0]
        yield pytest.param(name, marks=pytest.mark.fault(number, PLANTS[number]), id=name)


@pytest.mark.fault("X", "a guard's line is taken out, and what it refuses is planted")
@pytest.mark.parametrize("name", list(_parametrized()))
def test_without_the_guard_its_fault_gets_through(
    name: str, fresh: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = GUARDS[name]
    with pytest.raises(IngotError) as caught:
        guard.plant(fresh[0])
    assert caught.value.code == guard.code, caught.value
    function = bare(guard.function)
    monkeypatch.setattr(function, "__code__", code_without(function, guard.old, guard.new))
    assert (guard.code, caught.value.what) != said_without(guard, fresh[1])
