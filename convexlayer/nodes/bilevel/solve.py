"""solve_bilevel: minimise an upper objective over the parameters of a lower problem.

By the gradient of the lower solution (eq. 4 of Gould et al. 2016, for any differentiable lower level), or with the
lower problem's KKT conditions as constraints (eq. 3, for lower problems given by functions).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch
from tqdm import tqdm

from convexlayer.errors import ProblemError, SolverError
from convexlayer.layers import ConvexLayer
from convexlayer.nodes.autodiff.batch import Tensors
from convexlayer.nodes.bilevel.kkt_form import KKT, KKTPoint
from convexlayer.nodes.bilevel.lower_certificate import Certificate
from convexlayer.nodes.bilevel.lower_level import lower_level, lower_program
from convexlayer.nodes.bilevel.optimizers import AbstractOptimizer, GradientDescent
from convexlayer.nodes.bilevel.progress import History, Stop, Stopped
from convexlayer.nodes.bilevel.upper_level import Objective, usable

if TYPE_CHECKING:
    pass

__all__ = ["BilevelResult", "solve_bilevel"]


STATIONARY = 1e-6
"""Relative to 1 + the gradient, what may be left unbalanced of it at a stationary point of the KKT form."""


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
