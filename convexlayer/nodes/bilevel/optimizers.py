"""Optimisers of the upper level: gradient descent with a line search, iPiano, and those of torch.optim."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch

from convexlayer.errors import ProblemError
from convexlayer.nodes.autodiff.batch import Tensors
from convexlayer.nodes.bilevel.regularisers import AbstractRegulariser
from convexlayer.nodes.bilevel.upper_level import Objective, UpperPoint, is_finite

__all__ = ["AbstractOptimizer", "GradientDescent", "IPiano", "State", "TorchOptimizer"]

MIN_STEP_FRACTION = 1e-16
"""Smallest step tried, relative to the first one: shorter steps are below rounding in float64."""

IPIANO_STEP = 1.99
"""Numerator of iPiano's step size 1.99 (1 - beta) / C, just below the bound 2 (Ochs et al. 2014)."""

STEP_GROWTH = 1.1
"""Growth of iPiano's step size before each step, so that the Lipschitz estimate can decrease."""

ROUNDOFF_FACTOR = 10.0
"""Multiples of eps, relative to the objective, by which rounding may violate the descent condition."""


@final
@dataclass(frozen=True)
class State:
    """State of an optimiser.

    Attributes:
        point: the current point.
        value: objective plus regulariser.
        stationarity: norm of the gradient; with a regulariser, of the gradient mapping.
        step_size: the last step size, or the next one to try.
        memory: further state of the optimiser.
    """

    point: UpperPoint
    value: float
    stationarity: float
    step_size: float
    memory: Any = None


class AbstractOptimizer(ABC):
    """Descent method that takes one accepted step at a time."""

    @abstractmethod
    def start(self, objective: Objective, point: UpperPoint) -> State:
        """Return the state before the first step."""

    @abstractmethod
    def step(self, objective: Objective, state: State) -> State | None:
        """Take one step; returns the next state, or None if no step decreases the objective.

        Steps to points whose lower problem has no solution are shortened.
        """


@final
@dataclass(frozen=True)
class GradientDescent(AbstractOptimizer):
    """Steepest descent with Armijo's rule and Barzilai-Borwein trial steps.

    Attributes:
        step_size: first trial step, relative to the gradient.
        line_search: halve steps until the objective decreases by ``decrease`` of its linear prediction. Otherwise every
            step has ``step_size``, and is only shortened where the lower problem has no solution.
        decrease: Armijo's constant.
    """

    step_size: float = 1.0
    line_search: bool = True
    decrease: float = 1e-4

    def __post_init__(self) -> None:
        """Validate.

        Raises:
            ProblemError: a number is out of range.
        """
        _require_positive("step_size", self.step_size)
        if not 0 < self.decrease < 1:
            raise ProblemError(f"decrease: expected a number between 0 and 1, got {self.decrease}")

    def start(self, objective: Objective, point: UpperPoint) -> State:
        """Return the state at the point."""
        return State(point, point.loss, point.gradient_norm, self.step_size)

    def step(self, objective: Objective, state: State) -> State | None:
        """Take one descent step."""
        point, length = state.point, state.step_size if self.line_search else self.step_size
        slope = point.gradient_norm**2
        min_length = MIN_STEP_FRACTION * length
        while length > min_length:
            moved = objective.attempt(_axpy(-length, point.gradient, point.theta), point.warm)
            if moved is not None and (not self.line_search or moved.loss < point.loss - self.decrease * length * slope):
                next_length = _barzilai_borwein(point, moved, length)
                return State(moved, moved.loss, moved.gradient_norm, next_length)
            length *= 0.5
        return None


