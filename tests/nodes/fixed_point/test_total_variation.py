"""Total-variation denoising as a fixed point, differentiated by products alone.

    min over u of 1/2 |u - c|^2 + sum of w |Du|,    u = c - D'p,    |p| <= w

with one weight w per pixel for both of its forward differences. Where a flat region contains a cycle of the pixel grid,
p is not unique and I - dA/dx is singular: circulations around the cycle change p only. u is unique, and its derivatives
solve a consistent system.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import pad

from convexlayer.nodes import (
    GMRES,
    AbstractLinearSolver,
    Dense,
    FixedPointNode,
    ForwardBackward,
    Implicit,
    NodeReport,
    PrimalDual,
)
from tests.nodes.largest_tensor import Largest

D = torch.float64
TAU = 0.1


def difference(u: torch.Tensor) -> torch.Tensor:
    """Du, (2, n, n): forward differences along both axes, zero at the end."""
    return torch.stack([pad(u[:, 1:] - u[:, :-1], (0, 1)), pad(u[1:] - u[:-1], (0, 0, 0, 1))])


def adjoint(p: torch.Tensor) -> torch.Tensor:
    """D'p, (n, n)."""
    along, down = p[0, :, :-1], p[1, :-1]
    return pad(along, (1, 0)) - pad(along, (0, 1)) + pad(down, (0, 0, 1, 0)) - pad(down, (0, 0, 0, 1))


