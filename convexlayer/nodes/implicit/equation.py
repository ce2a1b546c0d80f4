"""Implicit differentiation of the solution of R(z, theta) = 0.

Where K = dR/dz is regular, the solution z(theta) has the tangent and the pullback

    dz = -K^-1 R_theta dtheta,        theta_bar = -R_theta' u  with  K'u = z_bar          (bars: cotangents)

Only products with R_theta are taken: neither dz/dtheta nor, for the gradient R of an objective, the matrix of its mixed
second derivatives is formed. The linear system
K'u - v = 0 is an equation for u in (v, z, theta) and is differentiated by the same rule, so the derivative is
differentiable as often as R allows.

Tensors that R captures, such as the weights of a module, get their gradients by the same formula.

Reference: Blondel et al., Efficient and modular implicit differentiation, 2022.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, final

import torch

from convexlayer.nodes.autodiff.batch import Batch, Dims, Tensors, element_parameters, fold_vmap_axis, without_autocast
from convexlayer.nodes.autodiff.derivatives import (
    inside_transform,
    jacobian_vector_product,
    refuse_nested_forward_mode,
    vector_jacobian_product,
    vjp,
    vmap_error,
)
from convexlayer.nodes.autodiff.first_order import forbid_second_derivative
from convexlayer.nodes.implicit.operator import AbstractLinearSolver, AbstractResidual, LinearSolve, Operator

__all__ = ["Equation", "Solution", "solve_implicitly"]

Solution = tuple[torch.Tensor, torch.Tensor]
"""z (batch, n), and a mask of the solved elements (batch,)."""

ForwardSolver = Callable[[torch.Tensor | None, Dims, Tensors], Solution]
"""(start (batch, n) or None, dims, theta) -> solution. Runs without grad, on plain tensors."""

SolveCallback = Callable[[Operator, LinearSolve, Callable[[torch.Tensor], torch.Tensor] | None], None]
"""(operator, solve, K^-1 or None), called after each linear solve of a derivative; it may record, warn or raise.

K^-1 is given by direct solvers only, for which a further right-hand side is cheap.
"""

CAPTURED_TWICE = (
    "a function of the node captures a tensor with requires_grad, which gives first derivatives only: for second ones "
    "pass the tensor as a parameter of the node"
)


def solve_implicitly(equation: Equation, batch: Batch, start: torch.Tensor | None, captured: Tensors) -> Solution:
    """Solve R(z, theta) = 0 for z (batch, n), differentiable in theta by the implicit function theorem.

    Works under torch.autograd (twice and more), torch.func (vmap, vjp, jvp, jacrev, jacfwd, hessian) and gradcheck;
    forward mode over forward mode is refused. In captured tensors it is differentiable once, by reverse mode.

    Args:
        equation: R with its forward solver and the solver of its linear systems.
        batch: the parameters theta.
        start: initial point of the forward solver, (batch, n); not differentiated.
        captured: leaves with requires_grad that R captures, see ``inspect_function``.

    Returns:
        z, and a mask of the solved elements, (batch,).
    """
    dims = batch.dims if batch.tensors else ()
    return _apply(equation, dims, start, *batch.tensors, *captured)


def _apply(equation: _AbstractEquation, dims: Dims, start: torch.Tensor | None, *tensors: torch.Tensor) -> Solution:
    """Call ``_ImplicitFunction.apply``, which torch leaves untyped."""
    found: Solution = _ImplicitFunction.apply(equation, dims, start, *tensors)  # type: ignore[no-untyped-call]
    return found


class _AbstractEquation(ABC):
    """An equation R(z, theta) = 0 in z, for one element.

    Attributes:
        residual: R.
    """

    residual: AbstractResidual

    @abstractmethod
    def solve(self, start: torch.Tensor | None, dims: Dims, theta: Tensors) -> Solution:
        """Solve for z."""

    @abstractmethod
    def linear_solution(
        self, rhs: torch.Tensor, z: torch.Tensor, dims: Dims, theta: Tensors, captured: Tensors, *, transposed: bool
    ) -> torch.Tensor:
        """Solve K u = rhs, or K'u = rhs, differentiably in all tensors."""

    @abstractmethod
    def apply_inverse(
        self, rhs: torch.Tensor, z: torch.Tensor, dims: Dims, theta: Tensors, *, transposed: bool
    ) -> torch.Tensor:
        """Solve as ``linear_solution`` does, without recording derivatives."""


