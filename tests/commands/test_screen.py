"""Tables on a terminal: nothing that matters is cut, however narrow it is."""

from __future__ import annotations

import io
import re

import pytest

from ingot.commands.screen import Screen
from ingot.commands.show import _metric_table
from registrykit import receipt

METHOD = "mean of the negative log-likelihoods of the tokens that the candidate scored, over all documents"


class Terminal(io.StringIO):
    """Text that is written to a terminal."""

    def isatty(self) -> bool:
        return True


def drawn(columns: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The metrics of a receipt as ``doit show`` draws them."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    shown = {"value": 1.234567, "unit": "nats/token", "method": METHOD, "n": 4064, "interval": [1.234001, 1.235002]}
    count = {"value": 134515008, "unit": "parameters", "method": "sum of the sizes of the tensors"}
    stream = Terminal()
    screen = Screen(stream)
    made = receipt(metrics={"negative_log_likelihood": shown, "parameters": count})
    titles, rows, right = _metric_table(screen, made)
    screen.table(titles, rows, right)
    return re.sub(r"\x1b\[[\d;]*m", "", stream.getvalue()).splitlines()


@pytest.mark.parametrize("columns", [60, 80, 100, 120, 160])
def test_numbers_and_units_are_whole(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = drawn(columns, monkeypatch)
    assert any({"1.23457", "nats/token", "4,064"} <= set(line.split()) for line in lines)
    assert any({"134,515,008", "parameters"} <= set(line.split()) for line in lines)
    assert "[1.234, 1.235]" in " ".join(" ".join(lines).split())
    assert "…" not in "".join(lines)
    assert METHOD.replace(" ", "") in "".join("".join(lines).split()) or columns >= 100


@pytest.mark.parametrize("columns", [80, 100])
def test_no_line_is_longer_than_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert max(map(len, drawn(columns, monkeypatch))) <= columns
