"""Solution check at construction: evaluates the user's problem at a solution of its cone program.

A comparison with CVXPY's canonical form (``instance_check.py``) cannot detect errors of CVXPY's canonicalisation. At a
solution of the cone program, the user's problem must have the objective value of the program, satisfy its constraints,
and satisfy complementary slackness. The first condition detects a loose epigraph, the second a weakened constraint, the
third a tightened one.

Parameters are random, and norm(x - c)^2 / 2 is added to the objective, for the user's variables x and a random c: then
a solution exists whenever a feasible point does, is unique, and is generically not zero.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import cvxpy as cp
import numpy as np

from convexlayer.canon.detached import detached
from convexlayer.canon.evaluation import Residual, residuals
from convexlayer.canon.frontend import CanonicalForm
from convexlayer.canon.parameters import random_value
from convexlayer.canon.parametric import ParametricProgram
from convexlayer.canon.recovery import Recovery
from convexlayer.canon.translate import recovery_of
from convexlayer.errors import ProblemError, UnsupportedError
from convexlayer.program import Array, ConeProgram, Pattern, Structure
from convexlayer.solution import Solution

__all__ = ["Solve", "check_solution"]

logger = logging.getLogger(__name__)

Solve = Callable[[ConeProgram, float], Solution]
"""Solves one cone program to a tolerance; the status is the solver's, not certified."""

LARGEST_SIZE = 2000
"""Maximum number of variables plus rows; beyond, the check would take longer than the rest of the construction."""

LARGEST_COUNT = 20_000
"""Maximum nnz(P) + nnz(A), for the same reason."""

LARGEST_PSD = 12
"""Maximum order of a semidefinite block, for the same reason."""

DRAWS, SOLVED = 8, 2
"""Maximum number of draws of the parameters and c, and the number of solved draws after which the check ends. Draws
come in pairs with c and -c. More would find rarer errors and lengthen the construction of every layer."""

SPREAD = 4.0
"""Standard deviation of the entries of c; large enough that constraints of order 1 become active."""

AUXILIARY_WEIGHT = 1e-4
"""Weight of norm(t)^2 / 2 for the program's other variables t, added only if no draw is solved without it; trades a
bounded problem for a perturbation of the solution."""

ACCURACY = 1e-8
"""Tolerance of the solver, the default of the library."""

SUSPECT_RESIDUAL = 1e-4
"""Relative residual above which a condition is suspected to fail: the square root of ACCURACY, which a function such as
sqrt makes of a solver's error at 0."""

MAX_AMPLIFICATION = 1e3
"""Ratio to the residuals of the cone program above which a residual cannot be due to the solver's accuracy. Smaller
values reject problems that are canonicalised correctly, larger ones accept errors of CVXPY; the tests have cases of
both."""

PERTURBATION, MAX_CHANGE = 1e-6, 0.1
"""A suspected condition fails if its residual changes by at most the factor MAX_CHANGE under perturbations of size
PERTURBATION, relative to the largest entry of the solution; a larger change means that the function is too steep for
the solver's accuracy."""


def check_solution(
    problem: cp.Problem,
    form: CanonicalForm,
    parameters: Sequence[cp.Parameter],
    program: ParametricProgram,
    solve: Solve,
) -> None:
    """Check that solutions of the cone program, before presolve, solve the problem.

    The check is skipped if the problem is large or no draw of the parameters has a solution.

    Raises:
        ProblemError: a solution of the cone program does not solve the problem.
    """
    if not _is_moderate(program.structure):
        return
    try:
        check = _Check.of(problem, form, parameters, program, solve)
    except UnsupportedError:
        logger.debug("solution check skipped: not every variable can be recovered", exc_info=True)
        return
    for auxiliary_weight in (0.0, AUXILIARY_WEIGHT):
        solved = 0
        for draw in range(DRAWS):
            point = check.point(draw, auxiliary_weight)
            if point is None:
                continue
            wrong = check.mismatch(point, np.random.default_rng(draw))
            if wrong is not None:
                raise ProblemError(_message(wrong))
            solved += 1
            if solved == SOLVED:
                return
        if solved:
            return
    logger.debug("solution check skipped: no draw of the parameters had a solution")


def _message(residual: Residual) -> str:
    return (
        f"CVXPY {cp.__version__} canonicalises the problem wrongly: at a solution of its cone program, with random "
        f"parameters, {residual.describe()}. Write that part in another way, and please report it to CVXPY; "
        "self_check=False turns the check off, at the risk of wrong solutions"
    )


def _errors(program: ConeProgram, solution: Solution) -> tuple[float, float]:
    """First-order bound on the suboptimality of a point, and its largest primal residual."""
    P, A = program.structure.P, program.structure.A
    x, y, s = solution.x, solution.y, solution.s
    Px, Ax, Aty = P.matvec(program.P, x), A.matvec(program.A, x), A.rmatvec(program.A, y)
    primal, dual = np.abs(Ax + s - program.b), np.abs(Px + program.q + Aty)
    gap = np.sum(x * (Px + program.q)) + np.sum(program.b * y)
    return float(abs(gap) + np.sum(np.abs(y) * primal) + np.sum(np.abs(x) * dual)), float(np.max(primal, initial=0.0))


def _is_moderate(structure: Structure) -> bool:
    return (
        structure.n + structure.m <= LARGEST_SIZE
        and structure.P.nnz + structure.A.nnz <= LARGEST_COUNT
        and max(structure.cones.psd, default=0) <= LARGEST_PSD
    )


