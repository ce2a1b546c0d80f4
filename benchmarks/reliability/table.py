"""The table of results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.reliability.server_log import Log

__all__ = ["HEAD", "Plan", "Row", "milliseconds", "quantile"]

HEAD = "| what | target | measured | met |\n|---|---|---|---|"
"""Header of the table."""


@dataclass(frozen=True)
class Plan:
    """Durations and counts of the measurements.

    Attributes:
        load_s: duration of each load in seconds.
        soak_s: duration of the soak test in seconds.
        kills: number of workers to kill.
        cases: number of fuzz cases.
        against: another checkout to compare the throughput with.
    """

    load_s: float
    soak_s: float
    kills: int
    cases: int
    against: str | None = None


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        what: what is measured.
        target: the target, as text. Targets are this project's own requirements.
        measured: the measurement, as text.
        met: whether the measurement meets the target.
        tail: end of the server's log, shown if it does not.
    """

    what: str
    target: str
    measured: str
    met: bool
    tail: str = ""

    def __str__(self) -> str:
        return f"| {self.what} | {self.target} | {self.measured} | {'yes' if self.met else '**no**'} |"

    def with_log(self, log: Log) -> Row:
        """Add a server's log to the row, which must not contain errors."""
        return replace(self, measured=f"{self.measured}; {log}", met=self.met and not log.errors, tail=log.tail)


def quantile(samples: Sequence[float], share: float) -> float:
    """Return the quantile of samples below which a share of them lies; NaN without samples."""
    return float(np.quantile(samples, share)) if len(samples) else float("nan")


def milliseconds(seconds: float) -> str:
    """Format seconds as milliseconds, with three digits."""
    return f"{1e3 * seconds:.3g} ms"
