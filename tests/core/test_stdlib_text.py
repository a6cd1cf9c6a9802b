"""Python's documentation: equal text for equal sources, other text for others; nothing is imported."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

from ingot.core import stdlib_text
from ingot.errors import RefusedInput


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A standard library of two modules."""
    (tmp_path / "pkg" / "test").mkdir(parents=True)
    (tmp_path / "pydoc_data").mkdir()
    (tmp_path / "pydoc_data/topics.py").write_text("topics = {'b': 'Second.', 'a': 'First.\\n'}\n")
    (tmp_path / "pkg/test/mod.py").write_text('"""A test."""\n')
    (tmp_path / "broken.py").write_text('"""Doc."""\nprint "2"\n')
    (tmp_path / "pkg/__init__.py").write_text(
        'raise SystemExit("imported")\nclass A(B):\n    """A class.\n\n    More.\n    """\n'
        '    def f(self, x: int = 1, *, y) -> str:\n        """Does."""\n        def g():\n            """Local."""\n'
        "    def bare(self): pass\n"
        'if True:\n    async def h(): \n        """Waits."""\n'
    )
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    return tmp_path


def test_what_is_extracted(library: Path) -> None:
    lines = [json.loads(line) for line in stdlib_text.extract("docstrings").splitlines()]
    assert lines == [
        {"module": "pkg", "name": "A", "signature": "(B)", "doc": "A class.\n\nMore."},
        {"module": "pkg", "name": "A.f", "signature": "(self, x: int=1, *, y) -> str", "doc": "Does."},
        {"module": "pkg", "name": "h", "signature": "()", "doc": "Waits."},
    ]
    topics = [json.loads(line) for line in stdlib_text.extract("topics").splitlines()]
    assert [(line["name"], line["doc"]) for line in topics] == [("a", "First."), ("b", "Second.")]


def test_the_fingerprint_follows_the_files(library: Path) -> None:
    first = stdlib_text.fingerprint()
    assert stdlib_text.fingerprint() == first
    (library / "pydoc_data/topics.py").write_text("topics = {'b': 'Third one.'}\n")
    second = stdlib_text.fingerprint()
    assert second != first
    (library / "pkg/new.py").write_text('"""New."""\n')
    assert stdlib_text.fingerprint() != second


@pytest.mark.parametrize("which", ["docstrings", "topics"])
def test_a_python_without_sources_is_refused(library: Path, which: str) -> None:
    (library / "pydoc_data/topics.py").unlink()
    (library / "pkg/__init__.py").unlink()
    with pytest.raises(RefusedInput) as error:
        stdlib_text.extract(which)
    assert error.value.code == "E-STDLIB"


def test_the_docstring_is_the_one_that_python_shows() -> None:
    lines = [json.loads(line) for line in stdlib_text.extract("docstrings").splitlines()]
    found = {(line["module"], line["name"]): line for line in lines}
    assert found["json", "dumps"]["doc"] == inspect.getdoc(json.dumps)
    assert len(lines) > 3000
    assert not {line["module"].split(".")[0] for line in lines} & {"test", "idlelib", "lib2to3"}


def test_the_text_does_not_depend_on_the_process() -> None:
    code = "import hashlib, ingot.core.stdlib_text as s; print(hashlib.sha256(s.extract('docstrings')).hexdigest())"
    digests = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1
