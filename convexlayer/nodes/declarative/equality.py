"""Nodes with equality constraints.

    y(theta) in argmin f(y, theta)  subject to  h(y, theta) = 0

With A = h_Y, C = h_X, and H = L_YY, B = L_XY of the Lagrangian L = f + lambda'h,

    dy/dtheta = H^-1 A'(A H^-1 A')^-1 (A H^-1 B - C) - H^-1 B

for regular H (Gould et al. 2022, section 4, with the sign of lambda changed; Gould's 2026 notes have A H^-2 B for
A H^-1 B by a slip). The node solves the system with the KKT matrix [H A'; A 0], which may be regular where H is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import final

import torch

from convexlayer.nodes.autodiff.batch import Shape, element_parameters
from convexlayer.nodes.declarative.forward_solver import AbstractForwardSolver
from convexlayer.nodes.declarative.interior_point import InteriorPoint
from convexlayer.nodes.declarative.node import AbstractNode, flat_function
from convexlayer.nodes.declarative.node_options import NodeOptions
from convexlayer.nodes.declarative.nonlinear_program import Function, NonlinearProgram, numerical_rank
from convexlayer.nodes.implicit.operator import Operator

__all__ = ["EqualityNode", "singular_kkt_message"]


@final
class EqualityNode(AbstractNode):
    """y(theta), a local minimum of f subject to h = 0.

    Args:
        f: objective of one element, f(y, *parameters) -> a scalar.
        h: constraints of one element, h(y, *parameters) -> (p,).
        variable: shape of y.
        parameters: shapes of the parameters, -1 for any size.
        solver: forward solver; Newton's method on the Lagrangian with a line search by default.
        options: start, choice, linear solver, tolerances, and failure policies.
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
        program = NonlinearProgram(flat_function(f, variable), flat_function(h, variable))
        super().__init__(program, variable, parameters, solver or InteriorPoint(), options)

    def _singular_message(self, operator: Operator, index: int) -> str:
        return singular_kkt_message(self._conditions, prod(self.variable), operator, index)


def singular_kkt_message(program: NonlinearProgram, n: int, operator: Operator, index: int) -> str:
    """Describe why the KKT matrix of one element is singular; its unknowns begin with y (n,)."""
    z = operator.z[index]
    theta = element_parameters(operator.dims, operator.theta, index)
    y = z[:n]
    rows = torch.func.jacrev(program.h)(y, *theta)
    p = len(rows)
    if len(z) > n + p:
        active = z[n + p :] > 0
        rows = torch.cat([rows, torch.func.jacrev(program.g)(y, *theta)[active]])
    rank = (
        numerical_rank(rows * torch.where(y != 0, y.abs(), 1.0))
        if rows.numel() and bool(torch.isfinite(rows).all())
        else 0
    )
    if rank < len(rows):
        return (
            f"the gradients of the {len(rows)} active constraints are dependent (rank {rank}): the multipliers are not "
            "unique, and a small change may make the constraints inconsistent. Drop the redundant ones"
        )
    return "the Hessian of the Lagrangian is singular on the tangent space of the active constraints"
