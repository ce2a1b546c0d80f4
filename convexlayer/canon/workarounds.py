"""Workarounds for expressions that CVXPY 1.9.3 canonicalises wrongly or not at all: equivalent expressions.

- Euclidean norm along an axis of a three-dimensional array: uses cones of other entries, or raises.
- ``hstack`` of three-dimensional arrays, ``concatenate`` with axis None: permute the entries.
- Zeroth power of an array: becomes a scalar.
- Two perspectives with the same variables: are treated as one expression, even if their functions differ.
- Inner problem (``partial_optimize``): breaks the detection of quadratic objectives; it is minimised jointly with the
  outer problem, which is equivalent.

The solution check (``solution_check.py``) detects further errors of this kind.
"""

from __future__ import annotations

import cvxpy as cp
import numpy as np
from cvxpy.atoms.affine.concatenate import Concatenate
from cvxpy.atoms.affine.hstack import Hstack
from cvxpy.transforms.partial_optimize import PartialProblem

from convexlayer.canon.detached import expressions

__all__ = ["with_workarounds"]


def with_workarounds(problem: cp.Problem) -> cp.Problem:
    """Replace all expressions that need a workaround.

    Args:
        problem: a detached problem, whose expressions are modified in place.
    """
    known: dict[int, tuple[cp.Expression, cp.Expression]] = {}
    problems = [problem]
    for outer in problems:
        for node in expressions(outer):
            if isinstance(node, cp.Problem):
                continue
            if isinstance(node, cp.perspective):
                _make_unique(node)
            for part in node.args:
                if id(part) not in known:
                    inner, instead = _instead(part)
                    problems += inner
                    known[id(part)] = part, instead
            node.args = [known[id(part)][1] for part in node.args]
    return cp.Problem(problem.objective, [constraint for part in problems for constraint in part.constraints])


def _instead(node: cp.Expression) -> tuple[list[cp.Problem], cp.Expression]:
    """An equivalent expression, after the inner problems whose constraints it requires."""
    if isinstance(node, PartialProblem):
        (inner,) = node.args
        problems, expression = _instead(inner.objective.expr)
        return [inner, *problems], expression
    if isinstance(node, cp.Pnorm) and node.p == 2 and (node.args[0].ndim > 2 or node.keepdims):
        return [], _norm(node)
    if isinstance(node, cp.Power) and isinstance(node.p, cp.Constant) and np.all(node.p.value == 0):
        return [], cp.Constant(np.ones(node.shape))
    if isinstance(node, Hstack) and node.ndim > 2:
        return [], cp.concatenate(node.args, axis=1)
    if isinstance(node, Concatenate) and node.axis is None:
        return [], cp.concatenate([cp.vec(part, order="C") for part in node.args], axis=0)
    return [], node


def _norm(node: cp.Expression) -> cp.Expression:
    """Rewrite a norm along an axis as a norm of the columns of a matrix."""
    (argument,) = node.args
    if node.axis is None:
        norms = cp.pnorm(cp.vec(argument, order="F"), 2)
    else:
        columns = cp.reshape(cp.moveaxis(argument, node.axis, 0), (argument.shape[node.axis], -1), order="F")
        norms = cp.pnorm(columns, 2, axis=0)
    return cp.reshape(norms, node.shape, order="F")


def _make_unique(node: cp.Expression) -> None:
    """Make the data of an expression unique, so that CVXPY does not identify it with another one."""
    node.__dict__["get_data"] = lambda: [object()]
