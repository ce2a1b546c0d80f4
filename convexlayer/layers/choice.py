"""The solver that a solution map has chosen, and the race that finds the fastest."""

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

RUNS = 3
"""Timed runs of each candidate, after one that is not: caches fill, and a solver may keep what it built."""

HOPELESS = 3.0
"""A candidate that once took this many times as long as the fastest is not run again."""


@final
class Fallback:
    """Who is asked again for elements that the solver leaves unsettled.

    Attributes:
        solver: the solver.
    """

    def __init__(self, solver: AbstractSolver, structure: Structure) -> None:
        """Store the solver; its state is made at the first use."""
        self.solver = solver
        self._structure = structure

    @cached_property
    def state(self) -> SolverState:
        """What the solver prepared for the structure."""
        return self.solver.init(self._structure)


class ResolvedSolver(NamedTuple):
    """A solver prepared for a structure.

    Attributes:
        solver: the solver.
        state: what it prepared for the structure.
        fallback: solver for the elements that it leaves unsettled, or None.
        reason: why ``auto`` chose it, or that it was asked for.
    """

    solver: AbstractSolver
    state: SolverState
    fallback: Fallback | None
    reason: str


def choose(name: str, structure: Structure, device: str = "cpu") -> ResolvedSolver:
    """The solver of this name, or the one that ``auto`` chooses for a device, after the work that every solve shares.

    Raises:
        SolverError: the solver is unknown, missing, or cannot take the structure.
    """
    solver, reason = solver_for(name, structure, device)
    second = fallback_of(solver, structure, automatic=name.lower() == "auto")
    fallback = None if second is None else Fallback(solver_for(second, structure)[0], structure)
    return ResolvedSolver(solver, solver.init(structure), fallback, reason)


def checked_device(device: str) -> str:
    """The device, if doubles can be kept there.

    Raises:
        SolverError: they cannot.
    """
    try:
        torch.ones(1, dtype=torch.float64, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        said = str(error).splitlines()[0]
        raise SolverError(f"torch has no device {device!r} for float64 here ({said}): device='cpu' works") from error
    return device


def fastest(candidates: Sequence[ResolvedSolver], attempt: Callable[[ResolvedSolver], int]) -> ResolvedSolver:
    """The fastest of the candidates that solve the most elements, with the times as its reason.

    Args:
        candidates: at least one.
        attempt: solves with a candidate, and says how many elements it solved.
    """
    solved = [attempt(candidate) for candidate in candidates]
    best = [float("inf")] * len(candidates)
    for _ in range(RUNS):
        for i, candidate in enumerate(candidates):
            if best[i] == float("inf") or best[i] <= HOPELESS * min(best):
                start = time.perf_counter()
                attempt(candidate)
                best[i] = min(best[i], time.perf_counter() - start)
    able = [i for i in range(len(candidates)) if solved[i] == max(solved)]
    winner = min(able, key=best.__getitem__)
    told = sorted(range(len(candidates)), key=best.__getitem__)
    times = ", ".join(f"{candidates[i].solver.name} {1e3 * best[i]:.3g} ms" for i in told)
    return candidates[winner]._replace(reason=f"tuned: the fastest at the first call ({times})")
