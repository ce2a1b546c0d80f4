"""Residual maps R(z, theta), the operator K = dR/dz, and the interface of solvers of K u = v."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch

from convexlayer.nodes.autodiff.batch import Dims, Tensors
from convexlayer.nodes.autodiff.derivatives import apply_batched, jacobian, matvec

__all__ = ["AbstractLinearSolver", "AbstractResidual", "LinearSolve", "Operator", "relative_residual"]


class AbstractResidual(ABC):
    """Residual map R(z, theta) of one element; z and R have shape (n,).

    Attributes:
        symmetric: whether K = dR/dz is symmetric, as a Hessian is.
        multipliers: number of trailing unknowns that are multipliers of constraints: K = [H A'; A *].
    """

    symmetric: ClassVar[bool] = False
    multipliers: int = 0

    @abstractmethod
    def __call__(self, z: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
        """R of one element, a function that torch.func can transform."""

    def batched(self, dims: Dims, z: torch.Tensor, theta: Tensors) -> torch.Tensor:
        """R (batch, n) of plain tensors; recorded by autograd if grad mode is on."""
        found: torch.Tensor = apply_batched(self, (0, *dims), z, *theta)
        return found


@final
class Operator:
    """K = dR/dz at one point of each element, as a linear operator.

    Args:
        residual: R.
        dims: batch axes of theta.
        z: the points, (batch, n), a plain tensor.
        theta: the parameters, plain tensors.
        evaluated: R (batch, n) and K (batch, n, n) at the points, if computed already.
    """

    def __init__(
        self,
        residual: AbstractResidual,
        dims: Dims,
        z: torch.Tensor,
        theta: Tensors,
        evaluated: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> None:
        self.residual, self.dims, self.z, self.theta, self._evaluated = residual, dims, z, theta, evaluated
        self._recorded: tuple[torch.Tensor, Tensors, torch.Tensor] | None = None
        self._linear_map: tuple[torch.Tensor, torch.Tensor] | None = None

    def value(self) -> torch.Tensor:
        """R at the points, (batch, n)."""
        return self._recorded_residual()[2].detach() if self._evaluated is None else self._evaluated[0]

    def transposed_product(self, u: torch.Tensor) -> torch.Tensor:
        """K'u, (batch, n)."""
        if self._evaluated is not None:
            return matvec(self._evaluated[1].mT, u)
        z, _, value = self._recorded_residual()
        return _vjp(value, (z,), u)[0]

    def product(self, u: torch.Tensor) -> torch.Tensor:
        """K u, (batch, n): the transpose of the linear map w -> K'w."""
        if self.residual.symmetric:
            return self.transposed_product(u)
        if self._linear_map is None:
            z, _, value = self._recorded_residual()
            with torch.enable_grad():
                w = torch.zeros_like(value, requires_grad=True)
                self._linear_map = w, _vjp(value, (z,), w, create_graph=True)[0]
        w, transposed = self._linear_map
        return _vjp(transposed, (w,), u)[0]

    def parameter_product(self, tangents: Tensors) -> torch.Tensor:
        """R_theta t, (batch, n), for tangents t of the parameters."""
        _, theta, value = self._recorded_residual()
        with torch.enable_grad():
            w = torch.zeros_like(value, requires_grad=True)
            gradients = _vjp(value, theta, w, create_graph=True)
            along = sum(((each * t).sum() for each, t in zip(gradients, tangents, strict=True)), w.new_zeros(()))
        return _vjp(along, (w,), None)[0]

    def parameter_vjp(self, u: torch.Tensor, wanted: tuple[bool, ...], captured: Tensors) -> tuple[Tensors, Tensors]:
        """R_theta'u for the wanted parameters, and the same for captured tensors."""
        _, theta, value = self._recorded_residual()
        chosen = tuple(t for t, want in zip(theta, wanted, strict=True) if want)
        found = _vjp(value, chosen + captured, u)
        return found[: len(chosen)], found[len(chosen) :]

    def at(self, z: torch.Tensor) -> Operator:
        """Return the operator at other points with the same parameters."""
        return Operator(self.residual, self.dims, z, self.theta)

    def at_both_sides(self, shift: torch.Tensor, u: torch.Tensor) -> tuple[Tensors, Tensors]:
        """Return (K'u, R) at z + shift and (K'u, R) at z - shift, by one evaluation where there is a batch."""
        if len(self.z) == 1:
            above, below = self.at(self.z + shift), self.at(self.z - shift)
            return (above.transposed_product(u), above.value()), (below.transposed_product(u), below.value())
        theta_twice = tuple(torch.cat([t, t]) if dim == 0 else t for t, dim in zip(self.theta, self.dims, strict=True))
        both = Operator(self.residual, self.dims, torch.cat([self.z + shift, self.z - shift]), theta_twice)
        products, values = both.transposed_product(torch.cat([u, u])).chunk(2), both.value().chunk(2)
        return (products[0], values[0]), (products[1], values[1])

    def dense(self) -> torch.Tensor:
        """K, (batch, n, n)."""
        if self._evaluated is None:
            z, _, value = self._recorded_residual()
            self._evaluated = value.detach(), jacobian(value, z)
        return self._evaluated[1]

    def _recorded_residual(self) -> tuple[torch.Tensor, Tensors, torch.Tensor]:
        """z, theta and R(z, theta) as recorded by autograd."""
        if self._recorded is None:
            with torch.enable_grad():
                z = self.z.detach().requires_grad_()
                theta = tuple(t.detach().requires_grad_() for t in self.theta)
                self._recorded = z, theta, self.residual.batched(self.dims, z, theta)
        return self._recorded


def _vjp(value: torch.Tensor, at: Tensors, u: torch.Tensor | None, *, create_graph: bool = False) -> Tensors:
    if not at or not value.requires_grad:
        return tuple(torch.zeros_like(t) for t in at)
    return torch.autograd.grad(
        value, at, u, retain_graph=True, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )


@final
@dataclass(frozen=True)
class LinearSolve:
    """Solution of one linear system per element.

    Attributes:
        solution: (batch, n).
        residual: relative residual, (batch,): |K u - v| / |v|, or that of the worst row for ``Dense``.
        condition: estimate of the condition number of K in the 1-norm, (batch,); NaN for iterative solvers.
    """

    solution: torch.Tensor
    residual: torch.Tensor
    condition: torch.Tensor


class AbstractLinearSolver(ABC):
    """Solver of K u = v: ``init`` prepares for an operator, ``solve`` takes right-hand sides.

    Attributes:
        direct: whether a further right-hand side is cheap, as with a factorisation.
    """

    direct: ClassVar[bool] = False

    def accurate(self) -> AbstractLinearSolver:
        """Return the solver used to verify solutions: this one, or an exact one if this one only approximates K^-1."""
        return self

    @abstractmethod
    def init(self, operator: Operator, *, symmetric: bool) -> Any:
        """Prepare for one operator, for example by a factorisation."""

    @abstractmethod
    def solve(self, state: Any, rhs: torch.Tensor, *, transposed: bool) -> LinearSolve:
        """Solve K u = rhs, or K'u = rhs, for rhs (batch, n)."""


def relative_residual(product: torch.Tensor, rhs: torch.Tensor) -> torch.Tensor:
    """|K u - v| / |v| per element; |K u| where v = 0."""
    size = torch.linalg.vector_norm(rhs, dim=-1)
    return torch.linalg.vector_norm(product - rhs, dim=-1) / torch.where(size > 0, size, 1.0)
