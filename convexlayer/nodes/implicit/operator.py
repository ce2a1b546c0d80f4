"""Linear systems of the implicit function theorem: K u = v with K = dR/dz, dense or by products with K alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch

from convexlayer.nodes.autodiff.batch import Dims, Tensors
from convexlayer.nodes.autodiff.derivatives import batched, jacobian, times

__all__ = ["AbstractLinearSolver", "AbstractResidual", "LinearSolve", "Operator", "relative_residual"]


class AbstractResidual(ABC):
    """R(z, theta), whose zero z is a node's output; z and R have shape (n,).

    Attributes:
        symmetric: whether K = dR/dz is, as the Hessian of a function is.
        multipliers: how many of the last unknowns are multipliers of constraints: K = [H A'; A *].
    """

    symmetric: ClassVar[bool] = False
    multipliers: int = 0

    @abstractmethod
    def __call__(self, z: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
        """R of one element, a function that torch.func can transform."""

    def batched(self, dims: Dims, z: torch.Tensor, theta: Tensors) -> torch.Tensor:
        """R (batch, n) of plain tensors, recorded by autograd where grad mode is on."""
        found: torch.Tensor = batched(self, (0, *dims), z, *theta)
        return found


@final
class Operator:
    """K = dR/dz at one point of each element, known by its products.

    Args:
        residual: R.
        dims: batch axes of theta.
        z: the points, (batch, n), a plain tensor.
        theta: the parameters, plain tensors.
        known: R and K at the points, (batch, n) and (batch, n, n), where they have been computed already.
    """

    def __init__(
        self,
        residual: AbstractResidual,
        dims: Dims,
        z: torch.Tensor,
        theta: Tensors,
        known: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> None:
        self.residual, self.dims, self.z, self.theta, self._known = residual, dims, z, theta, known
        self._recorded: tuple[torch.Tensor, Tensors, torch.Tensor] | None = None
        self._transposed: tuple[torch.Tensor, torch.Tensor] | None = None

    def value(self) -> torch.Tensor:
        """R at the points, (batch, n)."""
        return self._record()[2].detach() if self._known is None else self._known[0]

    def transposed_product(self, u: torch.Tensor) -> torch.Tensor:
        """K'u, (batch, n)."""
        if self._known is not None:
            return times(self._known[1].mT, u)
        z, _, value = self._record()
        return _pulled(value, (z,), u)[0]

    def product(self, u: torch.Tensor) -> torch.Tensor:
        """K u, (batch, n): the transpose of the linear map w -> K'w."""
        if self.residual.symmetric:
            return self.transposed_product(u)
        if self._transposed is None:
            z, _, value = self._record()
            with torch.enable_grad():
                w = torch.zeros_like(value, requires_grad=True)
                self._transposed = w, _pulled(value, (z,), w, create_graph=True)[0]
        w, transposed = self._transposed
        return _pulled(transposed, (w,), u)[0]

    def parameter_product(self, tangents: Tensors) -> torch.Tensor:
        """R_theta t, (batch, n)."""
        _, theta, value = self._record()
        with torch.enable_grad():
            w = torch.zeros_like(value, requires_grad=True)
            pulled = _pulled(value, theta, w, create_graph=True)
            along = sum(((each * t).sum() for each, t in zip(pulled, tangents, strict=True)), w.new_zeros(()))
        return _pulled(along, (w,), None)[0]

    def pull(self, u: torch.Tensor, wanted: tuple[bool, ...], captured: Tensors) -> tuple[Tensors, Tensors]:
        """R_theta'u for the wanted parameters, and the same for tensors that the functions capture."""
        _, theta, value = self._record()
        chosen = tuple(t for t, want in zip(theta, wanted, strict=True) if want)
        found = _pulled(value, chosen + captured, u)
        return found[: len(chosen)], found[len(chosen) :]

    def at(self, z: torch.Tensor) -> Operator:
        """The operator at other points with the same parameters."""
        return Operator(self.residual, self.dims, z, self.theta)

    def beside(self, shift: torch.Tensor, u: torch.Tensor) -> tuple[Tensors, Tensors]:
        """K'u and R at z + shift, and at z - shift; one record for both where there is a batch."""
        if len(self.z) == 1:
            above, below = self.at(self.z + shift), self.at(self.z - shift)
            return (above.transposed_product(u), above.value()), (below.transposed_product(u), below.value())
        twice = tuple(torch.cat([t, t]) if dim == 0 else t for t, dim in zip(self.theta, self.dims, strict=True))
        both = Operator(self.residual, self.dims, torch.cat([self.z + shift, self.z - shift]), twice)
        products, values = both.transposed_product(torch.cat([u, u])).chunk(2), both.value().chunk(2)
        return (products[0], values[0]), (products[1], values[1])

    def dense(self) -> torch.Tensor:
        """K, (batch, n, n)."""
        if self._known is None:
            z, _, value = self._record()
            self._known = value.detach(), jacobian(value, z)
        return self._known[1]

    def _record(self) -> tuple[torch.Tensor, Tensors, torch.Tensor]:
        """The points, the parameters and R as a function of them that autograd has recorded."""
        if self._recorded is None:
            with torch.enable_grad():
                z = self.z.detach().requires_grad_()
                theta = tuple(t.detach().requires_grad_() for t in self.theta)
                self._recorded = z, theta, self.residual.batched(self.dims, z, theta)
        return self._recorded


def _pulled(value: torch.Tensor, at: Tensors, u: torch.Tensor | None, *, create_graph: bool = False) -> Tensors:
    if not at or not value.requires_grad:
        return tuple(torch.zeros_like(t) for t in at)
    return torch.autograd.grad(
        value, at, u, retain_graph=True, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )


@final
@dataclass(frozen=True)
class LinearSolve:
    """The solution of one system for each element.

    Attributes:
        solution: (batch, n).
        residual: relative residual |K u - v| / |v|, (batch,); that of ``Dense`` is of the worst row.
        condition: estimate of the condition number of K in the 1-norm, (batch,); NaN where the solver has none.
    """

    solution: torch.Tensor
    residual: torch.Tensor
    condition: torch.Tensor


class AbstractLinearSolver(ABC):
    """How K u = v is solved: ``init`` does what does not need the right-hand side, ``solve`` the rest.

    Attributes:
        direct: whether another right-hand side costs next to nothing.
    """

    direct: ClassVar[bool] = False

    def accurate(self) -> AbstractLinearSolver:
        """The solver that tells whether a point is a solution; another one where this only approximates."""
        return self

    @abstractmethod
    def init(self, operator: Operator, *, symmetric: bool) -> Any:
        """Prepare for one operator."""

    @abstractmethod
    def solve(self, state: Any, rhs: torch.Tensor, *, transposed: bool) -> LinearSolve:
        """u with K u = rhs, or K'u = rhs; rhs is (batch, n)."""


def relative_residual(product: torch.Tensor, rhs: torch.Tensor) -> torch.Tensor:
    """|K u - v| / |v| of each element, 0 where v is 0."""
    size = torch.linalg.vector_norm(rhs, dim=-1)
    return torch.linalg.vector_norm(product - rhs, dim=-1) / torch.where(size > 0, size, 1.0)
