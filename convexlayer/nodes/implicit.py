"""The implicit function theorem, which stands here and nowhere else.

z(theta) with R(z(theta), theta) = 0 and K = dR/dz regular has

    dz = -K^-1 R_theta dtheta,        theta cotangent = -R_theta' u  with  K'u = (z cotangent).

Only products with R_theta are taken: neither dz/dtheta nor, for R = f_Y, the matrix f_XY is ever formed. The linear
system K'u - v = 0 is itself an equation for u in (v, z, theta), differentiated by the same rule, so that the derivative
can be differentiated again, as often as R allows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, final

import torch

from convexlayer.nodes.batch import Batch, Dims, Tensors, fold
from convexlayer.nodes.calculus import product, refuse_nested_forward_mode, transposed_product, vjp
from convexlayer.nodes.linear import AbstractLinearSolver, LinearSolve, Operator, Residual

__all__ = ["Equation", "solve_implicitly"]

ForwardSolver = Callable[[torch.Tensor | None, Dims, Tensors], torch.Tensor]
"""(start (batch, n) or None, dims, theta) -> z (batch, n). Runs without grad, on whole tensors, also under vmap."""

Judge = Callable[[Operator, LinearSolve], None]
"""Told of every linear solve of a derivative; it may record, warn or raise."""


def solve_implicitly(equation: Equation, batch: Batch, start: torch.Tensor | None = None) -> torch.Tensor:
    """z (batch, n) with R(z, theta) = 0, differentiable in the parameters by the implicit function theorem.

    Works under torch.autograd (twice and more), torch.func (vmap, vjp, jvp, jacrev, jacfwd, hessian) and gradcheck;
    forward mode over forward mode is refused.

    Args:
        equation: R, how it is solved, and how its linear systems are solved.
        batch: the parameters.
        start: where the forward solver may start, (batch, n); it is not differentiated.
    """
    dims = batch.dims if batch.tensors else ()
    return _apply(equation, dims, start, *batch.tensors)


def _apply(equation: _AbstractEquation, dims: Dims, start: torch.Tensor | None, *theta: torch.Tensor) -> torch.Tensor:
    """``_Implicit.apply``, which torch leaves untyped."""
    solution: torch.Tensor = _Implicit.apply(equation, dims, start, *theta)  # type: ignore[no-untyped-call]
    return solution


class _AbstractEquation(ABC):
    """An equation R(z, theta) = 0 for z, one element at a time."""

    @abstractmethod
    def residual(self, z: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
        """R (n,) of one element."""

    @abstractmethod
    def solve(self, start: torch.Tensor | None, dims: Dims, theta: Tensors) -> torch.Tensor:
        """z (batch, n)."""

    @abstractmethod
    def linear_solution(
        self, rhs: torch.Tensor, z: torch.Tensor, dims: Dims, theta: Tensors, *, transposed: bool
    ) -> torch.Tensor:
        """u with K u = rhs, or K'u = rhs, differentiable in all tensors."""