def clipped(p: torch.Tensor, _: float, c: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.maximum(torch.minimum(p, w), -w)


def primal_dual(n: int, linear: AbstractLinearSolver) -> FixedPointNode:
    """(c (n, n), w (n, n)) -> (u, p)."""
    step = PrimalDual(
        gradient=lambda u, c, w: torch.zeros_like(u),
        product=lambda u, c, w: difference(u),
        adjoint=lambda p, c, w: adjoint(p),
        tau=TAU,
        sigma=1 / (8 * TAU),
        primal_shape=(n, n),
        dual_shape=(2, n, n),
        prox=lambda y, tau, c, w: (y + tau * c) / (1 + tau),
        dual_prox=clipped,
    )
    return FixedPointNode(
        step, step.shape, [(n, n), (n, n)], derivative=Implicit(linear, tol=1e-13), on_degenerate="report"
    )


def forward_backward(n: int, linear: AbstractLinearSolver) -> FixedPointNode:
    """(c, w) -> p."""
    step = ForwardBackward(lambda p, c, w: difference(adjoint(p) - c), 0.24, prox=clipped)
    return FixedPointNode(
        step, (2, n, n), [(n, n), (n, n)], derivative=Implicit(linear, tol=1e-13), on_degenerate="report"
    )


def image(x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """Extract u from the iterate of either algorithm."""
    return x[: c.numel()].reshape(c.shape) if x.ndim == 1 else c - adjoint(x)


def scene(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A disc and a bar, clean and with noise."""
    x = torch.arange(n, dtype=D) / n
    clean = ((x[:, None] - 0.5) ** 2 + (x - 0.4) ** 2 < 0.08).to(D) + 0.5 * (x[:, None] > 0.7)
    return clean, clean + 0.2 * torch.randn(n, n, dtype=D, generator=torch.Generator().manual_seed(0))


def pixels(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, n, dtype=D, generator=torch.Generator().manual_seed(seed))


def flat_cycles(u: torch.Tensor) -> int:
    """Count flat blocks of 2 x 2 pixels."""
    corners = torch.stack([u[:-1, :-1], u[:-1, 1:], u[1:, :-1], u[1:, 1:]])
    return int((corners.amax(0) - corners.amin(0) < 1e-10).sum())


def check(node: FixedPointNode, n: int, *, scale: float) -> tuple[torch.Tensor, NodeReport, int]:
    """Compare the gradients of a misfit in data, weight map and scale with central differences.

    Returns:
        u, the report, and the number of entries of the largest tensor of the backward pass.
    """
    clean, noisy = scene(n)
    weight = torch.tensor(scale, dtype=D, requires_grad=True)
    shape = torch.linspace(0.5, 1.5, n, dtype=D).expand(n, n).clone().requires_grad_()
    c = noisy.clone().requires_grad_()
    x, report = node.solve(c, weight * shape)
    loss = 0.5 * (image(x, c) - clean).square().sum()
    with Largest() as largest:
        gradients = torch.autograd.grad(loss, (c, weight, shape))

    def along(step: float, direction: tuple[torch.Tensor, ...]) -> float:
        c, *w = (t.detach() + step * d for t, d in zip((noisy, weight, shape), direction, strict=True))
        moved = image(node(c, w[0] * w[1], warm_start=x.detach()), c)
        return float(0.5 * (moved - clean).square().sum())

    h, zero, still = 1e-6, torch.zeros((), dtype=D), torch.zeros(n, n, dtype=D)
    for direction in (
        (pixels(n, 1), zero, still),
        (still, torch.ones((), dtype=D), still),
        (still, zero, pixels(n, 2)),
    ):
        measured = (along(h, direction) - along(-h, direction)) / (2 * h)
        found = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True))
        assert found == pytest.approx(measured, rel=1e-5)
    return image(x, c).detach(), report, largest.entries


@pytest.mark.parametrize("make", [primal_dual, forward_backward])
def test_gradients_in_weight_weight_map_and_data(make: Callable[[int, AbstractLinearSolver], FixedPointNode]) -> None:
    u, report, _ = check(make(8, GMRES()), 8, scale=0.1)
    assert flat_cycles(u) > 0  # I - dA/dx is singular
    assert report.derivative is not None
    assert report.derivative.linear_residual[0] < 1e-10


def test_image_size_problem_forms_no_matrix() -> None:
    """The iterate has 12,288 entries, so the matrix would have 151 million; GMRES stores at most 51 vectors."""
    n = 64
    u, _, largest = check(primal_dual(n, GMRES()), n, scale=0.06)
    assert flat_cycles(u) > 300
    assert largest <= 51 * 3 * n * n


def test_gmres_agrees_with_the_minimum_norm_solution() -> None:
    clean, c = scene(6)
    gradients = []
    for linear in (GMRES(), Dense()):
        node = primal_dual(6, linear)
        w = torch.full((6, 6), 0.2, dtype=D, requires_grad=True)
        x, report = node.solve(c, w)
        gradients.append(torch.autograd.grad((image(x, c) - clean).square().sum(), w)[0])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-9)
    assert report.derivative is not None
    assert report.derivative.status == ("degenerate",)  # Dense detects the singular matrix


def test_loss_in_the_nonunique_dual_is_reported() -> None:
    """The circulation of a flat cycle has no derivative: its system is inconsistent, as the residual shows."""
    node = forward_backward(2, GMRES())
    w = torch.ones(2, 2, dtype=D, requires_grad=True)
    p, report = node.solve(0.1 * pixels(2, 3), w)
    flow = torch.zeros(2, 2, 2, dtype=D)
    flow[0, 0, 0], flow[1, 0, 1], flow[0, 1, 0], flow[1, 0, 0] = 1.0, 1.0, -1.0, -1.0
    assert float(adjoint(flow).abs().max()) == 0.0
    (p * flow).sum().backward()
    assert report.derivative is not None
    assert report.derivative.status == ("inaccurate",)
    assert report.derivative.linear_residual[0] == pytest.approx(1.0)


def test_kink_is_reported() -> None:
    """Pixels 1 and -1 merge at w = 1: u = (1 - w, w - 1) for w < 1, 0 for w > 1, without derivative at w = 1."""
    node = forward_backward(2, GMRES())
    c, w = torch.tensor([[1.0, -1.0], [1.0, -1.0]], dtype=D), torch.ones(2, 2, dtype=D)
    for number, slope, told in ((0.9, -1.0, "ok"), (1.0, None, "degenerate"), (1.1, 0.0, "ok")):
        weight = torch.tensor(number, dtype=D, requires_grad=True)
        p, report = node.solve(c, weight * w)
        (gradient,) = torch.autograd.grad(image(p, c)[0, 0], weight)
        assert report.derivative is not None
        assert report.derivative.status == (told,)
        if slope is not None:
            assert float(gradient) == pytest.approx(slope, abs=1e-9)


def test_circulation_at_its_bound_does_not_affect_the_derivative_of_the_image() -> None:
    """p may be at a kink of the clipping where u has a derivative: it is right, with the status degenerate."""
    node = forward_backward(2, GMRES())
    c = 0.1 * pixels(2, 3)
    scale = torch.tensor(1.0, dtype=D, requires_grad=True)
    inner = node(c, torch.ones(2, 2, dtype=D))
    flow = torch.zeros(2, 2, 2, dtype=D)
    flow[0, 0, 0], flow[1, 0, 1], flow[0, 1, 0], flow[1, 0, 0] = 1.0, 1.0, -1.0, -1.0
    bound = inner + (1.0 - inner[0, 0, 0]) * flow
    bound = bound.clamp(-1.0, 1.0)
    p, report = node.solve(c, scale * torch.ones(2, 2, dtype=D), warm_start=bound)
    u = image(p, c)
    torch.testing.assert_close(u, c.mean().expand(2, 2))
    (gradient,) = torch.autograd.grad((u * pixels(2, 4)).sum(), scale)
    assert float(gradient) == pytest.approx(0.0, abs=1e-12)
    assert report.derivative is not None
    assert report.derivative.status == ("degenerate",)
