"""Artifacts that change once published: ``audit`` finds each, no build uses one, no byte is lost silently."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from ingot.core.digest import is_digest
from ingot.core.project import Project
from ingot.core.seal import Seal
from ingot.core.session import Session
from ingot.core.store import Store
from ingot.errors import StoreDamaged
from projectkit import Sandbox
from recordkit import audited, codes, copied, object_of, publish, receipts, store_of, writable

BLOCK = 4096
ONE = random.Random(1).randbytes(3 * BLOCK)
TWO = random.Random(2).randbytes(3 * BLOCK)
FILES = {"one.bin": ONE, "two.bin": TWO, "deep/er/three.txt": b"three\n"}

#: ``a`` writes three files, ``b`` reads them all; ``twin`` has files of the same names and sizes and other content.
MAKE = "cp -r $0/. $1/"


def spec(sandbox: Sandbox, *more: str) -> None:
    """a and its twin, and consumers of ``a`` with these names."""
    text = "targets:\n"
    for name in ("a", "twin"):
        text += f"  {name}: {{kind: command, command: [sh, -c, '{MAKE}', {name}, '{{out}}'], files: [{name}]}}\n"
    for name in ("b", *more):
        script = f"cat {{data}}/one.bin {{data}}/two.bin {{data}}/deep/er/three.txt > {{out}}/{name}.txt"
        text += f"  {name}: {{kind: command, command: [sh, -c, '{script}'], from: {{data: a}}}}\n"
    sandbox.spec(text)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """The project built once."""
    sandbox = Sandbox.make(tmp_path_factory.mktemp("template"))
    for name, content in FILES.items():
        for target, data in (("a", content), ("twin", content[::-1])):
            path = sandbox.root / "specs" / target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    spec(sandbox)
    sandbox.ok()
    return sandbox


@dataclass(frozen=True)
class Scene:
    """A copy of the built project, and where the artifacts of a and of its twin lie in it."""

    sandbox: Sandbox
    folder: Path
    twin: Path
    elsewhere: Path

    def file(self, name: str = "one.bin") -> Path:
        """A file of a's artifact, made writable."""
        for folder in (self.folder, *(self.folder / part for part in Path(name).parents)):
            writable(folder)
        return writable(self.folder / name)

    def rewrite(self, change: Callable[[bytearray], object], name: str = "one.bin") -> None:
        """Change a file's bytes in place, and put back what can be put back of its stat: inode, size, mtime, mode."""
        path = self.file(name)
        status, data = path.stat(), bytearray(path.read_bytes())
        change(data)
        with path.open("r+b") as file:
            file.write(data)
            file.truncate()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        path.chmod(0o444)


