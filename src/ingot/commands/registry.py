"""``doit registry``: proofs about the logs that others can verify with the public key alone, and the logs as tiles."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ingot import registry
from ingot.commands.base import JSON_OPTION, IngotCommand, keep_derived, value
from ingot.commands.screen import Screen
from ingot.errors import RegistryDamaged, UsageError

if TYPE_CHECKING:
    from ingot.core.log import Log
    from ingot.core.note import VerifierKey
    from ingot.core.project import Project

Options = Mapping[str, Any]

#: More is no proof: one entry and its log's checkpoint, each at most 64 KiB and one of them in base64.
_MOST = 1 << 18


class Registry(IngotCommand):
    """Write and verify proofs; write logs as static files."""

    name = "registry"
    doc_purpose = "prove that a result is in the log, verify a proof, export the logs as tiles"
    doc_usage = (
        "proof SPEC:TARGET [--output FILE] | verify FILE [--key KEY] [--artifact FOLDER] [--since CHECKPOINT] "
        "| consistency CHECKPOINT [--output FILE] | export FOLDER  [--json]"
    )
    doc_description = (
        "`proof` writes a C2SP .tlog-proof of the entry that a target's newest result was built by: beside its link, "
        "cache/latest/SPEC/TARGET.tlog-proof, or to --output ('-': standard output). `verify` checks one, or a proof "
        "of consistency together with --since, by the log's public key alone: KEY is the text of a log.vkey or such a "
        "file, and in a project by default the log's own. It works offline and outside a project. --artifact compares "
        "a folder with the digest that the entry names. `consistency` proves that a log begins with what an earlier "
        "checkpoint of it signed. `export` writes every log as C2SP tlog-tiles below FOLDER."
    )
    arguments: ClassVar[tuple[int, int | None]] = (2, 2)
    cmd_options = (
        JSON_OPTION,
        value("output", "the file to write"),
        value("key", "the public key: its text, or a file that holds it"),
        value("artifact", "a folder that must be what the entry says was built"),
        value("since", "an earlier checkpoint, which a proof of consistency starts from"),
    )

    def run(self, screen: Screen, options: Options, arguments: Sequence[str]) -> int:
        """0; 1 when an artifact is not what was built; 2 wrong use or never built; 5 when a proof does not hold; 7."""
        verbs: Mapping[str, Callable[[Screen, Options, str], int]] = {
            "proof": _prove, "verify": _verify, "consistency": _prove_growth, "export": _export,
        }  # fmt: skip
        if arguments[0] not in verbs:
            raise self._usage(f"doit registry does one of {', '.join(verbs)}, not {arguments[0]!r}")
        return verbs[arguments[0]](screen, options, arguments[1])


def _prove(screen: Screen, options: Options, target: str) -> int:
    from ingot.core.proof import InclusionProof

    project = registry.open_log()
    receipt = registry.receipt_of_target(project, target)
    keep_derived(project)
    proof = InclusionProof.of(_log(project, str(receipt["origin"])), int(receipt["index"]))
    spec, _, name = target.partition(":")
    default = project.root / "cache" / "latest" / spec / f"{name}.tlog-proof"
    place = {name: receipt[name] for name in ("target", "digest", "origin", "index")}
    said = f"entry {receipt['index']} of {receipt['origin']}, digest {receipt['digest']}"
    return _told(screen, options, _written(options, default, proof.to_bytes()), place, said)


def _prove_growth(screen: Screen, options: Options, checkpoint: str) -> int:
    from ingot.core.note import Checkpoint, Note
    from ingot.core.proof import ConsistencyProof

    project = registry.open_log()
    earlier = _read(Path(checkpoint), "checkpoint")
    before = Checkpoint.parse(Note.parse(earlier).text)
    log = _log(project, before.origin)
    proof = ConsistencyProof.of(log, before.size)
    # What does not hold is not written: somebody would take it for a proof.
    _before, after = proof.verify(log.vkey(), earlier)
    default = project.root / f"{log.folder.name}-{before.size}-{after.size}.tlog-consistency"
    place = {"origin": before.origin, "old": before.size, "size": after.size}
    said = f"the {after.size} entries of {before.origin} begin with the {before.size} of {checkpoint}"
    return _told(screen, options, _written(options, default, proof.to_bytes()), place, said)


def _written(options: Options, default: Path, data: bytes) -> Path | None:
    """Where a proof was written; None for standard output."""
    from ingot.core.disk import make_dirs, write_file_atomic

    if options["output"] == "-":
        sys.stdout.buffer.write(data)
        return None
    path = default if options["output"] is None else Path(options["output"])
    make_dirs(path.parent)
    write_file_atomic(path, data)
    return path


def _told(screen: Screen, options: Options, path: Path | None, place: Mapping[str, Any], said: str) -> int:
    if path is None:
        return 0
    shown = _relative(path)
    if options["json"]:
        screen.json({"format": 1, "file": shown, **place})
        return 0
    screen.line(f"proof written to {shown}")
    screen.line(f"  {said}")
    origin = str(place["origin"]).rpartition("/")[2]
    since = "" if "digest" in place else " --since CHECKPOINT"
    screen.line(f"  it verifies anywhere: doit registry verify FILE --key LOG.VKEY{since}")
    screen.line(f"  the key: registry/{origin}/log.vkey")
    return 0


def _relative(path: Path) -> str:
    whole = path.resolve()
    return str(whole.relative_to(Path.cwd())) if whole.is_relative_to(Path.cwd()) else str(path)


def _verify(screen: Screen, options: Options, file: str) -> int:
    from ingot.core import proof

    data = _read(Path(file), "proof")
    if not proof.is_inclusion(data):
        return _verify_growth(screen, options, data)
    parsed = proof.InclusionProof.parse(data)
    key = _key(options["key"], parsed.note)
    statement = parsed.verify(key)
    size = proof.signed_checkpoint(parsed.note, key).size
    # The entry that begins a log is about no artifact.
    subject: dict[str, Any] = statement["subject"][0] if statement["subject"] else {"name": key.name, "digest": {}}
    digest = next(iter(subject["digest"].values()), None)
    same = None if options["artifact"] is None else _digest_of(Path(options["artifact"])) == digest
    found = {
        "target": subject["name"], "digest": digest, "origin": key.name, "index": parsed.index, "size": size,
        "artifact_equal": same,
    }  # fmt: skip
    if options["json"]:
        screen.json({"format": 1, **found, "statement": statement})
    else:
        screen.line(f"holds: entry {parsed.index} of the {size} that {key.name} signed")
        screen.line(f"  {subject['name']}, digest {digest or 'none'}")
        if same is not None:
            screen.line(f"  {options['artifact']} {'is that artifact' if same else 'is NOT that artifact'}")
    return 1 if same is False else 0


def _verify_growth(screen: Screen, options: Options, data: bytes) -> int:
    from ingot.core.proof import ConsistencyProof

    proof = ConsistencyProof.parse(data)
    if options["since"] is None:
        what = "a proof of consistency is verified from an earlier checkpoint on"
        raise UsageError("E-USAGE", what, hint="--since CHECKPOINT")
    before, after = proof.verify(_key(options["key"], proof.note), _read(Path(options["since"]), "checkpoint"))
    if options["json"]:
        screen.json({"format": 1, "origin": after.origin, "old": before.size, "size": after.size})
    else:
        screen.line(f"holds: the {after.size} entries of {after.origin} begin with the {before.size} signed earlier")
    return 0


def _export(screen: Screen, options: Options, folder: str) -> int:
    from ingot.core.log import logs_in
    from ingot.core.tiles import export

    project = registry.open_log()
    with project.store.exclusive("export"):
        done = {log: export(log, Path(folder) / log.folder.name) for log in logs_in(project.root / "registry")}
    if options["json"]:
        rows = [
            {"origin": log.origin, "folder": str(Path(folder) / log.folder.name), "size": it.size, "files": it.files}
            for log, it in done.items()
        ]
        screen.json({"format": 1, "logs": rows})
        return 0
    for log, it in done.items():
        into = Path(folder) / log.folder.name
        screen.line(f"{log.origin}: {it.size} entries, {it.files} files ({it.written} new) in {into}")
    return 0


def _log(project: Project, origin: str) -> Log:
    from ingot.core.log import logs_in

    for log in logs_in(project.root / "registry"):
        if log.origin == origin:
            return log
    raise UsageError("E-ORIGIN", f"there is no log {origin} in this project")


def _read(path: Path, what: str) -> bytes:
    from ingot.core.files import read_regular

    try:
        data = read_regular(path, _MOST + 1)
    except OSError as error:
        raise UsageError("E-FILE", f"the {what} {str(path)!r} cannot be read: {error.strerror}") from error
    if len(data) > _MOST:
        raise RegistryDamaged("E-PROOF", f"{path} has more than {_MOST:,} bytes: it is no {what}")
    return data


def _key(given: str | None, note: bytes) -> VerifierKey:
    """The key to verify with: as given, else in a project that of the log which the checkpoint names."""
    from ingot.core.note import Checkpoint, Note, VerifierKey

    if given is not None:
        text = given if "+" in given else _read(Path(given), "key").decode("utf-8", "replace").strip()
        return VerifierKey.parse(text)
    hint = "--key FILE or --key TEXT: the log.vkey of that log, from somebody whom you trust"
    origin = Checkpoint.parse(Note.parse(note).text).origin
    try:
        return _log(registry.open_log(), origin).vkey()
    except UsageError as error:
        raise UsageError("E-KEY", f"the public key of {origin} is not at hand", hint=hint) from error


def _digest_of(folder: Path) -> str:
    from ingot.core.digest import record_files, tree_digest

    if not folder.is_dir():
        raise UsageError("E-FILE", f"there is no folder {str(folder)!r}")
    return tree_digest(record_files(folder.resolve()))
