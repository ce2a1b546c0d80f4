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

PROGRESS_STEPS = 5
"""Consecutive steps without progress that stop the upper level."""


class Stopped(str, Enum):
    """Reason for which the upper level stopped."""

    STATIONARY = "stationary"
    TARGET = "target"
    NO_PROGRESS = "no_progress"
    NO_DESCENT = "no_descent"
    OVERFITTING = "overfitting"
    ITERATION_LIMIT = "iteration_limit"


@final
@dataclass(frozen=True)
class Stop:
    """Stopping rules; the first that holds stops the upper level.

    Attributes:
        max_iter: largest number of steps: ``iteration_limit``.
        gradient_tol: largest norm of the gradient (with a regulariser, of the gradient mapping): ``stationary``.
        target: largest objective: ``target``.
        progress_tol: smallest relative decrease of the objective; if each of the last five steps was below:
            ``no_progress``. 0 disables the rule.
        patience: largest number of steps without a better validation value: ``overfitting``.
    """

    max_iter: int = 100
    gradient_tol: float = 1e-8
    target: float = -torch.inf
    progress_tol: float = 0.0
    patience: int | None = None

    def reason(self, state: State, history: History) -> Stopped | None:
        """Return the first rule that holds, or None."""
        if state.stationarity <= self.gradient_tol:
            return Stopped.STATIONARY
        if state.value <= self.target:
            return Stopped.TARGET
        recent = history.value[-(PROGRESS_STEPS + 1) :]
        stuck = all(a - b < self.progress_tol * abs(a) for a, b in pairwise(recent))
        if self.progress_tol > 0 and len(recent) == PROGRESS_STEPS + 1 and stuck:
            return Stopped.NO_PROGRESS
        best = history.best_validation
        if self.patience is not None and best is not None and history.steps - best >= self.patience:
            return Stopped.OVERFITTING
        return Stopped.ITERATION_LIMIT if history.steps >= self.max_iter else None


@final
@dataclass
class History:
    """Learning curves of the upper level: one entry before the first step and one after each.

    With ``KKT`` there is one entry per subproblem, for all starts in sequence.

    Attributes:
        value: objective, plus the regulariser if there is one.
        stationarity: norm of the gradient or gradient mapping; with ``KKT`` the relative stationarity residual.
        step_size: step sizes; with ``KKT`` the relaxation t.
        evaluations: number of lower solves so far; with ``KKT`` of subproblems.
        validation: values of the validation function; empty without one.
    """

    value: list[float] = field(default_factory=list)
    stationarity: list[float] = field(default_factory=list)
    step_size: list[float] = field(default_factory=list)
    evaluations: list[int] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Number of steps taken."""
        return len(self.value) - 1

    @property
    def best_validation(self) -> int | None:
        """Step after which the validation value was lowest; None without a validation function."""
        return min(range(len(self.validation)), key=self.validation.__getitem__) if self.validation else None

    def draw(self, figure: Figure) -> None:
        """Draw objective and validation, gradient norm, and step size on a matplotlib figure."""
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
