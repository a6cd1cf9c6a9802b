"""The picture of a loss: well-formed, the same for the same numbers, and every number in its place."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest

from ingot.kit.train.curves import Curves, picture, smoothed, thinned

SPACE = "{http://www.w3.org/2000/svg}"
TRAIN = [(float(step), 3.0 - 0.01 * step) for step in range(1, 101)]
HELD = [(0.0, 3.1), (50.0, 2.4), (100.0, 2.6)]


def tree(curves: Curves) -> ET.Element:
    return ET.fromstring(picture(curves))


def path(root: ET.Element, name: str) -> list[tuple[float, float]]:
    (found,) = [item for item in root.iter(f"{SPACE}path") if item.get("class") == f"line {name}"]
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", found.get("d") or "")]


def test_the_same_numbers_give_the_same_bytes() -> None:
    curves = Curves(TRAIN, HELD, "nats/token", 50)
    assert picture(curves) == picture(Curves(list(TRAIN), list(HELD), "nats/token", 50))
    assert picture(curves) != picture(Curves(TRAIN, HELD, "nats/token", 100))


def test_each_point_is_where_its_numbers_are() -> None:
    root = tree(Curves(TRAIN, HELD, "nats/token", 50))
    ticks = {item.text: (float(item.get("x") or 0), float(item.get("y") or 0) - 4)
             for item in root.iter(f"{SPACE}text") if item.get("text-anchor") == "end"}  # fmt: skip
    (low, high) = (ticks["2.0"][1], ticks["3.0"][1])
    for (step, value), (x, y) in zip(HELD, path(root, "held"), strict=True):
        assert y == pytest.approx(low + (value - 2.0) * (high - low), abs=0.2)
        assert x == pytest.approx(72 + step / 100 * (760 - 24 - 72), abs=0.1)
    assert len(path(root, "raw")) == len(path(root, "smooth")) == 100
    assert len(list(root.iter(f"{SPACE}circle"))) == 3
    texts = [item.text for item in root.iter(f"{SPACE}text")]
    assert {"step", "nats/token", "held out", "kept: step 50"} <= set(texts)
    assert "100 steps, training 2.99 → 2 nats/token, held out 3.1 → 2.4" in texts


@pytest.mark.parametrize(
    "curves",
    [
        Curves([(1.0, 2.0)], [], "nats/pair"),
        Curves([(1.0, 2.0), (2.0, 2.0)], [(0.0, 2.0)], "nats/token", 0),
        Curves([(1.0, float("nan")), (2.0, 1.0), (3.0, float("inf"))], [], "a<b"),
        Curves([], [], "nats/token"),
        Curves([(1.0, 1e-7), (2.0, 2e-7)], [], "nats/token"),
        Curves([(float(step), 1e6 / step) for step in range(1, 5001)], [(5000.0, 3.0)], "nats/token", 5000),
    ],
)  # fmt: skip
def test_odd_numbers_give_a_picture_too(curves: Curves) -> None:
    text = picture(curves)
    root = ET.fromstring(text)
    drawn = re.sub(r">[^<]*<", "><", text)
    assert "nan" not in drawn
    assert "inf" not in drawn
    for item in root.iter():
        for name in ("x", "y", "x1", "x2", "cx"):
            if item.get(name):
                assert -1 <= float(item.get(name) or 0) <= 760
        for name in ("y1", "y2", "cy"):
            if item.get(name):
                assert -1 <= float(item.get(name) or 0) <= 420
    assert len(text) < 60_000


def test_a_long_curve_is_averaged_and_a_smoothed_one_starts_where_it_starts() -> None:
    long = [(float(step), float(step % 2)) for step in range(1, 10_001)]
    thin = thinned(long)
    assert len(thin) <= 600
    assert thin[0][1] == pytest.approx(0.5, abs=0.05)
    line = smoothed([(1.0, 4.0), (2.0, 4.0), (3.0, 1.0)])
    assert [value for _, value in line[:2]] == pytest.approx([4.0, 4.0])
    assert 1 < line[2][1] < 4
