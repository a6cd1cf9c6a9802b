"""``doit registry``: proofs about the logs that others can verify with the public key alone, and the logs as tiles."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ingot import registry
from ingot.commands.base import JSON_OPTION, IngotCommand, keep_derived, value
from ingot.commands.screen import Screen, plural
from ingot.errors import UsageError

if TYPE_CHECKING:
    from ingot.core.log import Log
    from ingot.core.note import VerifierKey

Options = Mapping[str, Any]

#: What each verb takes: the options beside --json, and how it is called.
_VERBS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "proof": (("output",), "SPEC:TARGET [--output FILE]"),
    "verify": (("key", "artifact", "since"), "FILE [--key KEY] [--artifact FOLDER] [--since CHECKPOINT]"),
    "consistency": (("output",), "CHECKPOINT [--output FILE]"),
    "export": ((), "FOLDER"),
}


class Registry(IngotCommand):
    """Write and verify proofs; write logs as static files."""

    name = "registry"
    doc_purpose = "prove that a result is in the log, verify a proof, export the logs as tiles"
    doc_usage = " | ".join(f"{verb} {form}" for verb, (_options, form) in _VERBS.items()) + "  [--json]"
    doc_description = (
        "`proof` writes a C2SP .tlog-proof of the entry that a target's newest result was built by: beside its link, "
        "cache/latest/SPEC/TARGET.tlog-proof, or to --output ('-': standard output). `verify` checks one, or a proof "
        "of consistency together with --since, by the log's public key alone: KEY is the text of a log.vkey or such a "
        "file, and in a project by default the log's own. It works offline and outside a project. --artifact compares "
        "a folder with the digest that the entry names. `consistency` proves that a log begins with what an earlier "
        "checkpoint of it signed. `export` writes every log as C2SP tlog-tiles below FOLDER."
    )
    arguments: ClassVar[tuple[int, int | None]] = (0, None)
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
        self._check_form(options, arguments)
        return verbs[arguments[0]](screen, options, arguments[1])

    def _check_form(self, options: Options, arguments: Sequence[str]) -> None:
        """An option of another verb is refused: who gives one believes that something was looked at."""
        verb = arguments[0] if arguments else ""
        if verb not in _VERBS:
            usages = [f"usage: doit {self.name} {each} {form} [--json]" for each, (_options, form) in _VERBS.items()]
            what = f"doit registry does one of {', '.join(_VERBS)}" + (f", not {verb!r}" if arguments else "")
            raise UsageError("E-USAGE", what, facts=usages, hint=f"doit help {self.name}")
        known, form = _VERBS[verb]
        usage = f"usage: doit {self.name} {verb} {form} [--json]"
        wrong = [name for name in ("output", "key", "artifact", "since") if options[name] is not None]
        wrong = [f"doit registry {verb} has no option --{name}" for name in wrong if name not in known]
        if len(arguments) != 2:
            what = form.partition(" ")[0]
            wrong.append(f"doit registry {verb} takes one {what}, not {len(arguments) - 1}")
        if wrong:
            raise UsageError("E-USAGE", wrong[0], facts=[usage], hint=f"doit help {self.name}")


def _prove(screen: Screen, options: Options, target: str) -> int:
    from ingot.core.proof import InclusionProof

    project = registry.open_log()
    receipt = registry.receipt_of_target(project, target)
    keep_derived(project)
    log = _log(project.root, str(receipt["origin"]))
    proof = InclusionProof.of(log, int(receipt["index"]))
    spec, _, name = target.partition(":")
    default = project.root / "cache" / "latest" / spec / f"{name}.tlog-proof"
    path = _written(options, default, proof.to_bytes())
    place = {name: receipt[name] for name in ("target", "digest", "origin", "index")}
    said = (f"entry {receipt['index']} of {receipt['origin']}", f"digest {receipt['digest']}")
    return _told(screen, options, path, place, (*said, *_verifying(path, log)))


def _prove_growth(screen: Screen, options: Options, checkpoint: str) -> int:
    from ingot.core.proof import ConsistencyProof
    from ingot.core.proof_files import about, checkpoint_of, read_checkpoint

    project = registry.open_log()
    earlier = read_checkpoint(checkpoint)
    before = checkpoint_of(earlier)
    log = _log(project.root, before.origin)
    with about(checkpoint):
        proof = ConsistencyProof.of(log, before.size)
        # What does not hold is not written: somebody would take it for a proof.
        _before, after = proof.verify(log.vkey(), earlier)
    default = project.root / f"{log.folder.name}-{before.size}-{after.size}.tlog-consistency"
    path = _written(options, default, proof.to_bytes())
    place = {"origin": before.origin, "old": before.size, "size": after.size}
    said = f"the {after.size} entries of {before.origin} begin with the {before.size} of {checkpoint}"
    return _told(screen, options, path, place, (said, *_verifying(path, log, "--since", checkpoint)))


def _written(options: Options, default: Path, data: bytes) -> Path | None:
    """Where a proof was written; None for standard output."""
    from ingot.core.disk import make_dirs, write_file_atomic

    if options["output"] == "-":
        if options["json"]:
            raise UsageError("E-USAGE", "--output - and --json both write to standard output", hint="name a file")
        sys.stdout.buffer.write(data)
        return None
    path = default if options["output"] is None else Path(options["output"])
    if path.is_dir():
        raise UsageError("E-FILE", f"{str(path)!r} is a folder: a proof is one file", hint="--output FOLDER/FILE")
    make_dirs(path.parent)
    write_file_atomic(path, data)
    return path


def _verifying(path: Path | None, log: Log, *more: str) -> tuple[str, str]:
    """The command that verifies what was written here, on a line of its own; the reader has the key from elsewhere."""
    words = ["" if path is None else _relative(path), "--key", _relative(log.vkey_path), *more]
    return "verify it, here or anywhere offline:", f"doit registry verify {shlex.join(words)}"


def _told(screen: Screen, options: Options, path: Path | None, place: Mapping[str, Any], said: Sequence[str]) -> int:
    if path is None:
        return 0
    if options["json"]:
        screen.json({"format": 1, "file": _relative(path), **place})
        return 0
    screen.line(f"proof written to {_relative(path)}")
    for line in said:
        screen.line(f"  {line}")
    return 0


def _relative(path: Path) -> str:
    whole = path.resolve()
    return str(whole.relative_to(Path.cwd())) if whole.is_relative_to(Path.cwd()) else str(path)


def _verify(screen: Screen, options: Options, file: str) -> int:
    from ingot.core import proof
    from ingot.core.proof_files import about, read

    data = read(file, "proof")
    if not proof.is_inclusion(data):
        return _verify_growth(screen, options, file, data)
    if options["since"] is not None:
        what = f"{file!r} proves that one entry is in a log: --since goes with a proof of consistency"
        raise UsageError("E-USAGE", what, hint="doit registry consistency CHECKPOINT makes one")
    with about(file):
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


def _verify_growth(screen: Screen, options: Options, file: str, data: bytes) -> int:
    from ingot.core.proof import ConsistencyProof, signed_checkpoint
    from ingot.core.proof_files import about, no_proof, read_checkpoint

    if not data.startswith(b"old "):
        raise no_proof(file, data)
    if options["artifact"] is not None:
        what = f"{file!r} proves that a log grew, and names no artifact to compare with"
        raise UsageError("E-USAGE", what, hint="--artifact goes with the proof that doit registry proof makes")
    if options["since"] is None:
        what = "a proof of consistency is verified from an earlier checkpoint on"
        raise UsageError("E-USAGE", what, hint="--since CHECKPOINT")
    earlier = read_checkpoint(options["since"])
    with about(file):
        proof = ConsistencyProof.parse(data)
        key = _key(options["key"], proof.note)
    with about(options["since"]):
        signed_checkpoint(earlier, key)
    with about(file):
        before, after = proof.verify(key, earlier)
    if options["json"]:
        screen.json({"format": 1, "origin": after.origin, "old": before.size, "size": after.size})
    else:
        screen.line(f"holds: the {after.size} entries of {after.origin} begin with the {before.size} signed earlier")
    return 0


def _export(screen: Screen, options: Options, folder: str) -> int:
    from ingot.core.log import logs_in
    from ingot.core.tiles import export

    project, into = registry.open_log(), Path(folder)
    if into.exists() and not into.is_dir():
        raise UsageError("E-FILE", f"{folder!r} is not a folder")
    with project.store.exclusive("export"):
        done = {log: export(log, into / log.folder.name) for log in logs_in(project.root / "registry")}
    if options["json"]:
        rows = [
            {"origin": log.origin, "folder": str(into / log.folder.name), "size": it.size, "files": it.files}
            for log, it in done.items()
        ]
        screen.json({"format": 1, "logs": rows})
        return 0
    for log, it in done.items():
        tiles = f"{plural(it.files, 'tile')} ({it.written} new) and its checkpoint"
        screen.line(f"{log.origin}: {it.size} entries as {tiles} in {into / log.folder.name}")
    if not done:
        screen.line("nothing to export: this project has no log yet")
    return 0


def _log(root: Path, origin: str) -> Log:
    from ingot.core.log import logs_in

    here = list(logs_in(root / "registry"))
    for log in here:
        if log.origin == origin:
            return log
    facts = [f"here is {log.origin}" for log in here]
    raise UsageError("E-ORIGIN", f"there is no log {origin} in this project", facts=facts)


def _key(given: str | None, note: bytes) -> VerifierKey:
    """The key to verify with, of the log that the checkpoint names: as given, else in a project that log's own."""
    from ingot.core import proof_files
    from ingot.core.project import find_root

    origin = proof_files.checkpoint_of(note).origin
    if given is not None:
        return proof_files.key_of(given, origin)
    try:
        # The proof is about the log that was signed, whatever became of the one here.
        return _log(find_root(Path.cwd()), origin).vkey()
    except UsageError as error:
        what = f"the public key of {origin} is not at hand"
        raise UsageError("E-KEY", what, hint=proof_files.KEY_HINT) from error


def _digest_of(folder: Path) -> str:
    from ingot.core.digest import record_files, tree_digest

    if folder.is_file():
        what = f"{str(folder)!r} is a file, and an artifact is a folder: the names of its files are part of it"
        raise UsageError("E-FILE", what, hint="give the folder, with nothing else in it")
    if not folder.is_dir():
        raise UsageError("E-FILE", f"there is no folder {str(folder)!r}")
    return tree_digest(record_files(folder.resolve()))
