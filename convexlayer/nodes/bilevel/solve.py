"""solve_bilevel: minimise an upper objective over the parameters of a lower problem.

The gradient form differentiates the lower solution (eq. 4 of Gould et al. 2016, for any differentiable lower level).
The KKT form has the KKT conditions of the lower problem as constraints (eq. 3, for lower problems given by functions).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from tqdm import tqdm

from convexlayer.errors import ProblemError, SolverError
from convexlayer.layers import ConvexLayer
from convexlayer.nodes.autodiff.batch import Tensors
from convexlayer.nodes.bilevel.complementarity import STATIONARITY_TOL
from convexlayer.nodes.bilevel.kkt_form import KKT, KKTPoint
from convexlayer.nodes.bilevel.lower_certificate import Certificate
from convexlayer.nodes.bilevel.lower_level import lower_level, lower_program
from convexlayer.nodes.bilevel.optimizers import AbstractOptimizer, GradientDescent
from convexlayer.nodes.bilevel.progress import History, Stop, Stopped
from convexlayer.nodes.bilevel.upper_level import Objective, is_finite

__all__ = ["BilevelResult", "solve_bilevel"]


@final
@dataclass(frozen=True)
class BilevelResult:
    """Result of a bilevel problem.

    Attributes:
        theta: the last parameters; with a validation function, those with the best validation value.
        solution: the lower solution at these parameters.
        value: objective plus regulariser at these parameters.
        history: learning curves.
        stopped: the reason for stopping.
        certificate: evidence that the solution solves the lower problem; with ``KKT`` only.
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

    The gradient form descends along the gradient of the lower solution, and steps back from parameters whose lower
    problem has no solution. ``method=KKT()`` solves for parameters and lower solution together, and selects among
    several lower solutions.

    Args:
        upper: (solution, *theta) -> scalar tensor; the solution is the value of ``lower``.
        lower: a ConvexLayer, a node, or any differentiable function of theta.
        theta: initial parameters, at which the lower problem must have a solution, except for ``KKT``.
        method: None for the gradient form; ``KKT`` for the KKT form, which requires a node given by functions as lower
            level and supports neither ``optimizer``, ``stop`` nor ``validation``.
        optimizer: ``GradientDescent`` (the default), ``IPiano`` (with a regulariser), or ``TorchOptimizer``.
        stop: stopping rules.
        validation: (solution, *theta) -> number, the lower the better; monitored by ``Stop.patience``, and selects the
            parameters that are returned.
        warm_start: start each lower solve from the previous solution, if the lower level supports it and its result
            does not depend on the start.
        progress: show a progress bar.

    Raises:
        FailedElementsError: the lower problem has no solution at the start.
        SolverError: the objective or its gradient is not finite at the start; or ``KKT`` found no point whose y solves
            the lower problem.
        ProblemError: there is no parameter, ``upper`` is not a scalar, patience is set without validation, or the
            method does not support the lower level or an option.
    """
    if method is not None:
        if optimizer is not None or stop is not None or validation is not None:
            raise ProblemError(
                "optimizer, stop and validation belong to the gradient form: leave them out with a method"
            )
        return _solve_kkt_form(method, upper, lower, theta, progress=progress)
    stop = Stop() if stop is None else stop
    optimizer = GradientDescent() if optimizer is None else optimizer
    _require_parameters(theta)
    if stop.patience is not None and validation is None:
        raise ProblemError("Stop.patience needs a validation function: give one, or leave patience out")
    objective = Objective(upper, lower_level(lower, warm_start=warm_start))
    first = objective(theta)
    if not is_finite(first):
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
            next_state = None if stopped else optimizer.step(objective, state)
            if next_state is None:
                return BilevelResult(
                    best.point.theta, best.point.solution, best.value, history, stopped or Stopped.NO_DESCENT
                )
            state = next_state
            bar.update()


def _solve_kkt_form(
    method: KKT,
    upper: Callable[..., torch.Tensor],
    lower: ConvexLayer | Callable[..., Any],
    theta: Sequence[torch.Tensor],
    *,
    progress: bool,
) -> BilevelResult:
    _require_parameters(theta)
    history = History()
    with tqdm(unit="problem", disable=not progress) as bar:

        def record(point: KKTPoint, relaxation: float) -> None:
            history.value.append(point.value)
            history.stationarity.append(point.stationarity)
            history.step_size.append(relaxation)
            history.evaluations.append(len(history.value))
            bar.set_postfix(value=f"{point.value:.4g}", t=f"{relaxation:.0e}")
            bar.update()

        best = method.solve(upper, lower_program(lower), theta, record)
    stationary = best.stationarity <= STATIONARITY_TOL
    stopped = Stopped.STATIONARY if stationary else Stopped.NO_DESCENT
    return BilevelResult(best.theta, best.y, best.value, history, stopped, best.certificate)


def _require_parameters(theta: Sequence[torch.Tensor]) -> None:
    if not theta:
        raise ProblemError("expected at least one parameter to learn, got none")
