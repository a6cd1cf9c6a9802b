"""One small built project, copied for every test that wants one: building it again and again would take minutes."""

from __future__ import annotations

from pathlib import Path

import pytest

from projectkit import Sandbox
from recordkit import copied, simple


@pytest.fixture(scope="session")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """a → b, built."""
    sandbox = Sandbox.make(tmp_path_factory.mktemp("built"))
    sandbox.spec("targets:\n" + simple("a") + simple("b", depends="a"))
    sandbox.ok()
    return sandbox


@pytest.fixture
def chain(built_once: Sandbox, tmp_path: Path) -> Sandbox:
    """A copy of it."""
    return copied(built_once, tmp_path)
