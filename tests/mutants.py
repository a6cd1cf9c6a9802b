"""Tests of the tests: change one thing in a module of the record or the store, and see that a test goes red.

``python tests/mutants.py`` mutates the modules below, each mutant in a process of its own: a comparison, ``and`` or
``or``, a condition, a number, a sum, a returned value, a call or a ``raise`` left out. A first run of the tests notes
which of them execute which line; a mutant meets those alone, the quickest first. It is killed when one fails, and
survives when all pass. ``--least 0.9`` makes too low a score the exit code; ``--every N`` takes each N-th mutant;
``--again FILE`` those that an earlier run printed as not killed.

The parent imports what the tests need from elsewhere, never ingot: each child reads ingot from a copy of ``src/`` in
which one file is changed, and so does every program that a test starts.
"""

from __future__ import annotations

import argparse
import ast
import compileall
import copy
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parent.parent
MODULES = (
    "key", "store", "evicted", "filed", "latest", "sealing", "digest", "merkle", "note", "log", "log_writer",
    "log_tail", "registry", "index", "index_values",
)  # fmt: skip
TESTS = (
    "key", "digest", "formats", "store", "store_order", "store_files", "merkle", "note", "staging", "registry",
    "registry_reading", "log_writer", "registry_crash", "log_audit", "index", "index_edges", "proof", "tiles",
    "statement", "audit", "session", "promotion", "decision_audit", "virtual", "accept", "reuse",
)  # fmt: skip
_FAULTS = ("registry_rot",)
_LOG_TESTS = ("registry", "registry_reading", "log_writer", "log_audit", "registry_crash")
#: The tests that a module's mutants meet first, where they are not those of its own name.
FIRST = {
    "store": ("store", "store_order"), "evicted": ("store_order",), "filed": ("store_files", "store", "index"),
    "latest": ("store_files", "session"), "sealing": ("store_files", "store", "store_order"),
    "digest": ("digest", "formats", "store"), "log": _LOG_TESTS, "log_writer": _LOG_TESTS,
    "log_tail": ("store_files", *_LOG_TESTS), "registry": _LOG_TESTS,
    "index": ("index", "index_edges"), "index_values": ("index", "index_edges"),
}  # fmt: skip
#: Whole programs under a storm of processes: they tell nothing about one line that the others do not.
_NOT = ("test_eight_processes_lose_nothing", "test_threads_of_one_process_lose_nothing", "test_a_long_series")
#: No mutant may take longer; one that does has been noticed. The processor's time, and the clock's on a busy machine.
PATIENCE_CPU_S, PATIENCE_S = 60, 900.0
#: A mutant that so many tests let live has survived.
MOST_TESTS = 100
_COMPARE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change: the line it is on, what was done to it, and the whole changed source."""

    line: int
    what: str
    source: str
    #: The qualified name of the function whose body it is in; None where it is in none, or in one within another.
    function: str | None = None


# --- what is changed -----------------------------------------------------------------------------------------


def mutants(source: str) -> list[Mutant]:
    """Every mutant of a module's text, in the order of its lines."""
    tree = ast.parse(source)
    count = sum(1 for _ in _changes(tree))
    found = []
    for number in range(count):
        changed = copy.deepcopy(tree)
        node, what = _apply(changed, number)
        function = _function_at(tree, node.lineno)
        found.append(Mutant(node.lineno, what, ast.unparse(ast.fix_missing_locations(changed)), function))
    return sorted(found, key=lambda mutant: mutant.line)


def _function_at(tree: ast.Module, line: int) -> str | None:
    for outer in tree.body:
        for node in (outer, *(outer.body if isinstance(outer, ast.ClassDef) else ())):
            if isinstance(node, ast.FunctionDef) and node.body[0].lineno <= line <= (node.end_lineno or 0):
                return node.name if node is outer else f"{getattr(outer, 'name', '')}.{node.name}"
    return None


