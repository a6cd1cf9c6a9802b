"""The table in docs/promises.md names exactly the faults that the tests plant."""

from __future__ import annotations

from pathlib import Path

import pytest

from faultledger import COMMAND, FULL, FULL_COMMAND, Ledger, marked, written

TESTS = Path(__file__).resolve().parent.parent


def test_the_table_and_the_marks_agree(request: pytest.FixtureRequest, ledger: Ledger) -> None:
    chosen = [Path(argument.partition("::")[0]).resolve() for argument in request.config.args]
    if TESTS not in chosen or request.config.option.markexpr != "not slow" or request.config.option.keyword:
        pytest.skip("only a run of the whole suite collects every mark")
    assert written() == marked(request.session.items), f"run {COMMAND}"
    # Of the full tier, which takes hours, a table may tell less than there is, and nothing else.
    assert written(FULL) <= ledger.slow, f"run {FULL_COMMAND}"
