"""Progress of the upper level: stopping rules and learning curves."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from typing import TYPE_CHECKING, final

import torch

from convexlayer.nodes.bilevel.optimizers import State

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["History", "Stop", "Stopped"]


class Stopped(str, Enum):
    """Why the upper level came to its end."""

    STATIONARY = "stationary"
    TARGET = "target"
    NO_PROGRESS = "no_progress"
    NO_DESCENT = "no_descent"
    OVERFITTING = "overfitting"
    ITERATION_LIMIT = "iteration_limit"


@final
@dataclass(frozen=True)
class Stop:
    """When to stop; the first rule that holds.

    Attributes:
        max_iter: the most steps.
        gradient_tol: the gradient (with a regulariser, the gradient mapping) is no longer than this: ``stationary``.
        target: the objective is no larger than this: ``target``.
        progress_tol: the objective fell by less than this share of itself in each of the last five steps:
            ``no_progress``; off at 0.
        patience: so many steps without a better validation value: ``overfitting``.
    """

    max_iter: int = 100
    gradient_tol: float = 1e-8
    target: float = -torch.inf
    progress_tol: float = 0.0
    patience: int | None = None

    def reason(self, state: State, history: History) -> Stopped | None:
        """The rule that holds, or None."""
        if state.stationarity <= self.gradient_tol:
            return Stopped.STATIONARY
        if state.value <= self.target:
            return Stopped.TARGET
        recent = history.value[-6:]
        stuck = all(a - b < self.progress_tol * abs(a) for a, b in pairwise(recent))
        if self.progress_tol > 0 and len(recent) == 6 and stuck:
            return Stopped.NO_PROGRESS
        best = history.best_validation
        if self.patience is not None and best is not None and history.steps - best >= self.patience:
            return Stopped.OVERFITTING
        return Stopped.ITERATION_LIMIT if history.steps >= self.max_iter else None


@final
@dataclass
class History:
    """The course of the upper level: one entry before the first step and one after each.

    With ``KKT`` there is one entry for each problem that was solved, from one start after another.

    Attributes:
        value: objective, with the regulariser if there is one.
        stationarity: norm of the gradient or gradient mapping; with ``KKT`` of what no multipliers balance, relative.
        step_size: step sizes; with ``KKT`` the relaxation t.
        evaluations: how often the lower problem had been solved by then; with ``KKT`` the problems.
        validation: values of the validation function; empty without one.
    """

    value: list[float] = field(default_factory=list)
    stationarity: list[float] = field(default_factory=list)
    step_size: list[float] = field(default_factory=list)
    evaluations: list[int] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Steps taken."""
        return len(self.value) - 1

    @property
    def best_validation(self) -> int | None:
        """The step after which the validation value was lowest; None without a validation function."""
        return min(range(len(self.validation)), key=self.validation.__getitem__) if self.validation else None

    def draw(self, figure: Figure) -> None:
        """Draw the learning curves on a matplotlib figure: objective and validation, gradient, and step size."""
        objective, gradient, step = figure.subplots(1, 3)
        objective.plot(self.value, label="objective")
        if self.validation:
            objective.plot(self.validation, label="validation")
            objective.legend()
        objective.set(xlabel="step", title="objective")
        gradient.plot(self.stationarity)
        gradient.set(xlabel="step", yscale="log", title="norm of the gradient")
        step.plot(self.step_size)
        step.set(xlabel="step", yscale="log", title="step size")
