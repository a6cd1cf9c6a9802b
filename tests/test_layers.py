"""Which module may import which: errors ← core ← stages ← {doit_tasks, commands, reporter}; kit only inside stages."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from projectkit import Sandbox, counted

SRC = Path(__file__).resolve().parent.parent / "src" / "ingot"
MODULES = sorted(SRC.rglob("*.py"))

#: What each layer may import of ingot, at any level of a module. ``kit`` is checked apart.
ALLOWED = {
    "errors": set(),
    "version": set(),
    "core": {"errors", "version", "core"},
    "kit": {"errors", "core", "kit"},
    "stages": {"errors", "core", "kit"},
    "registry": {"errors", "version", "core"},
    "view": {"errors", "version", "core", "view"},
}
HEAVY = ("torch", "numpy", "transformers", "peft", "gguf", "llama_cpp", "coremltools", "safetensors", "tokenizers",
         "onnx", "onnxruntime", "onnxscript", "altair", "vl_convert", "huggingface_hub", "lm_eval", "datasets",
         "llguidance")  # fmt: skip


def layer_of(path: Path) -> str:
    parts = path.relative_to(SRC).with_suffix("").parts
    return parts[0] if len(parts) > 1 else path.stem


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def module_level(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Imports that run when the module is imported: outside functions and ``if TYPE_CHECKING``."""
    for node in tree.body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield from imports(node)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SRC)))
def test_a_module_imports_only_what_its_layer_may(path: Path) -> None:
    layer, tree = layer_of(path), ast.parse(path.read_text())
    for name, line in imports(tree):
        if name.startswith("ingot.") and layer in ALLOWED:
            target = name.split(".")[1]
            assert target in ALLOWED[layer] | {layer}, f"{path.name}:{line} imports {name}"
        if name.split(".")[0] == "doit":
            assert layer in {"doit_tasks", "commands", "reporter", "view"}, f"{path.name}:{line} imports doit"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SRC)))
def test_only_kit_imports_heavy_packages_at_module_level(path: Path) -> None:
    if layer_of(path) == "kit":
        return
    for name, line in module_level(ast.parse(path.read_text())):
        assert name.split(".")[0] not in HEAVY, f"{path.name}:{line} imports {name}"
        assert not name.startswith("ingot.kit"), f"{path.name}:{line} imports {name} at module level"


def test_nothing_loads_pickles() -> None:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr == "load":
                assert not (isinstance(node.value, ast.Name) and node.value.id in {"torch", "pickle", "joblib"}), path
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, path


def test_only_disk_renames() -> None:
    for path in (SRC / "core").glob("*.py"):
        text = path.read_text()
        if path.name != "disk.py":
            assert "os.rename" not in text, path
            assert "os.replace" not in text, path
            assert "shutil.move" not in text, path


COMMANDS: tuple[list[str], ...] = (
    ["list"],
    ["plan"],
    ["plan", "--json"],
    ["show", "s:a", "--json"],
    ["show", "--active", "s"],
    ["promote", "s", "--json"],
    ["accept", "s:a", "--reason", "as it was"],
    ["history", "--json"],
    ["why", "s:a"],
    ["diff", "s:a", "s:a"],
    ["help", "report"],
    ["audit", "--json"],
    ["schema"],
    ["doctor"],
    ["query"],
    ["query", "limit 3", "--all"],
    [],
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_reading_commands_and_a_run_with_nothing_to_do_load_nothing_heavy(command: list[str], tmp_path: Path) -> None:
    sandbox = Sandbox.make(tmp_path)
    sandbox.spec("targets:\n" + counted(sandbox.root, "a"))
    sandbox.ok()
    program = (
        "import sys, atexit; heavy = " + repr(HEAVY) + "\n"
        "import os\n"
        "atexit.register(lambda: os.write(2, ('LOADED ' + ' '.join(n for n in heavy if n in sys.modules)).encode()))\n"
        "from doit.doit_cmd import DoitMain\n"
        f"sys.exit(DoitMain().run({command!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=sandbox.root, env=sandbox.env, capture_output=True, text=True, check=False
    )
    # Of packages that are missing, and of models that there are none, they say 1.
    assert done.returncode in ({0, 1} if command[:1] in (["doctor"], ["query"]) else {0}), done.stdout + done.stderr
    assert done.stderr.endswith("LOADED "), done.stderr[-300:]
