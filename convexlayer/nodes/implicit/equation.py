"""The implicit function theorem, which stands here and nowhere else.

z(theta) with R(z(theta), theta) = 0 and K = dR/dz regular has

    dz = -K^-1 R_theta dtheta,        theta cotangent = -R_theta' u  with  K'u = (z cotangent).

Only products with R_theta are taken: neither dz/dtheta nor, for R = f_Y, the matrix f_XY is ever formed. The linear
system K'u - v = 0 is itself an equation for u in (v, z, theta), differentiated by the same rule, so that the derivative
can be differentiated again, as often as R allows.

Tensors that R uses and that are no parameters, as the weights of a module, get their gradients by the same formula,
with R differentiated in them where they stand.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch.autograd import forward_ad

from convexlayer.errors import ProblemError
from convexlayer.nodes.autodiff.batch import Batch, Dims, Tensors, fold, take, without_autocast
from convexlayer.nodes.autodiff.derivatives import (
    batched,
    inside_transform,
    product,
    refuse_nested_forward_mode,
    translated,
    transposed_product,
    vjp,
)
from convexlayer.nodes.autodiff.first_order import once
from convexlayer.nodes.implicit.operator import AbstractLinearSolver, AbstractResidual, LinearSolve, Operator

__all__ = ["Equation", "Found", "examined", "solve_implicitly"]

Found = tuple[torch.Tensor, torch.Tensor]
"""z (batch, n), and which elements are solved (batch,)."""

ForwardSolver = Callable[[torch.Tensor | None, Dims, Tensors], Found]
"""(start (batch, n) or None, dims, theta) -> z and what is solved. Runs without grad, on plain tensors."""

Judge = Callable[[Operator, LinearSolve, Callable[[torch.Tensor], torch.Tensor] | None], None]
"""Told of every linear solve of a derivative, and given K^-1 where that is cheap; it may record, warn or raise."""

TWICE = (
    "a function of the node captures a tensor with requires_grad, which gives first derivatives only: for second ones "
    "pass the tensor as a parameter of the node"
)


def solve_implicitly(equation: Equation, batch: Batch, start: torch.Tensor | None, captured: Tensors) -> Found:
    """z (batch, n) with R(z, theta) = 0, differentiable in the parameters by the implicit function theorem.

    Works under torch.autograd (twice and more), torch.func (vmap, vjp, jvp, jacrev, jacfwd, hessian) and gradcheck;
    forward mode over forward mode is refused. In captured tensors it is differentiable once, by reverse mode.

    Args:
        equation: R, how it is solved, and how its linear systems are solved.
        batch: the parameters.
        start: where the forward solver may start, (batch, n); it is not differentiated.
        captured: leaves with requires_grad that R uses, as ``examined`` finds them.

    Returns:
        z, and which elements are solved, (batch,).
    """
    dims = batch.dims if batch.tensors else ()
    return _apply(equation, dims, start, *batch.tensors, *captured)


def examined(
    function: Callable[..., Any], dims: Dims, *tensors: torch.Tensor, known: set[Any] | None = None
) -> tuple[Any, Tensors]:
    """What a function gives for the first element, and the leaves with requires_grad that it captures.

    It is called under vmap even for one element, which tells of random numbers, and of branches that a larger batch
    would not bear.

    Args:
        function: gives a tensor, or a tuple of tensors.
        dims: batch axes of the tensors; at least one is 0.
        tensors: the arguments.
        known: the shapes, types and devices that it has been called with under vmap: once is enough.

    Raises:
        ProblemError: the function cannot be batched, draws random numbers, or uses a tensor of a transform of
            torch.func or of forward mode.
    """
    first = [t.detach()[:1] if dim == 0 else t.detach() for t, dim in zip(tensors, dims, strict=True)]
    try:
        kind = tuple((t.shape, t.dtype, t.device) for t in first)
        with torch.enable_grad():
            if known is not None and kind in known:
                found = batched(function, dims, *first)
            else:
                found = torch.func.vmap(function, in_dims=dims)(*first)
                if known is not None:
                    known.add(kind)
    except RuntimeError as error:
        raise translated(error) or error from error
    values = found if isinstance(found, tuple) else (found,)
    leaves = {id(leaf): leaf for value in values for leaf in _leaves(value)}
    if any(torch._C._functorch.is_functorch_wrapped_tensor(leaf) for leaf in leaves.values()):
        raise ProblemError(
            "a function of the node captures a tensor that torch.func transforms: pass it as a parameter"
        )
    if not inside_transform() and any(forward_ad.unpack_dual(value).tangent is not None for value in values):
        raise ProblemError(
            "a function of the node captures a tensor with a forward-mode tangent: pass it as a parameter"
        )
    return found, tuple(leaves.values())


def _leaves(value: torch.Tensor) -> list[torch.Tensor]:
    """The leaves that a tensor's graph leads to; under transforms also those of the tensors inside."""
    found, seen, waiting = [], set(), [value.grad_fn]
    while torch._C._functorch.is_functorch_wrapped_tensor(value):
        value = torch._C._functorch.get_unwrapped(value)
        waiting.append(value.grad_fn)
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, torch.Tensor):
            found.append(leaf)
        waiting.extend(following for following, _ in node.next_functions)
    return found


