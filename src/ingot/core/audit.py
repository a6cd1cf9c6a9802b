"""``audit``: whether what the logs say still holds, and whether the bytes are those that the logs name.

It trusts no cache: logs are read and verified whole (``log_audit``), every artifact present is read and hashed again
with SHA-256, metrics that follow from bytes are derived again, and the lineage of every build must reach builds
without inputs, whose keys pin their sources by digest. Nothing is repaired.

Codes beside those of ``log_audit``. Of the store: ``artifact_damaged``, ``results_differ``. Of the registry:
``entry_unreadable``, ``digest_differs``, ``key_differs``, ``metric_differs``, ``lineage_broken``, ``stream_differs``
(``stream_audit``), and those of decisions (``decision_audit``). Notes, no damage: ``artifact_absent``,
``artifact_unprotected`` (it can be written to, or has a second name), ``derived_unsealed`` (a derived file is not as
this user's ingot wrote it, and is not used), ``object_unnamed``, ``not_rederived``.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ingot.core.decision_audit import acceptances, check_form, contradictions
from ingot.core.digest import FileRecord, hash_file, is_digest, tree_digest, walk_files
from ingot.core.findings import Audit, Finding
from ingot.core.gate_sides import side_of
from ingot.core.key import forms_of, key_of
from ingot.core.rederive import derive, disagreements
from ingot.core.registry import Entry, Registry
from ingot.core.statement import receipt_of
from ingot.core.store import Store
from ingot.core.stream_audit import never_written, stream_contradictions
from ingot.errors import DiskFailed, IngotError, RefusedInput, RegistryDamaged

__all__ = ["Audit", "Finding", "audit"]

#: Called with (bytes read so far, bytes in all).
Progress = Callable[[int, int], None]
Receipt = Mapping[str, Any]


def audit(registry: Registry, store: Store, origins: Iterable[str], progress: Progress) -> Audit:
    """Check everything; never raises for what it finds."""
    return _Auditor(registry, store).run(origins, progress)


class _Auditor:
    """One audit: the entries read, the builds among them, and what was found."""

    def __init__(self, registry: Registry, store: Store) -> None:
        self.registry, self.store = registry, store
        self.result = Audit()
        #: Each build with its entry.
        self.builds: list[tuple[Entry, Receipt]] = []
        self.decisions: list[Entry] = []
        self.sizes: dict[str, int] = {}
        self.whole = True
        self.damaged: set[str] = set()

    def run(self, origins: Iterable[str], progress: Progress) -> Audit:
        self._check_logs()
        for origin in origins:
            self._read(origin)
        self._check_objects(progress)
        if self.whole:
            # With a log that cannot be read, its builds would all be missed: that is reported once, above.
            self._check_lineage()
            self._check_results()
        self._check_metrics()
        return self.result

    def problem(self, code: str, where: str, detail: str) -> None:
        self.result.problems.append(Finding(code, where, detail))

    def note(self, code: str, where: str, detail: str) -> None:
        self.result.notes.append(Finding(code, where, detail))

    # --- logs ------------------------------------------------------------------------------------------------

    def _check_logs(self) -> None:
        from ingot.core.log_audit import NOTES

        for found in self.registry.check():
            report = self.note if found["code"] in NOTES else self.problem
            report(found["code"], found["where"], found["detail"])

    def _read(self, origin: str) -> None:
        try:
            entries = list(self.registry.entries(origin))
        except (RegistryDamaged, DiskFailed) as error:
            self.whole = False
            # The check of the logs has said what is wrong; this only makes sure that it is never passed over.
            if not any(origin.rpartition("/")[2] in found.where for found in self.result.problems):
                self.problem("entry_unreadable", origin, error.what)
            return
        self.result.entries += len(entries)
        self.sizes[origin] = len(entries)
        for entry in entries:
            self._sort(entry)

    def _sort(self, entry: Entry) -> None:
        try:
            if entry.type == "build":
                receipt = receipt_of(entry.statement, self.registry.read_evidence)
                self._check_receipt(entry, receipt)
                self.builds.append((entry, receipt))
            elif entry.type != "origin":
                check_form(entry)
                self.decisions.append(entry)
        except IngotError as error:
            self.whole = False
            self.problem("entry_unreadable", _place(entry), error.what)
        except (TypeError, KeyError, ValueError) as error:
            # The log is signed, but its writer may have been any program.
            self.whole = False
            self.problem("entry_unreadable", _place(entry), f"an entry is not of the form of ingot's: {error!r}")

    def _check_receipt(self, entry: Entry, receipt: Receipt) -> None:
        """An entry must agree with itself: its file list has its digest, its key parts have its key."""
        records = [FileRecord(**record) for record in receipt["files"]]
        if tree_digest(records) != receipt["digest"]:
            self.problem("digest_differs", _place(entry), f"the file list of {receipt['target']} has another digest")
        if key_of(receipt["key_parts"]) != receipt["key"]:
            self.problem("key_differs", _place(entry), f"the key parts of {receipt['target']} have another key")
        # Of a form that cannot be read the entry is unreadable.
        forms_of(receipt)

    # --- objects ---------------------------------------------------------------------------------------------

    def _check_objects(self, progress: Progress) -> None:
        named: dict[str, Receipt] = {}
        for _entry, receipt in self.builds:
            named.setdefault(str(receipt["digest"]), receipt)
        present = set(self.store.objects())
        wanted = {digest: receipt for digest, receipt in named.items() if digest in present}
        total = sum(int(file["size"]) for receipt in wanted.values() for file in receipt["files"])
        for digest, receipt in wanted.items():
            self._check_object(digest, receipt, lambda: progress(self.result.bytes, total))
        streamed = never_written(self.builds)
        for digest in sorted(named.keys() - present):
            self.result.absent += 1
            what = "was streamed and never written" if digest in streamed else "is not present"
            if self.store.is_evicted(digest):
                what = "was evicted by doit gc"
                self.result.evicted.add(_object(digest))
            self.note("artifact_absent", _object(digest), f"the artifact of {named[digest]['target']} {what}")
        for digest in sorted(present - named.keys()) if self.whole else ():
            self.note(
                "object_unnamed", _object(digest), "no entry names it: a build in progress, or left by a killed one"
            )

    def _check_object(self, digest: str, receipt: Receipt, tick: Callable[[], None]) -> None:
        """Read every file again. What is wrong is said by file; the digest of the whole is the proof."""
        self.result.objects += 1
        folder, target = self.store.object_path(digest), receipt["target"]
        listed = {str(record["path"]): record for record in receipt["files"]}
        try:
            if not stat.S_ISDIR(os.lstat(folder).st_mode):
                self._damage(digest, "", "is not a folder", target)
                return
            names = list(walk_files(folder, empty_folders=True))
        except (RefusedInput, OSError) as error:
            self._damage(digest, "", f"cannot be walked: {error}", target)
            return
        records = []
        for name in names:
            if name.endswith("/"):
                self._damage(digest, name, "is an empty folder that no artifact can hold", target)
                continue
            try:
                record = FileRecord(name, *hash_file(folder / name))
            except OSError as error:
                self._damage(digest, name, f"cannot be read: {(error.strerror or str(error)).lower()}", target)
                continue
            self.result.bytes += record.size
            records.append(record)
            tick()
            self._compare(digest, record, listed.get(name), target)
        for name in sorted(listed.keys() - set(names)):
            self._damage(digest, name, "is missing", target)
        if digest not in self.damaged and tree_digest(records) != digest:
            self._damage(digest, "", f"its files have the digest {tree_digest(records)}", target)
        if digest not in self.damaged:
            self._check_protection(digest, folder, names)

    def _check_protection(self, digest: str, folder: Path, names: Iterable[str]) -> None:
        """Published files are read-only and have one name each: what can be written to will be written to one day."""
        folders = {str(parent) for name in names for parent in Path(name).parents}
        for name in sorted({*folders, *names}):
            status = os.lstat(folder / name)
            mode, is_folder = stat.S_IMODE(status.st_mode), stat.S_ISDIR(status.st_mode)
            wanted = 0o555 if is_folder else 0o444
            if mode != wanted:
                what = f"has the mode {mode:03o}, not {wanted:03o}"
            elif status.st_nlink != 1 and not is_folder:
                what = f"has {status.st_nlink} names (hard links): what is written to another one changes it"
            else:
                continue
            where = f"{_object(digest)}/{name}".removesuffix("/.")
            self.note("artifact_unprotected", where, f"{what}; its bytes are whole")

    def _compare(self, digest: str, record: FileRecord, listed: Receipt | None, target: str) -> None:
        if listed is None:
            self._damage(digest, record.path, "is in no file list", target)
        elif record.size != listed["size"]:
            self._damage(digest, record.path, f"has {record.size} bytes, not {listed['size']}", target)
        elif record.to_dict() != listed:
            self._damage(digest, record.path, f"has other content: SHA-256 {record.sha256[:16]}…", target)

    def _damage(self, digest: str, name: str, what: str, target: str) -> None:
        self.damaged.add(digest)
        # A build must find it too, even where the file's stat does not tell.
        self.store.doubt(digest, name)
        self.problem("artifact_damaged", f"{_object(digest)}/{name}".rstrip("/"), f"{what} (artifact of {target})")

    # --- lineage, derived files, metrics ---------------------------------------------------------------------

    def _check_lineage(self) -> None:
        """Every input digest was produced by a build whose inputs were, down to builds without inputs."""
        produced = {str(receipt["digest"]) for _entry, receipt in self.builds}
        grounded: set[str] = set()
        waiting = [(entry, receipt, _input_digests(receipt)) for entry, receipt in self.builds]
        before = -1
        while len(waiting) != before:
            before, left = len(waiting), []
            # Inputs are nearly always logged before what is built from them, so one pass does nearly all.
            for item in waiting:
                if item[2] <= grounded:
                    grounded.add(str(item[1]["digest"]))
                else:
                    left.append(item)
            waiting = left
        for entry, receipt, digests in waiting:
            for digest in sorted(digests - grounded):
                how = "reaches no pinned source" if digest in produced else "was built by no entry"
                self.problem("lineage_broken", _place(entry), f"an input of {receipt['target']}, {digest[:16]}…, {how}")
        for entry, what in stream_contradictions(self.builds):
            self.problem("stream_differs", _place(entry), what)
        for code, entry, what in contradictions(self.decisions, self.builds, partial(side_of, self.store)):
            self.problem(code, _place(entry), what)

    def _check_results(self) -> None:
        """``cache/results`` is derived and decides what is fresh, so it must say what the logs say."""
        known = {(entry.origin, entry.index): receipt for entry, receipt in self.builds} | acceptances(self.decisions)
        folder = self.store.root / "results"
        unsealed = []
        for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
            builds = self.store.result(path.stem)
            if builds is None:
                unsealed.append(path.name)
            for build in builds or ():
                receipt = known.get((str(build["origin"]), int(build["index"])))
                signed = receipt is not None or int(build["index"]) < self.sizes.get(str(build["origin"]), 0)
                if signed and (receipt is None or path.stem not in forms_of(receipt) or not _same(build, receipt)):
                    where = f"cache/results/{path.name}"
                    what = f"differs from entry {build['index']} of {build['origin']}: remove cache/results and build"
                    self.problem("results_differ", where, what)
        if unsealed:
            more = f" and {len(unsealed) - 1} more" if unsealed[1:] else ""
            what = "not as this user's ingot wrote it, so it is not used: the next run makes it anew from the log"
            self.note("derived_unsealed", f"cache/results/{unsealed[0]}{more}", what)

    def _check_metrics(self) -> None:
        seen: set[str] = set()
        streamed = never_written(self.builds)
        for entry, receipt in self.builds:
            identity = json.dumps([receipt["digest"], receipt["inputs"], receipt["metrics"]], sort_keys=True)
            if identity in seen:
                continue
            seen.add(identity)
            if receipt["digest"] in streamed and receipt["metrics"]:
                what = "it was streamed and never written, so they cannot be derived again"
                self.note("not_rederived", _place(entry), f"metrics of {receipt['target']}: {what}")
                continue
            try:
                derived = derive(receipt, self._whole_folder)
                differing = disagreements(receipt, derived)
            except (ValueError, KeyError, TypeError, OSError) as error:
                self.note("not_rederived", _place(entry), f"metrics of {receipt['target']}: {error}")
                continue
            self.result.metrics += sum(name in receipt["metrics"] for name in derived)
            for what in differing:
                self.problem("metric_differs", _place(entry), f"{receipt['target']}: {what}")

    def _whole_folder(self, digest: str) -> Path | None:
        """An artifact's folder; None when it is absent or damaged, so that nothing is derived from it."""
        if not is_digest(digest) or digest in self.damaged:
            return None
        path = self.store.object_path(digest)
        return path if path.is_dir() else None


def _place(entry: Entry) -> str:
    return f"{entry.origin} entry {entry.index}"


def _object(digest: str) -> str:
    return f"cache/objects/{digest[:2]}/{digest}"


def _input_digests(receipt: Receipt) -> set[str]:
    return {
        str(item["digest"])
        for value in receipt["inputs"].values()
        for item in ([value] if isinstance(value, Mapping) else value)
    }


def _same(build: Receipt, receipt: Receipt) -> bool:
    """Whether a filed receipt is the entry's; the file list may be left out where it lies in the evidence."""
    names = set(receipt) - {"files", "files_evidence"}
    files = receipt.get("files")
    return all(build.get(name) == receipt[name] for name in names) and build.get("files", files) == files
