"""A project: its folder, specs, store, registry and what this process knows of each target's result."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingot.core import checkpoints, disk, filesystems, gate_judging, gate_record, gates, prices, procfs
from ingot.core.checkpoints import Kept
from ingot.core.executor import Executor
from ingot.core.graph import Node, SpecGraph, input_ids
from ingot.core.index import Index
from ingot.core.log import logs_in
from ingot.core.log_places import read_key
from ingot.core.plan import Planned, Planner, missing_device, missing_tools
from ingot.core.prices import Prices
from ingot.core.registry import Entry, Registry, default_keys_dir, default_pins_dir
from ingot.core.seal import user_seal
from ingot.core.sources import SourceReader
from ingot.core.spec_cache import load_graphs, spec_files
from ingot.core.statement import decision_statement
from ingot.core.store import Store
from ingot.errors import DiskFailed, UsageError

if TYPE_CHECKING:
    from ingot.core.standing import Standing


class Project:
    """Everything about the project in one folder. Opening reads specs and the index, and builds nothing."""

    def __init__(self, root: Path, graphs: list[SpecGraph]) -> None:
        self.root = root
        self.graphs = {graph.name: graph for graph in graphs}
        self.nodes: dict[str, Node] = {node.id: node for graph in graphs for node in graph.nodes}
        self.store = Store(root / "cache", user_seal())
        self.registry = Registry(
            root / "registry",
            lock_file=root / "ingot.lock",
            quarantine=root / "cache" / "quarantine",
            keys=default_keys_dir(),
            pins=default_pins_dir(),
        )
        self.index = Index(self.registry, self.store)
        self.index.sync()
        self.sources = SourceReader(root, self.store.stats)
        self.planner = Planner(self.index, self.store, self.sources)
        #: Receipts of the results in force, by target id: filled as targets are found fresh or are built.
        self.current: dict[str, Mapping[str, Any]] = {}
        #: Virtual targets whose bytes are not here, as they were found last.
        self.virtual: dict[str, Planned] = {}
        self._recording = threading.Lock()
        #: What stands by the logs, as long as they are what they were then.
        self._stands: tuple[object, Standing] | None = None

    @classmethod
    def open(cls, start: Path, specs: Iterable[Path] | None = None) -> Project:
        """The project that ``start`` lies in, with ``specs`` or ``specs/**/*.yaml``; SpecError when a spec is bad."""
        root = find_root(start)
        files = spec_files(root) if specs is None else list(specs)
        return cls(root, load_graphs(root, files, root / "cache"))

    @cached_property
    def executor(self) -> Executor:
        """Runs stages; its server starts with the first job."""
        return Executor()

    @property
    def threads(self) -> int:
        """The number of threads that a stage uses: the processors this process may run on."""
        return procfs.processors()

    def node(self, name: str) -> Node:
        """A target by its id ``spec:name``; UsageError (E-TARGET) with the nearest names."""
        import difflib

        if name in self.nodes:
            return self.nodes[name]
        near = difflib.get_close_matches(name, self.nodes, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "doit list shows all targets"
        raise UsageError("E-TARGET", f"there is no target {name!r}", hint=hint)

    def spec_digest(self, spec: str) -> str:
        """The digest of a resolved spec."""
        return self.graphs[spec].digest

    @property
    def default_specs(self) -> list[str]:
        """The specs directly in ``specs/``: what ``doit`` alone builds. Those in folders below are built by name."""
        return [name for name, graph in self.graphs.items() if Path(graph.file).parent == Path("specs")]

    def plan(self, nodes: Iterable[Node]) -> dict[str, Planned]:
        """The fate of these targets, which come in the order of the graph with everything that they are built from."""
        planned = self.planner.plan(nodes)
        for item in planned.values():
            self._note(item)
        return planned

    def _note(self, item: Planned) -> None:
        """Remember what is in force."""
        name = item.node.id
        if item.state in ("fresh", "virtual", "evicted") and item.receipt is not None:
            self.current[name] = item.receipt
        if item.state == "virtual":
            self.virtual[name] = item
        else:
            self.virtual.pop(name, None)

    def take(self, receipt: Mapping[str, Any]) -> None:
        """Put a result in force that was just recorded."""
        name = str(receipt["target"])
        self.current[name] = receipt
        if receipt.get("stored") is False:
            key, parts = str(receipt["key"]), receipt["key_parts"]
            self.virtual[name] = Planned(self.nodes[name], "virtual", (), key, parts, receipt)

    def check(self, node: Node) -> Planned:
        """The fate of one target whose inputs are in force; a fresh one is in force afterwards."""
        self.index.sync()
        planned = self.planner.check(node, self.digests_of_inputs(node))
        self._note(planned)
        return planned

    def digests_of_inputs(self, node: Node) -> dict[str, str]:
        """The digests of the results in force that a target is built from, by id; of virtual ones their identity.

        UsageError (E-INPUT-STALE) when one is not in force: doit was told to go on without what a target needs.
        """
        found = {}
        for name in input_ids(node):
            if name not in self.current and self.check(self.nodes[name]).state not in ("fresh", "virtual", "evicted"):
                what = f"{node.id} is built from {name}, which is not up to date"
                raise UsageError("E-INPUT-STALE", what, hint=f"doit {node.id} (without --single) builds it first")
            known = self.current.get(name)
            found[name] = str(self.virtual[name].identity if known is None else known["digest"])
        return found

    def built_here(self, key: str) -> int:
        """How many builds of a key the logs of this user hold: what others have recorded is no work of this store."""
        keys = default_keys_dir()
        own = {log.origin for log in logs_in(self.root / "registry") if read_key(keys, log) is not None}
        return sum(build["origin"] in own for build in self.index.builds(key) if "accepted" not in build)

    def checkpoints_of(self, planned: Planned) -> Kept | None:
        """What a build of this target would go on from; None when it would begin at the beginning."""
        if planned.state not in ("stale", "building") or planned.key is None or not planned.node.resumes:
            return None
        return checkpoints.kept(self.store.root, planned.key, self.built_here(planned.key))

    def record(self, statement: dict[str, Any]) -> dict[str, Any]:
        """Append one statement; durable on return. Gives its place: ``{"origin", "index"}``."""
        with self._recording:
            (ref,) = self.registry.append([statement])
            self.index.add(Entry(ref.origin, ref.index, statement))
        return {"origin": ref.origin, "index": ref.index}

    def record_all(self, statements: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Append statements in one commit, all of them or none; durable on return. Gives their places."""
        with self._recording:
            refs = self.registry.append(statements)
            self.index.sync()
        return [{"origin": ref.origin, "index": ref.index} for ref in refs]

    def require_everything(self, names: Iterable[str], *, force: bool = False) -> dict[str, Planned]:
        """Before the first stage starts, find what would fail later, after minutes of work; gives the plan.

        ``names`` are the targets of the run; what is fresh needs nothing unless ``force``. Raises RefusedInput
        (E-SOURCE, E-DEVICE), MissingTool, UsageError (E-KEY-PLACE, E-KEY-MODE), RegistryDamaged, DiskFailed.
        """
        self.index.sync()
        wanted = set(names)
        # ``doit --single`` leaves out the inputs, which a plan needs all the same.
        plan = self.planner.plan(self.with_inputs(self.nodes[name] for name in wanted))
        planned = {name: item for name, item in plan.items() if name in wanted}
        needed = [item.node for item in planned.values() if force or item.is_needed]
        error = missing_tools(needed) or missing_device(needed)
        if error is not None:
            raise error
        for item in planned.values():
            # A waiting target has not been looked at yet.
            self.planner.digests_of_sources(item.node)
        self.require_recordable()
        return plan

    def with_inputs(self, nodes: Iterable[Node]) -> list[Node]:
        """These targets and everything that they are built from, in the order of the graph."""
        known = {node.id for node in nodes}
        # Inputs come before consumers, so one walk from the end finds all of them.
        for node in reversed(self.nodes.values()):
            known.update(input_ids(node) if node.id in known else ())
        return [node for node in self.nodes.values() if node.id in known]

    def require_recordable(self) -> None:
        """Make sure, as far as can be seen before there is a result, that results can be kept and recorded."""
        keys, pins = default_keys_dir(), default_pins_dir()
        own = [log for log in logs_in(self.root / "registry") if read_key(keys, log) is not None]
        if not own and keys.resolve().is_relative_to(self.root.resolve()):
            raise UsageError(
                "E-KEY-PLACE",
                f"the key folder {keys} lies inside the project",
                hint="set XDG_CONFIG_HOME to a folder outside it: a signing key must never be committed",
            )
        lasting = (self.store.root, self.root / "registry")
        filesystems.require_local(lasting)
        if not own:
            # Once in the life of a project is enough.
            self.registry.notices.extend(filesystems.warnings(lasting))
        places = [self.store.root / name for name in ("objects", "results", "staging", "locks")]
        places += [self.root / "registry", pins, *(log.folder for log in own), *([] if own else [keys])]
        for place in places:
            _require_writable(place)
        for log in own:
            _require_appendable(log.lines_path)
        self.registry.verify_own()

    def cost_of(self, node: Node, receipt: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """What a build of a target cost, as metrics, by the prices of its spec as it is now."""
        return prices.metrics(Prices.of(self.graphs[node.spec].prices), receipt)

    def judge(self, node: Node) -> list[gates.Verdict]:
        """Judge a target's gates from the measurements in force."""
        return list(gate_judging.judge_at(self, node, self.current.get))

    def standing(self) -> Standing:
        """What stands by the logs as they are read now; read anew only when they have grown."""
        from ingot.core.standing import Standing

        state = self.index.state()
        if self._stands is None or self._stands[0] != state:
            self._stands = (state, Standing(self))
        return self._stands[1]

    def record_failures(self, node: Node, verdicts: Iterable[gates.Verdict]) -> None:
        """Append ``gate-failed`` or ``gate-warned`` once for each that no log knows yet."""
        told = (verdict for verdict in verdicts if verdict.word in ("fail", "warn") and verdict.value is not None)
        found = [gate_record.entry(verdict, f"{node.spec}:{verdict.target}", self.current) for verdict in told]
        if all(self.index.gate_known(fields) for fields in found):
            return
        # Another process may be judging the same measurements.
        with self.store.exclusive("gates"):
            self.index.sync()
            for fields in found:
                if not self.index.gate_known(fields):
                    rest = {name: value for name, value in fields.items() if name != "type"}
                    self.record(decision_statement(fields["type"], rest))

    def log_path(self, node: Node) -> Path:
        """Where the output of a target's stage is kept when it fails."""
        return self.store.root / "logs" / node.spec / f"{node.name}.log"

    def save(self) -> None:
        """Keep what is derived for the next process. DiskFailed: then that one reads the logs and files again."""
        with disk.explained(self.store.root):
            kept = self.store.root.is_dir()
        if kept:
            self.index.save()
            self.store.stats.save()


def _require_writable(place: Path) -> None:
    """DiskFailed (E-ACCESS) when nothing could be made in a folder, or in the one in which it would be made."""
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        what = "permission denied" if place.is_dir() else "not a folder"
        hint = "what is built could not be recorded: check the owner and the mode of the path"
        raise DiskFailed("E-ACCESS", f"{what}: {place}", hint=hint)


def _require_appendable(path: Path) -> None:
    """DiskFailed (E-ACCESS) when a file that is there may not be written: it was made read-only, or immutable."""
    if os.path.lexists(path) and not os.access(path, os.W_OK):
        hint = "what is built could not be recorded: check the owner, the mode and the attributes of the file"
        raise DiskFailed("E-ACCESS", f"permission denied: {path}", hint=hint)


def find_root(start: Path) -> Path:
    """The nearest folder at or above ``start`` that holds dodo.py; UsageError (E-PROJECT) when there is none."""
    for folder in (start, *start.parents):
        if (folder / "dodo.py").is_file():
            return folder
    raise UsageError("E-PROJECT", "this folder is in no ingot project: there is no dodo.py here or above")