def _apply(equation: _AbstractEquation, dims: Dims, start: torch.Tensor | None, *tensors: torch.Tensor) -> Found:
    """``_Implicit.apply``, which torch leaves untyped."""
    found: Found = _Implicit.apply(equation, dims, start, *tensors)  # type: ignore[no-untyped-call]
    return found


class _AbstractEquation(ABC):
    """An equation R(z, theta) = 0 for z, one element at a time.

    Attributes:
        residual: R.
    """

    residual: AbstractResidual

    @abstractmethod
    def solve(self, start: torch.Tensor | None, dims: Dims, theta: Tensors) -> Found:
        """z and what is solved."""

    @abstractmethod
    def linear_solution(
        self, rhs: torch.Tensor, z: torch.Tensor, dims: Dims, theta: Tensors, captured: Tensors, *, transposed: bool
    ) -> torch.Tensor:
        """u with K u = rhs, or K'u = rhs, differentiable in all tensors."""

    @abstractmethod
    def apply_inverse(
        self, rhs: torch.Tensor, z: torch.Tensor, dims: Dims, theta: Tensors, *, transposed: bool
    ) -> torch.Tensor:
        """The values of ``linear_solution``."""


@final
class Equation(_AbstractEquation):
    """R(z, theta) = 0 with the way to solve it.

    One object serves one call of a node, and keeps the factor of K for every cotangent at the same point.

    Args:
        residual: R.
        solver: solves it for a whole batch.
        linear: solves the systems with K.
        judge: told of every linear solve.
    """

    def __init__(
        self, residual: AbstractResidual, solver: ForwardSolver, linear: AbstractLinearSolver, judge: Judge
    ) -> None:
        self.residual, self._solver, self._linear, self._judge = residual, solver, linear, judge
        self._kept: tuple[Operator, Any] | None = None

    def solve(self, start: torch.Tensor | None, dims: Dims, theta: Tensors) -> Found:
        """z and what is solved."""
        try:
            return self._solver(start, dims, theta)
        except RuntimeError as error:
            raise translated(error) or error from error

    def keep(self, operator: Operator, factor: Any) -> None:
        """Use this factor of K for derivatives at its point."""
        self._kept = operator, factor

    def linear_solution(
        self, rhs: torch.Tensor, z: torch.Tensor, dims: Dims, theta: Tensors, captured: Tensors, *, transposed: bool
    ) -> torch.Tensor:
        """u with K u = rhs, or K'u = rhs."""
        system = _LinearEquation(self, transposed=transposed and not self.residual.symmetric)
        return _apply(system, (0, 0, *dims), None, rhs, z, *theta, *captured)[0]

    def apply_inverse(
        self, rhs: torch.Tensor, z: torch.Tensor, dims: Dims, theta: Tensors, *, transposed: bool
    ) -> torch.Tensor:
        """The values of ``linear_solution``, with the factor that is kept where the point is the same."""
        operator = self.operator(z, dims, theta)
        assert self._kept is not None  # operator() has seen to it
        linear, factor = self._linear, self._kept[1]
        answer = linear.solve(factor, rhs, transposed=transposed)
        inverse = (lambda v: linear.solve(factor, v, transposed=False).solution) if linear.direct else None
        self._judge(operator, answer, inverse)
        return answer.solution

    def operator(self, z: torch.Tensor, dims: Dims, theta: Tensors) -> Operator:
        """K at a point, that which is kept where it is the same."""
        if self._kept is None or not _same((z, *theta), (self._kept[0].z, *self._kept[0].theta)):
            operator = Operator(self.residual, dims, z.detach(), tuple(t.detach() for t in theta))
            self._kept = operator, self._linear.init(operator, symmetric=self.residual.symmetric)
        return self._kept[0]


