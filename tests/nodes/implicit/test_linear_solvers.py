"""Linear solvers of the derivative, dense and iterative, and the sizes of the tensors they create."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from convexlayer import ProblemError
from convexlayer.nodes import (
    GMRES,
    AbstractLinearSolver,
    AbstractResidual,
    ArgminNode,
    ConjugateGradients,
    Dense,
    GivenBatch,
    LinearSolve,
    MinimalResidual,
    Neumann,
    NodeOptions,
    Operator,
)
from tests.nodes.largest_tensor import Largest

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
        (GMRES(), symmetric(definite=True)),
        (GMRES(), symmetric(definite=False)),
    ],
)
def test_every_solver_solves_its_class_of_systems(solver: AbstractLinearSolver, K: torch.Tensor) -> None:
    rhs = vectors(1)
    rhs[0] = 0.0
    answer = solver.solve(solver.init(operator(K), symmetric=True), rhs, transposed=False)
    expected = torch.linalg.solve(K, rhs.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(answer.solution, expected, rtol=1e-8, atol=1e-8)
    assert float(answer.residual.max()) < 1e-9
    if isinstance(solver, Dense):  # measures each row relative to its own terms
        return
    torch.testing.assert_close(
        answer.residual * torch.linalg.vector_norm(rhs, dim=-1),
        torch.linalg.vector_norm((K @ answer.solution.unsqueeze(-1)).squeeze(-1) - rhs, dim=-1),
        rtol=0,
        atol=1e-12,
    )


def unsymmetric(seed: int = 2) -> torch.Tensor:
    return torch.randn(B, N, N, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def times(K: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    return (K @ u.unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("solver", [Dense(), GMRES()])
def test_unsymmetric_systems_and_their_transposes(solver: AbstractLinearSolver, transposed: bool) -> None:
    K, rhs = unsymmetric(), vectors(3)
    rhs[2] = 0.0
    answer = solver.solve(solver.init(operator(K), symmetric=False), rhs, transposed=transposed)
    expected = torch.linalg.solve(K.mT if transposed else K, rhs.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(answer.solution, expected, rtol=1e-8, atol=1e-8)
    assert (answer.solution[2] == 0).all()
    assert float(answer.residual.max()) < 1e-10


def gmres(K: torch.Tensor, rhs: torch.Tensor, solver: GMRES | None = None, *, transposed: bool = False) -> LinearSolve:
    return (solver or GMRES()).solve(operator(K), rhs, transposed=transposed)


def test_gmres_restarts_with_a_tolerance_per_element() -> None:
    K = torch.eye(N, dtype=torch.float64) + 0.2 * unsymmetric()
    rhs = torch.tensor([1e-20, 1.0, 1e20, 1e3], dtype=torch.float64).unsqueeze(-1) * vectors(3)
    answer = gmres(K, rhs, GMRES(restart=3))
    assert float(answer.residual.max()) < 1e-10
    expected = torch.linalg.solve(K, rhs.unsqueeze(-1)).squeeze(-1)
    size = torch.linalg.vector_norm(expected, dim=-1, keepdim=True)
    torch.testing.assert_close(answer.solution / size, expected / size, rtol=0, atol=1e-8)
    few = gmres(K, rhs, GMRES(max_iter=2))
    assert float(few.residual.min()) > 1e-4  # the residual shows that the solve is truncated
    torch.testing.assert_close(
        few.residual, torch.linalg.vector_norm(times(K, few.solution) - rhs, dim=-1) / rhs.norm(dim=-1)
    )


@pytest.mark.parametrize("solver", [GMRES(), GMRES(restart=3), GMRES(max_iter=5)])
def test_gmres_result_does_not_depend_on_the_rest_of_the_batch(solver: GMRES) -> None:
    K, rhs = torch.eye(N, dtype=torch.float64) + 0.2 * unsymmetric(), vectors(3)
    K[1], rhs[2], K[3] = torch.eye(N), 0.0, torch.nan
    together = gmres(K, rhs, solver)
    for i in (0, 1, 2):
        alone = Operator(Product(), (0,), torch.zeros(1, N, dtype=torch.float64), (K[i : i + 1],))
        single = solver.solve(alone, rhs[i : i + 1], transposed=False)
        torch.testing.assert_close(together.solution[i], single.solution[0], rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(together.solution[1], rhs[1])
    assert together.residual[3] == 1.0  # no product is finite, so nothing is gained


def test_gmres_minimises_the_residual_over_the_krylov_space() -> None:
    K, rhs = unsymmetric(), vectors(3)
    for k in (1, 3, 6):
        basis = [rhs]
        for _ in range(k - 1):
            basis.append(times(K.mT, basis[-1]))
        space = torch.stack([times(K.mT, b) for b in basis], -1)
        best = torch.linalg.lstsq(space, rhs.unsqueeze(-1)).solution
        left = torch.linalg.vector_norm((space @ best).squeeze(-1) - rhs, dim=-1) / rhs.norm(dim=-1)
        torch.testing.assert_close(gmres(K, rhs, GMRES(max_iter=k), transposed=True).residual, left, rtol=1e-6, atol=0)


def test_gmres_solves_consistent_systems_unless_null_space_and_range_intersect() -> None:
    K = unsymmetric()
    K[:, 2] = K[:, 0] - K[:, 1]  # dependent rows; of full rank on its range
    rhs = times(K, vectors(6))
    answer = gmres(K, rhs)
    assert float(answer.residual.max()) < 1e-10
    away = gmres(K, vectors(7))  # inconsistent: the residual is the smallest in the Krylov space
    assert float(away.residual.min()) > 1e-3
    assert torch.isfinite(away.solution).all()
    # [[0, 1], [0, 0]] u = (1, 0) has the solution (0, 1), outside all Krylov spaces: (1, 0) is in the null space.
    jordan = torch.zeros(B, N, N, dtype=torch.float64)
    jordan[:, 0, 1] = 1.0
    first = torch.nn.functional.one_hot(torch.zeros(B, dtype=torch.int64), N).double()
    stuck = gmres(jordan, first)
    torch.testing.assert_close(stuck.residual, torch.ones(B, dtype=torch.float64))
    torch.testing.assert_close(stuck.solution, torch.zeros(B, N, dtype=torch.float64))


def test_stalled_restarts_end() -> None:
    """A cyclic shift: no Krylov space but the whole space reduces the residual of a unit vector."""
    products = 0

    class Shift(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(z: torch.Tensor) -> torch.Tensor:
            return torch.roll(z, 1, -1)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            """Return the operator."""

        @staticmethod
        def backward(ctx: Any, u: torch.Tensor) -> torch.Tensor:
            nonlocal products
            products += 1
            return torch.roll(u, -1, -1)

    class Shifted(AbstractResidual):
        def __call__(self, z: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
            moved: torch.Tensor = Shift.apply(z)  # type: ignore[no-untyped-call]
            return moved

    shift = Operator(Shifted(), (), torch.zeros(1, N, dtype=torch.float64), ())
    rhs = torch.nn.functional.one_hot(torch.tensor([0]), N).double()
    assert float(GMRES(restart=N - 1).solve(shift, rhs, transposed=True).residual[0]) == 1.0
    assert products == N  # one cycle, and one product for the residual
    whole = GMRES().solve(shift, rhs, transposed=True)
    assert float(whole.residual[0]) < 1e-14


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GMRES(restart=0), "restart must be an integer of at least 1, got 0"),
        (lambda: GMRES(tol=-1.0), "tol must be a number of at least 0, got -1.0"),
        (lambda: MinimalResidual(tol=float("nan")), "tol must be a number of at least 0, got nan"),
        (lambda: ConjugateGradients(max_iter=2.5), "max_iter must be an integer of at least 0, got 2.5"),  # type: ignore[arg-type]
        (lambda: Neumann(0), "terms must be an integer of at least 1, got 0"),
    ],
)
def test_invalid_numbers_are_rejected(make: Callable[[], AbstractLinearSolver], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        make()


@pytest.mark.parametrize("n", [8, 60])  # condition by the inverse, and estimated
def test_dense_solves_transposed_systems_and_estimates_the_condition(n: int) -> None:
    generator = torch.Generator().manual_seed(2)
    K, rhs = (torch.randn(B, n, k, dtype=torch.float64, generator=generator) for k in (n, 1))
    rows, columns = (10.0 ** (4.0 * torch.randn(n, dtype=torch.float64, generator=generator)) for _ in range(2))
    K = rows.unsqueeze(-1) * K * columns
    solver, at = Dense(), Operator(Product(), (0,), torch.zeros(B, n, dtype=torch.float64), (K,))
    state = solver.init(at, symmetric=False)
    answer = solver.solve(state, rhs.squeeze(-1), transposed=True)
    left = (K.mT @ answer.solution.unsqueeze(-1) - rhs).abs()
    assert float((left / (K.mT.abs() @ answer.solution.abs().unsqueeze(-1) + rhs.abs())).max()) < 1e-13
    exact = torch.linalg.cond(state.matrix, 1)  # independent of the units of rows and columns
    assert float(exact.max()) < 1e7
    assert (answer.condition <= exact * (1 + 1e-9)).all()
    assert (answer.condition >= exact / 3).all()


def test_singular_system_gets_the_minimum_norm_solution_without_affecting_others() -> None:
    K, rhs, solver = symmetric(definite=False), vectors(5), Dense()
    K[1, 2], K[1, :, 2] = 0.0, 0.0
    answer = solver.solve(solver.init(operator(K), symmetric=True), rhs, transposed=False)
    assert answer.condition[1] > 1e14
    torch.testing.assert_close(answer.solution[1], torch.linalg.pinv(K[1]) @ rhs[1])
    torch.testing.assert_close(answer.solution[0], torch.linalg.solve(K[0], rhs[0]))
    assert answer.residual[1] > 1e-3  # the right-hand side is not in the range


def test_minres_solves_singular_consistent_systems() -> None:
    K, rhs = symmetric(definite=False), vectors(6)
    K[:, 2], K[:, :, 2], rhs[:, 2] = 0.0, 0.0, 0.0
    answer = MinimalResidual().solve(operator(K), rhs, transposed=False)
    assert float(answer.residual.max()) < 1e-9
    torch.testing.assert_close(answer.solution, torch.linalg.pinv(K) @ rhs.unsqueeze(-1) @ torch.ones(1, 1).double()[0])


@pytest.mark.parametrize("solver", [ConjugateGradients(), MinimalResidual()])
def test_symmetric_methods_reject_unsymmetric_systems(solver: AbstractLinearSolver) -> None:
    with pytest.raises(ProblemError, match=r"needs a symmetric system.*use GMRES\(\)"):
        solver.init(operator(symmetric(definite=True)), symmetric=False)


@pytest.mark.parametrize("linear", [ConjugateGradients(), GMRES(), Dense()])
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
