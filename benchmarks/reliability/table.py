"""Rows of the table, and how it is printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.reliability.log import Log

__all__ = ["HEAD", "Plan", "Row", "milliseconds", "percentile"]

HEAD = "| what | target | measured | met |\n|---|---|---|---|"
"""Of the table that rows make."""


@dataclass(frozen=True)
class Plan:
    """How long to measure.

    Attributes:
        seconds: for each figure that is measured under load.
        soak_s: for the soak.
        count: repetitions of what is counted, such as kills.
        cases: of the fuzz.
        against: another checkout, whose server the throughput is compared with.
    """

    seconds: float
    soak_s: float
    count: int
    cases: int
    against: str | None = None


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: what is measured.
        target: in words.
        figure: what was measured.
        met: whether it meets the target.
        tail: of the server's log, to be shown where it does not.
    """

    what: str
    target: str
    figure: str
    met: bool
    tail: str = ""

    def __str__(self) -> str:
        return f"| {self.what} | {self.target} | {self.figure} | {'yes' if self.met else '**no**'} |"

    def with_log(self, log: Log) -> Row:
        """The row of an attack, under which a server writes no error into its log."""
        return replace(self, figure=f"{self.figure}; {log}", met=self.met and not log.errors, tail=log.tail)


def percentile(samples: Sequence[float], share: float) -> float:
    """The value below which this share of the samples lies; not a number of none."""
    return float(np.percentile(samples, 100.0 * share)) if len(samples) else float("nan")


def milliseconds(seconds: float) -> str:
    """With three digits."""
    return f"{1e3 * seconds:.3g} ms"
