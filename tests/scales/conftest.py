"""Summary of the tests of scales at the end of a test run: correct and wrong results, reported and unreported."""

from __future__ import annotations

import pytest

from benchmarks.scales import public
from benchmarks.scales.table import Count, table

COUNTS = pytest.StashKey[list[Count]]()


@pytest.fixture
def counts(request: pytest.FixtureRequest) -> list[Count]:
    """Counts collected from all tests for the summary."""
    return request.config.stash.setdefault(COUNTS, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    counts = config.stash.get(COUNTS, [])
    for part in dict.fromkeys(count.part for count in counts):
        terminalreporter.section(f"{part}: correct and wrong results, reported and unreported")
        own = public.table if part == "public" else table
        terminalreporter.line(own([count for count in counts if count.part == part]))