@final
class Equation(_AbstractEquation):
    """R(z, theta) = 0 with its solvers.

    One object serves one call of a node, and reuses the factor of K for every cotangent at the same point.

    Args:
        residual: R.
        solver: solves the equation for a whole batch.
        linear: solves the linear systems with K.
        on_linear_solve: called after each linear solve.
    """

    def __init__(
        self,
        residual: AbstractResidual,
        solver: ForwardSolver,
        linear: AbstractLinearSolver,
        on_linear_solve: SolveCallback,
    ) -> None:
        self.residual, self._solver, self._linear, self._on_linear_solve = residual, solver, linear, on_linear_solve
        self._cached: tuple[Operator, Any] | None = None

    def solve(self, start: torch.Tensor | None, dims: Dims, theta: Tensors) -> Solution:
        """Solve for z."""
        try:
            return self._solver(start, dims, theta)
        except RuntimeError as error:
            raise vmap_error(error) or error from error

    def cache_factor(self, operator: Operator, factor: Any) -> None:
        """Reuse a factor of K for derivatives at its point."""
        self._cached = operator, factor

    def linear_solution(
        self, rhs: torch.Tensor, z: torch.Tensor, dims: Dims, theta: Tensors, captured: Tensors, *, transposed: bool
    ) -> torch.Tensor:
        """Solve K u = rhs, or K'u = rhs, differentiably."""
        system = _LinearEquation(self, transposed=transposed and not self.residual.symmetric)
        return _apply(system, (0, 0, *dims), None, rhs, z, *theta, *captured)[0]

    def apply_inverse(
        self, rhs: torch.Tensor, z: torch.Tensor, dims: Dims, theta: Tensors, *, transposed: bool
    ) -> torch.Tensor:
        """Solve with the cached factor if the point is the same."""
        operator = self.operator(z, dims, theta)
        assert self._cached is not None  # set by operator()
        linear, factor = self._linear, self._cached[1]
        answer = linear.solve(factor, rhs, transposed=transposed)
        inverse = (lambda v: linear.solve(factor, v, transposed=False).solution) if linear.direct else None
        self._on_linear_solve(operator, answer, inverse)
        return answer.solution

    def operator(self, z: torch.Tensor, dims: Dims, theta: Tensors) -> Operator:
        """K at a point; the cached operator if the point is the same."""
        if self._cached is None or not _all_equal((z, *theta), (self._cached[0].z, *self._cached[0].theta)):
            operator = Operator(self.residual, dims, z.detach(), tuple(t.detach() for t in theta))
            self._cached = operator, self._linear.init(operator, symmetric=self.residual.symmetric)
        return self._cached[0]


@final
class _LinearEquation(_AbstractEquation):
    """K(z, theta)' u - v = 0, or K u - v = 0: an equation for u in the parameters (v, z, *theta)."""

    def __init__(self, inner: Equation, *, transposed: bool) -> None:
        self._inner, self._transposed = inner, transposed
        self.residual = _LinearResidual(inner.residual, transposed=transposed)

    def solve(self, start: torch.Tensor | None, dims: Dims, theta: Tensors) -> Solution:
        rhs, point, *rest = theta
        solution = self._inner.apply_inverse(rhs, point, dims[2:], tuple(rest), transposed=self._transposed)
        return solution, torch.isfinite(solution).all(-1)

    def linear_solution(
        self, rhs: torch.Tensor, z: torch.Tensor, dims: Dims, theta: Tensors, captured: Tensors, *, transposed: bool
    ) -> torch.Tensor:
        flipped = transposed != self._transposed
        return self._inner.linear_solution(rhs, theta[1], dims[2:], theta[2:], captured, transposed=flipped)

    def apply_inverse(
        self, rhs: torch.Tensor, z: torch.Tensor, dims: Dims, theta: Tensors, *, transposed: bool
    ) -> torch.Tensor:
        flipped = transposed != self._transposed
        return self._inner.apply_inverse(rhs, theta[1], dims[2:], theta[2:], transposed=flipped)


