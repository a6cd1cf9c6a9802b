"""Power cuts of a real ext4: images of the medium while a builder works, mounted as after the power came back."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crashlab import folder_in_memory
from powercut import cuts

#: Images in the everyday run and in the full tier; fewer of a builder that never syncs its files.
EVERYDAY, THOROUGH = 4, 200
CARELESS_EVERYDAY, CARELESS_THOROUGH = 4, 60


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    with folder_in_memory(tmp_path) as folder:
        yield folder


@pytest.mark.fault("C5", "power cut of a real ext4, at a random moment of a run")
@pytest.mark.parametrize("options", ["", ",noauto_da_alloc"], ids=["as it is", "noauto_da_alloc"])
@pytest.mark.parametrize("count", [EVERYDAY // 2, pytest.param(THOROUGH // 2, marks=pytest.mark.slow)])
def test_a_power_cut(base: Path, cases: Callable[[int], None], options: str, count: int) -> None:
    wrong = []
    told = 0
    for number, cut in enumerate(cuts(base, count, random.Random(40 + len(options)), options=options)):
        wrong += [f"image {number}: {text}" for text in cut.broken_laws(base / "again")]
        told += len(cut.said)
    cases(count)
    assert wrong == []
    assert told > 0, "something had been acknowledged"


@pytest.mark.fault("C6", "power cut of a real ext4 after a builder that never syncs its files: it must be seen")
@pytest.mark.parametrize("count", [CARELESS_EVERYDAY, pytest.param(CARELESS_THOROUGH, marks=pytest.mark.slow)])
def test_without_syncs_of_files_it_is_broken(base: Path, cases: Callable[[int], None], count: int) -> None:
    taken = cuts(base, count, random.Random(50), careless=True)
    broken = sum(bool(cut.broken_laws(base / "again")) for cut in taken)
    print(f"{broken} of {count} images are broken")
    cases(count)
    assert broken > count // 3
