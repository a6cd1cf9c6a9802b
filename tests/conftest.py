"""Fixtures shared by all tests: the real data beside the checkout, where it is."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from hypothesis import settings

from faultledger import COMMAND, EVERYDAY, FULL, Ledger
from ingot.core.environment import UNTOLD
from pagekit import page_facts, page_keys, page_project, page_rendered  # noqa: F401  # fixtures
from projectkit import WARM, Sandbox
from recordkit import copied, simple

# Stages that run in this process tell nobody about it either.
os.environ.update(UNTOLD)
# As stages have it, and before torch is imported: threads that wait and spin take ten times what they give here.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers share the processors.
    os.environ["OMP_NUM_THREADS"] = "1"

# A loaded machine makes no example wrong.
settings.register_profile("ingot", deadline=None)
settings.load_profile("ingot")

REPO = Path(__file__).resolve().parent.parent
_LEDGER = pytest.StashKey[Ledger]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option that writes the table of faults."""
    parser.addoption("--write-promises", action="store_true", help=f"write docs/promises.md: {COMMAND}")


def pytest_configure(config: pytest.Config) -> None:
    """One ledger a run, which is told of every report."""
    config.stash[_LEDGER] = Ledger()
    config.pluginmanager.register(config.stash[_LEDGER])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Have the report say what a test planted; one that fails or is skipped before its call ended then."""
    report = yield
    if call.when == "call" or (call.when == "setup" and not report.passed):
        vars(report)["planted"] = item.config.stash[_LEDGER].planted(item)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the table when asked to; one of several processes that share the tests knows only its own."""
    if session.config.getoption("--write-promises") and not hasattr(session.config, "workerinput"):
        options, whole = session.config.option, session.config.args == [str(REPO / "tests")]
        table = EVERYDAY if "not slow" in options.markexpr else FULL
        session.config.stash[_LEDGER].write(table, in_part=bool(options.keyword) or not whole)


def pytest_unconfigure() -> None:
    """Close what llama_cpp opens as it is imported and never closes, so that Python does not complain at the exit."""
    library = sys.modules.get("llama_cpp._utils")
    for name in ("outnull_file", "errnull_file"):
        if library is not None and hasattr(library, name):
            getattr(library, name).close()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Folders are shared by all processors; single files and chosen tests start at once, in this process."""
    alone = config.option.keyword or not all(Path(argument).is_dir() for argument in config.args)
    return 0 if alone else None


@pytest.fixture(scope="session")
def ledger(request: pytest.FixtureRequest) -> Ledger:
    """What this run has planted."""
    return request.config.stash[_LEDGER]


@pytest.fixture
def cases(request: pytest.FixtureRequest) -> Callable[[int], None]:
    """Tells how many cases a test marked ``fault`` has tried."""
    ledger = request.config.stash[_LEDGER]
    return lambda count: ledger.tell(request.node.nodeid, count)


@pytest.fixture(scope="session", autouse=True)
def signals_as_in_a_terminal() -> None:
    """A shell's background job ignores these signals, and so would every program that a test starts from one."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def no_folder_of_the_real_user(tmp_path_factory: pytest.TempPathFactory) -> Generator[None, None, None]:
    """Keys, pins and the seal of a test never lie among those of whoever runs it."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(home / "config"))
        patch.setenv("XDG_STATE_HOME", str(home / "state"))
        yield
        WARM.close()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real models and data sets; tests that need it skip where it is absent."""
    path = Path(os.environ.get("INGOT_SHARED", REPO.parent / "shared")) / "data"
    if not path.is_dir():
        pytest.skip("needs ../shared/data (real models and data sets), which is not beside this clone")
    return path


@pytest.fixture(scope="session")
def stories(shared_data: Path) -> Path:
    """A trained Llama of 260 K parameters as a Hugging Face folder."""
    return shared_data / "models" / "stories260K"


@pytest.fixture(scope="session")
def stories_gguf(stories: Path) -> Path:
    """The same model as an F32 GGUF."""
    return stories / "stories260Ktok512-f32.gguf"


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    """An empty project with its own keys and pins."""
    return Sandbox.make(tmp_path)


@pytest.fixture(scope="session")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """a → b, built once: building it for every test that wants one would take minutes."""
    sandbox = Sandbox.make(tmp_path_factory.mktemp("built"))
    sandbox.spec("targets:\n" + simple("a") + simple("b", depends="a"))
    sandbox.ok()
    return sandbox


@pytest.fixture
def chain(built_once: Sandbox, tmp_path: Path) -> Sandbox:
    """A copy of ``built_once`` of its own."""
    return copied(built_once, tmp_path)
