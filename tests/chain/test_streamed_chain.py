"""Virtual targets as a person uses them: real kinds over a real model, ``doit`` in processes of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from ingot.core.digest import record_files, tree_digest
from projectkit import DOIT, Sandbox
from recordkit import audited, codes, object_of, receipts, store_of


def spec(*, virtual: bool = True, dtypes: str = "float16", more: str = "") -> str:
    """base, adapter → merged → pruned → final."""
    never = ", virtual: true" if virtual else ""
    return (
        "targets:\n"
        "  base: {kind: command, command: [cp, base/config.json, base/model.safetensors, '{out}'], files: [base/*]}\n"
        "  adapter: {kind: command, files: [adapter/*], "
        "command: [cp, adapter/adapter_config.json, adapter/adapter_model.safetensors, '{out}']}\n"
        f"  merged: {{kind: merge, from: {{model: base, adapter: adapter}}{never}}}\n"
        f"  pruned: {{kind: prune, from: {{model: merged}}, sparsity: 0.5{never}}}\n"
        f"  final: {{kind: convert, from: {{model: pruned}}, matrix: {{dtype: [{dtypes}]}}}}\n{more}"
    )


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama and an adapter for it, as a person has them in a folder."""
    from tinymodels import llama, peft_adapter, save

    folder = tmp_path_factory.mktemp("parts")
    save(llama(), folder / "base")
    peft_adapter(llama(), folder / "adapter")
    for name in ("README.md", "generation_config.json"):
        for path in folder.rglob(name):
            path.unlink()
    return folder


def made(folder: Path, parts: Path, **options: Any) -> Sandbox:
    sandbox = Sandbox.make(folder)
    for name in ("base", "adapter"):
        shutil.copytree(parts / name, sandbox.root / "specs" / name)
    sandbox.spec(spec(**options))
    return sandbox


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, parts: Path) -> Sandbox:
    """The chain with its middle virtual, built once."""
    sandbox = made(tmp_path_factory.mktemp("built"), parts)
    sandbox.ok()
    return sandbox


def test_what_flowed_through_real_kinds_is_what_they_write(built: Sandbox, tmp_path: Path) -> None:
    """Switching ``virtual`` off: the bytes written are those that were measured, and no consumer is built again."""
    sandbox = Sandbox(tmp_path / "project", built.home)
    shutil.copytree(built.root, sandbox.root, symlinks=True)
    assert sandbox.states() == {
        "s:base": "fresh", "s:adapter": "fresh", "s:merged": "virtual", "s:pruned": "virtual",
        "s:final@float16": "fresh",
    }  # fmt: skip
    before = receipts(sandbox)
    assert before["s:merged"]["stored"] is False
    assert before["s:merged"]["metrics"]["parameters"]["value"] > 10_000
    assert 0.49 < before["s:pruned"]["metrics"]["sparsity"]["value"] < 0.52
    sandbox.spec(spec(virtual=False))
    assert sandbox.states()["s:final@float16"] == "fresh"
    printed = sandbox.ok()
    assert "2 built" in printed
    after = receipts(sandbox)
    for name in ("s:merged", "s:pruned"):
        assert after[name]["observed"] == {"digest": before[name]["digest"], "agrees": True}
        assert tree_digest(record_files(object_of(sandbox, name))) == before[name]["digest"]
        assert {n: m["value"] for n, m in after[name]["metrics"].items()} == {
            n: m["value"] for n, m in before[name]["metrics"].items()
        }
    assert after["s:final@float16"] == before["s:final@float16"]
    assert codes(sandbox) == []
    sandbox.spec(spec())
    assert "nothing to do: 5 targets fresh" in sandbox.ok()


def test_screens_of_a_chain_with_virtual_targets(built: Sandbox) -> None:
    plan = built.json("plan")["targets"]
    merged = next(item for item in plan if item["target"] == "s:merged")
    assert (merged["state"], merged["present"], merged["predicted"]) == ("virtual", False, None)
    assert merged["digest"] == receipts(built)["s:merged"]["digest"]
    assert "all 5 targets are fresh or virtual (2)" in built.ok("plan")
    assert "nothing to do: 3 targets fresh, 2 virtual" in built.ok()
    assert "merge, virtual" in built.ok("list", "--all")
    shown = built.ok("show", "s:merged")
    assert "not written, only measured (streamed into s:final@float16; doit materialize s:merged writes it)" in shown
    assert ", streamed" in built.ok("show", "s:final@float16")
    history = built.ok("history", "s")
    assert "streamed  s:merged" in history
    assert "first build; into s:final@float16" in history
    entry = next(item for item in built.json("history") if item["target"] == "s:pruned")
    assert (entry["stored"], entry["shared_with"]) == (False, ["s:final@float16"])
    assert "s:merged is virtual: nothing that is to be built needs it" in built.ok("why", "s:merged")
    assert "is virtual: it is measured again" in built.ok("forget", "s:merged")
    note = "s:merged is virtual: it is streamed into what is built from it, and not written; doit materialize s:merged"
    assert note in built.ok("s:merged")
    assert built.doit("diff", "s:merged", "s:pruned").returncode == 1
    assert codes(built) == []
    found = audited(built)
    assert found.absent == 2


