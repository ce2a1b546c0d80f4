"""The table of results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.reliability.server_log import Log

__all__ = ["HEAD", "Plan", "Row", "milliseconds", "percentile"]

HEAD = "| what | target | measured | met |\n|---|---|---|---|"
"""Header of the table."""


@dataclass(frozen=True)
class Plan:
    """Durations and counts of the measurements.

    Attributes:
        seconds: duration of each load.
        soak_s: duration of the soak test.
        count: number of repetitions, such as kills.
        cases: number of fuzz cases.
        against: another checkout to compare the throughput with.
    """

    seconds: float
    soak_s: float
    count: int
    cases: int
    against: str | None = None


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        what: what is measured.
        target: the target, as text.
        figure: the measurement, as text.
        met: whether the measurement meets the target.
        tail: end of the server's log, shown if it does not.
    """

    what: str
    target: str
    figure: str
    met: bool
    tail: str = ""

    def __str__(self) -> str:
        return f"| {self.what} | {self.target} | {self.figure} | {'yes' if self.met else '**no**'} |"

    def with_log(self, log: Log) -> Row:
        """Add a server's log to the row, which must not contain errors."""
        return replace(self, figure=f"{self.figure}; {log}", met=self.met and not log.errors, tail=log.tail)


def percentile(samples: Sequence[float], share: float) -> float:
    """Return a quantile of samples; NaN without samples."""
    return float(np.percentile(samples, 100.0 * share)) if len(samples) else float("nan")


def milliseconds(seconds: float) -> str:
    """Format seconds as milliseconds, with three digits."""
    return f"{1e3 * seconds:.3g} ms"
