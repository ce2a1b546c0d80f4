"""Interface of a contestant: a library that takes part in the benchmarks."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks.problem import Problem, Tensors

__all__ = ["ACCURACY", "Call", "Contestant", "Setting"]

Call = Callable[[Tensors], Tensors]
"""theta, each (B, *shape) -> the problem's variables, each (B, *shape), with gradients."""

ACCURACY = 1e-8
"""Solver tolerance set for every contestant."""


@dataclass(frozen=True, eq=False)
class Setting:
    """The setting of a benchmark call.

    Attributes:
        problem: the problem, whose CVXPY objects the call may use.
        batch: batch size of all calls.
        threads: number of threads per contestant.
        cleanup: closes thread pools and other resources after the measurement.
    """

    problem: Problem
    batch: int
    threads: int
    cleanup: ExitStack


@dataclass(frozen=True)
class Contestant:
    """A library that solves problems of the suite and differentiates their solutions.

    Attributes:
        name: name on the command line and in the tables.
        modules: modules to import, in order; the first is the one that must be installed.
        refusal: why it does not support a problem, or None.
        build: creates the call, with all work that is done once per problem.
    """

    name: str
    modules: tuple[str, ...]
    refusal: Callable[[Problem], str | None]
    build: Callable[[Setting], Call]

    def load(self) -> None:
        """Import its modules, so that imports count neither as time nor as memory."""
        for module in self.modules:
            importlib.import_module(module)

    def why_not(self, problem: Problem) -> str | None:
        """Why it does not support a problem, or None."""
        return dict(problem.unsupported).get(self.name) or self.refusal(problem)
