"""Nodes with equality constraints.

    y(theta) in argmin f(y, theta)  subject to  h(y, theta) = 0

With A = h_Y, C = h_X, and H = L_YY, B = L_XY of the Lagrangian L = f + lambda'h,

    y' = H^-1 A'(A H^-1 A')^-1 (A H^-1 B - C) - H^-1 B

for regular H (deep declarative networks, with A H^-1 B where the notes have A H^-2 B). The node solves the system with
[H A'; A 0] instead, which also holds where H alone is singular.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import final

import torch

from convexlayer.nodes.autodiff.batch import Shape, element
from convexlayer.nodes.declarative.forward_solver import AbstractForwardSolver
from convexlayer.nodes.declarative.interior_point import InteriorPoint
from convexlayer.nodes.declarative.node import AbstractNode, shaped
from convexlayer.nodes.declarative.node_options import NodeOptions
from convexlayer.nodes.declarative.nonlinear_program import Function, NonlinearProgram, rank_of
from convexlayer.nodes.implicit.operator import Operator

__all__ = ["EqualityNode", "why_singular"]


@final
class EqualityNode(AbstractNode):
    """y(theta), a local minimum of f on h = 0.

    Args:
        f: objective of one element, f(y, *parameters) -> a scalar.
        h: constraints of one element, h(y, *parameters) -> (p,).
        variable: shape of y.
        parameters: shapes of the parameters, -1 for any size.
        solver: finds the minimum; Newton's method on the Lagrangian with a line search by default.
        options: start, choice, linear solver, tolerances, and what to do about failures.
    """

    def __init__(
        self,
        f: Function,
        h: Function,
        variable: Shape,
        parameters: Sequence[Shape],
        *,
        solver: AbstractForwardSolver | None = None,
        options: NodeOptions | None = None,
    ) -> None:
        program = NonlinearProgram(shaped(f, variable), shaped(h, variable))
        super().__init__(program, variable, parameters, solver or InteriorPoint(), options)

    def _why_singular(self, operator: Operator, element: int) -> str:
        return why_singular(self._conditions, prod(self.variable), operator, element)


def why_singular(program: NonlinearProgram, n: int, operator: Operator, position: int) -> str:
    """What to say of the singular KKT matrix of one element, whose unknowns begin with y (n,)."""
    z = operator.z[position]
    theta = element(operator.dims, operator.theta, position)
    y = z[:n]
    rows = torch.func.jacrev(program.h)(y, *theta)
    p = len(rows)
    if len(z) > n + p:
        active = z[n + p :] > 0
        rows = torch.cat([rows, torch.func.jacrev(program.g)(y, *theta)[active]])
    rank = rank_of(rows * torch.where(y != 0, y.abs(), 1.0)) if rows.numel() and bool(torch.isfinite(rows).all()) else 0
    if rank < len(rows):
        return (
            f"the gradients of the {len(rows)} active constraints are dependent (rank {rank}): the multipliers are not "
            "unique, and a small change may leave no common solution. Drop the redundant ones"
        )
    return "the Hessian of the Lagrangian is singular on the tangent space of the active constraints"
