"""The linear systems of the derivative: dense and by products, and what is never formed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from convexlayer import ProblemError
from convexlayer.nodes import (
    AbstractLinearSolver,
    AbstractResidual,
    ArgminNode,
    ConjugateGradients,
    Dense,
    GivenBatch,
    MinimalResidual,
    NodeOptions,
    Operator,
)

B, N = 4, 8


def symmetric(definite: bool) -> torch.Tensor:
    M = torch.randn(B, N, N, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return M @ M.mT + 0.1 * torch.eye(N, dtype=torch.float64) if definite else M + M.mT


def vectors(seed: int) -> torch.Tensor:
    return torch.randn(B, N, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Product(AbstractResidual):
    """R = K z."""

    def __call__(self, z: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
        return theta[0] @ z


def operator(K: torch.Tensor) -> Operator:
    return Operator(Product(), (0,), torch.zeros(B, N, dtype=torch.float64), (K,))


@pytest.mark.parametrize(
    ("solver", "K"),
    [
        (Dense(), symmetric(definite=True)),
        (Dense(), symmetric(definite=False)),
        (ConjugateGradients(), symmetric(definite=True)),
        (ConjugateGradients(), -symmetric(definite=True)),
        (MinimalResidual(), symmetric(definite=True)),
        (MinimalResidual(), symmetric(definite=False)),
    ],
)
def test_every_solver_solves_what_it_is_for(solver: AbstractLinearSolver, K: torch.Tensor) -> None:
    rhs = vectors(1)
    rhs[0] = 0.0
    answer = solver.solve(solver.init(operator(K), symmetric=True), rhs, transposed=False)
    expected = torch.linalg.solve(K, rhs.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(answer.solution, expected, rtol=1e-8, atol=1e-8)
    assert float(answer.residual.max()) < 1e-9
    if isinstance(solver, Dense):  # which measures every row by its own terms
        return
    torch.testing.assert_close(
        answer.residual * torch.linalg.vector_norm(rhs, dim=-1),
        torch.linalg.vector_norm((K @ answer.solution.unsqueeze(-1)).squeeze(-1) - rhs, dim=-1),
        rtol=0,
        atol=1e-12,
    )


def test_dense_solves_with_the_transpose_and_estimates_the_condition() -> None:
    K = torch.randn(B, N, N, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    rhs, solver = vectors(3), Dense()
    answer = solver.solve(solver.init(operator(K), symmetric=False), rhs, transposed=True)
    torch.testing.assert_close(answer.solution, torch.linalg.solve(K.mT, rhs.unsqueeze(-1)).squeeze(-1))
    exact = torch.linalg.cond(K, 1)
    assert (answer.condition <= exact * (1 + 1e-9)).all()
    assert (answer.condition >= exact / 3).all()


def test_a_singular_system_has_its_solution_of_minimum_norm_and_costs_the_others_nothing() -> None:
    K, rhs, solver = symmetric(definite=False), vectors(5), Dense()
    K[1, 2], K[1, :, 2] = 0.0, 0.0
    answer = solver.solve(solver.init(operator(K), symmetric=True), rhs, transposed=False)
    assert answer.condition[1] > 1e14
    torch.testing.assert_close(answer.solution[1], torch.linalg.pinv(K[1]) @ rhs[1])
    torch.testing.assert_close(answer.solution[0], torch.linalg.solve(K[0], rhs[0]))
    assert answer.residual[1] > 1e-3  # the right-hand side is not in the range


def test_singular_consistent_systems_are_solved_by_minimal_residuals() -> None:
    K, rhs = symmetric(definite=False), vectors(6)
    K[:, 2], K[:, :, 2], rhs[:, 2] = 0.0, 0.0, 0.0
    answer = MinimalResidual().solve(operator(K), rhs, transposed=False)
    assert float(answer.residual.max()) < 1e-9
    torch.testing.assert_close(answer.solution, torch.linalg.pinv(K) @ rhs.unsqueeze(-1) @ torch.ones(1, 1).double()[0])


@pytest.mark.parametrize("solver", [ConjugateGradients(), MinimalResidual()])
def test_symmetric_methods_refuse_other_systems(solver: AbstractLinearSolver) -> None:
    with pytest.raises(ProblemError, match="needs a symmetric system"):
        solver.init(operator(symmetric(definite=True)), symmetric=False)


class Largest(TorchDispatchMode):
    """The number of entries of the largest tensor that an operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.entries = max([self.entries, *sizes])
        return result


@pytest.mark.parametrize("linear", [ConjugateGradients(), Dense()])
def test_backward_never_forms_the_matrix_f_xy_nor_the_jacobian(linear: AbstractLinearSolver) -> None:
    """f_XY and dy/dA would have n m n = 128,000 entries; A itself has 3,200, the Hessian 1,600."""
    n, m = 40, 80
    A = torch.randn(m, n, dtype=torch.float64, generator=torch.Generator().manual_seed(7)) / m**0.5
    A.requires_grad_()

    def f(y: torch.Tensor, A: torch.Tensor) -> torch.Tensor:
        return 0.5 * (A @ y - 1.0).square().sum() + 0.5 * y.square().sum()

    def solution(A: torch.Tensor) -> torch.Tensor:
        eye = torch.eye(n, dtype=A.dtype)
        return torch.linalg.solve(A.mT @ A + eye, A.mT @ torch.ones(m, 1, dtype=A.dtype)).squeeze(-1)

    node = ArgminNode(f, (n,), [(m, n)], solver=GivenBatch(solution), options=NodeOptions(linear=linear, polish=0))
    y = node(A)
    cotangent = torch.ones_like(y)
    with Largest() as largest:
        (gradient,) = torch.autograd.grad(y, A, cotangent)
    assert 0 < largest.entries <= m * n
    (expected,) = torch.autograd.grad(solution(A), A, cotangent)
    torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-8)
