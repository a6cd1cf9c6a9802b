"""A kind that gives other bytes each time: what is built from it is built from one of its results, never from two."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest

from ingot.core.statement import receipt_of
from projectkit import Sandbox
from recordkit import append, audited, object_of, receipts, registry_of, store_of

#: ``noise`` is read by ``both`` itself and through ``copy``; what ``both`` wrote says whether they were the same.
SPEC = """\
targets:
  noise: {kind: command, command: [sh, -c, "head -c 8 /dev/urandom | od -An -tx1 > {out}/n"]}
  copy: {kind: command, command: [cp, "{data}/n", "{out}/copied"], from: {data: noise}}
  both:
    kind: command
    command: [sh, -c, "cmp {one}/n {two}/copied && cp {one}/n {out}/n && echo VERSION > {out}/version"]
    from: {one: noise, two: copy}
"""


def spec(sandbox: Sandbox, version: int, name: str = "s") -> None:
    sandbox.spec(SPEC.replace("VERSION", str(version)), name)


def noise(sandbox: Sandbox, target: str = "s:noise", name: str = "n") -> bytes:
    return (object_of(sandbox, target) / name).read_bytes()


def mixed(sandbox: Sandbox) -> list[str]:
    """The builds in the log that were made of two results of one key."""
    builds = [receipt_of(entry.statement) for entry in registry_of(sandbox).entries() if entry.type == "build"]
    keys = {build["digest"]: str(build["key"]) for build in builds}
    made_of = {build["digest"]: {item["digest"] for item in build["inputs"].values()} for build in builds}

    def below(digest: str) -> set[str]:
        return {digest}.union(*(below(source) for source in made_of[digest]))

    wrong = []
    for build in builds:
        seen: dict[str, set[str]] = {}
        for digest in below(build["digest"]):
            seen.setdefault(keys[digest], set()).add(digest)
        wrong += [f"{build['target']} #{key[:8]}" for key, digests in seen.items() if len(digests) > 1]
    return wrong


@pytest.fixture
def built(sandbox: Sandbox) -> Sandbox:
    spec(sandbox, 1)
    sandbox.ok()
    return sandbox


def forgotten(sandbox: Sandbox) -> None:
    sandbox.ok("forget", "s:noise")


def evicted(sandbox: Sandbox) -> None:
    sandbox.ok("gc", "--newest", "0", "--drop", "s:noise")


def lost(sandbox: Sandbox) -> None:
    folder = object_of(sandbox, "s:noise")
    folder.chmod(0o755)
    shutil.rmtree(folder)


def evicted_with_the_copy(sandbox: Sandbox) -> None:
    sandbox.ok("gc", "--newest", "0", "--drop", "s:noise,s:copy")


@pytest.mark.parametrize("how", [forgotten, evicted, lost, evicted_with_the_copy])
def test_a_second_result_of_a_key_is_never_mixed_with_the_first(built: Sandbox, how: Callable[[Sandbox], None]) -> None:
    first = noise(built)
    how(built)
    spec(built, 2)
    built.ok()
    assert noise(built) != first
    # ``both`` itself fails on two different ones; the copy was made again, too.
    assert noise(built, "s:copy", "copied") == noise(built, "s:both") == noise(built)
    assert mixed(built) == []
    assert audited(built).problems == []
    assert "nothing to do" in built.ok()


def test_what_comes_out_beside_the_result_in_force_is_built_from_by_nobody(built: Sandbox) -> None:
    before = receipts(built)
    told = built.json("reproduce", "s:noise")
    assert told["targets"][0]["agrees"] is False
    assert "nothing to do" in built.ok()
    spec(built, 2)
    built.ok()
    after = receipts(built)
    assert after["s:both"]["inputs"] == before["s:both"]["inputs"]
    assert mixed(built) == []


def test_the_same_chain_in_another_spec_is_of_one_result_too(built: Sandbox) -> None:
    """It may take the older one of the two that are known; then its copy is the older one's."""
    built.ok("forget", "s:noise")
    built.ok()
    spec(built, 2, "other")
    built.ok()
    digests = {it["target"]: it["digest"] for it in built.json("plan")["targets"]}
    names = {"other:noise": "n", "other:copy": "copied", "other:both": "n"}
    found = {(store_of(built).object_path(digests[it]) / name).read_bytes() for it, name in names.items()}
    assert len(found) == 1
    assert mixed(built) == []


def test_a_mixture_is_seen(built: Sandbox) -> None:
    """The teeth: a build that is recorded as made of the second result and of a copy of the first."""
    first = receipts(built)
    built.ok("forget", "s:noise")
    built.ok()
    assert mixed(built) == []
    inputs = first["s:both"]["inputs"] | {"one": receipts(built)["s:both"]["inputs"]["one"]}
    append(built, "s:both", inputs=inputs, digest="ab" * 32)
    assert mixed(built) == [f"s:both #{first['s:noise']['key'][:8]}"]