@final
@dataclass(frozen=True)
class IPiano(AbstractOptimizer):
    """Inertial proximal gradient with backtracking, eq. 4 of Ochs et al. (2016); Ochs, Chen, Brox and Pock (2014).

        theta+ = prox_(alpha l)(theta - alpha grad L(theta) + beta (theta - theta-)),    alpha < 2 (1 - beta) / C

    with the Lipschitz constant C raised until L(theta+) <= L + <grad L, d> + C/2 |d|^2 holds for d = theta+ - theta.

    Attributes:
        beta: inertia, in [0, 1).
        lipschitz: initial estimate of the constant C.
        regulariser: the function l of the parameters; None for zero.
    """

    beta: float = 0.8
    lipschitz: float = 1.0
    regulariser: AbstractRegulariser | None = None

    def __post_init__(self) -> None:
        """Validate.

        Raises:
            ProblemError: a number is out of range.
        """
        _require_positive("lipschitz", self.lipschitz)
        if not 0 <= self.beta < 1:
            raise ProblemError(f"beta: expected a number from 0 to below 1, got {self.beta}")

    def start(self, objective: Objective, point: UpperPoint) -> State:
        """Return the state at the point, without inertia."""
        step_size = self._step_size(self.lipschitz)
        return State(point, self._value(point), self._stationarity(point, step_size), step_size, point.theta)

    def step(self, objective: Objective, state: State) -> State | None:
        """Take one step; the Lipschitz estimate may decrease slightly, since the curvature varies."""
        point, before = state.point, state.memory
        step_size = STEP_GROWTH * state.step_size
        min_length = MIN_STEP_FRACTION * step_size
        while step_size > min_length:
            inertial = _axpy(self.beta, _axpy(-1.0, before, point.theta), point.theta)
            moved = objective.attempt(self._prox(_axpy(-step_size, point.gradient, inertial), step_size), point.warm)
            if moved is not None:
                change = _axpy(-1.0, point.theta, moved.theta)
                squared = sum(float(part.square().sum()) for part in change)
                bound = point.loss + point.along(change) + self._lipschitz(step_size) / 2 * squared
                if moved.loss <= bound + ROUNDOFF_FACTOR * torch.finfo(torch.float64).eps * abs(point.loss):
                    return State(
                        moved, self._value(moved), self._stationarity(moved, step_size), step_size, point.theta
                    )
            step_size *= 0.5
        return None

    def _step_size(self, lipschitz: float) -> float:
        return IPIANO_STEP * (1 - self.beta) / lipschitz

    def _lipschitz(self, step_size: float) -> float:
        return IPIANO_STEP * (1 - self.beta) / step_size

    def _prox(self, theta: Tensors, step_size: float) -> Tensors:
        return theta if self.regulariser is None else self.regulariser.prox(theta, step_size)

    def _value(self, point: UpperPoint) -> float:
        return point.loss + (0.0 if self.regulariser is None else self.regulariser.value(point.theta))

    def _stationarity(self, point: UpperPoint, step_size: float) -> float:
        """Norm of the gradient mapping (theta - prox(theta - alpha grad L)) / alpha."""
        if self.regulariser is None:
            return point.gradient_norm
        moved = self._prox(_axpy(-step_size, point.gradient, point.theta), step_size)
        gap = _axpy(-1.0, moved, point.theta)
        return float(torch.stack([torch.linalg.vector_norm(part) for part in gap]).norm()) / step_size


@final
@dataclass(frozen=True)
class TorchOptimizer(AbstractOptimizer):
    """Any optimiser of torch.optim.

    A step to parameters whose lower problem has no solution is halved until it has one. Points evaluated within a step,
    as by L-BFGS, must have one.

    Attributes:
        make: parameters -> optimiser, such as ``lambda parameters: torch.optim.Adam(parameters, lr=0.01)``.
    """

    make: Callable[[Sequence[torch.Tensor]], torch.optim.Optimizer]

    def start(self, objective: Objective, point: UpperPoint) -> State:
        """Return the state at the point, with a new optimiser."""
        parameters = tuple(part.clone().requires_grad_() for part in point.theta)
        return State(point, point.loss, point.gradient_norm, torch.nan, (parameters, self.make(list(parameters))))

    def step(self, objective: Objective, state: State) -> State | None:
        """Take one step of the optimiser, which may evaluate the objective several times."""
        point, (parameters, optimizer) = state.point, state.memory
        known = point

        def closure() -> float:
            nonlocal known
            if not all(torch.equal(a, b) for a, b in zip(known.theta, parameters, strict=True)):
                known = objective(parameters, known.warm)
            for parameter, gradient in zip(parameters, known.gradient, strict=True):
                parameter.grad = gradient.clone()
            return known.loss

        optimizer.step(closure)
        target = tuple(part.detach().clone() for part in parameters)
        moved: UpperPoint | None = known if is_finite(known) and _all_equal(known.theta, target) else None
        moved = objective.attempt(target, point.warm) if moved is None else moved
        fraction = 1.0
        while moved is None and fraction > MIN_STEP_FRACTION:
            fraction *= 0.5
            shortened = _axpy(fraction, _axpy(-1.0, point.theta, target), point.theta)
            moved = objective.attempt(shortened, point.warm)
        if moved is None:
            return None
        with torch.no_grad():
            for parameter, value in zip(parameters, moved.theta, strict=True):
                parameter.copy_(value)
        return replace(state, point=moved, value=moved.loss, stationarity=moved.gradient_norm)


def _axpy(factor: float, x: Tensors, y: Tensors) -> Tensors:
    """factor * x + y, for each parameter."""
    return tuple(b + factor * a for a, b in zip(x, y, strict=True))


def _all_equal(left: Tensors, right: Tensors) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def _barzilai_borwein(before: UpperPoint, after: UpperPoint, fallback: float) -> float:
    """Barzilai-Borwein step <d, d> / <d, g> for changes d of theta, g of the gradient; twice the last if negative."""
    change = _axpy(-1.0, before.theta, after.theta)
    gradient_change = _axpy(-1.0, before.gradient, after.gradient)
    squared = sum(float(part.square().sum()) for part in change)
    curvature = sum(float((a * b).sum()) for a, b in zip(change, gradient_change, strict=True))
    return squared / curvature if curvature > 0 else 2 * fallback


def _require_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ProblemError(f"{name}: expected a positive number, got {value}")
