"""Packing and unpacking: the same bytes back, the same frames whatever the threads, and every fault refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from ingot.core import disk
from ingot.core.digest import record_files, tree_digest
from ingot.core.rederive import derive, disagreements
from ingot.core.stage import Done, Given
from ingot.errors import IngotError, RefusedInput, StoreDamaged, UsageError
from ingot.kit.pack import frames
from ingot.kit.pack.frames import Recipe
from ingot.kit.pack.unpack import unpack
from stagekit import Recorder, digest_of, stage_of

WORDS = [f"{word}{number}" for word in ("river", "stone", "cloud", "lantern") for number in range(90)]


def prose(count: int, seed: int = 0) -> bytes:
    """So many words, the same at every call."""
    return " ".join(random.Random(seed).choices(WORDS, k=count)).encode()


def noise(size: int) -> bytes:
    return random.Random(1).randbytes(size)


def original(folder: Path) -> Path:
    """Texts, weights that hardly compress, an empty file, and names that are hard."""
    (folder / "größe" / "a b").mkdir(parents=True)
    (folder / "config.json").write_bytes(prose(400))
    (folder / "weights.bin").write_bytes(noise(70_000))
    (folder / "empty").write_bytes(b"")
    (folder / "größe" / "a b" / "🦙.txt").write_bytes(prose(900, 1))
    (folder / "config.json.zst").write_bytes(noise(50))
    return folder


def pack(source: Path, out: Path, *, threads: int = 2, known: bool = True, **params: Any) -> Done:
    """Run the kind as the builder does; ``known``: the registry says what each file must be."""
    out.mkdir()
    records = {record.path: record for record in record_files(source)}
    files = {"artifact": (records,)} if known else {}
    scratch = out.with_name(f"{out.name}-scratch")
    scratch.mkdir()
    given = Given(
        {"artifact": (source,)}, {"artifact": (tree_digest(records.values()),)}, scratch, threads=threads, files=files
    )
    return Done.of(stage_of("pack", params).run(given, out, Recorder()))


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    pack(original(folder / "original"), folder / "packed")
    return folder / "packed"


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "copy"))


def listed(folder: Path) -> Any:
    return json.loads((folder / "pack.json").read_text())


def rewrite(folder: Path, change: Callable[[Any], None], *, digest: bool = True) -> None:
    """Edit pack.json, the digest of its files put right as somebody who plants a fault would."""
    data = listed(folder)
    change(data)
    if digest:
        lines = sorted((item["path"].encode(), item["sha256"]) for item in data["files"])
        text = b"".join(f"{sha}  ".encode() + path + b"\n" for path, sha in lines)
        data["artifact"] = hashlib.sha256(text).hexdigest()
    (folder / "pack.json").write_text(json.dumps(data))


def item_of(data: Any, path: str) -> Any:
    return next(item for item in data["files"] if item["path"] == path)


def plant(folder: Path, path: str, frame: bytes, **claims: Any) -> None:
    """Put another frame in the place of a file's, with the hash that it has."""
    place = folder / f"zstd/{path}.zst"
    place.write_bytes(frame)
    sizes = {"packed_size": len(frame), "packed_sha256": hashlib.sha256(frame).hexdigest()}
    rewrite(folder, lambda data: item_of(data, path).update(sizes | claims))


def refused(folder: Path, tmp_path: Path) -> IngotError:
    """Unpacking fails, and leaves nothing beside what was there."""
    before = sorted(tmp_path.iterdir())
    with pytest.raises(IngotError) as caught:
        unpack(folder, tmp_path / "back")
    assert sorted(tmp_path.iterdir()) == before
    return caught.value


