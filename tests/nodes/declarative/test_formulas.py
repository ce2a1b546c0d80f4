"""Nodes agree with the papers' formulas, corrected where necessary, evaluated with dense matrices."""

from __future__ import annotations

import pytest
import torch

from convexlayer.nodes import (
    ArgminNode,
    EqualityNode,
    InequalityNode,
    LinearEqualityNode,
    LinearForm,
    NodeOptions,
    StationaryNode,
)

Tensors = tuple[torch.Tensor, ...]
jacrev, grad = torch.func.jacrev, torch.func.grad


def objective(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.exp(y @ x) + torch.sin(x).sum() * y[0] ** 2 + y.square().sum() + 0.1 * y.pow(4).sum() + y @ x.flip(0)


def surface(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.stack([y.square().sum() - 1.0 - 0.1 * x[0] ** 2 * y[1], y[0] * y[2] - 0.1 * x[1]])


def ball(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.stack([y.square().sum() - 0.05 - 0.01 * x[0] ** 2, y[0] * x[1] - 0.3])


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-11) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_lemma_3_2(x: torch.Tensor) -> None:
    node = ArgminNode(objective, (3,), [(3,)])
    y = node(x)
    H, B = jacrev(grad(objective))(y, x), jacrev(grad(objective), argnums=1)(y, x)
    close(jacrev(node)(x), -torch.linalg.solve(H, B))


def test_lemmas_4_1_and_4_2_give_the_same_derivative(x: torch.Tensor) -> None:
    A = torch.tensor([[1.0, 2.0, -1.0], [0.0, 1.0, 1.0]], dtype=torch.float64)
    b = torch.tensor([0.5, -0.2], dtype=torch.float64)
    null_space = LinearEqualityNode(objective, A, b, [(3,)])
    kkt = LinearEqualityNode(objective, A, b, [(3,)], form=LinearForm.KKT)
    y, F = null_space(x), null_space.F
    close(A @ y, b)
    close(A @ F, torch.zeros(2, 1, dtype=torch.float64))
    H, B = jacrev(grad(objective))(y, x), jacrev(grad(objective), argnums=1)(y, x)
    first = -F @ torch.linalg.solve(F.mT @ H @ F, F.mT @ B)
    inverse = torch.linalg.inv(H)
    second = (inverse @ A.mT @ torch.linalg.inv(A @ inverse @ A.mT) @ A @ inverse - inverse) @ B
    for node in (null_space, kkt):
        close(jacrev(node)(x), first)
        close(jacrev(node)(x), second)
    close(null_space.solve(x)[0].lam, kkt.solve(x)[0].lam)


def test_corrected_formula_of_the_notes(x: torch.Tensor) -> None:
    """Dy = H^-1 A'(A H^-1 A')^-1 (A H^-1 B - C) - H^-1 B, with lambda'A = D_Y f and L = f - lambda'h."""
    node = EqualityNode(objective, surface, (3,), [(3,)], options=NodeOptions(start=torch.tensor([0.5, 0.5, 0.5])))
    point = node.solve(x)[0]
    y, multipliers = point.y, -point.lam
    A, C = jacrev(surface)(y, x), jacrev(surface, argnums=1)(y, x)
    close(multipliers @ A, grad(objective)(y, x), 1e-10)

    def lagrangian(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return objective(y, x) - multipliers @ surface(y, x)

    H, B = jacrev(grad(lagrangian))(y, x), jacrev(grad(lagrangian), argnums=1)(y, x)
    inverse = torch.linalg.inv(H)
    front = inverse @ A.mT @ torch.linalg.inv(A @ inverse @ A.mT)
    corrected = front @ (A @ inverse @ B - C) - inverse @ B
    printed = front @ (A @ inverse @ inverse @ B - C) - inverse @ B
    close(jacrev(node)(x), corrected, 1e-10)
    assert torch.linalg.vector_norm(printed - corrected) > 0.1 * torch.linalg.vector_norm(corrected)


@pytest.mark.parametrize("t", [5.0, 500.0])
def test_corrected_equation_64(x: torch.Tensor, t: float) -> None:
    """phi = sum log(-f_i) has phi_Y = sum f_iY / f_i; eq. 62 and 63 of the paper are derivatives of -phi."""
    node = InequalityNode(objective, ball, (3,), [(3,)], t=t)
    y = node(x)
    g, G, C = ball(y, x), jacrev(ball)(y, x), jacrev(ball, argnums=1)(y, x)
    G_YY, G_XY = jacrev(jacrev(ball))(y, x), jacrev(jacrev(ball), argnums=1)(y, x)
    phi_Y = (G / g[:, None]).sum(0)
    phi_YY = (G_YY / g[:, None, None]).sum(0) - torch.einsum("ia,ib,i->ab", G, G, g**-2)
    phi_XY = (G_XY / g[:, None, None]).sum(0) - torch.einsum("ia,ib,i->ab", G, C, g**-2)
    close(t * grad(objective)(y, x), phi_Y, 1e-9)
    H, B = jacrev(grad(objective))(y, x), jacrev(grad(objective), argnums=1)(y, x)
    expected = -torch.linalg.solve(t * H - phi_YY, t * B - phi_XY)
    close(jacrev(node)(x), expected, 1e-9)
    printed = -torch.linalg.solve(t * H + phi_YY, t * B + phi_XY)
    assert torch.linalg.vector_norm(printed - expected) > 0.1 * torch.linalg.vector_norm(expected)


def test_barrier_derivative_converges_to_the_active_set_as_one_over_t(x: torch.Tensor) -> None:
    exact = jacrev(InequalityNode(objective, ball, (3,), [(3,)]))(x)
    errors = [
        float((jacrev(InequalityNode(objective, ball, (3,), [(3,)], t=t))(x) - exact).abs().max()) for t in (1e4, 1e5)
    ]
    assert errors[1] == pytest.approx(0.1 * errors[0], rel=0.05)


def test_inequality_multipliers_are_nonnegative(x: torch.Tensor) -> None:
    for t in (None, 1e8):
        point = InequalityNode(objective, ball, (3,), [(3,)], t=t).solve(x)[0]
        assert (point.mu >= 0).all()
        slope = grad(objective)(point.y, x) + point.mu @ jacrev(ball)(point.y, x)
        close(slope, torch.zeros_like(slope), 1e-9)


def test_choose_selects_a_stationary_point_from_several_starts() -> None:
    def wave(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.cos(y) + 0.01 * (y - x) ** 2

    x = torch.tensor([0.0, 1.0], dtype=torch.float64)
    starts = torch.linspace(-12.0, 12.0, 25)
    lowest = StationaryNode(wave, (), [()], options=NodeOptions(start=starts))(x)
    nearest = StationaryNode(
        wave, (), [()], options=NodeOptions(start=starts, choose=lambda y, f, x: (y - x - 9.0).abs().argmin())
    )(x)
    fine = torch.linspace(-20.0, 20.0, 400_001, dtype=torch.float64)
    for i in range(2):
        assert wave(lowest[i], x[i]) <= wave(fine, x[i]).min() + 1e-12
        assert abs(float(grad(wave)(nearest[i], x[i]))) < 1e-12
        assert abs(float(nearest[i] - x[i] - 9.0)) < 3.2
    assert (lowest - nearest).abs().min() > 1.0
