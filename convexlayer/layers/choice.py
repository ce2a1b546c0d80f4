"""Solver choice of a solution map, its fallback solver, and tuning by timed runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple, final

import torch

from convexlayer.errors import SolverError
from convexlayer.program import Structure
from convexlayer.solvers.auto import fallback_of
from convexlayer.solvers.base import AbstractSolver, SolverState
from convexlayer.solvers.registry import solver_for

__all__ = ["Fallback", "ResolvedSolver", "checked_device", "choose", "fastest"]

TIMED_RUNS = 3
"""Number of timed runs of each candidate, after one untimed run that fills caches; the best time counts."""

DROP_FACTOR = 3.0
"""A candidate slower than the fastest by more than this factor is not timed again, to bound the tuning time."""


@final
class Fallback:
    """The fallback solver, for elements that the chosen solver does not settle.

    Attributes:
        solver: the fallback solver.
    """

    def __init__(self, solver: AbstractSolver, structure: Structure) -> None:
        """Store the solver; its state is computed on first use."""
        self.solver = solver
        self._structure = structure

    @cached_property
    def state(self) -> SolverState:
        """The solver's state for the structure."""
        return self.solver.init(self._structure)


class ResolvedSolver(NamedTuple):
    """A solver initialised for a structure.

    Attributes:
        solver: the solver.
        state: the solver's state for the structure.
        fallback: fallback solver for the elements that the solver does not settle, or None.
        reason: why ``auto`` chose the solver, or that the caller named it.
    """

    solver: AbstractSolver
    state: SolverState
    fallback: Fallback | None
    reason: str


def choose(name: str, structure: Structure, device: str = "cpu") -> ResolvedSolver:
    """Resolve a solver name, or ``auto`` for a device, and initialise the solver for a structure.

    Raises:
        SolverError: the solver is unknown, not installed, or does not support the structure.
    """
    solver, reason = solver_for(name, structure, device)
    second = fallback_of(solver, structure, automatic=name.lower() == "auto")
    fallback = None if second is None else Fallback(solver_for(second, structure)[0], structure)
    return ResolvedSolver(solver, solver.init(structure), fallback, reason)


def checked_device(device: str) -> str:
    """Return the device after checking that it supports float64 tensors.

    Raises:
        SolverError: it does not.
    """
    try:
        torch.ones(1, dtype=torch.float64, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise SolverError(f"torch has no device {device!r} for float64 here ({reason}): device='cpu' works") from error
    return device


def fastest(candidates: Sequence[ResolvedSolver], attempt: Callable[[ResolvedSolver], int]) -> ResolvedSolver:
    """Time the candidates; return the fastest of those that solve the most elements, with the times as its reason.

    Args:
        candidates: at least one candidate.
        attempt: solves with a candidate, and returns the number of solved elements.
    """
    solved = [attempt(candidate) for candidate in candidates]
    best = [float("inf")] * len(candidates)
    for _ in range(TIMED_RUNS):
        for i, candidate in enumerate(candidates):
            if best[i] == float("inf") or best[i] <= DROP_FACTOR * min(best):
                start = time.perf_counter()
                attempt(candidate)
                best[i] = min(best[i], time.perf_counter() - start)
    able = [i for i in range(len(candidates)) if solved[i] == max(solved)]
    winner = min(able, key=best.__getitem__)
    ranking = sorted(range(len(candidates)), key=best.__getitem__)
    times = ", ".join(f"{candidates[i].solver.name} {1e3 * best[i]:.3g} ms" for i in ranking)
    return candidates[winner]._replace(reason=f"tuned: the fastest at the first call ({times})")
