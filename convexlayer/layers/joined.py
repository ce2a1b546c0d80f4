"""Results of chunks, joined to those of the whole batch."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import fields
from typing import Any, final

import numpy as np

from convexlayer.diff import DerivativeReport
from convexlayer.layers.report import Report
from convexlayer.program import Array
from convexlayer.solution import Residuals, Solution
from convexlayer.status import Status

__all__ = ["JoinedReport", "JoinedRows", "joined_derivative_report"]


@final
class JoinedRows:
    """Arrays with one row per element of the batch, by key, filled chunk by chunk: no chunk is kept beside them."""

    def __init__(self, batch: int) -> None:
        """Create no array yet: the first chunk gives its shape and type."""
        self._batch = batch
        self._arrays: dict[Hashable, Any] = {}

    def fill(self, key: Hashable, rows: slice, values: Any) -> None:
        """Copy the values of a chunk to its rows."""
        if key not in self._arrays:
            self._arrays[key] = np.empty((self._batch, *values.shape[1:]), values.dtype)
        self._arrays[key][rows] = values

    def __getitem__(self, key: Hashable) -> Any:
        return self._arrays[key]


@final
class JoinedReport:
    """The report of a whole batch, made of the reports of its chunks in their order."""

    def __init__(self, batch: int) -> None:
        """Start without a chunk."""
        self._rows = JoinedRows(batch)
        self._status: list[Status] = []
        self._seconds: dict[str, float] = {}
        self._solved_again: list[int] = []
        self._details: dict[int, str] = {}
        self._messages: dict[int, str] = {}
        self._common: dict[str, Any] = {}
        self._stats: dict[str, Any] = {}

    def add(self, rows: slice, report: Report) -> None:
        """Add the report of the next chunk."""
        solution, first = report.solution, rows.start
        if not self._common:
            self._common = {"solver": report.solver, "reason": report.reason, "cold_start": report.cold_start}
            self._stats = {name: value for name, value in solution.stats.items() if name != "messages"}
        for name in ("x", "y", "s", "iterations", "seconds"):
            self._rows.fill(name, rows, getattr(solution, name))
        for field in fields(Residuals):
            self._rows.fill(field, rows, getattr(report.residuals, field.name))
        self._rows.fill("objective", rows, report.objective)
        self._status += report.status
        for phase, seconds in report.seconds.items():
            self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds
        self._solved_again += [first + i for i in report.solved_again]
        self._details |= {first + i: message for i, message in report.details.items()}
        self._messages |= {first + i: message for i, message in solution.stats.get("messages", {}).items()}

    def report(self) -> Report:
        """The report of all chunks that were added."""
        rows, status = self._rows, tuple(self._status)
        stats = self._stats | ({"messages": self._messages} if self._messages else {})
        return Report(
            status=status,
            residuals=Residuals(**{field.name: rows[field] for field in fields(Residuals)}),
            objective=rows["objective"],
            iterations=rows["iterations"],
            seconds=self._seconds,
            solution=Solution(rows["x"], rows["y"], rows["s"], status, rows["iterations"], rows["seconds"], stats),
            solved_again=tuple(self._solved_again),
            details=self._details,
            **self._common,
        )


def joined_derivative_report(reports: Sequence[DerivativeReport]) -> DerivativeReport:
    """The accuracy report of a whole batch from those of its chunks."""

    def joined(name: str) -> Array:
        return np.concatenate([getattr(report, name) for report in reports])

    return DerivativeReport(
        linear_residual=joined("linear_residual"),
        margin=joined("margin"),
        condition=joined("condition"),
        consistent=np.concatenate([report.consistent for report in reports]),
        status=tuple(word for report in reports for word in report.status),
    )
