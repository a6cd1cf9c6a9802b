"""Logs as static tiles, read back by the words of c2sp.org/tlog-tiles and nothing of ingot's."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest

from ingot.core.log import Log
from ingot.core.tiles import export, tiles
from ingot.errors import RegistryDamaged
from registrykit import project, selected


def named(lines: list[bytes]) -> dict[str, bytes]:
    return dict(tiles(lines))


def entries(bundle: bytes) -> list[bytes]:
    found = []
    while bundle:
        size = int.from_bytes(bundle[:2], "big")
        found.append(bundle[2 : 2 + size])
        bundle = bundle[2 + size :]
    return found


def naive_root(leaves: list[bytes]) -> bytes:
    """RFC 6962, section 2.1."""
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return hashlib.sha256(b"\x01" + naive_root(leaves[:split]) + naive_root(leaves[split:])).digest()


def test_the_names_and_widths_of_a_log_of_70000() -> None:
    """The example of the specification: 273 full tiles and one of 112, one full and one of 17, one of 1."""
    found = named([b""] * 70_000)
    names = [name for name in found if not name.startswith("tile/entries/")]
    assert len(names) == 273 + 1 + 1 + 1 + 1
    assert {name for name in names if ".p/" in name} == {"tile/0/273.p/112", "tile/1/001.p/17", "tile/2/000.p/1"}
    assert {len(found[name]) for name in names if ".p/" not in name} == {8192}


def test_a_log_of_256_has_a_whole_tile_and_one_above_it() -> None:
    assert set(named([b""] * 256)) == {"tile/entries/000", "tile/0/000", "tile/1/000.p/1"}


def test_names_beyond_a_thousand_tiles() -> None:
    found = [name for name, _ in tiles([b""] * (256 * 1001)) if name.startswith("tile/0/")]
    assert found[999:] == ["tile/0/999", "tile/0/x001/000"]


def test_tiles_give_the_entries_and_the_root_again() -> None:
    lines = [str(number).encode() * (number % 5) for number in range(600)]
    found = named(lines)
    bundles = ["tile/entries/000", "tile/entries/001", "tile/entries/002.p/88"]
    assert [line for name in bundles for line in entries(found[name])] == lines
    leaves = [hashlib.sha256(b"\x00" + line).digest() for line in lines]
    assert found["tile/0/000"] + found["tile/0/001"] + found["tile/0/002.p/88"] == b"".join(leaves)
    assert found["tile/1/000.p/2"] == naive_root(leaves[:256]) + naive_root(leaves[256:512])


def test_an_export_grows_with_its_log_and_keeps_what_it_had(tmp_path: Path) -> None:
    made, out = project(tmp_path), tmp_path / "out"
    made.registry().append([selected(1)])
    log = Log(made.folder())
    first = export(log, out)
    assert (first.size, first.files, first.written) == (2, 2, 2)
    assert export(log, out).written == 0
    made.registry().append([selected(2)])
    assert export(log, out).written == 2
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()) == [
        "checkpoint", "tile/0/000.p/2", "tile/0/000.p/3", "tile/entries/000.p/2", "tile/entries/000.p/3",
    ]  # fmt: skip
    assert (out / "checkpoint").read_bytes() == made.checkpoint().read_bytes()
    root = (out / "checkpoint").read_text().split("\n")[2]
    tile = (out / "tile/0/000.p/3").read_bytes()
    assert naive_root([tile[at : at + 32] for at in range(0, 96, 32)]) == base64.b64decode(root)


@pytest.mark.fault("T2", "a tile that was exported holds something else")
def test_tiles_of_another_log_are_not_written_over(tmp_path: Path) -> None:
    made, out = project(tmp_path), tmp_path / "out"
    made.registry().append([selected(1)])
    export(Log(made.folder()), out)
    tile = out / "tile/0/000.p/2"
    before = tile.read_bytes()
    tile.write_bytes(before[::-1])
    with pytest.raises(RegistryDamaged, match="another log, or was changed"):
        export(Log(made.folder()), out)
    assert tile.read_bytes() == before[::-1]
