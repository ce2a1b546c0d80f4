"""The account of the scales, printed at the end of a run: right or wrong, told or untold."""

from __future__ import annotations

import pytest

from benchmarks.scales import public
from benchmarks.scales.table import Count, table

COUNTS = pytest.StashKey[list[Count]]()


@pytest.fixture
def counts(request: pytest.FixtureRequest) -> list[Count]:
    """Where tests put what they counted."""
    return request.config.stash.setdefault(COUNTS, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    counts = config.stash.get(COUNTS, [])
    for part in dict.fromkeys(count.part for count in counts):
        terminalreporter.section(f"{part}: right or wrong, told or untold")
        own = public.table if part == "public" else table
        terminalreporter.line(own([count for count in counts if count.part == part]))
