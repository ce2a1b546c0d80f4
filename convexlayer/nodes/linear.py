"""Linear systems of the implicit function theorem: K u = v with K = dR/dz, dense or by products with K alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch

from convexlayer.nodes.batch import Dims, Tensors
from convexlayer.nodes.calculus import batched, jacobian, times

__all__ = ["AbstractLinearSolver", "AbstractResidual", "Dense", "LinearSolve", "Operator"]

RUIZ = 1
"""Passes of Ruiz's scaling."""

INVERTED = 32
"""Up to this size the condition is computed from the inverse and not estimated."""


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


@final
class Dense(AbstractLinearSolver):
    """K formed, n products and n^2 numbers an element, equilibrated, and factored once: LU with partial pivoting.

    Rows and columns are scaled by powers of two, so that neither accuracy nor the condition depends on the units of
    variables and equations.
    """

    direct: ClassVar[bool] = True

    def init(self, operator: Operator, *, symmetric: bool) -> _Factor:
        """Form and factor K."""
        return _Factor(operator.dense(), symmetric=symmetric, multipliers=operator.residual.multipliers)

    def solve(self, state: _Factor, rhs: torch.Tensor, *, transposed: bool) -> LinearSolve:
        """Solve with the factor; where K is singular, the least-squares solution of minimum norm of the scaled system.

        The residual is that of the worst row, relative to the terms of it and of the rows that it is coupled to.
        """
        return state.answer(rhs, transposed=transposed)


@final
class _Factor:
    """A factored K = diag(1 / left) M diag(1 / right), and the estimate of M's condition.

    Attributes:
        matrix: M, equilibrated, (batch, n, n).
        right: the scales of its columns: what is solved for is these times the solution of the scaled system.
        condition: of M in the 1-norm, (batch,).
        singular: where M is singular to working accuracy, (batch,).
    """

    def __init__(self, matrix: torch.Tensor, *, symmetric: bool, multipliers: int) -> None:
        self.matrix, self._left, self.right = _equilibrated(matrix, symmetric=symmetric, multipliers=multipliers)
        self._lu, self._pivots, _ = torch.linalg.lu_factor_ex(self.matrix)
        self.condition = self._estimate()
        self.singular = ~(self.condition < 1.0 / (10.0 * matrix.shape[-1] * torch.finfo(matrix.dtype).eps))
        self._any_singular = bool(self.singular.any())

    def answer(self, rhs: torch.Tensor, *, transposed: bool) -> LinearSolve:
        left, right = (self.right, self._left) if transposed else (self._left, self.right)
        matrix = self.matrix.mT if transposed else self.matrix
        scaled = left * rhs
        solution = self._solved(scaled, transposed=transposed)
        if self._any_singular:
            solution[self.singular] = _minimum_norm(matrix[self.singular], scaled[self.singular])
        size = matrix.abs()
        terms = times(size, solution.abs()) + scaled.abs()
        # A row of zeros but for rounding is measured by the rows that it is coupled to.
        terms = terms + times(size, terms)
        error = (times(matrix, solution) - scaled).abs() / torch.where(terms > 0, terms, 1.0)
        return LinearSolve(right * solution, error.amax(-1), self.condition)

    def _solved(self, rhs: torch.Tensor, *, transposed: bool) -> torch.Tensor:
        return torch.linalg.lu_solve(self._lu, self._pivots, rhs.unsqueeze(-1), adjoint=transposed).squeeze(-1)

    def _estimate(self) -> torch.Tensor:
        """|M|_1 |M^-1|_1; of large ones by Hager's method, a lower bound, seldom below a third of it."""
        n = self.matrix.shape[-1]
        norm = self.matrix.abs().sum(-2).amax(-1)
        if n <= INVERTED:
            whole = torch.linalg.inv_ex(self.matrix)[0].abs().sum(-2).amax(-1)
            return (norm * whole).nan_to_num(torch.inf)
        x = torch.full_like(self.matrix[..., 0], 1.0 / n)
        inverse = torch.zeros_like(norm)
        for _ in range(4):
            y = self._solved(x, transposed=False)
            inverse = torch.maximum(inverse, y.abs().sum(-1))
            z = self._solved(torch.where(y >= 0, 1.0, -1.0).to(y.dtype), transposed=True)
            x = torch.nn.functional.one_hot(z.abs().argmax(-1), n).to(y.dtype)
        return torch.where(torch.isfinite(inverse), norm * inverse, torch.inf)


def _equilibrated(
    matrix: torch.Tensor, *, symmetric: bool, multipliers: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(M, left, right) with M = diag(left) K diag(right) of rows and columns about 1; scales are powers of two.

    Without symmetry rows are scaled, then columns. With it variables are scaled by the diagonal of the Hessian and
    multipliers by their constraints, then all by Ruiz's method, which alone would need many passes, and would leave a
    small Hessian beside large constraints as it is.
    """
    if not symmetric:
        left = _reciprocal(matrix.abs().amax(-1))
        matrix = left.unsqueeze(-1) * matrix
        right = _reciprocal(matrix.abs().amax(-2))
        return matrix * right.unsqueeze(-2), left, right
    n = matrix.shape[-1] - multipliers
    sizes = matrix[..., :n, :n].abs()
    diagonal = sizes.diagonal(dim1=-2, dim2=-1)
    scale = _reciprocal(torch.where(diagonal > 0, diagonal, sizes.amax(-1)), root=True)
    if multipliers:
        reach = (matrix[..., n:, :n].abs() * scale.unsqueeze(-2)).amax(-1)
        scale = torch.cat([scale, _reciprocal(reach)], -1)
    matrix = scale.unsqueeze(-1) * matrix * scale.unsqueeze(-2)
    for _ in range(RUIZ):
        more = _reciprocal(matrix.abs().amax(-1), root=True)
        matrix, scale = more.unsqueeze(-1) * matrix * more.unsqueeze(-2), scale * more
    return matrix, scale, scale


def _reciprocal(size: torch.Tensor, *, root: bool = False) -> torch.Tensor:
    """1 / size, or 1 / sqrt(size), to the nearest power of two; 1 where the size is zero."""
    logarithm = torch.log2(torch.where(size > 0, size, 1.0))
    return torch.exp2(torch.round(-0.5 * logarithm if root else -logarithm))


def _minimum_norm(matrix: torch.Tensor, rhs: torch.Tensor) -> torch.Tensor:
    """The least-squares solution of minimum norm; NaN where K is not finite."""
    finite = torch.isfinite(matrix).all(-1).all(-1)
    solution = torch.full_like(rhs, torch.nan)
    if finite.any():
        cutoff = 10.0 * matrix.shape[-1] * torch.finfo(matrix.dtype).eps
        inverse = torch.linalg.pinv(matrix[finite], rtol=cutoff, hermitian=False)
        solution[finite] = times(inverse, rhs[finite])
    return solution


def relative_residual(product: torch.Tensor, rhs: torch.Tensor) -> torch.Tensor:
    """|K u - v| / |v| of each element, 0 where v is 0."""
    size = torch.linalg.vector_norm(rhs, dim=-1)
    return torch.linalg.vector_norm(product - rhs, dim=-1) / torch.where(size > 0, size, 1.0)
