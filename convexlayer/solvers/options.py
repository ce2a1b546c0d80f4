"""Portable options, which have the same meaning for every solver, and the time limit."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from convexlayer.arguments import INTEGER, REAL, check_bool, check_kind
from convexlayer.errors import SolverError

__all__ = ["Clock", "Options"]

MIN_TOL = 1e-15
"""Smallest tolerance that a solver is given: below it, double precision has no digits left."""

MIN_TIME_LIMIT_S = 1e-6
"""Time limit passed to a solver when none is left, as some solvers take 0 for no limit."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Solver options.

    Attributes:
        tol: absolute and relative tolerance requested from the solver; the report has the residuals reached.
        max_iter: iteration limit of the solver; None for its default.
        time_limit_s: time limit in seconds of a call with all its elements: solver, fallback solver and polishing. A
            factorisation in progress is completed; unsolved elements get status TIME_LIMIT. None for no limit.
        polish: whether to refine solutions to double precision by Newton steps.
        solver_options: raw options by solver, such as ``{"clarabel": {"max_step_fraction": 0.9}}``; they override the
            other options.
        chunk_size: number of elements that a call, and each derivative, computes at a time; None for whole batches as
            long as they fit in a memory budget, and else the size that a smaller budget allows (``layers/chunks.py``).
        progress: whether to compute in chunks with progress bars of the solve and of derivatives on standard error.
    """

    tol: float = 1e-8
    max_iter: int | None = None
    time_limit_s: float | None = None
    polish: bool = True
    solver_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    chunk_size: int | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ProblemError: a value of the wrong type.
            SolverError: a value out of range.
        """
        check_kind("tol", self.tol, REAL, "a number such as 1e-8")
        if self.max_iter is not None:
            check_kind("max_iter", self.max_iter, INTEGER, "an integer, or None")
        if self.time_limit_s is not None:
            check_kind("time_limit_s", self.time_limit_s, REAL, "a number of seconds, or None")
        if self.chunk_size is not None:
            check_kind("chunk_size", self.chunk_size, INTEGER, "a number of elements, or None")
        check_bool("polish", self.polish)
        check_bool("progress", self.progress)
        raw = "a mapping from solver names to mappings of options"
        check_kind("solver_options", self.solver_options, Mapping, raw)
        for solver, options in self.solver_options.items():
            check_kind(f"solver_options[{solver!r}]", options, Mapping, "a mapping of the solver's options")
        for name in ("tol", "max_iter", "time_limit_s", "chunk_size"):
            value = getattr(self, name)
            if isinstance(value, np.generic):  # some solvers reject NumPy scalars
                object.__setattr__(self, name, value.item())
        if not MIN_TOL <= self.tol <= 1.0:
            raise SolverError(f"tol must lie between {MIN_TOL:g} and 1, got {self.tol!r}")
        if self.max_iter is not None and self.max_iter < 1:
            raise SolverError(f"max_iter must be at least 1, got {self.max_iter!r}")
        if self.time_limit_s is not None and not self.time_limit_s > 0:
            raise SolverError(f"time_limit_s must be positive, got {self.time_limit_s!r}")
        if self.chunk_size is not None and self.chunk_size < 1:
            raise SolverError(f"chunk_size must be at least 1, got {self.chunk_size!r}")

    @staticmethod
    def of(options: Options | Mapping[str, Any] | None, default: Options) -> Options:
        """Options from an argument: complete options, a mapping of changes to the default, or None for the default.

        Raises:
            ProblemError: another type, or an option of the wrong type.
            SolverError: an unknown option, or a value out of range.
        """
        if options is None:
            return default
        if isinstance(options, Options):
            return options
        check_kind("options", options, Mapping, "an Options, a mapping of changes such as {'tol': 1e-9}, or None")
        known = [entry.name for entry in dataclasses.fields(Options)]
        unknown = [name for name in options if name not in known]
        if unknown:
            raise SolverError(f"unknown option {unknown[0]!r}; the options are: {', '.join(known)}")
        return dataclasses.replace(default, **options)

    def raw(self, solver: str, known: Collection[str]) -> dict[str, Any]:
        """The raw options of a solver.

        Args:
            solver: name of the solver.
            known: names of the options that it supports.

        Raises:
            SolverError: an unknown option.
        """
        raw = dict(self.solver_options.get(solver, {}))
        unknown = [name for name in raw if name not in known]
        if unknown:
            raise SolverError(f"solver {solver!r} has no option {unknown[0]!r}; it has: {', '.join(sorted(known))}")
        return raw


@final
class Clock:
    """Remaining time of a time limit, which starts when the object is created.

    Attributes:
        deadline: end of the limit on the clock of ``time.perf_counter``, in seconds; infinite without a limit.
    """

    def __init__(self, limit_s: float | None) -> None:
        """Start the clock."""
        self.deadline = float("inf") if limit_s is None else time.perf_counter() + limit_s

    @property
    def remaining_s(self) -> float | None:
        """Remaining seconds, negative after the deadline; None without a limit."""
        return None if self.deadline == float("inf") else self.deadline - time.perf_counter()

    @property
    def expired(self) -> bool:
        """Whether the deadline has passed."""
        return time.perf_counter() >= self.deadline

    def applied(self, options: Options) -> Options:
        """The options with the remaining time as their time limit."""
        left = self.remaining_s
        return options if left is None else dataclasses.replace(options, time_limit_s=max(left, MIN_TIME_LIMIT_S))
