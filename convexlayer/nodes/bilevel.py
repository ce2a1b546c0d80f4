"""solve_bilevel: minimise an upper objective over the parameters of a lower problem.

By the gradient of the lower solution (eq. 4 of Gould et al. 2016, for any differentiable lower level), or with the
lower problem's KKT conditions as constraints (eq. 3, for lower problems given by functions).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from typing import TYPE_CHECKING, Any, final

import torch
from tqdm import tqdm

from convexlayer.errors import ProblemError, SolverError
from convexlayer.layers import ConvexLayer
from convexlayer.nodes.batch import Tensors
from convexlayer.nodes.kkt import KKT, KKTPoint
from convexlayer.nodes.lower import lower_level, lower_program
from convexlayer.nodes.minimality import Certificate
from convexlayer.nodes.optimizers import AbstractOptimizer, GradientDescent, State
from convexlayer.nodes.upper import Objective, usable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["BilevelResult", "History", "Stop", "Stopped", "solve_bilevel"]


STATIONARY = 1e-6
"""Relative to 1 + the gradient, what may be left unbalanced of it at a stationary point of the KKT form."""


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


@final
@dataclass(frozen=True)
class BilevelResult:
    """What came of a bilevel problem.

    Attributes:
        theta: the last parameters; with a validation function, those with the best validation value.
        solution: the lower solution at these parameters.
        value: objective and regulariser there.
        history: how it went.
        stopped: why it ended.
        certificate: what shows that the solution solves the lower problem; with ``KKT`` only.
    """

    theta: Tensors
    solution: Any
    value: float
    history: History
    stopped: Stopped
    certificate: Certificate | None = None


def solve_bilevel(
    upper: Callable[..., torch.Tensor],
    lower: ConvexLayer | Callable[..., Any],
    theta: Sequence[torch.Tensor],
    *,
    method: KKT | None = None,
    optimizer: AbstractOptimizer | None = None,
    stop: Stop | None = None,
    validation: Callable[..., float | torch.Tensor] | None = None,
    warm_start: bool = True,
    progress: bool = True,
) -> BilevelResult:
    """Minimise upper(lower(theta), *theta) over theta, eq. 3 of Ochs et al. (2016).

    By the gradient of the lower solution, stepping back from where there is none; or by ``method``, which solves for
    parameters and lower solution together, and says which of several lower solutions counts.

    Args:
        upper: (solution, *theta) -> scalar tensor; the solution is what ``lower`` returns.
        lower: a ConvexLayer, a node, or any differentiable function of theta.
        theta: the parameters to start from, where the lower problem must have a solution but for ``KKT``.
        method: None for the gradient form; ``KKT`` for the KKT form, whose lower level is a node given by functions,
            and which takes neither ``optimizer``, ``stop`` nor ``validation``.
        optimizer: ``GradientDescent`` unless given; ``IPiano`` takes a regulariser, ``TorchOptimizer`` any of torch's.
        stop: the stopping rules.
        validation: (solution, *theta) -> number, the lower the better: what ``Stop.patience`` watches, and what decides
            which parameters are returned.
        warm_start: start each lower solve from the last, where solver or node can, and where the result does not depend
            on it.
        progress: show a progress bar.

    Raises:
        FailedElementsError: the lower problem has no solution at the start.
        SolverError: the objective or its gradient is not finite at the start; or ``KKT`` found no point whose lower
            solution is one.
        ProblemError: there is no parameter, ``upper`` is no scalar, patience has nothing to watch, or the method does
            not know the lower level or an option.
    """
    if method is not None:
        if optimizer is not None or stop is not None or validation is not None:
            raise ProblemError(
                "optimizer, stop and validation are of the gradient form: leave them out beside a method"
            )
        return _by_method(method, upper, lower, theta, progress=progress)
    stop = Stop() if stop is None else stop
    optimizer = GradientDescent() if optimizer is None else optimizer
    _some(theta)
    if stop.patience is not None and validation is None:
        raise ProblemError("Stop.patience watches a validation function: give one, or leave patience out")
    objective = Objective(upper, lower_level(lower, warm_start=warm_start))
    first = objective(theta)
    if not usable(first):
        raise SolverError(f"at the start the objective is {first.loss}, or its gradient not finite: start elsewhere")
    state = best = optimizer.start(objective, first)
    history = History()
    with tqdm(total=stop.max_iter, unit="step", disable=not progress) as bar:
        while True:
            history.value.append(state.value)
            history.stationarity.append(state.stationarity)
            history.step_size.append(state.step_size)
            history.evaluations.append(objective.evaluations)
            if validation is not None:
                history.validation.append(float(validation(state.point.solution, *state.point.theta)))
            if validation is None or history.best_validation == history.steps:
                best = state
            bar.set_postfix(value=f"{state.value:.4g}", gradient=f"{state.stationarity:.1e}")
            stopped = stop.reason(state, history)
            following = None if stopped else optimizer.step(objective, state)
            if following is None:
                return BilevelResult(
                    best.point.theta, best.point.solution, best.value, history, stopped or Stopped.NO_DESCENT
                )
            state = following
            bar.update()


def _by_method(
    method: KKT,
    upper: Callable[..., torch.Tensor],
    lower: ConvexLayer | Callable[..., Any],
    theta: Sequence[torch.Tensor],
    *,
    progress: bool,
) -> BilevelResult:
    _some(theta)
    history = History()
    with tqdm(unit="problem", disable=not progress) as bar:

        def told(point: KKTPoint, relaxation: float) -> None:
            history.value.append(point.value)
            history.stationarity.append(point.stationarity)
            history.step_size.append(relaxation)
            history.evaluations.append(len(history.value))
            bar.set_postfix(value=f"{point.value:.4g}", t=f"{relaxation:.0e}")
            bar.update()

        best = method.solve(upper, lower_program(lower), theta, told)
    stationary = best.stationarity <= STATIONARY
    stopped = Stopped.STATIONARY if stationary else Stopped.NO_DESCENT
    return BilevelResult(best.theta, best.y, best.value, history, stopped, best.certificate)


def _some(theta: Sequence[torch.Tensor]) -> None:
    if not theta:
        raise ProblemError("expected at least one parameter to learn, got none")
