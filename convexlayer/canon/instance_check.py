"""Instance check at construction: compares the canonicalised program with CVXPY's at one random parameter value.

Both are affine in the features of the parameters, so programs that differ anywhere agree at a value drawn from a
density with probability zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import cvxpy as cp
import numpy as np

from convexlayer.canon.frontend import CanonicalForm, Instance, instance, instance_of_constants
from convexlayer.canon.parameters import random_value
from convexlayer.canon.parametric import ParametricProgram
from convexlayer.errors import ProblemError

__all__ = ["check_instance"]

TOLERANCE = 1e-9
"""Largest allowed difference relative to the largest entry (at least 1); far above rounding, far below any mistake."""


def check_instance(
    problem: cp.Problem, form: CanonicalForm, parameters: Sequence[cp.Parameter], program: ParametricProgram
) -> None:
    """Compare a canonicalised program with CVXPY's cone programs at one random parameter value.

    It is compared with the canonical form of the problem after its parameters are replaced by constants. If the sizes
    differ, because CVXPY simplifies constants, it is compared with CVXPY's instance of the same canonical form.

    Raises:
        ProblemError: the programs differ, so solutions would be wrong.
    """
    if not parameters:
        return
    rng = np.random.default_rng(0)
    values = [random_value(spec, rng) for spec in program.parameters]
    features = program.features.apply([value[None] for value in values], 1)
    ours = program.instantiate(features)
    P, A = program.structure.P.csc(ours.P[0]), program.structure.A.csc(ours.A[0])
    mine = Instance(P, ours.q[0], ours.r[:1], A, ours.b[0])
    by_id = {parameter.id: value for parameter, value in zip(parameters, values, strict=True)}
    constants = instance_of_constants(problem, by_id, gp=form.geometric)
    if constants is not None and constants.A.shape == A.shape:
        _compare(mine, constants, "the problem with its parameters replaced by constants")
    else:
        _compare(mine, instance(form, by_id), "CVXPY's instance of the canonical form")


def _compare(ours: Instance, theirs: Instance, what: str) -> None:
    for name, left, right in zip(Instance._fields, ours, theirs, strict=True):
        difference = abs(left - right)
        largest = float(difference.max()) if np.prod(difference.shape, dtype=int) else 0.0
        size = max(1.0, float(abs(right).max()) if np.prod(np.shape(right), dtype=int) else 0.0)
        if not largest <= TOLERANCE * size:
            raise ProblemError(
                f"self-check failed: {name} of the canonicalised program differs by {largest:.3g} from {what}. This "
                "release does not read a use of a parameter correctly; please report it. self_check=False turns the "
                "check off, at the risk of wrong solutions"
            )