@final
class _LinearEquation(_AbstractEquation):
    """K(z, theta)' u - v = 0, or K u - v = 0, an equation for u in the parameters (v, z, *theta)."""

    def __init__(self, of: Equation, *, transposed: bool) -> None:
        self._of, self._transposed = of, transposed
        self.residual = _LinearResidual(of.residual, transposed=transposed)

    def solve(self, start: torch.Tensor | None, dims: Dims, theta: Tensors) -> Found:
        rhs, point, *rest = theta
        solution = self._of.apply_inverse(rhs, point, dims[2:], tuple(rest), transposed=self._transposed)
        return solution, torch.isfinite(solution).all(-1)

    def linear_solution(
        self, rhs: torch.Tensor, z: torch.Tensor, dims: Dims, theta: Tensors, captured: Tensors, *, transposed: bool
    ) -> torch.Tensor:
        across = transposed != self._transposed
        return self._of.linear_solution(rhs, theta[1], dims[2:], theta[2:], captured, transposed=across)

    def apply_inverse(
        self, rhs: torch.Tensor, z: torch.Tensor, dims: Dims, theta: Tensors, *, transposed: bool
    ) -> torch.Tensor:
        across = transposed != self._transposed
        return self._of.apply_inverse(rhs, theta[1], dims[2:], theta[2:], transposed=across)


