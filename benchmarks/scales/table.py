"""Counts of outcomes, and their table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from benchmarks.scales.outcome import Outcome
from benchmarks.table import grid

__all__ = ["Count", "merged", "table"]


COUNTED = ("right_reported_ok", "silent", "right_not_ok", "wrong_not_ok", "silent_outputs", "wrong_optimal")
"""Attributes of ``Count`` that are summed."""


@dataclass
class Count:
    """Outcomes of the draws of one cell (see ``outcome.Outcome``).

    Attributes:
        part: name of the part.
        family: name of the family.
        k: units or parameters lie in 10^-k..10^k.
        solver: name of the solver.
        right_reported_ok: number of draws that are reported ok and not silent errors.
        silent: number of silent errors.
        silent_outputs: number of silent errors whose derivatives reported ok are right.
        wrong_optimal: number of draws with status optimal and wrong outputs.
        right_not_ok: number of right draws not reported optimal and ok.
        wrong_not_ok: number of wrong draws not reported optimal and ok.
        silent_draws: positions of the silent errors among the draws of this cell.
        examples: descriptions of some silent errors.
        statuses: number of draws by status of the solve.
        x_error: largest relative error of an output among draws reported ok.
        J_error: largest relative error of a derivative among draws reported ok.
        details: additional results of a part.
    """

    part: str
    family: str
    k: float
    solver: str
    right_reported_ok: int = 0
    silent: int = 0
    right_not_ok: int = 0
    wrong_not_ok: int = 0
    silent_outputs: int = 0
    wrong_optimal: int = 0
    silent_draws: list[int] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)
    x_error: float = 0.0
    J_error: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def draws(self) -> int:
        """Total number of draws."""
        return self.right_reported_ok + self.silent + self.right_not_ok + self.wrong_not_ok

    @property
    def not_ok_fraction(self) -> float:
        """Fraction of the draws that were not reported optimal and ok."""
        return (self.right_not_ok + self.wrong_not_ok) / max(self.draws, 1)

    def add(self, outcome: Outcome, *, show: int = 0) -> Count:
        """Add the outcomes of a batch; silent errors are described in ``examples`` until it has ``show`` entries."""
        first = self.draws
        not_ok = ~outcome.reported_ok & ~outcome.silent_error
        self.right_reported_ok += int(np.sum(outcome.reported_ok & ~outcome.silent_error))
        self.silent += int(np.sum(outcome.silent_error))
        self.right_not_ok += int(np.sum(not_ok & outcome.right))
        self.wrong_not_ok += int(np.sum(not_ok & ~outcome.right))
        self.silent_outputs += int(np.sum(outcome.silent_outputs))
        self.wrong_optimal += int(np.sum(outcome.wrong_optimal))
        for i in np.flatnonzero(outcome.silent_error)[: max(show - len(self.examples), 0)].tolist():
            self.examples.append(f"draw {first + i}: {outcome.example(i)}")
        self.silent_draws += (first + np.flatnonzero(outcome.silent_error)).tolist()
        for status in outcome.status:
            self.statuses[status] = self.statuses.get(status, 0) + 1
        for name in ("x_error", "J_error"):
            errors = getattr(outcome, name)[outcome.reported_ok]
            setattr(self, name, max(getattr(self, name), float(np.max(errors, initial=0.0))))
        return self

    def as_json(self) -> dict[str, Any]:
        """The count as JSON values."""
        return asdict(self)


def merged(counts: Iterable[Count], key: Sequence[str]) -> list[Count]:
    """Sum the counts with equal values of these attributes; other labels become ``all`` (k: the largest)."""
    groups: dict[tuple[Any, ...], Count] = {}
    for count in counts:
        name = tuple(getattr(count, attribute) for attribute in key)
        if name not in groups:
            labels = {attribute: getattr(count, attribute) for attribute in key}
            groups[name] = Count(**{"part": count.part, "family": "all", "k": count.k, "solver": "all", **labels})
        group = groups[name]
        for attribute in COUNTED:
            setattr(group, attribute, getattr(group, attribute) + getattr(count, attribute))
        for status, number in count.statuses.items():
            group.statuses[status] = group.statuses.get(status, 0) + number
        group.k = max(group.k, count.k)
        group.x_error, group.J_error = max(group.x_error, count.x_error), max(group.J_error, count.J_error)
    return list(groups.values())


def table(counts: Sequence[Count]) -> str:
    """One row per family and solver, one column per range: right reported ok / silent / right not ok / wrong not ok."""
    ranges = sorted({count.k for count in counts})
    rows = []
    for family, solver in dict.fromkeys((count.family, count.solver) for count in counts):
        cells = {count.k: count for count in counts if (count.family, count.solver) == (family, solver)}
        rows.append([family, solver, *(_cell(cells.get(k)) for k in ranges)])
    for solver in dict.fromkeys(count.solver for count in counts):
        total = {count.k: count for count in merged([c for c in counts if c.solver == solver], ("k",))}
        rows.append(["**all**", solver, *(_cell(total.get(k)) for k in ranges)])
    head = [
        "right, reported ok / **silent** / right, not ok / wrong, not ok",
        "solver",
        *(f"10^±{k:g}" for k in ranges),
    ]
    return grid(head, rows)


def _cell(count: Count | None) -> str:
    if count is None:
        return ""
    silent = f"**{count.silent}**" if count.silent else "0"
    return f"{count.right_reported_ok} / {silent} / {count.right_not_ok} / {count.wrong_not_ok}"