def _apply(tree: ast.Module, number: int) -> tuple[Any, str]:
    for at, (node, what, change) in enumerate(_changes(tree)):
        if at == number:
            place = copy.copy(node)
            change()
            return place, what
    raise AssertionError(number)


def _changes(tree: ast.Module) -> Iterator[tuple[Any, str, Any]]:
    """(node, what would be done, what does it) for every change; nothing is changed before it is called."""
    for parent, name, index, node in _nodes(tree):

        def put(new: ast.AST, parent: Any = parent, name: str = name, index: int | None = index) -> None:
            if index is None:
                setattr(parent, name, new)
            else:
                getattr(parent, name)[index] = new

        for what, new in _mutations(node):
            yield node, f"{what}: {ast.unparse(node).splitlines()[0][:90]}", lambda new=new, put=put: put(new)


def _nodes(node: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    """Every node that may be changed, with its place; what a person reads, or only a type checker, is left out."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_comment") or isinstance(value, str):
            continue
        for index, child in enumerate(value) if isinstance(value, list) else ((None, value),):
            if not isinstance(child, ast.AST) or isinstance(child, ast.Assert | ast.JoinedStr | ast.Import):
                continue
            yield node, name, index, child
            if not isinstance(child, ast.Raise):
                yield from _nodes(child)


def _mutations(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    match node:
        case ast.Compare(ops=[operator, *_]):
            yield "another comparison", _with(node, ops=[_COMPARE[type(operator)](), *node.ops[1:]])
        case ast.BoolOp():
            yield "and for or", _with(node, op=ast.And() if isinstance(node.op, ast.Or) else ast.Or())
        case ast.UnaryOp(op=ast.Not()):
            yield "not left out", node.operand
        case ast.BinOp() | ast.AugAssign() if type(node.op) in _ARITHMETIC:
            yield "another operator", _with(node, op=_ARITHMETIC[type(node.op)]())
        case ast.Constant(value=bool() as value):
            yield "the other truth", ast.Constant(not value)
        case ast.Constant(value=int() | float() as value):
            yield "one more", ast.Constant(value + 1)
        case ast.Constant(value=bytes() as value):
            yield "other bytes", ast.Constant(value + b"X")
        case ast.Return(value=ast.AST() as value) if not (isinstance(value, ast.Constant) and value.value is None):
            yield "None returned", _with(node, value=ast.Constant(None))
        case ast.Expr(value=ast.Call()):
            yield "call left out", ast.Pass()
        case ast.Raise() | ast.Continue() | ast.Break():
            yield "left out", ast.Pass()
        case (
            ast.If(test=ast.Name() | ast.Call() | ast.Attribute())
            | ast.IfExp(test=ast.Name() | ast.Call() | ast.Attribute())
        ):
            yield "condition turned", _with(node, test=ast.UnaryOp(ast.Not(), node.test))


def _with(node: Any, **fields: Any) -> Any:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


# --- which tests meet it -------------------------------------------------------------------------------------


class _Recorder:
    """How long each test took, and whether it passed."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self.seconds[report.nodeid] = report.duration
        if report.failed:
            self.failed.append(report.nodeid)


@dataclass(frozen=True)
class Known:
    """What the run without a mutant told: seconds by test, and the tests by module and line."""

    seconds: dict[str, float]
    lines: dict[str, dict[int, list[str]]]

    def tests(self, module: str, line: int, most: int = MOST_TESTS) -> list[str]:
        """The module's own tests, all of them, then others that execute the line, each the quickest first.

        Others only until there are ``most``. What runs as a module is imported is executed by all of its tests.
        """
        of_module = self.lines.get(module, {})
        others = set(of_module.get(line, ())) or {name for names in of_module.values() for name in names}
        own = {name for name in self.seconds if is_own(module, name)}
        chosen = (own & others or own) | others

        def order(name: str) -> tuple[bool, float, str]:
            return name not in own, self.seconds[name], name

        found = sorted(chosen & set(self.seconds), key=order)
        return found[: max(most, len(own.intersection(found)))]


def is_own(module: str, test: str) -> bool:
    """Whether a test is of a file whose subject is the module."""
    return any(f"/test_{name}.py::" in test for name in FIRST.get(module, (module,)))


def learn(tests: Sequence[str], modules: Sequence[str], work: Path) -> Known:
    """Run the tests once, under coverage, in a child; what that told is kept in the file INGOT_TESTS_KNOWN names."""
    told = Path(os.environ.get("INGOT_TESTS_KNOWN", work / "known.json")).resolve()
    if not told.exists():
        _learn(tests, modules, work, told)
    found = json.loads(told.read_text())
    for name in found["failed"]:
        print(f"left out, because it fails without a mutant: {name}", flush=True)
        found["seconds"].pop(name, None)
    lines = {module: {int(at): names for at, names in each.items()} for module, each in found["lines"].items()}
    return Known(found["seconds"], lines)


def _learn(tests: Sequence[str], modules: Sequence[str], work: Path, told: Path) -> None:
    def run() -> int:
        import coverage

        measure = coverage.Coverage(data_file=None, source=[str(work / "src" / "ingot" / "core")], config_file=False)
        recorder = _Recorder()

        class Switch:
            @pytest.hookimpl(wrapper=True)
            def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
                measure.switch_context(item.nodeid)
                yield

        measure.start()
        code = pytest.main([*_arguments(tests), "--tb=short"], plugins=[recorder, Switch()])
        measure.stop()
        data, lines = measure.get_data(), {}
        for module in modules:
            by_line = data.contexts_by_lineno(str(_file(work, module)))
            lines[module] = {line: [name for name in names if name] for line, names in by_line.items()}
        told.write_text(json.dumps({"seconds": recorder.seconds, "lines": lines, "failed": recorder.failed}))
        return int(code)

    _in_child(run, work, 3000.0, limited=False)


# --- killing them --------------------------------------------------------------------------------------------


def outcome(work: Path, module: str, mutant: Mutant, tests: Sequence[str]) -> str:
    """``killed``, ``survived``, ``timeout`` or ``untested``."""
    if not tests:
        return "untested"
    path = _file(work, module)
    whole = path.read_text()
    path.write_text(mutant.source)
    try:
        code = _in_child(lambda: _first_failure(module, tests), work, PATIENCE_S)
    finally:
        path.write_text(whole)
    return _named(code)


class _Quick:
    """Tries mutants in forks of one process that has collected the tests: ten times cheaper than a process of its own.

    What is changed is the code of the function that a mutant lies in. One that lies in none is left to ``outcome``.
    """

    def __init__(self, module: str, tried: Sequence[tuple[Mutant, Sequence[str]]], tell: Any) -> None:
        self.module, self.tried, self.tell = module, tried, tell

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        module = importlib.import_module(f"ingot.core.{self.module}")
        for number, (mutant, tests) in enumerate(self.tried):
            self.tell(number, _forked(session, module, mutant, [items[name] for name in tests if name in items]))
        return True


def _forked(session: pytest.Session, module: Any, mutant: Mutant, items: Sequence[pytest.Item]) -> str:
    if not items:
        return "untested"
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_CPU, (PATIENCE_CPU_S, PATIENCE_CPU_S))
            _changed(module, mutant)
            code = 0
            for item, following in zip(items, [*items[1:], None], strict=True):
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                if session.testsfailed:
                    code = 1
                    break
        finally:
            os._exit(code)
    code_or_none = _awaited(pid, PATIENCE_S)
    return _named(code_or_none)


