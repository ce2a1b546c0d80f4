"""Nodes with inequality constraints, and equality constraints beside them.

    y(theta) in argmin f(y, theta)  subject to  h(y, theta) = 0,  g(y, theta) <= 0

Two derivatives:

- active set (t is None): that of the optimality conditions with the active inequalities as equalities. It is exact
  where no inequality is weakly active (g_i = mu_i = 0), which the report's margin measures.
- log-barrier (t): y_t = argmin of t f - sum log(-g), eq. 61, with its own exact derivative

      y_t' = -(t f_YY - phi_YY)^-1 (t f_XY - phi_XY),    phi = sum log(-g_i)
      phi_YY = sum (g_iYY / g_i - g_iY g_iY' / g_i^2),   phi_XY = sum (g_iXY / g_i - g_iX g_iY / g_i^2)

  (eq. 64; eq. 62 and 63 of the paper are derivatives of -phi.) It approximates the exact one to O(1 / t) and is smooth
  where an inequality becomes active.

Reference: Gould et al. 2016, section 4.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import final

from convexlayer.nodes.autodiff.batch import Shape
from convexlayer.nodes.declarative.equality import why_singular
from convexlayer.nodes.declarative.forward_solver import AbstractForwardSolver
from convexlayer.nodes.declarative.interior_point import InteriorPoint
from convexlayer.nodes.declarative.node import AbstractNode, shaped
from convexlayer.nodes.declarative.node_options import NodeOptions
from convexlayer.nodes.declarative.nonlinear_program import Function, NonlinearProgram
from convexlayer.nodes.implicit.operator import Operator

__all__ = ["InequalityNode"]


@final
class InequalityNode(AbstractNode):
    """y(theta), a local minimum of f on h = 0, g <= 0, or the point of its central path with parameter t.

    Args:
        f: objective of one element, f(y, *parameters) -> a scalar.
        g: inequalities of one element, g(y, *parameters) -> (m,), which are to be at most 0.
        variable: shape of y.
        parameters: shapes of the parameters, -1 for any size.
        h: equalities of one element, h(y, *parameters) -> (p,); None for none.
        t: the barrier's parameter; None for the solution itself.
        solver: finds the minimum; a primal-dual interior-point method by default. With t, a given solver must give y_t.
        options: start (feasible or not), choice, linear solver, tolerances, and what to do about failures.
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
        objective, inequalities = shaped(f, variable), shaped(g, variable)
        program = NonlinearProgram(objective, g=inequalities)
        if h is not None:
            program = NonlinearProgram(objective, shaped(h, variable), inequalities)
        super().__init__(program, variable, parameters, solver or InteriorPoint(), options, t=t)

    def _why_singular(self, operator: Operator, element: int) -> str:
        return why_singular(self._conditions, prod(self.variable), operator, element)
