"""What the two sides of ``doit diff`` may be called: a target, an entry, an artifact's digest, a file of an export."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingot.core.compare import Subject
from ingot.core.exports import read_export
from ingot.core.log import ORIGIN_PREFIX
from ingot.core.lookup import Lookup, Receipt, place_text
from ingot.errors import UsageError

if TYPE_CHECKING:
    from ingot.core.project import Project

_ENTRY = re.compile(rf"(?:{re.escape(ORIGIN_PREFIX)})?([0-9a-f]{{1,12}})[:/]([0-9]{{1,9}})")
_DIGEST = re.compile(r"[0-9a-f]{8,64}")
_FORMS = (
    "a target (spec:target), an entry (ORIGIN/INDEX), a digest (8 or more hex digits),"
    " or a file that `doit show T --json` wrote"
)


class Subjects:
    """Finds sides in one project's specs and logs, and in files; without a project, in files only."""

    def __init__(self, project: Project | None) -> None:
        self._project = project
        self.lookup = None if project is None else Lookup(project)

    def find(self, digest: str) -> Receipt | None:
        """The receipt of a result by its digest, from the logs."""
        return None if self.lookup is None else next(iter(self.lookup.builds_of(digest)), None)

    def resolve(self, name: str) -> Subject:
        """What ``name`` means. UsageError: E-TARGET, E-NOT-BUILT, E-ENTRY, E-DIGEST; RefusedInput: E-EXPORT."""
        found = self._target(name) or self._entry(name) or self._digest(name)
        if found is None and Path(name).is_file():
            found = _file(name)
        if found is None:
            raise self._unknown(name)
        return found

    def _target(self, name: str) -> Subject | None:
        project = self._project
        if project is None or self.lookup is None:
            return None
        node, receipt = project.nodes.get(name), self.lookup.newest(name)
        if receipt is not None:
            return Subject(name, _title(receipt, name), receipt["key_parts"], receipt, node)
        return None if node is None else Subject(name, "never built: only its spec is known", node=node)

    def _entry(self, name: str) -> Subject | None:
        match = _ENTRY.fullmatch(name)
        if match is None or self.lookup is None:
            return None
        origins, index = self.lookup.origins(match[1]), int(match[2])
        if len(origins) > 1:
            facts = [f"{origin.removeprefix(ORIGIN_PREFIX)}/{index}" for origin in origins]
            raise UsageError("E-ENTRY", f"{len(origins)} logs start with {match[1]}", facts=facts)
        entry = self.lookup.entry(origins[0], index) if origins else None
        if entry is None:
            return None
        receipt = self.lookup.result_of(entry)
        if receipt is None:
            what = f"the entry {name} ({entry.type}) gives no target a result"
            raise UsageError("E-ENTRY", what, hint="doit history shows which entries are builds")
        return Subject(name, _title(receipt), receipt["key_parts"], receipt)

    def _digest(self, name: str) -> Subject | None:
        if self.lookup is None or not _DIGEST.fullmatch(name):
            return None
        builds = self.lookup.builds_of(name)
        digests = sorted({str(build["digest"]) for build in builds})
        if len(digests) > 1:
            raise UsageError("E-DIGEST", f"{len(digests)} artifacts' digests start with {name}", facts=digests)
        return Subject(name, _title(builds[-1]), builds[-1]["key_parts"], builds[-1]) if builds else None

    def _unknown(self, name: str) -> UsageError:
        if self._project is None:
            hint = "outside a project only files can be compared"
            return UsageError("E-PROJECT", f"this folder is in no ingot project, and {name} is no file", hint=hint)
        import difflib

        known = self._project.nodes.keys() | self._project.index.latest.keys()
        variants = sorted(each for each in known if each.startswith((f"{name}@", f"{name}:")))
        if variants:
            return UsageError("E-TARGET", f"{name!r} names several targets", facts=variants, hint="name one of them")
        near = difflib.get_close_matches(name, sorted(known), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"give {_FORMS}"
        return UsageError("E-TARGET", f"nothing is known of {name!r}", hint=hint)


def _title(receipt: Mapping[str, Any], name: str = "") -> str:
    """What a receipt is of; a target is not named twice."""
    built = f"{str(receipt['timings']['finished'])[:16].replace('T', ' ')} UTC"
    place = f", entry {place_text(receipt)}" if "origin" in receipt else ""
    target = "" if receipt["target"] == name else f"{receipt['target']}, "
    return f"{target}{receipt['kind']}, {str(receipt['digest'])[:12]}, built {built}{place}"


def _file(name: str) -> Subject:
    parts, receipt = read_export(Path(name))
    title = f"key parts of kind {parts['kind']}" if receipt is None else _title(receipt)
    return Subject(name, f"file: {title}", parts, receipt)