def in_function(mutant: Mutant) -> bool:
    """Whether the line of a mutant lies in the body of a function, as its source has it."""
    return mutant.function is not None


def _changed(module: Any, mutant: Mutant) -> None:
    """Give the function that the mutant lies in its changed code."""
    found: Any = compile(mutant.source, module.__file__, "exec")
    place: Any = module
    for name in str(mutant.function).split("."):
        found = next(it for it in found.co_consts if getattr(it, "co_name", None) == name)
        place = vars(place)[name]
    for wrapper in ("__func__", "fget", "func", "__wrapped__"):
        place = getattr(place, wrapper, place)
    assert place.__code__.co_freevars == found.co_freevars
    place.__code__ = found


def _named(code: int | None) -> str:
    return "timeout" if code in (None, -signal.SIGXCPU, -signal.SIGKILL) else "killed" if code else "survived"


def _first_failure(module: str, tests: Sequence[str]) -> int:
    """Not 0 when a test fails; the module's own come first, so that most mutants need no other file to be read."""
    own = [name for name in tests if is_own(module, name)]
    for chosen in (own, tests[len(own) :]):
        code = int(pytest.main([*_arguments(chosen), "-x"])) if chosen else 0
        if code:
            return code
    return 0


def _arguments(tests: Iterable[str]) -> list[str]:
    return ["-q", "-n", "0", "-p", "no:cacheprovider", "--no-header", "-W", "default", *tests]