@final
class Equation(_AbstractEquation):
    """R(z, theta) = 0 with the way to solve it.

    One object serves one call of a node, and keeps the factor of K for every cotangent at the same point.

    Args:
        residual: R of one element, (z (n,), *theta) -> (n,), a torch function that vmap can batch.
        solver: solves it for a whole batch.
        linear: solves the systems with K.
        symmetric: whether K is, as the Hessian of a function is.
        judge: told of every linear solve.
    """

    def __init__(
        self,
        residual: Residual,
        solver: ForwardSolver,
        linear: AbstractLinearSolver,
        *,
        symmetric: bool,
        judge: Judge,
    ) -> None:
        self._residual, self._solver = residual, solver
        self._linear, self._symmetric, self._judge = linear, symmetric, judge
        self._kept: tuple[Operator, Any] | None = None

    def residual(self, z: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
        """R (n,) of one element."""
        return self._residual(z, *theta)

    def solve(self, start: torch.Tensor | None, dims: Dims, theta: Tensors) -> torch.Tensor:
        """z (batch, n)."""
        return self._solver(start, dims, theta)

    def linear_solution(
        self, rhs: torch.Tensor, z: torch.Tensor, dims: Dims, theta: Tensors, *, transposed: bool
    ) -> torch.Tensor:
        """u with K u = rhs, or K'u = rhs."""
        system = _LinearEquation(self, transposed=transposed and not self._symmetric)
        return _apply(system, (0, 0, *dims), None, rhs, z, *theta)

    def apply_inverse(
        self, rhs: torch.Tensor, z: torch.Tensor, dims: Dims, theta: Tensors, *, transposed: bool
    ) -> torch.Tensor:
        """The values of ``linear_solution``, with the factor that is kept where the point is the same."""
        point = (z, *theta)
        if self._kept is None or not _same(point, (self._kept[0].z, *self._kept[0].theta)):
            operator = Operator(self._residual, dims, z.detach(), tuple(t.detach() for t in theta))
            self._kept = operator, self._linear.init(operator, symmetric=self._symmetric)
        answer = self._linear.solve(self._kept[1], rhs, transposed=transposed)
        self._judge(self._kept[0], answer)
        return answer.solution


@final
class _LinearEquation(_AbstractEquation):
    """K(z, theta)' u - v = 0, or K u - v = 0, an equation for u in the parameters (v, z, *theta)."""

    def __init__(self, of: Equation, *, transposed: bool) -> None:
        self._of, self._transposed = of, transposed

    def residual(self, z: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
        u, (rhs, point, *rest) = z, theta
        times = transposed_product if self._transposed else product
        return times(lambda at: self._of.residual(at, *rest), point, u) - rhs

    def solve(self, start: torch.Tensor | None, dims: Dims, theta: Tensors) -> torch.Tensor:
        rhs, point, *rest = theta
        return self._of.apply_inverse(rhs, point, dims[2:], tuple(rest), transposed=self._transposed)

    def linear_solution(
        self, rhs: torch.Tensor, z: torch.Tensor, dims: Dims, theta: Tensors, *, transposed: bool
    ) -> torch.Tensor:
        return self._of.linear_solution(rhs, theta[1], dims[2:], theta[2:], transposed=transposed != self._transposed)


class _Implicit(torch.autograd.Function):
    """(equation, dims, start, *theta) -> z (batch, n)."""

    @staticmethod
    def forward(equation: _AbstractEquation, dims: Dims, start: torch.Tensor | None, *theta: torch.Tensor) -> Any:
        return equation.solve(start, dims, tuple(t.detach() for t in theta))  # without forward-mode tangents

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.equation, ctx.dims, _, *theta = inputs
        ctx.save_for_backward(output, *theta)
        ctx.save_for_forward(output, *theta)

    @staticmethod
    def backward(ctx: Any, cotangent: torch.Tensor) -> Any:
        z, *theta = ctx.saved_tensors
        u = ctx.equation.linear_solution(cotangent, z, ctx.dims, tuple(theta), transposed=True)
        gradients = iter(_pull(ctx, z, theta, ctx.needs_input_grad[3:])[1](-u))
        return None, None, None, *(next(gradients) if want else None for want in ctx.needs_input_grad[3:])

    @staticmethod
    def jvp(ctx: Any, *tangents: torch.Tensor | None) -> torch.Tensor:
        refuse_nested_forward_mode()
        z, *theta = ctx.saved_tensors
        moved = [tangent for tangent in tangents[3:] if tangent is not None]
        value, pull = _pull(ctx, z, theta, [tangent is not None for tangent in tangents[3:]])
        _, pull_twice = torch.func.vjp(pull, torch.zeros_like(value))  # type: ignore[misc]
        (direction,) = pull_twice(tuple(moved))
        solution: torch.Tensor = ctx.equation.linear_solution(-direction, z, ctx.dims, tuple(theta), transposed=False)
        return solution

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], equation: Any, dims: Dims, *rest: Any) -> tuple[Any, int]:
        lanes = info.batch_size
        start, *theta = rest
        start_dim, *theta_dims = in_dims[2:]
        if isinstance(equation, _LinearEquation) and theta_dims[0] is not None and set(theta_dims[1:]) == {None}:
            # Several right-hand sides at one point: one factor serves them all.
            sides = theta[0].movedim(theta_dims[0], 0)
            return torch.stack([_apply(equation, dims, None, side, *theta[1:]) for side in sides]), 0
        folded, new_dims, size = fold(lanes, theta_dims, dims, theta)
        if start is not None:
            (start,), _, _ = fold(lanes, [start_dim], (0,), [start])
        solution = _apply(equation, new_dims, start, *folded)
        if solution.shape[0] != lanes * size:
            solution = solution.expand(lanes * size, *solution.shape[1:])
        return solution.reshape(lanes, size, *solution.shape[1:]), 0


def _pull(ctx: Any, z: torch.Tensor, theta: Sequence[torch.Tensor], wanted: Sequence[bool]) -> tuple[torch.Tensor, Any]:
    """R at the solution, and the function cotangent -> R_theta' cotangent for the wanted parameters."""
    residual = torch.func.vmap(ctx.equation.residual, in_dims=(0, *ctx.dims))

    def of(*changing: torch.Tensor) -> torch.Tensor:
        fresh = iter(changing)
        return residual(z, *(next(fresh) if want else t for want, t in zip(wanted, theta, strict=True)))

    return vjp(of, *(t for want, t in zip(wanted, theta, strict=True) if want))


def _same(left: Tensors, right: Tensors) -> bool:
    return all(a is b or (a.shape == b.shape and torch.equal(a, b)) for a, b in zip(left, right, strict=True))