def test_a_new_variant_says_what_flows_into_it(built: Sandbox, tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path / "project", built.home)
    shutil.copytree(built.root, sandbox.root, symlinks=True)
    sandbox.spec(spec(dtypes="float16, bfloat16"))
    printed = sandbox.ok("plan")
    assert "streamed into final@bfloat16" in printed
    assert "2 virtual are streamed" in printed
    plan = sandbox.json("plan")
    assert plan["totals"]["targets"] == 1


def test_materialize_writes_what_was_streamed(built: Sandbox, tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path / "project", built.home)
    shutil.copytree(built.root, sandbox.root, symlinks=True)
    digest = receipts(sandbox)["s:merged"]["digest"]
    done = sandbox.json("materialize", "s:merged")
    path = f"cache/objects/{digest[:2]}/{digest}"
    assert done == {
        "format": 1,
        "targets": [{"target": "s:merged", "fate": "built", "digest": digest, "path": path, "agrees": True}],
    }
    assert (sandbox.root / "cache/latest/s/merged/model.safetensors").is_file()
    assert sandbox.states()["s:merged"] == "fresh"
    assert "nothing to do: 4 targets fresh, 1 virtual" in sandbox.ok()
    assert "nothing to do" in sandbox.ok("materialize", "s:merged")
    assert "nothing to do" in sandbox.ok("materialize", "s:base"), "what is here is as it is wanted"
    for arguments, words in ((("s:nope",), "E-TARGET"), ((), "needs the name")):
        refused = sandbox.doit("materialize", *arguments)
        assert refused.returncode == 3
        assert words in refused.stdout + refused.stderr
        assert "Traceback" not in refused.stderr
    assert codes(sandbox) == []


def test_a_run_killed_while_weights_flow_leaves_nothing_partial(parts: Path, tmp_path: Path) -> None:
    sandbox = made(tmp_path, parts)
    sandbox.ok("s:base", "s:adapter")
    entries = len(sandbox.entries())
    running = subprocess.Popen(
        [DOIT], cwd=sandbox.root, env=sandbox.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    out = sandbox.root / "cache" / "staging"
    deadline = time.monotonic() + 60
    while not list(out.glob("*/streamed/*/inputs")) and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    assert len(sandbox.entries()) == entries
    assert codes(sandbox) == []
    sandbox.ok()
    assert list(out.iterdir()) == []
    assert codes(sandbox) == []
    assert store_of(sandbox).object_path(receipts(sandbox)["s:final@float16"]["digest"]).is_dir()


def gguf_spec(*, virtual: bool) -> str:
    return spec(virtual=virtual).partition("  final:")[0] + (
        "  gguf: {kind: gguf, from: {model: pruned}, matrix: {type: [Q8_0, Q4_0, F16]}}\n"
    )


@pytest.mark.slow
def test_one_pass_to_gguf_gives_the_bytes_of_single_steps(stories: Path, tmp_path: Path) -> None:
    """Merged and pruned flow into three files at once; beside it each is built alone, from what was written."""
    from transformers import AutoModelForCausalLM

    from tinymodels import peft_adapter

    folder = tmp_path / "parts"
    model = AutoModelForCausalLM.from_pretrained(stories)
    shutil.copytree(stories, folder / "base", ignore=shutil.ignore_patterns("*.gguf", "README*"))
    peft_adapter(model, folder / "adapter")
    for name in ("README.md",):
        (folder / "adapter" / name).unlink(missing_ok=True)
    files = sorted(f"base/{path.name}" for path in (folder / "base").iterdir())

    def text(*, virtual: bool) -> str:
        return gguf_spec(virtual=virtual).replace("base/config.json, base/model.safetensors", ", ".join(files))

    one = made(tmp_path / "one", folder)
    one.spec(text(virtual=True))
    printed = one.ok("-n", "2")
    found = receipts(one)
    names = [f"s:gguf@{kind}" for kind in ("Q8_0", "Q4_0", "F16")]
    assert printed.count("built     s:gguf@") == 3
    assert "streamed  s:merged" in printed
    assert {tuple(found[name]["timings"].items()) for name in names} == {tuple(found[names[0]]["timings"].items())}
    assert set(found[names[0]]["shared_with"]) == set(names[1:])
    assert found["s:merged"]["stored"] is False
    assert found["s:merged"]["tensors_evidence"]
    assert set(one.states().values()) == {"fresh", "virtual"}
    two = made(tmp_path / "two", folder)
    two.spec(text(virtual=False))
    for name in names:
        two.ok(name)
    assert {name: it["digest"] for name, it in receipts(two).items()} == {
        name: it["digest"] for name, it in found.items()
    }
    assert "shared_with" not in receipts(two)[names[0]]
    assert codes(one) == codes(two) == []