def _in_child(run: Any, work: Path, patience: float, *, limited: bool = True) -> int | None:
    """A child's exit code; None when it had to be ended. What it prints goes to a file."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            os.setsid()
            _become(work)
            if limited:
                resource.setrlimit(resource.RLIMIT_CPU, (PATIENCE_CPU_S, PATIENCE_CPU_S))
            code = run()
        except BaseException as error:  # noqa: BLE001
            os.write(2, repr(error).encode())
        finally:
            os._exit(code)
    return _awaited(pid, patience)


def _awaited(pid: int, patience: float) -> int | None:
    until = time.monotonic() + patience
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            _end_group(pid)
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    _end_group(pid)
    os.waitpid(pid, 0)
    return None


def _end_group(pid: int) -> None:
    """End the child and whatever it started and did not wait for."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _become(work: Path) -> None:
    """A process that runs tests on the copy, quietly, with files of its own."""
    output = os.open(work / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(REPO)
    temporary = work / "tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    os.environ |= {"PYTHONPATH": str(work / "src"), "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(temporary)}
    tempfile.tempdir = None
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(work / "src"))
    importlib.invalidate_caches()
    import hypothesis

    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    checks = list(hypothesis.HealthCheck)
    hypothesis.settings.register_profile(
        "mutants", phases=phases, database=None, deadline=None, suppress_health_check=checks
    )
    hypothesis.settings.load_profile("mutants")


def _file(work: Path, module: str) -> Path:
    return work / "src" / "ingot" / "core" / f"{module}.py"