@dataclass(frozen=True, eq=False)
class _Point:
    """A solution of the cone program at one draw.

    Attributes:
        variables: values of variables and dual variables, by id.
        parameters: values of parameters, by id.
        reported: the objective value of the program.
        largest: the largest magnitude in the solution, at least 1.
        errors: suboptimality and primal residual that the solver left, see ``_errors``.
        tight: whether complementary slackness is checked; the AUXILIARY_WEIGHT term invalidates it.
    """

    variables: dict[int, Array]
    parameters: dict[int, Array]
    reported: float
    largest: float
    errors: tuple[float, float]
    tight: bool


@dataclass(frozen=True, eq=False)
class _Check:
    """A detached copy of the problem, its cone program, and the recovery of all variables and duals."""

    problem: cp.Problem
    parameters: Sequence[cp.Parameter]
    program: ParametricProgram
    solve: Solve
    recovery: Recovery
    recovered: Sequence[cp.Variable]

    @staticmethod
    def of(
        problem: cp.Problem,
        form: CanonicalForm,
        parameters: Sequence[cp.Parameter],
        program: ParametricProgram,
        solve: Solve,
    ) -> _Check:
        """Prepare the data that all draws share.

        Raises:
            UnsupportedError: some variable of the problem cannot be recovered from the program.
        """
        copy = detached(problem)
        duals = [dual for constraint in copy.constraints for dual in constraint.dual_variables]
        recovered = [*copy.variables(), *duals]
        return _Check(copy, parameters, program, solve, recovery_of(form, recovered, program.structure), recovered)

    def point(self, draw: int, auxiliary_weight: float) -> _Point | None:
        """Solve at one draw; None if the program is not solved."""
        rng = np.random.default_rng(draw // 2)
        values = self._parameter_values(draw, rng)
        features = self.program.features.apply([value[None] for value in values], 1)
        program = self.program.instantiate(features)
        centre = (-1) ** draw * SPREAD * rng.standard_normal(program.structure.n)
        posed = self._with_proximal_term(program, centre, auxiliary_weight)
        solution = self.solve(posed, ACCURACY)
        if not solution.all_solved:
            logger.debug("draw %d of the parameters: %s", draw, solution.status[0])
            return None
        outputs = self.recovery.apply(features, solution.x, solution.y)
        return _Point(
            variables={leaf.id: output[0] for leaf, output in zip(self.recovered, outputs, strict=True)},
            parameters={parameter.id: value for parameter, value in zip(self.parameters, values, strict=True)},
            reported=float(self.program.objective.value(program.objective(solution.x))[0]),
            largest=float(np.max(np.abs(solution.x), initial=1.0)),
            errors=_errors(posed, solution),
            tight=auxiliary_weight == 0.0,
        )

    def mismatch(self, point: _Point, rng: np.random.Generator) -> Residual | None:
        """The largest residual that the solver's accuracy does not explain, or None."""
        suspects = [
            residual
            for residual in self._residuals(point, point.variables)
            if residual.size > SUSPECT_RESIDUAL
            and residual.absolute > MAX_AMPLIFICATION * (point.errors[0] if residual.of_objective else point.errors[1])
        ]
        if not suspects:
            return None
        nearby: list[dict[int, float]] = []
        for sign in (-1.0, 1.0):
            step = sign * PERTURBATION * point.largest
            moved = {key: value + step * rng.uniform(0.5, 1.0, value.shape) for key, value in point.variables.items()}
            nearby.append({residual.condition: residual.size for residual in self._residuals(point, moved)})
        steady = [
            residual
            for residual in suspects
            if all(abs(sizes.get(residual.condition, np.inf) - residual.size) <= MAX_CHANGE * residual.size
                   for sizes in nearby)
        ]  # fmt: skip
        return max(steady, key=lambda residual: residual.size, default=None)

    def _residuals(self, point: _Point, variables: Mapping[int, Array]) -> list[Residual]:
        return residuals(self.problem, {**variables, **point.parameters}, point.reported, multipliers=point.tight)

    def _parameter_values(self, draw: int, rng: np.random.Generator) -> list[Array]:
        """Draw parameter values; those of the first pair are positive, where bounds are most often feasible."""
        specs = self.program.parameters
        values = [random_value(spec, rng) for spec in specs]
        if draw > 1:
            return values
        signed = {"nonpos", "neg", "PSD", "NSD"}
        return [value if spec.attributes & signed else np.abs(value) for spec, value in zip(specs, values, strict=True)]

    def _with_proximal_term(self, program: ConeProgram, centre: Array, auxiliary_weight: float) -> ConeProgram:
        """Add norm(x - c)^2 / 2 + auxiliary_weight norm(t)^2 / 2, up to a constant, to the objective.

        Here x are the entries of the user's variables, and t the other variables of the program.
        """
        n, P = program.structure.n, program.structure.P
        used = self.recovery.matrix.indices
        weight = np.full(n, auxiliary_weight)
        weight[used[used < n]] = 1.0
        diagonal = np.arange(n) * (n + 1)
        keys, place = np.unique(np.concatenate([P.cols * n + P.rows, diagonal]), return_inverse=True)
        values = np.zeros(len(keys))
        np.add.at(values, place, np.concatenate([program.P[0], weight]))
        structure = Structure(Pattern((n, n), keys % n, keys // n), program.structure.A, program.structure.cones)
        return replace(program, structure=structure, P=values[None], q=program.q - np.where(weight == 1.0, centre, 0.0))
