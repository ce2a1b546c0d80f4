"""The contract of a contestant."""

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
"""What every contestant's tolerances aim at."""


@dataclass(frozen=True, eq=False)
class Setting:
    """What a call is built for.

    Attributes:
        problem: the problem, of which the call may use the CVXPY objects.
        batch: the batch size of all calls.
        threads: how many threads all contestants may use.
        cleanup: closes pools and the like, afterwards.
    """

    problem: Problem
    batch: int
    threads: int
    cleanup: ExitStack


@dataclass(frozen=True)
class Contestant:
    """A library that solves problems of the suite and differentiates their solutions.

    Attributes:
        name: its name on the command line and in the tables.
        modules: what it imports, in order; the first is what must be installed.
        refusal: why it cannot take a problem, or None.
        build: makes the call: everything that is done once.
    """

    name: str
    modules: tuple[str, ...]
    refusal: Callable[[Problem], str | None]
    build: Callable[[Setting], Call]

    def load(self) -> None:
        """Import what it needs, so that imports are neither timed nor counted."""
        for module in self.modules:
            importlib.import_module(module)

    def why_not(self, problem: Problem) -> str | None:
        """Why it cannot take a problem, or None."""
        return dict(problem.unsupported).get(self.name) or self.refusal(problem)