@pytest.fixture
def scene(template: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    sandbox = copied(template, tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(sandbox.home / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(sandbox.home / "state"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    # A copy has other inodes: let the stat cache know these files, as after any run.
    assert set(states(sandbox).values()) == {"fresh"}
    return Scene(sandbox, object_of(sandbox, "s:a"), object_of(sandbox, "s:twin"), elsewhere)


def planned(sandbox: Sandbox) -> dict[str, tuple[str, str | None, tuple[str, ...]]]:
    """State, digest and reason codes of every target, as ``doit plan`` finds them; caches are kept as it does."""
    project = Project.open(sandbox.root)
    plan = project.plan(project.nodes.values())
    project.save()
    return {name: (item.state, item.digest, tuple(r.code for r in item.reasons)) for name, item in plan.items()}


def states(sandbox: Sandbox) -> dict[str, str]:
    return {name: state for name, (state, _digest, _reasons) in planned(sandbox).items()}


def contents(path: Path) -> dict[str, object]:
    """Everything below a path, of whatever kind: what must not get lost."""
    if path.is_symlink() or not path.is_dir():
        return {"": what(path)}
    return {str(below.relative_to(path)): what(below) for below in sorted(path.rglob("*"))}


def what(path: Path) -> object:
    if path.is_symlink():
        return ("link", os.readlink(path))
    if path.is_file():
        return path.read_bytes()
    return "folder" if path.is_dir() else "special"


# --- damage -----------------------------------------------------------------------------------------------------------


def swap_blocks(data: bytearray) -> None:
    data[:BLOCK], data[BLOCK : 2 * BLOCK] = data[BLOCK : 2 * BLOCK], data[:BLOCK]


def zero_block(data: bytearray) -> None:
    data[BLOCK : 2 * BLOCK] = bytes(BLOCK)


def flip(place: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        data[place] ^= 0x10

    return change


def swap_files(scene: Scene) -> None:
    scene.file()
    (scene.folder / "one.bin").rename(scene.folder / "aside")
    (scene.folder / "two.bin").rename(scene.folder / "one.bin")
    (scene.folder / "aside").rename(scene.folder / "two.bin")


def older_version(scene: Scene) -> None:
    path = scene.file()
    status = path.stat()
    shutil.copyfile(scene.twin / "one.bin", path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def extra_file(scene: Scene) -> None:
    scene.file()
    (scene.folder / "more.txt").write_bytes(b"")


def extra_folder(scene: Scene) -> None:
    scene.file()
    (scene.folder / "more").mkdir()


def extra_folders(scene: Scene) -> None:
    scene.file("deep/er/three.txt")
    (scene.folder / "deep" / "er" / "more" / "and").mkdir(parents=True)


def renamed_file(scene: Scene) -> None:
    scene.file().rename(scene.folder / "One.bin")


def file_to_folder(scene: Scene) -> None:
    scene.file().unlink()
    (scene.folder / "one.bin").mkdir()


def file_to_link(scene: Scene) -> None:
    """To an identical copy elsewhere: the bytes are right today."""
    path = scene.file()
    shutil.move(path, scene.elsewhere / "one.bin")
    path.symlink_to(scene.elsewhere / "one.bin")


def file_to_pipe(scene: Scene) -> None:
    scene.file().unlink()
    os.mkfifo(scene.folder / "one.bin")


def file_to_hard_link(scene: Scene) -> None:
    """To a file of the twin, which has the same size."""
    scene.file().unlink()
    os.link(scene.twin / "one.bin", scene.folder / "one.bin")


def written_through_hard_link(scene: Scene) -> None:
    path = scene.file()
    os.link(path, scene.elsewhere / "one.bin")
    (scene.elsewhere / "one.bin").write_bytes(TWO)


def object_of_another(scene: Scene) -> None:
    for path in (scene.folder, scene.folder.parent):
        writable(path)
    scene.folder.rename(scene.elsewhere / "original")
    shutil.copytree(scene.twin, scene.folder)


def object_to_link(scene: Scene) -> None:
    """To an identical copy elsewhere."""
    for path in (scene.folder, scene.folder.parent):
        writable(path)
    scene.folder.rename(scene.elsewhere / "original")
    scene.folder.symlink_to(scene.elsewhere / "original")


def object_to_file(scene: Scene) -> None:
    for path in (scene.folder, scene.folder.parent):
        writable(path)
    scene.folder.rename(scene.elsewhere / "original")
    scene.folder.write_bytes(b"x")


def object_emptied(scene: Scene) -> None:
    scene.file()
    for path in (scene.folder, scene.folder / "deep", scene.folder / "deep" / "er"):
        writable(path)
    shutil.rmtree(scene.folder / "deep")
    for name in ("one.bin", "two.bin"):
        (scene.folder / name).unlink()


DAMAGE: Mapping[str, Callable[[Scene], object]] = {
    "flip a bit of the first byte": lambda scene: scene.rewrite(flip(0)),
    "flip a bit of the last byte": lambda scene: scene.rewrite(flip(-1)),
    "flip a bit of a small file": lambda scene: scene.rewrite(flip(2), "deep/er/three.txt"),
    "cut by one byte": lambda scene: scene.rewrite(lambda data: data.pop()),
    "extend by one byte": lambda scene: scene.rewrite(lambda data: data.append(0)),
    "empty a file": lambda scene: scene.rewrite(lambda data: data.clear()),
    "swap two blocks": lambda scene: scene.rewrite(swap_blocks),
    "zero a block": lambda scene: scene.rewrite(zero_block),
    "swap two files of one size": swap_files,
    "an older version of the same size": older_version,
    "delete a file": lambda scene: scene.file().unlink(),
    "rename a file": renamed_file,
    "an extra empty file": extra_file,
    "an extra empty folder": extra_folder,
    "extra folders deep inside": extra_folders,
    "a folder in place of a file": file_to_folder,
    "a link in place of a file": file_to_link,
    "a pipe in place of a file": file_to_pipe,
    "a hard link to another file": file_to_hard_link,
    "written through a hard link": written_through_hard_link,
    "another artifact's folder": object_of_another,
    "a link in place of the artifact": object_to_link,
    "a file in place of the artifact": object_to_file,
    "nothing left in the artifact": object_emptied,
}


@pytest.mark.fault("B2", "an artifact is damaged, its stat put back where it can be: audit and plan find it")
@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found(scene: Scene, name: str) -> None:
    DAMAGE[name](scene)
    bad = contents(scene.folder)
    assert codes(scene.sandbox) == ["artifact_damaged"]
    assert audited(scene.sandbox).exit_code == 4
    state, digest, why = planned(scene.sandbox)["s:a"]
    assert (state, digest, set(why)) == ("stale", scene.folder.name, {"artifact_damaged"})
    assert contents(scene.folder) == bad, "looking changes nothing"


#: One of each sort, for what takes a second; all kinds go through the quarantine in the tests of running sessions.
REBUILT = (
    "flip a bit of the last byte",
    "swap two files of one size",
    "an extra empty folder",
    "a link in place of a file",
    "a pipe in place of a file",
    "written through a hard link",
    "another artifact's folder",
    "a link in place of the artifact",
)


@pytest.mark.fault("B3", "an input of a needed target is damaged: it is built again, never built from")
@pytest.mark.fault("B4", "what was damaged lies in cache/quarantine afterwards, byte for byte")
@pytest.mark.parametrize("name", REBUILT)
def test_damage_is_built_again_and_kept(scene: Scene, name: str) -> None:
    DAMAGE[name](scene)
    bad, digest = contents(scene.folder), scene.folder.name
    spec(scene.sandbox, "c")
    scene.sandbox.ok("s:c")
    assert (object_of(scene.sandbox, "s:c") / "c.txt").read_bytes() == b"".join(FILES[name] for name in FILES)
    (kept,) = (scene.sandbox.root / "cache" / "quarantine").iterdir()
    assert kept.name.startswith(digest)
    assert contents(kept) == bad
    assert codes(scene.sandbox) == []


@pytest.mark.fault("B2", "one bit of an artifact is flipped, at random offsets: audit and plan find it")
def test_flipped_bits_are_found_anywhere(scene: Scene, cases: Callable[[int], None]) -> None:
    store, files = store_of(scene.sandbox), receipts(scene.sandbox)["s:a"]["files"]
    digest, chosen, tried = scene.folder.name, random.Random(3), 0
    for name, data in FILES.items():
        bits = range(8 * len(data))
        for bit in bits if len(bits) < 200 else chosen.sample(bits, 120):
            scene.rewrite(flip_bit(bit), name)
            assert codes(scene.sandbox) == ["artifact_damaged"], (name, bit)
            assert [item.path for item in store.presence(digest, files)[1]] == [name], (name, bit)
            scene.rewrite(flip_bit(bit), name)
            tried += 1
    assert codes(scene.sandbox) == []
    cases(tried)


def flip_bit(bit: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        data[bit // 8] ^= 1 << (bit % 8)

    return change


@pytest.mark.fault("B2", "an artifact becomes writable or gets a second name: audit notes it")
@pytest.mark.parametrize("how", ["file mode", "folder mode", "root mode", "hard link"])
def test_what_only_invites_damage_is_a_note(scene: Scene, how: str) -> None:
    if how == "hard link":
        os.link(scene.folder / "one.bin", scene.elsewhere / "one.bin")
    else:
        path = {"file mode": "one.bin", "folder mode": "deep/er", "root mode": ""}[how]
        os.chmod(scene.folder / path, 0o777)
    result = audited(scene.sandbox)
    assert (result.problems, [note.code for note in result.notes]) == ([], ["artifact_unprotected"])
    assert states(scene.sandbox)["s:a"] == "fresh"


@pytest.mark.fault("B4", "the same artifact is damaged twice: both damaged copies are kept")
def test_two_damaged_copies_are_both_kept(scene: Scene) -> None:
    for place in (0, 1):
        scene.rewrite(flip(place))
        scene.sandbox.ok()
    kept = {(path / "one.bin").read_bytes() for path in (scene.sandbox.root / "cache" / "quarantine").iterdir()}
    assert len(kept) == 2
    assert ONE not in kept
    assert (scene.folder / "one.bin").read_bytes() == ONE


@pytest.mark.fault("B4", "an artifact is damaged and cannot be built again: the run stops, every byte is kept")
def test_damage_that_cannot_be_mended_loses_nothing(scene: Scene) -> None:
    scene.rewrite(flip(0))
    bad = contents(scene.folder)
    shutil.rmtree(scene.sandbox.root / "specs" / "a")
    done = scene.sandbox.doit()
    assert done.returncode != 0
    assert "Traceback" not in done.stdout + done.stderr
    folders = [scene.folder, *(scene.sandbox.root / "cache" / "quarantine").glob("*")]
    assert [contents(path) for path in folders if os.path.lexists(path)] == [bad]


# --- while a run goes on ----------------------------------------------------------------------------------------------


@pytest.mark.fault("B3", "an input is damaged between plan and use: the run stops, nothing is built from it")
@pytest.mark.fault("B4", "what was damaged lies in cache/quarantine afterwards, byte for byte")
@pytest.mark.parametrize("name", DAMAGE)
def test_an_input_damaged_between_plan_and_use(scene: Scene, name: str) -> None:
    spec(scene.sandbox, "c")
    session = Session(Project.open(scene.sandbox.root))
    session.selected = ("s:a", "s:c")
    assert session.up_to_date("s:a")
    assert not session.up_to_date("s:c")
    DAMAGE[name](scene)
    bad = contents(scene.folder)
    with pytest.raises(StoreDamaged, match="is damaged"):
        session.execute("s:c")
    session.close()
    (kept,) = (scene.sandbox.root / "cache" / "quarantine").iterdir()
    assert contents(kept) == bad
    assert "s:c" not in receipts(scene.sandbox)


@pytest.mark.fault("B3", "an input is damaged while the stage that reads it runs: its output is not published")
def test_an_input_damaged_while_its_stage_runs(scene: Scene) -> None:
    script = "cat {data}/one.bin > {out}/x; chmod u+w {data}/one.bin; printf x >> {data}/one.bin"
    text = (scene.sandbox.root / "specs" / "s.yaml").read_text()
    scene.sandbox.spec(text + f"  bad: {{kind: command, command: [sh, -c, '{script}'], from: {{data: a}}}}\n")
    before = set(store_of(scene.sandbox).objects())
    done = scene.sandbox.doit("s:bad")
    assert done.returncode != 0
    assert "E-OBJECT-DAMAGED" in done.stdout + done.stderr
    assert "s:bad" not in receipts(scene.sandbox)
    assert set(store_of(scene.sandbox).objects()) == before - {scene.folder.name}
    (kept,) = (scene.sandbox.root / "cache" / "quarantine").iterdir()
    assert (kept / "one.bin").read_bytes() == ONE + b"x"


# --- bytes that change under an unchanged stat ------------------------------------------------------------------------


def rot_silently(scene: Scene, place: int = 0) -> None:
    """As a failing disk does: other bytes, and a stat that the cache knows as that of the right ones."""
    scene.rewrite(flip(place))
    store = store_of(scene.sandbox)
    (record,) = [file for file in receipts(scene.sandbox)["s:a"]["files"] if file["path"] == "one.bin"]
    label = f"objects/{scene.folder.name}/one.bin"
    store.stats.put(label, os.lstat(scene.folder / "one.bin"), record["xxh3_128"], settled=True)
    store.stats.save()


@pytest.mark.fault("B3", "bytes change under an unchanged stat: plan cannot see it, a build reads and stops")
def test_a_build_reads_its_inputs_whatever_their_stat_says(scene: Scene) -> None:
    rot_silently(scene)
    assert states(scene.sandbox)["s:a"] == "fresh", "the price of not reading every artifact at every plan"
    bad = contents(scene.folder)
    spec(scene.sandbox, "c")
    done = scene.sandbox.doit("s:c")
    assert done.returncode != 0
    assert "E-OBJECT-DAMAGED" in done.stdout + done.stderr
    assert "s:c" not in receipts(scene.sandbox)
    (kept,) = (scene.sandbox.root / "cache" / "quarantine").iterdir()
    assert contents(kept) == bad
    scene.sandbox.ok("s:c")
    assert (object_of(scene.sandbox, "s:c") / "c.txt").read_bytes() == b"".join(FILES.values())


@pytest.mark.fault("B2", "bytes change under an unchanged stat: audit finds it, and the next run builds it again")
def test_an_audit_trusts_no_stat_and_the_next_run_knows(scene: Scene) -> None:
    rot_silently(scene)
    done = scene.sandbox.doit("audit", "--json")
    assert done.returncode == 4
    assert [problem["code"] for problem in json.loads(done.stdout)["problems"]] == ["artifact_damaged"]
    scene.sandbox.ok()
    assert (scene.folder / "one.bin").read_bytes() == ONE
    assert len(list((scene.sandbox.root / "cache" / "quarantine").iterdir())) == 1


@pytest.mark.fault("B4", "a good copy is published over a silently damaged one: it takes its place")
def test_a_good_copy_takes_the_place_of_a_silently_damaged_one(scene: Scene) -> None:
    rot_silently(scene)
    publish(scene.sandbox, FILES)
    assert (scene.folder / "one.bin").read_bytes() == ONE
    (kept,) = (scene.sandbox.root / "cache" / "quarantine").iterdir()
    assert (kept / "one.bin").read_bytes() != ONE


# --- what is derived --------------------------------------------------------------------------------------------------


def derived(sandbox: Sandbox) -> dict[str, Path]:
    """One file of each derived kind."""
    cache = sandbox.root / "cache"
    key = receipts(sandbox)["s:a"]["key"]
    (graph,) = (cache / "specs").iterdir()
    return {
        "index": cache / "index.json",
        "stat": cache / "stat.json",
        "results": cache / "results" / f"{key}.json",
        "specs": graph,
    }


GARBAGE: Mapping[str, Callable[[bytes], bytes]] = {
    "empty": lambda _data: b"",
    "zeros": lambda data: bytes(len(data)),
    "cut": lambda data: data[: len(data) // 2],
    "noise": lambda data: random.Random(4).randbytes(len(data)),
    "a list": lambda _data: b"[]",
    "without its seal": lambda data: data.partition(b"\n")[2],
    "sealed by another": lambda data: Seal().wrap("index.json", data.partition(b"\n")[2]),
    "doubled": lambda data: data + data,
    "one byte more": lambda data: data + b" ",
}


@pytest.mark.fault("B2", "a derived file (index, results, stats, resolved specs) is damaged: nothing is wrong after it")
@pytest.mark.parametrize("name", ["index", "stat", "results", "specs"])
def test_damaged_derived_files_are_made_anew(scene: Scene, name: str, cases: Callable[[int], None]) -> None:
    path, right = derived(scene.sandbox)[name], planned(scene.sandbox)
    whole, chosen = path.read_bytes(), random.Random(5)
    changes = list(GARBAGE.values()) + [bit_flipper(bit) for bit in chosen.sample(range(8 * len(whole)), 25)]
    for change in changes:
        path.write_bytes(change(whole))
        assert planned(scene.sandbox) == right
    path.unlink()
    assert planned(scene.sandbox) == right
    cases(len(changes) + 1)


def bit_flipper(bit: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        changed = bytearray(data)
        flip_bit(bit)(changed)
        return bytes(changed)

    return change


@pytest.mark.fault("B2", "a result that names another artifact is put into the cache: it decides nothing")
@pytest.mark.parametrize("how", ["edited", "sealed by another", "moved from another key"])
def test_a_poisoned_result_makes_nothing_fresh(scene: Scene, how: str) -> None:
    right = planned(scene.sandbox)
    path, twin = derived(scene.sandbox)["results"], receipts(scene.sandbox)["s:twin"]
    name, body = f"results/{path.name}", path.read_bytes().partition(b"\n")[2]
    data = json.loads(body)
    data["builds"][0] |= {"digest": twin["digest"], "files": twin["files"]}
    poisoned = json.dumps(data, separators=(",", ":"), sort_keys=True).encode()
    if how == "edited":
        path.write_bytes(path.read_bytes().partition(b"\n")[0] + b"\n" + poisoned)
    elif how == "sealed by another":
        path.write_bytes(Seal().wrap(name, poisoned))
    else:
        shutil.copy(path.with_name(f"{twin['key']}.json"), path)
    assert [note.code for note in audited(scene.sandbox).notes] == ["derived_unsealed"]
    assert planned(scene.sandbox) == right
    assert scene.sandbox.json("show", "s:a")["digest"] == scene.folder.name
    scene.sandbox.ok()
    assert receipts(scene.sandbox)["s:a"]["digest"] == scene.folder.name
    assert audited(scene.sandbox).notes == []


@pytest.mark.fault("B2", "an index that points a target at another result is put into the cache: it decides nothing")
def test_a_poisoned_index_points_nothing_elsewhere(scene: Scene) -> None:
    right, path = planned(scene.sandbox), derived(scene.sandbox)["index"]
    seal, _, body = path.read_bytes().partition(b"\n")
    data = json.loads(body)
    data["latest"]["s:a"] = data["latest"]["s:twin"]
    path.write_bytes(seal + b"\n" + json.dumps(data, separators=(",", ":")).encode())
    assert scene.sandbox.json("show", "s:a")["digest"] == scene.folder.name
    assert planned(scene.sandbox) == right


@pytest.mark.fault("B2", "a resolved spec with another command is put into the cache: it is not run")
def test_a_poisoned_spec_runs_nothing(scene: Scene) -> None:
    path = derived(scene.sandbox)["specs"]
    canary = scene.elsewhere / "canary"
    seal, _, body = path.read_bytes().partition(b"\n")
    assert MAKE.encode() in body
    path.write_bytes(seal + b"\n" + body.replace(MAKE.encode(), f"touch {canary}; {MAKE}".encode()))
    scene.sandbox.ok()
    assert not canary.exists()
    assert states(scene.sandbox)["s:a"] == "fresh"


@pytest.mark.fault("B2", "a stat cache from elsewhere vouches for a damaged file: it is not believed")
def test_a_stat_cache_from_elsewhere_vouches_for_nothing(scene: Scene) -> None:
    rot_silently(scene)
    path = derived(scene.sandbox)["stat"]
    path.write_bytes(Seal().wrap("stat.json", path.read_bytes().partition(b"\n")[2]))
    assert planned(scene.sandbox)["s:a"][2] == ("artifact_damaged",)


@pytest.mark.fault("B2", "links in cache/latest point elsewhere, dangle or are gone: the next run puts them right")
@pytest.mark.parametrize("how", ["elsewhere", "nowhere", "gone", "a file"])
def test_links_for_people_are_put_right(scene: Scene, how: str) -> None:
    link = scene.sandbox.root / "cache" / "latest" / "s" / "a"
    link.unlink()
    if how == "a file":
        link.write_text("x")
    elif how != "gone":
        link.symlink_to(scene.twin if how == "elsewhere" else scene.elsewhere / "nothing")
    before = len(scene.sandbox.entries())
    scene.sandbox.ok()
    assert link.resolve() == scene.folder
    assert len(scene.sandbox.entries()) == before, "nothing was built, nothing recorded"


@pytest.mark.fault("B2", "the secret that seals the caches is lost or cannot be kept: all is read again")
@pytest.mark.parametrize("how", ["gone", "empty", "other", "folder"])
def test_a_lost_secret_costs_time_only(scene: Scene, how: str) -> None:
    right, path = planned(scene.sandbox), scene.sandbox.home / "state" / "ingot" / "seal"
    assert path.stat().st_mode & 0o777 == 0o600
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how != "gone":
        path.write_text("" if how == "empty" else "00" * 32 + "\n")
    assert planned(scene.sandbox) == right
    assert planned(scene.sandbox) == right
    scene.sandbox.ok()
    assert codes(scene.sandbox) == []


def test_objects_are_named_by_digests(scene: Scene) -> None:
    """Every object of the template is what its name says: the damage above starts from a clean store."""
    store = Store(scene.sandbox.root / "cache")
    assert all(is_digest(digest) for digest in store.objects())
    assert codes(scene.sandbox) == []