@final
class _LinearResidual(AbstractResidual):
    """K' u - v or K u - v."""

    def __init__(self, inner: AbstractResidual, *, transposed: bool) -> None:
        self._inner, self._transposed = inner, transposed

    def __call__(self, z: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
        u, (rhs, point, *rest) = z, theta
        matvec = vector_jacobian_product if self._transposed else jacobian_vector_product
        return matvec(lambda at: self._inner(at, *rest), point, u) - rhs


@final
class _ImplicitFunction(torch.autograd.Function):
    """(equation, dims, start, *theta, *captured) -> z (batch, n), solved (batch,)."""

    @staticmethod
    def forward(equation: _AbstractEquation, dims: Dims, start: torch.Tensor | None, *tensors: torch.Tensor) -> Any:
        theta = tuple(t.detach() for t in tensors[: len(dims)])  # without forward-mode tangents
        return equation.solve(start, dims, theta)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Solution) -> None:
        ctx.equation, ctx.dims, _, *tensors = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*output, *tensors)
        ctx.save_for_forward(*output, *tensors)

    @staticmethod
    def backward(ctx: Any, cotangent: torch.Tensor, _: torch.Tensor) -> Any:
        z, solved, *tensors = ctx.saved_tensors
        count = len(ctx.dims)
        theta, captured = tuple(tensors[:count]), tuple(tensors[count:])
        wanted = tuple(ctx.needs_input_grad[3:])
        z, theta, cotangent = _mask_unsolved(z, solved, ctx.dims, theta, cotangent)
        with without_autocast(z):
            if inside_transform() or (torch.is_grad_enabled() and not captured):
                u = ctx.equation.linear_solution(cotangent, z, ctx.dims, theta, captured, transposed=True)
                of_theta: Tensors = _parameter_vjp(ctx, z, theta, wanted[:count])[1](-u)
                gradients: Sequence[torch.Tensor | None] = (*of_theta, *(None for want in wanted[count:] if want))
            else:
                gradients = _first_order_gradients(ctx, cotangent, z, theta, captured, wanted)
        if inside_transform() or not bool(solved.all()):
            # If no element is solved, the unsolved ones have not been replaced.
            gradients = [None if each is None else torch.where(solved.any(), each, 0.0) for each in gradients]
        remaining = iter(gradients)
        return None, None, None, *(next(remaining) if want else None for want in wanted)

    @staticmethod
    def jvp(ctx: Any, *tangents: torch.Tensor | None) -> tuple[torch.Tensor, None]:
        refuse_nested_forward_mode()
        z, _, *tensors = ctx.saved_tensors
        count = len(ctx.dims)
        theta, captured = tuple(tensors[:count]), tuple(tensors[count:])
        of_theta = tangents[3 : 3 + count]
        given = tuple(tangent for tangent in of_theta if tangent is not None)
        value, pull = _parameter_vjp(ctx, z, theta, [tangent is not None for tangent in of_theta])
        _, pull_twice = torch.func.vjp(pull, torch.zeros_like(value))  # type: ignore[misc]
        (direction,) = pull_twice(given)
        return ctx.equation.linear_solution(-direction, z, ctx.dims, theta, captured, transposed=False), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], equation: Any, dims: Dims, *rest: Any) -> tuple[Solution, Any]:
        vmap_size, count = info.batch_size, len(dims)
        start, *tensors = rest
        start_dim, *tensor_dims = in_dims[2:]
        theta, captured, theta_dims = tensors[:count], tensors[count:], tensor_dims[:count]
        if isinstance(equation, _LinearEquation) and theta_dims[0] is not None and set(theta_dims[1:]) == {None}:
            # Several right-hand sides at one point share one factor.
            sides = theta[0].movedim(theta_dims[0], 0)
            found = [_apply(equation, dims, None, side, *theta[1:], *captured) for side in sides]
            return (torch.stack([z for z, _ in found]), torch.stack([solved for _, solved in found])), (0, 0)
        folded, new_dims, size = fold_vmap_axis(vmap_size, theta_dims, dims, theta)
        if start is not None:
            (start,), _, _ = fold_vmap_axis(vmap_size, [start_dim], (0,), [start])
        together = _apply(equation, new_dims, start, *folded, *captured)
        wide = [
            (part if len(part) == vmap_size * size else part.expand(vmap_size * size, *part.shape[1:])).reshape(
                vmap_size, size, *part.shape[1:]
            )
            for part in together
        ]
        return (wide[0], wide[1]), (0, 0)


