"""Objective value, feasibility and complementary slackness of a CVXPY problem, evaluated on CVXPY's expressions."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import final

import cvxpy as cp
import numpy as np
from cvxpy.atoms import quantum_rel_entr
from cvxpy.atoms.atom import Atom
from cvxpy.constraints import PSD, SOC, Equality, ExpCone, Inequality, NonNeg, NonPos, PowCone3D, PowConeND, Zero
from cvxpy.transforms.partial_optimize import PartialProblem

from convexlayer.canon.detached import assign, expressions
from convexlayer.canon.naming import shortened
from convexlayer.program import Array

__all__ = ["Residual", "residuals"]

logger = logging.getLogger(__name__)

WRONGLY_EVALUATED = (quantum_rel_entr,)
"""Atoms that CVXPY 1.9.3 canonicalises correctly but evaluates wrongly."""


@dataclass(frozen=True)
class Residual:
    """The residual of one optimality condition.

    Attributes:
        describe: makes the description of the residual, the end of a sentence.
        condition: index of the condition among all conditions of the problem.
        size: the residual divided by the largest term compared, or by 1 if the terms are smaller.
        absolute: the residual, in the unit of the objective if ``of_objective`` and of the constraint otherwise.
        of_objective: whether the unit is that of the objective, as for products of slacks and multipliers.
    """

    describe: Callable[[], str]
    condition: int
    size: float
    absolute: float
    of_objective: bool


def residuals(
    problem: cp.Problem, values: Mapping[int, Array], reported: float, *, multipliers: bool
) -> list[Residual]:
    """Evaluate the optimality conditions of a problem that need no derivative.

    The conditions: the objective evaluates to the reported value; every constraint and every variable attribute holds;
    the inner product of each constraint's slack with its multipliers is zero (complementary slackness).

    Args:
        problem: the problem; the values of its leaves are overwritten.
        values: values of its variables, parameters and dual variables, by id.
        reported: the objective value reported by the solver.
        multipliers: whether ``values`` holds valid multipliers; if not, complementary slackness is skipped.

    Returns:
        One residual per condition; conditions that cannot be evaluated or are not finite are skipped.
    """
    assign(problem, values)
    value = _Values()
    found: list[Residual] = []
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for position, evaluate in enumerate(_conditions(problem, values, reported, value, multipliers)):
            try:
                describe, absolute, scale, of_objective = evaluate()
            except Exception:  # atoms may raise anything outside their domain
                logger.debug("a condition cannot be evaluated", exc_info=True)
                continue
            size = absolute / max(1.0, scale)
            if np.isfinite(size):
                found.append(Residual(describe, position, size, absolute, of_objective))
    return found


Answer = tuple[Callable[[], str], float, float, bool]
"""Maker of the description, absolute residual, magnitude of the terms compared, and whether the unit is that of the
objective."""

Condition = Callable[[], Answer]


def _conditions(
    problem: cp.Problem, values: Mapping[int, Array], reported: float, value: _Values, multipliers: bool
) -> Iterator[Condition]:
    yield partial(_of_objective, problem.objective.expr, reported, value)
    for constraint in problem.constraints:
        yield partial(_of_constraint, constraint, value)
        if multipliers:
            yield partial(_of_multipliers, constraint, values, value)
    for inner in expressions(problem.objective, *problem.constraints):
        if isinstance(inner, cp.Problem):
            for constraint in inner.constraints:
                yield partial(_of_constraint, constraint, value)
    for variable in problem.variables():
        for constraint in variable.domain:
            yield partial(_of_constraint, constraint, value)


@final
class _Values:
    """Memoised evaluation of expressions; values have the shapes that the expressions declare."""

    def __init__(self) -> None:
        # Holding the expressions keeps Python from reusing their ids.
        self._known: dict[int, tuple[cp.Expression, Array]] = {}

    def __call__(self, expression: cp.Expression) -> Array:
        """Evaluate an expression.

        Raises:
            NotImplementedError: CVXPY evaluates the expression wrongly.
        """
        if id(expression) not in self._known:
            self._known[id(expression)] = expression, self._computed(expression)
        return self._known[id(expression)][1]

    def _computed(self, expression: cp.Expression) -> Array:
        if isinstance(expression, WRONGLY_EVALUATED):
            raise NotImplementedError(f"CVXPY evaluates {type(expression).__name__} wrongly")
        if isinstance(expression, PartialProblem):  # minimised jointly with the problem that it is part of
            return self(expression.args[0].objective.expr)
        if isinstance(expression, cp.Variable | cp.Parameter | cp.Constant) or not isinstance(expression, Atom):
            value = expression.value
        else:
            value = expression.numeric([self(argument) for argument in expression.args])
        dense = np.asarray(value.toarray() if hasattr(value, "toarray") else value, dtype=float)
        # Some atoms drop an axis of length one, after which broadcasting would give a wrong shape.
        return dense.reshape(expression.shape)


def _of_objective(expression: cp.Expression, reported: float, value: _Values) -> Answer:
    evaluated = float(value(expression).reshape(()))

    def describe() -> str:
        return f"the objective is reported as {reported:.6g} and evaluates to {evaluated:.6g}"

    return describe, abs(evaluated - reported), abs(reported), True


def _of_constraint(constraint: cp.Constraint, value: _Values) -> Answer:
    arguments = [value(argument) for argument in constraint.args]
    violation = _violation(constraint, arguments)

    def describe() -> str:
        return f"the constraint {shortened(constraint)} is violated by {violation:.3g}"

    return describe, violation, max((_largest(argument) for argument in arguments), default=0.0), False


def _of_multipliers(constraint: cp.Constraint, values: Mapping[int, Array], value: _Values) -> Answer:
    arguments = [value(argument) for argument in constraint.args]
    match constraint:
        case Inequality():
            slack = arguments[0] - arguments[1]
            magnitude = np.abs(arguments[0]) + np.abs(arguments[1])
            pairs = [(slack, magnitude)]
        case NonNeg() | NonPos() | PSD() | SOC() | ExpCone():
            pairs = [(argument, np.abs(argument)) for argument in arguments]
        case _:  # equalities have no slack; for other cones CVXPY has no multipliers or orders them differently
            pairs = []
    duals = [values[dual.id] for dual in constraint.dual_variables] if pairs else []
    products = [
        (float(np.sum(slack * dual.reshape(slack.shape))), float(np.sum(magnitude * np.abs(dual.reshape(slack.shape)))))
        for (slack, magnitude), dual in zip(pairs, duals, strict=True)
    ]
    total, size = abs(sum(product for product, _ in products)), sum(size for _, size in products)

    def describe() -> str:
        product = f"(their product is {total:.3g})"
        return f"the constraint {shortened(constraint)} is not tight though it has multipliers {product}"

    return describe, total, size, True


def _violation(constraint: cp.Constraint, arguments: list[Array]) -> float:
    """Constraint violation, in the unit of the arguments."""
    match constraint:
        case Equality():
            return _largest(arguments[0] - arguments[1])
        case Zero():
            return _largest(arguments[0])
        case Inequality():
            return float(np.max(arguments[0] - arguments[1], initial=0.0))
        case NonPos():
            return float(np.max(arguments[0], initial=0.0))
        case NonNeg():
            return float(np.max(-arguments[0], initial=0.0))
        case PSD():
            symmetric = 0.5 * (arguments[0] + np.swapaxes(arguments[0], -1, -2))
            return float(np.max(-np.linalg.eigvalsh(symmetric), initial=0.0))
        case SOC():
            t, X = arguments
            norms = np.linalg.norm(X, axis=constraint.axis) if X.ndim else np.abs(X)
            return float(np.max(norms.ravel() - t.ravel(), initial=0.0))
        case ExpCone():
            x, y, z = arguments
            return float(np.max(np.concatenate([(y * np.exp(x / y) - z).ravel(), -y.ravel()]), initial=0.0))
        case PowCone3D():
            x, y, z = arguments
            alpha = np.asarray(constraint.alpha.value)
            powers = np.maximum(x, 0.0) ** alpha * np.maximum(y, 0.0) ** (1 - alpha)
            parts = [(np.abs(z) - powers).ravel(), -x.ravel(), -y.ravel()]
            return float(np.max(np.concatenate(parts), initial=0.0))
        case PowConeND():
            W, z = arguments
            powers = np.prod(np.maximum(W, 0.0) ** np.asarray(constraint.alpha.value), axis=constraint.axis)
            return float(np.max(np.concatenate([np.abs(z).ravel() - powers.ravel(), -W.ravel()]), initial=0.0))
        case _:
            raise NotImplementedError(type(constraint).__name__)


def _largest(values: Array) -> float:
    return float(np.max(np.abs(values), initial=0.0))