def prepared(work: Path) -> None:
    """A copy of the package, and everything from elsewhere imported."""
    shutil.copytree(REPO / "src", work / "src", ignore=shutil.ignore_patterns("__pycache__"))
    compileall.compile_dir(work / "src", quiet=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("coverage", "cryptography.hazmat.primitives.asymmetric.ed25519", "doit.doit_cmd", "hypothesis",
                     "pydantic", "rfc8785", "rich.live", "ruamel.yaml", "xdist", "xxhash"):  # fmt: skip
            importlib.import_module(name)


def _control(work: Path, module: str, mutant: Mutant, tests: Sequence[str]) -> None:
    """Where nothing is changed, nothing is killed: else every mutant would be."""
    found: list[str] = []
    same = replace(mutant, source=_file(work, module).read_text())
    _try_quickly(work, module, [(same, tests[:10])], lambda _mutant, outcome: found.append(outcome))
    if found != ["survived"]:
        raise SystemExit(f"{module}: the tests fail without a mutant: {(work / 'output.txt').read_text()[-3000:]}")


def _try_quickly(work: Path, module: str, tried: Sequence[tuple[Mutant, Sequence[str]]], tell: Any) -> None:
    """Try mutants of functions, and tell of each as soon as it is known."""
    told = work / "told.txt"
    told.touch()

    def run() -> int:
        def write(number: int, found: str) -> None:
            with told.open("a") as file:
                file.write(f"{number} {found}\n")

        tests = sorted({name for _mutant, names in tried for name in names})
        return int(pytest.main(_arguments(tests), plugins=[_Quick(module, tried, write)]))

    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            _become(work)
            run()
        finally:
            os._exit(0)
    read, over = 0, False
    while not over:
        over = os.waitpid(pid, os.WNOHANG)[0] != 0
        for line in told.read_text().splitlines()[read:]:
            number, _, found = line.partition(" ")
            tell(tried[int(number)][0], found)
            read += 1
        time.sleep(0.2)
    told.unlink()
    if read != len(tried):
        raise SystemExit(
            f"{module}: {len(tried) - read} mutants were not tried: {(work / 'output.txt').read_text()[-3000:]}"
        )


@dataclass
class Score:
    """How many of a module's mutants there were, and what became of them."""

    killed: int = 0
    timeout: int = 0
    survived: int = 0
    untested: int = 0

    @property
    def share(self) -> float:
        """The killed ones of all."""
        total = self.killed + self.timeout + self.survived + self.untested
        return (self.killed + self.timeout) / total if total else 1.0

    def __str__(self) -> str:
        total = self.killed + self.timeout + self.survived + self.untested
        return (
            f"{self.killed + self.timeout} of {total} killed ({self.share:.1%}; {self.timeout} by the clock), "
            f"{self.survived} survived, {self.untested} met no test"
        )


def hunt(modules: Sequence[str], tests: Sequence[str], every: int, again: str = "") -> dict[str, Score]:
    """Try the mutants of these modules; each is printed with what became of it.

    ``again``: what an earlier hunt printed; those alone are tried that it says were not killed.
    """
    alive = {line.partition(": ")[2] for line in again.splitlines() if line.startswith(("survived", "untested"))}
    scores: dict[str, Score] = {}
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        work = Path(folder).resolve()
        prepared(work)
        known = learn(tests, modules, work)
        print(f"{len(known.seconds)} tests, {sum(known.seconds.values()):.0f} s", flush=True)
        for module in modules:
            score = scores[module] = Score()
            chosen = mutants(_file(work, module).read_text())[::every]
            chosen = [it for it in chosen if not again or named(module, it) in alive]

            def tell(mutant: Mutant, found: str, module: str = module, score: Score = score) -> None:
                setattr(score, found, getattr(score, found) + 1)
                print(f"{found}: {named(module, mutant)}", flush=True)

            quick = [(mutant, known.tests(module, mutant.line)) for mutant in chosen if in_function(mutant)]
            if quick:
                _control(work, module, *quick[0])
            _try_quickly(work, module, quick, tell)
            for mutant in chosen:
                if not in_function(mutant):
                    tell(mutant, outcome(work, module, mutant, known.tests(module, mutant.line)))
            print(f"{module}: {score}", flush=True)
    return scores


def named(module: str, mutant: Mutant) -> str:
    """A mutant as it is printed."""
    return f"{module}.py:{mutant.line}: {mutant.what}"


def total(scores: dict[str, Score]) -> Score:
    """All modules together."""
    names = ("killed", "timeout", "survived", "untested")
    return Score(*(sum(getattr(score, name) for score in scores.values()) for name in names))


def default_tests() -> list[str]:
    """The files whose tests a mutant meets."""
    files = [f"tests/core/test_{name}.py" for name in TESTS] + [f"tests/faults/test_{name}.py" for name in _FAULTS]
    return [name for name in files if (REPO / name).exists()]


def main(arguments: Sequence[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", default=list(MODULES), help="modules of ingot.core")
    parser.add_argument("--every", type=int, default=1, help="take each N-th mutant")
    parser.add_argument("--least", type=float, default=0.0, help="fail below this share of killed ones")
    parser.add_argument("--again", type=Path, help="what an earlier run printed: try what it says was not killed")
    chosen = parser.parse_args(arguments)
    again = chosen.again.read_text() if chosen.again else ""
    deselect = " and ".join(f"not {name}" for name in _NOT)
    scores = hunt(chosen.modules, [*default_tests(), "-k", deselect], chosen.every, again)
    everything = total(scores)
    print(f"together: {everything}")
    return int(everything.share < chosen.least)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
