"""``doit doctor``: what the specs at hand need of this machine, and how to get what is missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ingot.commands.base import JSON_OPTION, IngotCommand, flag, keep_derived, open_project, select
from ingot.commands.screen import Screen

if TYPE_CHECKING:
    from ingot.core.doctor import Check
    from ingot.core.plan import Planned
    from ingot.core.project import Project

_PROBE_SECONDS = 10


class Doctor(IngotCommand):
    """Check the machine against what would be built."""

    name = "doctor"
    doc_purpose = "check what the specs need: packages, programs, disk, memory, llama.cpp, network"
    doc_usage = "[SPEC | SPEC:TARGET ...] [--network] [--json]"
    doc_description = "Looks at targets that would be built. Exit code 1 when something is missing, with a fix a line."
    cmd_options = (JSON_OPTION, flag("network", "also try to reach the hub, PyPI and other addresses that are needed"))

    def run(self, screen: Screen, options: Mapping[str, Any], arguments: Sequence[str]) -> int:
        """0, or 1 when something is missing."""
        project = open_project()
        chosen = select(project, arguments, inputs=True)
        plan = project.plan(chosen)
        checks = [*_checks(project, plan, probe=options["network"]), *(() if arguments else _kept(project, plan))]
        ok = all(check.word != "missing" for check in checks)
        if options["json"]:
            screen.json({"format": 1, "ok": ok, "checks": [check.to_dict() for check in checks]})
        else:
            _show(screen, checks)
        keep_derived(project)
        return 0 if ok else 1


def _checks(project: Project, plan: Mapping[str, Planned], *, probe: bool) -> Iterator[Check]:
    from ingot.core import doctor
    from ingot.core.forecast import forecast
    from ingot.core.registry import default_keys_dir

    todo = [item for item in plan.values() if item.is_needed]
    nodes = [item.node for item in todo]
    yield doctor.Check("specs", "ok", _specs(project, todo))
    yield doctor.python()
    yield from doctor.packages(nodes)
    yield from doctor.programs(nodes)
    yield from doctor.llama_cpp(nodes)
    yield from doctor.device(nodes)

    found = forecast(project, plan, list(plan))
    yield doctor.disk(found)
    yield from doctor.file_system(project.store.root)
    yield doctor.memory(found)
    for name, url in doctor.remotes(nodes).items():
        yield (
            _reach(name, url)
            if probe
            else doctor.Check(f"network {name}", "note", "needed; not tried", "doit doctor --network")
        )
    yield doctor.signing_key(project.root / "registry", default_keys_dir())
    yield doctor.git(project.root)


def _kept(project: Project, plan: Mapping[str, Planned]) -> Iterator[Check]:
    """What ended builds have left: of all specs, since a part of them does not tell what nobody wants."""
    from ingot.core import checkpoints, doctor

    found = checkpoints.all_kept(project.store.root, project.built_here)
    return doctor.checkpoints(found, project.plan(project.nodes.values()) if found else plan, project.store.root)


def _specs(project: Project, todo: Sequence[Planned]) -> str:
    specs, targets = len(project.graphs), len(project.nodes)
    text = f"{specs} spec{'s' * (specs != 1)}, {targets} target{'s' * (targets != 1)}"
    return f"{text}, {len(todo)} to build" if todo else f"{text}, nothing to build"


def _reach(name: str, url: str) -> Check:
    """Whether an address answers at all: any HTTP status counts, since only reachability is asked."""
    import urllib.error
    import urllib.request
    from urllib.parse import urlsplit, urlunsplit

    from ingot.core.doctor import Check

    # User and password of an address are never shown.
    parts = urlsplit(url)
    shown = urlunsplit((parts.scheme, (parts.hostname or "") + parts.path, "", "", ""))
    label, fix = f"network {name}", "check the connection, or set HTTPS_PROXY, PIP_INDEX_URL or HF_ENDPOINT"
    if parts.scheme not in ("http", "https"):
        return Check(label, "note", f"{shown}: not an address that can be tried")
    request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - the scheme was checked above
    try:
        with urllib.request.urlopen(request, timeout=_PROBE_SECONDS) as answer:  # noqa: S310
            return Check(label, "ok", f"{shown} answers ({answer.status})")
    except urllib.error.HTTPError as error:
        return Check(label, "ok", f"{shown} answers ({error.code})")
    except OSError as error:
        return Check(label, "missing", f"{shown} cannot be reached: {getattr(error, 'reason', error)}", fix)


def _show(screen: Screen, checks: Sequence[Check]) -> None:
    rows: list[tuple[str, str, str]] = []
    said: set[str] = set()
    for check in checks:
        rows.append((check.name, check.word, check.detail))
        if check.word != "ok" and check.fix and check.fix not in said:
            said.add(check.fix)
            rows.append(("", "", f"fix: {check.fix}"))
    screen.table(("", "", ""), rows)
    missing = sum(check.word == "missing" for check in checks)
    if missing:
        screen.line()
        screen.line(f"{missing} missing")
