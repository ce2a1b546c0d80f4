"""Nodes with inequality constraints, and optional equality constraints.

    y(theta) in argmin f(y, theta)  subject to  h(y, theta) = 0,  g(y, theta) <= 0

Two derivatives:

- active set (t is None): that of the KKT conditions with the active inequalities as equalities. It is exact where no
  inequality is weakly active (g_i = mu_i = 0); the margin in the report is the distance from that.
- log-barrier (t): the exact derivative of y_t = argmin of t f - sum log(-g), eq. 61,

      y_t' = -(t f_YY - phi_YY)^-1 (t f_XY - phi_XY),    phi = sum log(-g_i)
      phi_YY = sum (g_iYY / g_i - g_iY g_iY' / g_i^2),   phi_XY = sum (g_iXY / g_i - g_iX g_iY / g_i^2)

  (eq. 64; eq. 62 and 63 of the paper are derivatives of -phi.) It approximates the active-set derivative to O(1 / t)
  and is smooth where an inequality becomes active.

Reference: Gould et al. 2016, section 4.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import final

from convexlayer.nodes.autodiff.batch import Shape
from convexlayer.nodes.declarative.equality import singular_kkt_message
from convexlayer.nodes.declarative.forward_solver import AbstractForwardSolver
from convexlayer.nodes.declarative.interior_point import InteriorPoint
from convexlayer.nodes.declarative.node import AbstractNode, flat_function
from convexlayer.nodes.declarative.node_options import NodeOptions
from convexlayer.nodes.declarative.nonlinear_program import Function, NonlinearProgram
from convexlayer.nodes.implicit.operator import Operator

__all__ = ["InequalityNode"]


@final
class InequalityNode(AbstractNode):
    """y(theta), a local minimum of f subject to h = 0, g <= 0, or the point on its central path at t.

    Args:
        f: objective of one element, f(y, *parameters) -> a scalar.
        g: inequalities of one element, g(y, *parameters) -> (m,), feasible where at most 0.
        variable: shape of y.
        parameters: shapes of the parameters, -1 for any size.
        h: equalities of one element, h(y, *parameters) -> (p,); None for none.
        t: inverse barrier parameter; None for the solution itself.
        solver: forward solver; a primal-dual interior-point method by default. With t it must return y_t.
        options: start (feasible or not), choice, linear solver, tolerances, and failure policies.
    """

    def __init__(
        self,
        f: Function,
        g: Function,
        variable: Shape,
        parameters: Sequence[Shape],
        *,
        h: Function | None = None,
        t: float | None = None,
        solver: AbstractForwardSolver | None = None,
        options: NodeOptions | None = None,
    ) -> None:
        objective, inequalities = flat_function(f, variable), flat_function(g, variable)
        program = NonlinearProgram(objective, g=inequalities)
        if h is not None:
            program = NonlinearProgram(objective, flat_function(h, variable), inequalities)
        super().__init__(program, variable, parameters, solver or InteriorPoint(), options, t=t)

    def _singular_message(self, operator: Operator, index: int) -> str:
        return singular_kkt_message(self._conditions, prod(self.variable), operator, index)