@final
class _LinearResidual(AbstractResidual):
    """K' u - v or K u - v."""

    def __init__(self, of: AbstractResidual, *, transposed: bool) -> None:
        self._of, self._transposed = of, transposed

    def __call__(self, z: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
        u, (rhs, point, *rest) = z, theta
        times = transposed_product if self._transposed else product
        return times(lambda at: self._of(at, *rest), point, u) - rhs


@final
class _Implicit(torch.autograd.Function):
    """(equation, dims, start, *theta, *captured) -> z (batch, n), solved (batch,)."""

    @staticmethod
    def forward(equation: _AbstractEquation, dims: Dims, start: torch.Tensor | None, *tensors: torch.Tensor) -> Any:
        theta = tuple(t.detach() for t in tensors[: len(dims)])  # without forward-mode tangents
        return equation.solve(start, dims, theta)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Found) -> None:
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
        z, theta, cotangent = _safe(z, solved, ctx.dims, theta, cotangent)
        with without_autocast(z):
            if inside_transform() or (torch.is_grad_enabled() and not captured):
                u = ctx.equation.linear_solution(cotangent, z, ctx.dims, theta, captured, transposed=True)
                of_theta: Tensors = _pull(ctx, z, theta, wanted[:count])[1](-u)
                gradients: Sequence[torch.Tensor | None] = (*of_theta, *(None for want in wanted[count:] if want))
            else:
                gradients = _gradients(ctx, cotangent, z, theta, captured, wanted)
        if inside_transform() or not bool(solved.all()):
            # Where nothing is solved, nothing has taken the place of what is not.
            gradients = [None if each is None else torch.where(solved.any(), each, 0.0) for each in gradients]
        left = iter(gradients)
        return None, None, None, *(next(left) if want else None for want in wanted)

    @staticmethod
    def jvp(ctx: Any, *tangents: torch.Tensor | None) -> tuple[torch.Tensor, None]:
        refuse_nested_forward_mode()
        z, _, *tensors = ctx.saved_tensors
        count = len(ctx.dims)
        theta, captured = tuple(tensors[:count]), tuple(tensors[count:])
        given = tangents[3 : 3 + count]
        moved = [tangent for tangent in given if tangent is not None]
        value, pull = _pull(ctx, z, theta, [tangent is not None for tangent in given])
        _, pull_twice = torch.func.vjp(pull, torch.zeros_like(value))  # type: ignore[misc]
        (direction,) = pull_twice(tuple(moved))
        return ctx.equation.linear_solution(-direction, z, ctx.dims, theta, captured, transposed=False), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], equation: Any, dims: Dims, *rest: Any) -> tuple[Found, Any]:
        lanes, count = info.batch_size, len(dims)
        start, *tensors = rest
        start_dim, *tensor_dims = in_dims[2:]
        theta, captured, theta_dims = tensors[:count], tensors[count:], tensor_dims[:count]
        if isinstance(equation, _LinearEquation) and theta_dims[0] is not None and set(theta_dims[1:]) == {None}:
            # Several right-hand sides at one point: one factor serves them all.
            sides = theta[0].movedim(theta_dims[0], 0)
            found = [_apply(equation, dims, None, side, *theta[1:], *captured) for side in sides]
            return (torch.stack([z for z, _ in found]), torch.stack([solved for _, solved in found])), (0, 0)
        folded, new_dims, size = fold(lanes, theta_dims, dims, theta)
        if start is not None:
            (start,), _, _ = fold(lanes, [start_dim], (0,), [start])
        together = _apply(equation, new_dims, start, *folded, *captured)
        wide = [
            (part if len(part) == lanes * size else part.expand(lanes * size, *part.shape[1:])).reshape(
                lanes, size, *part.shape[1:]
            )
            for part in together
        ]
        return (wide[0], wide[1]), (0, 0)


def _gradients(
    ctx: Any, cotangent: torch.Tensor, z: torch.Tensor, theta: Tensors, captured: Tensors, wanted: tuple[bool, ...]
) -> Sequence[torch.Tensor]:
    """The gradients of the wanted tensors, by autograd on plain tensors; not to be differentiated again."""
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
    own, of_captured = operator.pull(-u, wanted[:count], chosen)
    found = (*own, *of_captured)
    return [once(each, sources, TWICE) for each in found] if torch.is_grad_enabled() else found


def _safe(
    z: torch.Tensor, solved: torch.Tensor, dims: Dims, theta: Tensors, cotangent: torch.Tensor
) -> tuple[torch.Tensor, Tensors, torch.Tensor]:
    """The point, the parameters and the cotangent with unsolved elements out of the way: nothing depends on them.

    In their place stands the first element that is solved, with a cotangent of zero; their own numbers may not be
    finite, and zero times that would spoil the gradients that all elements share.
    """
    if not inside_transform() and bool(solved.all()):
        return z, theta, cotangent
    index = torch.where(solved, torch.arange(solved.shape[0], device=solved.device), solved.int().argmax())
    return z[index], take(dims, theta, index), torch.where(solved.unsqueeze(-1), cotangent, 0.0)


def _pull(ctx: Any, z: torch.Tensor, theta: Sequence[torch.Tensor], wanted: Sequence[bool]) -> tuple[torch.Tensor, Any]:
    """R at the solution, and the function cotangent -> R_theta' cotangent for the wanted parameters."""
    residual = torch.func.vmap(ctx.equation.residual, in_dims=(0, *ctx.dims))

    def of(*changing: torch.Tensor) -> torch.Tensor:
        fresh = iter(changing)
        return residual(z, *(next(fresh) if want else t for want, t in zip(wanted, theta, strict=True)))

    return vjp(of, *(t for want, t in zip(wanted, theta, strict=True) if want))


def _same(left: Tensors, right: Tensors) -> bool:
    return all(a is b or (a.shape == b.shape and torch.equal(a, b)) for a, b in zip(left, right, strict=True))
