"""``command``: what a program of the user is given."""

from __future__ import annotations

from pathlib import Path

import pytest

from ingot.errors import RefusedInput
from stagekit import run_stage


def test_placeholders_are_filled_in_words_and_in_the_environment(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    program = 'printf "%s|%s|%s" "$WHERE" "$INGOT_IN_MANY" "$1" > "$INGOT_OUT/seen"'
    params = {
        "command": ["sh", "-c", program, "x", "--in={many}"],
        "env": {"WHERE": "{scratch}/cache:{threads}", "INGOT_OUT": "elsewhere"},
    }
    out, metrics = run_stage("command", params, {"many": [first, second]}, tmp_path)
    seen = (out / "seen").read_text().split("|")
    assert seen == [f"{tmp_path / 'out-scratch'}/cache:2", f"{first}:{second}", f"--in={first}:{second}"]
    assert metrics["bytes"].value == (out / "seen").stat().st_size


def test_an_unknown_placeholder_in_the_environment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedInput) as caught:
        run_stage("command", {"command": ["true"], "env": {"A": "{nothing}"}}, {}, tmp_path)
    assert caught.value.code == "E-COMMAND-PLACEHOLDER"