def _first_order_gradients(
    ctx: Any, cotangent: torch.Tensor, z: torch.Tensor, theta: Tensors, captured: Tensors, wanted: tuple[bool, ...]
) -> Sequence[torch.Tensor]:
    """Gradients of the wanted tensors by autograd on plain tensors; they cannot be differentiated again."""
    count = len(theta)
    sources = (cotangent, z, *theta, *captured)
    with torch.no_grad():
        u = ctx.equation.apply_inverse(cotangent, z, ctx.dims, theta, transposed=True)
    operator = (
        ctx.equation.operator(z, ctx.dims, theta)
        if isinstance(ctx.equation, Equation)
        else Operator(ctx.equation.residual, ctx.dims, z.detach(), tuple(t.detach() for t in theta))
    )
    chosen = tuple(t for t, want in zip(captured, wanted[count:], strict=True) if want)
    own, of_captured = operator.parameter_vjp(-u, wanted[:count], chosen)
    found = (*own, *of_captured)
    return (
        [forbid_second_derivative(each, sources, CAPTURED_TWICE) for each in found]
        if torch.is_grad_enabled()
        else found
    )


def _mask_unsolved(
    z: torch.Tensor, solved: torch.Tensor, dims: Dims, theta: Tensors, cotangent: torch.Tensor
) -> tuple[torch.Tensor, Tensors, torch.Tensor]:
    """Replace unsolved elements by the first solved one with a zero cotangent, so that no gradient depends on them.

    Their own values may not be finite, and zero times infinity would make the gradients of shared parameters NaN.
    """
    if not inside_transform() and bool(solved.all()):
        return z, theta, cotangent
    index = torch.where(solved, torch.arange(solved.shape[0], device=solved.device), solved.int().argmax())
    return z[index], element_parameters(dims, theta, index), torch.where(solved.unsqueeze(-1), cotangent, 0.0)


def _parameter_vjp(
    ctx: Any, z: torch.Tensor, theta: Sequence[torch.Tensor], wanted: Sequence[bool]
) -> tuple[torch.Tensor, Any]:
    """R at the solution, and its pullback to the wanted parameters."""
    residual = torch.func.vmap(ctx.equation.residual, in_dims=(0, *ctx.dims))

    def of_wanted(*parameters: torch.Tensor) -> torch.Tensor:
        remaining = iter(parameters)
        return residual(z, *(next(remaining) if want else t for want, t in zip(wanted, theta, strict=True)))

    return vjp(of_wanted, *(t for want, t in zip(wanted, theta, strict=True) if want))


def _all_equal(left: Tensors, right: Tensors) -> bool:
    return all(a is b or (a.shape == b.shape and torch.equal(a, b)) for a, b in zip(left, right, strict=True))