def test_what_comes_back_is_what_was_packed(tmp_path: Path) -> None:
    source = original(tmp_path / "original")
    done = pack(source, tmp_path / "packed")
    told = unpack(tmp_path / "packed", tmp_path / "back")
    assert digest_of(tmp_path / "back") == digest_of(source) == told.artifact == listed(tmp_path / "packed")["artifact"]
    methods = {item["path"]: item["method"] for item in listed(tmp_path / "packed")["files"]}
    assert {name for name, method in methods.items() if method == "stored"} == {
        "weights.bin",
        "empty",
        "config.json.zst",
    }
    for item in listed(tmp_path / "packed")["files"]:
        content = (source / item["path"]).read_bytes()
        assert (item["size"], item["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert record_files(tmp_path / "packed") == tuple(sorted(done.files, key=lambda it: os.fsencode(it.path)))
    assert done.metrics["files_stored"].value == 3
    assert done.metrics["original_bytes"].value == sum(path.stat().st_size for path in source.rglob("*.*"))
    values = {name: metric.to_dict() for name, metric in done.metrics.items()}
    receipt = {"kind": "pack", "digest": "d", "metrics": values}
    derived = derive(receipt, lambda _: tmp_path / "packed")
    assert (len(derived), disagreements(receipt, derived)) == (5, [])


def test_a_stranger_reads_a_frame_with_zstd_alone(packed: Path) -> None:
    frame = (packed / "zstd/config.json.zst").read_bytes()
    assert zstandard.ZstdDecompressor().decompress(frame) == prose(400)
    header = zstandard.get_frame_parameters(frame)
    assert (header.content_size, header.has_checksum) == (len(prose(400)), True)


@pytest.mark.parametrize("params", [{"level": 3}, {"level": 1, "long_range": 22}])
def test_threads_and_blocks_change_no_byte(
    params: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "original"
    source.mkdir()
    (source / "a.txt").write_bytes(prose(2_600_000))  # more than two of zstd's jobs
    assert (source / "a.txt").stat().st_size > 2 * 8 << 20
    pack(source, tmp_path / "one", threads=1, **params)
    monkeypatch.setattr("ingot.kit.pack.pack.BLOCK", 300_001)
    for threads in (0, 2, 3):
        pack(source, tmp_path / f"{threads}", threads=threads, **params)
        assert digest_of(tmp_path / f"{threads}") == digest_of(tmp_path / "one")
    without = zstandard.ZstdCompressor(level=params["level"]).compress((source / "a.txt").read_bytes())
    assert without != (tmp_path / "one/zstd/a.txt.zst").read_bytes(), "else the threads would prove nothing"


_MEASURE = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from stagekit import run_done
from ingot.kit.pack.unpack import unpack
folder = Path({folder!r})
(folder / "original").mkdir(parents=True)
with (folder / "original" / "file").open("wb") as file:
    for number in range({megabytes}):
        file.write(number.to_bytes(4, "big") * (1 << 18))
def peak():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
run_done("pack", {{"level": 1}}, {{"artifact": folder / "original"}}, folder)
unpack(folder / "out", folder / "back")
streamed = peak()
(folder / "back" / "file").read_bytes()
print(streamed, peak())
"""


def peaks(folder: Path, megabytes: int) -> tuple[int, int]:
    """KiB of resident memory at most: of packing and unpacking, and of reading the file at once, as neither may."""
    program = _MEASURE.format(tests=str(Path(__file__).parent.parent), folder=str(folder), megabytes=megabytes)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    streamed, whole = done.stdout.split()[-2:]
    return int(streamed), int(whole)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not say what memory a process had")
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    small, _ = peaks(tmp_path / "small", 48)  # by then all of zstd's buffers are in use
    large, whole = peaks(tmp_path / "large", 112)
    assert large - small < 12 << 10, f"{small} KiB for 48 MiB, {large} KiB for 112 MiB"
    assert whole - large > 32 << 10, "else this measures nothing"


def test_a_dictionary_is_learned_where_it_pays_and_left_out_where_not(tmp_path: Path) -> None:
    source = tmp_path / "many"
    source.mkdir()
    for number in range(120):
        row = {"role": "assistant", "number": number, "content": prose(40, number % 7).decode(), "language": "en"}
        (source / f"{number:03}.json").write_text(json.dumps(row))
    (source / "large.txt").write_bytes(prose(60_000))
    plain = pack(source, tmp_path / "plain")
    done = pack(source, tmp_path / "trained", dictionary=4096)
    pack(source, tmp_path / "again", dictionary=4096, threads=1)
    assert digest_of(tmp_path / "trained") == digest_of(tmp_path / "again")
    assert done.metrics["bytes"].value < plain.metrics["bytes"].value
    assert str(done.notes["dictionary"]).startswith("is used: it saves")
    data = listed(tmp_path / "trained")
    assert {item["dictionary"] for item in data["files"]} == {True, False}
    assert not item_of(data, "large.txt")["dictionary"]
    unpack(tmp_path / "trained", tmp_path / "back")
    assert digest_of(tmp_path / "back") == digest_of(source)
    (tmp_path / "trained" / "dictionary.zstd").write_bytes(noise(4096))
    shutil.rmtree(tmp_path / "back")
    assert refused(tmp_path / "trained", tmp_path).code == "E-PACK-DAMAGED"
    few = pack(original(tmp_path / "few"), tmp_path / "without", dictionary=4096)
    assert str(few.notes["dictionary"]).startswith("is left out")
    assert few.metrics["dictionary_saved"].value < 0
    assert not (tmp_path / "without" / "dictionary.zstd").exists()


def test_nothing_to_learn_a_dictionary_from(tmp_path: Path) -> None:
    source = tmp_path / "one"
    source.mkdir()
    (source / "a").write_bytes(b"short")
    with pytest.raises(RefusedInput, match="no dictionary of 2,048 bytes") as caught:
        pack(source, tmp_path / "packed", dictionary=2048)
    assert caught.value.code == "E-PACK-DICTIONARY"


def test_it_says_plainly_what_it_gains(tmp_path: Path) -> None:
    source = tmp_path / "noise"
    source.mkdir()
    (source / "weights").write_bytes(noise(40_000))
    done = pack(source, tmp_path / "packed")
    assert str(done.notes["verdict"]).startswith("saves nothing: packed, it takes ")
    assert done.notes["ratios"] == ["weights stored"]
    assert done.metrics["saved"].value < 0
    (source / "text").write_bytes(prose(150))
    hardly = pack(source, tmp_path / "packed-2").notes["verdict"]
    assert hardly == "saves 0.4 %: quantized weights, and what is compressed already, hardly compress"
    (source / "more").write_bytes(prose(9000))
    assert str(pack(source, tmp_path / "packed-3").notes["verdict"]).startswith("saves 50")


@pytest.mark.fault("B3", "an input of pack is not what the registry, or its own digest, says")
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("name", ["config.json", "weights.bin"])
def test_an_input_that_is_damaged_is_not_packed(name: str, known: bool, tmp_path: Path) -> None:
    source = original(tmp_path / "original")
    records = {record.path: record for record in record_files(source)}
    content = (source / name).read_bytes()
    (source / name).write_bytes(bytes([content[0] ^ 1]) + content[1:])
    (tmp_path / "out").mkdir()
    given = Given({"artifact": (source,)}, {"artifact": (tree_digest(records.values()),)}, tmp_path)
    given = dataclasses.replace(given, files={"artifact": (records,)}) if known else given
    with pytest.raises(StoreDamaged) as caught:
        stage_of("pack", {}).run(given, tmp_path / "out", Recorder())
    assert caught.value.code == "E-OBJECT-DAMAGED"
    assert (caught.value.facts == (f"{name} has other content",)) == known, "the file is named where it is known"


def test_a_file_that_nobody_knows_is_not_packed(tmp_path: Path) -> None:
    source = original(tmp_path / "original")
    records = {record.path: record for record in record_files(source) if record.path != "empty"}
    given = Given({"artifact": (source,)}, {"artifact": ("0" * 64,)}, tmp_path, files={"artifact": (records,)})
    (tmp_path / "out").mkdir()
    with pytest.raises(StoreDamaged):
        stage_of("pack", {}).run(given, tmp_path / "out", Recorder())


@pytest.mark.parametrize("names", [("a", "a.zst/b"), ("n" * 252,)])
def test_names_whose_packed_files_have_no_place(names: tuple[str, ...], tmp_path: Path) -> None:
    source = tmp_path / "original"
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(prose(30))
    with pytest.raises(RefusedInput) as caught:
        pack(source, tmp_path / "packed")
    assert caught.value.code == "E-PACK-NAME"


@pytest.mark.fault("M12", "one bit of a packed file is flipped: it is not unpacked")
def test_a_flipped_bit_anywhere(copy: Path, tmp_path: Path, cases: Callable[[int], None]) -> None:
    tried = 0
    for place in ("zstd/config.json.zst", "stored/weights.bin"):
        good = (copy / place).read_bytes()
        for at in {*range(16), *random.Random(2).sample(range(len(good)), 12), len(good) - 1}:
            (copy / place).write_bytes(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
            assert refused(copy, tmp_path).code in {"E-PACK-DAMAGED", "E-PACK-SIZE", "E-PACK-WINDOW"}
            tried += 1
        (copy / place).write_bytes(good)
    unpack(copy, tmp_path / "back")
    cases(tried)


@pytest.mark.fault("M12", "a packed file is cut, padded, or has another frame behind it")
@pytest.mark.parametrize("change", ["cut", "checksum", "padded", "second", "emptied"])
def test_a_frame_of_another_length(change: str, copy: Path, tmp_path: Path) -> None:
    good = (copy / "zstd/config.json.zst").read_bytes()
    more = zstandard.ZstdCompressor().compress(b"more")
    bad = {"cut": good[:-40], "checksum": good[:-2], "padded": good + b"\0", "second": good + more, "emptied": b""}
    (copy / "zstd/config.json.zst").write_bytes(bad[change])
    assert refused(copy, tmp_path).code in {"E-PACK-DAMAGED", "E-PACK-SIZE"}
    # also where pack.json was made to agree
    plant(copy, "config.json", bad[change])
    if change != "checksum":  # then the SHA-256 of the content alone proves it
        assert refused(copy, tmp_path).code in {"E-PACK-DAMAGED", "E-PACK-SIZE"}


@pytest.mark.fault("M12", "pack.json names another hash or size than the file has")
@pytest.mark.parametrize("field", ["sha256", "packed_sha256", "size", "packed_size"])
@pytest.mark.parametrize("path", ["config.json", "weights.bin"])
def test_a_wrong_claim(field: str, path: str, copy: Path, tmp_path: Path) -> None:
    wrong: Any = "0" * 64 if field.endswith("sha256") else 12_345
    rewrite(copy, lambda data: item_of(data, path).update({field: wrong}))
    assert refused(copy, tmp_path).code in {"E-PACK-DAMAGED", "E-PACK-SIZE"}


def test_a_wrong_digest_of_the_whole(copy: Path, tmp_path: Path) -> None:
    rewrite(copy, lambda data: data.update(artifact="0" * 64), digest=False)
    assert refused(copy, tmp_path).code == "E-PACK-DIGEST"


@pytest.mark.fault("M12", "a decompression bomb: more content than is declared, or a window that takes all memory")
def test_a_bomb_ends_at_its_declared_size(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(prose(400))
    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(64 << 20))
    plant(copy, "config.json", bomb)
    assert refused(copy, tmp_path).code == "E-PACK-SIZE", "its header is honest"
    unsized = zstandard.ZstdCompressor(level=1, write_content_size=False).compressobj()
    plant(copy, "config.json", unsized.compress(bytes(64 << 20)) + unsized.flush())
    assert refused(copy, tmp_path).code == "E-PACK-SIZE", "its header says nothing"
    honest = zstandard.ZstdCompressor(level=1).compress(prose(400))
    plant(copy, "config.json", honest + bomb)
    assert refused(copy, tmp_path).code == "E-PACK-DAMAGED", (
        "its second frame is the bomb, and wants too large a window"
    )
    plant(copy, "config.json", honest + zstandard.ZstdCompressor(level=1).compress(bytes(100 << 10)))
    written: list[int] = []
    write = frames.Output.write

    def counted(self: Any, data: bytes) -> None:
        written.append(len(data))
        write(self, data)

    monkeypatch.setattr(frames.Output, "write", counted)
    assert refused(copy, tmp_path).code == "E-PACK-SIZE", "its second frame is the bomb, and small"
    assert sum(written) <= size, "and none of it reached the disk"


def test_a_window_larger_than_declared(copy: Path, tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=27)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj(size=len(prose(400)))
    header = zstandard.get_frame_parameters(stream.compress(prose(400)) + stream.flush())
    assert header.window_size <= 1 << 20, "of so small a content zstd itself asks for little"
    rewrite(copy, lambda data: data.update(window_log=10))
    assert refused(copy, tmp_path).code == "E-PACK-WINDOW"
    rewrite(copy, lambda data: data.update(window_log=31))
    assert refused(copy, tmp_path).code == "E-PACK-FORM"


@pytest.mark.fault("M12", "pack.json names a path that leads out of the folder, or two that are one")
@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("../out", "E-PACK-PATH"),
        ("a/../../out", "E-PACK-PATH"),
        ("/etc/out", "E-PACK-PATH"),
        ("a//b", "E-PACK-PATH"),
        ("./a", "E-PACK-PATH"),
        ("weights.bin", "E-PACK-PATH"),
        ("weights.bin/a", "E-PACK-PATH"),
        ("WEIGHTS.bin", "E-PACK-PATH"),
        ("a\\b", "E-NAME"),
        ("", "E-NAME"),
        ("-rf", "E-NAME"),
        ("/".join("a" * 70), "E-PACK-PATH"),
    ],
)
def test_a_path_that_leads_elsewhere(path: str, code: str, copy: Path, tmp_path: Path) -> None:
    rewrite(copy, lambda data: item_of(data, "config.json").update(path=path))
    assert refused(copy, tmp_path).code == code


@pytest.mark.fault("M12", "a packed folder lacks a file, or holds one more, or a link")
def test_missing_and_further_files(copy: Path, tmp_path: Path) -> None:
    (copy / "stored/extra").write_bytes(b"x")
    error = refused(copy, tmp_path)
    assert (error.code, error.facts) == ("E-PACK-FILES", ("not in pack.json: stored/extra",))
    (copy / "stored/extra").unlink()
    (copy / "stored/weights.bin").rename(tmp_path / "kept")
    error = refused(copy, tmp_path)
    assert (error.code, error.facts) == ("E-PACK-FILES", ("missing: stored/weights.bin",))
    (copy / "stored/weights.bin").symlink_to(tmp_path / "kept")
    assert refused(copy, tmp_path).code == "E-OUTPUT-FILE"


def drop(data: Any) -> None:
    del data["files"][0]["sha256"]


BAD_FORMS: dict[str, Callable[[Any], None]] = {
    "another format": lambda data: data.update(format=2),
    "a field more": lambda data: data.update(url="x"),
    "a field less": drop,
    "a size below zero": lambda data: data["files"][0].update(size=-1),
    "a size as text": lambda data: data["files"][0].update(size="5"),
    "a size that no disk has": lambda data: data["files"][0].update(size=1 << 60),
    "another method": lambda data: data["files"][0].update(method="tar"),
    "no list": lambda data: data.update(files={}),
}


@pytest.mark.parametrize("what", BAD_FORMS)
def test_a_manifest_of_another_form(what: str, copy: Path, tmp_path: Path) -> None:
    rewrite(copy, BAD_FORMS[what], digest=False)
    assert refused(copy, tmp_path).code == "E-PACK-FORM"


@pytest.mark.parametrize("text", ["", "{", '{"format": 1, "format": 1}', "[" * 100_000, "null", "\ud800"])
def test_a_manifest_that_is_no_json(text: str, copy: Path, tmp_path: Path) -> None:
    (copy / "pack.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert refused(copy, tmp_path).code == "E-PACK-FORM"


def test_a_manifest_that_says_something_twice(copy: Path, tmp_path: Path) -> None:
    text = (copy / "pack.json").read_text()
    (copy / "pack.json").write_text(text.replace('"format": 1', '"format": 1, "format": 1'))
    assert refused(copy, tmp_path).code == "E-PACK-FORM"


def test_a_frame_that_needs_a_dictionary_that_is_not_there(copy: Path, tmp_path: Path) -> None:
    rewrite(copy, lambda data: item_of(data, "config.json").update(dictionary=True))
    assert refused(copy, tmp_path).code == "E-PACK-FORM"


def test_no_packed_artifact_and_no_room(copy: Path, tmp_path: Path) -> None:
    rewrite(copy, lambda data: item_of(data, "weights.bin").update(size=1 << 52))
    assert refused(copy, tmp_path).code == "E-SPACE", "before anything is written"
    (copy / "pack.json").unlink()
    assert refused(copy, tmp_path).code == "E-NOT-PACKED"


def test_the_target_must_be_new_or_empty(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_bytes(b"mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_bytes(b"mine")
    for name in ("full", "link", "file", "absent/back"):
        with pytest.raises(UsageError) as caught:
            unpack(packed, tmp_path / name)
        assert caught.value.code == "E-UNPACK-TARGET"
    (tmp_path / "empty").mkdir()
    unpack(packed, tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").read_bytes() == prose(400)
    assert (tmp_path / "full" / "a").read_bytes() == b"mine"


def test_an_interruption_leaves_nothing(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(path: Path) -> None:
        assert path.stat().st_size
        raise KeyboardInterrupt

    monkeypatch.setattr(disk, "fsync_file", stop)
    with pytest.raises(KeyboardInterrupt):
        unpack(packed, tmp_path / "back")
    assert list(tmp_path.iterdir()) == []


def test_the_window_that_a_reader_needs_is_told(tmp_path: Path) -> None:
    assert Recipe(22).window_log(1 << 40) == 27
    assert Recipe(3, 30).window_log(1 << 40) == 30
