"""Options that mean the same for every solver."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from convexlayer.arguments import INTEGER, REAL, check_kind, check_truth
from convexlayer.errors import SolverError

__all__ = ["Clock", "Options"]

SHORTEST_S = 1e-6
"""A limit that solvers take for one, when there is nothing left."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to solve.

    Attributes:
        tol: accuracy asked of the solver, absolute and relative; what is reached is in the report's residuals.
        max_iter: iterations of the solver; None leaves its default.
        time_limit_s: seconds for a call, all its elements together: the solver, whoever is asked after it, and polish.
            What has begun a factorisation ends it; elements that are not solved by then are told so. None is no limit.
        polish: take solutions to double precision by Newton steps before they are used.
        solver_options: raw options by solver, such as ``{"clarabel": {"max_step_fraction": 0.9}}``; they override the
            above.
    """

    tol: float = 1e-8
    max_iter: int | None = None
    time_limit_s: float | None = None
    polish: bool = True
    solver_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ProblemError: a value of the wrong type.
            SolverError: a value that no solver could use.
        """
        check_kind("tol", self.tol, REAL, "a number such as 1e-8")
        if self.max_iter is not None:
            check_kind("max_iter", self.max_iter, INTEGER, "an integer, or None")
        if self.time_limit_s is not None:
            check_kind("time_limit_s", self.time_limit_s, REAL, "a number of seconds, or None")
        check_truth("polish", self.polish)
        raw = "a mapping of solvers' names to mappings of their options"
        check_kind("solver_options", self.solver_options, Mapping, raw)
        for solver, options in self.solver_options.items():
            check_kind(f"solver_options[{solver!r}]", options, Mapping, "a mapping of the solver's options")
        for name in ("tol", "max_iter", "time_limit_s"):
            value = getattr(self, name)
            if isinstance(value, np.generic):  # which some solvers do not take
                object.__setattr__(self, name, value.item())
        if not 1e-15 <= self.tol <= 1.0:
            raise SolverError(f"tol must lie between 1e-15 and 1, got {self.tol!r}")
        if self.max_iter is not None and self.max_iter < 1:
            raise SolverError(f"max_iter must be at least 1, got {self.max_iter!r}")
        if self.time_limit_s is not None and not self.time_limit_s > 0:
            raise SolverError(f"time_limit_s must be positive, got {self.time_limit_s!r}")

    @staticmethod
    def of(options: Options | Mapping[str, Any] | None, default: Options) -> Options:
        """Options from what a caller gave: complete options, a mapping of changes to the default, or None.

        Raises:
            ProblemError: it is none of these, or an option is of the wrong type.
            SolverError: an unknown option, or a value that no solver could use.
        """
        if options is None:
            return default
        if isinstance(options, Options):
            return options
        check_kind("options", options, Mapping, "an Options, a mapping of changes such as {'tol': 1e-9}, or None")
        known = [entry.name for entry in dataclasses.fields(Options)]
        unknown = [name for name in options if name not in known]
        if unknown:
            raise SolverError(f"unknown option {unknown[0]!r}; there are: {', '.join(known)}")
        return dataclasses.replace(default, **options)

    def raw(self, solver: str, known: Collection[str]) -> dict[str, Any]:
        """The raw options for a solver.

        Args:
            solver: its name.
            known: the options that it has.

        Raises:
            SolverError: an option that the solver does not know.
        """
        raw = dict(self.solver_options.get(solver, {}))
        unknown = [name for name in raw if name not in known]
        if unknown:
            raise SolverError(f"solver {solver!r} has no option {unknown[0]!r}; it has: {', '.join(sorted(known))}")
        return raw


@final
class Clock:
    """What is left of a time limit, from when it is made.

    Attributes:
        deadline: when it is over, as ``time.perf_counter`` counts; infinite without a limit.
    """

    def __init__(self, limit_s: float | None) -> None:
        """Start."""
        self.deadline = float("inf") if limit_s is None else time.perf_counter() + limit_s

    @property
    def left_s(self) -> float | None:
        """Seconds; negative where it is over, None without a limit."""
        return None if self.deadline == float("inf") else self.deadline - time.perf_counter()

    @property
    def over(self) -> bool:
        """Whether nothing is left."""
        return time.perf_counter() >= self.deadline

    def applied(self, options: Options) -> Options:
        """The options with what is left as their limit."""
        left = self.left_s
        return options if left is None else dataclasses.replace(options, time_limit_s=max(left, SHORTEST_S))
