"""Autograd of the splitting steps equals the paper's recursions, corrected where their printed form is wrong."""

from __future__ import annotations

import cvxpy as cp
import torch
from torch.autograd import gradcheck

from convexlayer import ConvexLayer
from convexlayer.nodes import (
    BoxEntropy,
    FixedPointNode,
    ForwardBackward,
    Implicit,
    PrimalDual,
    SimplexEntropy,
    Unrolled,
)

D = torch.float64
A = torch.tensor([[1.0, 0.4, -0.2], [0.3, 0.8, 0.1], [-0.5, 0.2, 0.9]], dtype=D)


def gradient(x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    return A.T @ (A @ x - c)


def test_corrected_algorithm_2() -> None:
    alpha, n = 0.4, 9
    distance = SimplexEntropy()
    c = torch.tensor([0.3, -0.1, 0.2], dtype=D)
    xi = torch.tensor([1.0, 2.0, -1.0], dtype=D)
    xs = [torch.full((3,), 1 / 3, dtype=D)]
    for _ in range(n):
        xs.append(distance.mirror(distance.gradient(xs[-1]) - alpha * gradient(xs[-1], c)))

    def reverse(first_factor: bool) -> torch.Tensor:
        z, w = xi, torch.zeros(3, dtype=D)
        for x in reversed(xs[:-1]):
            y = distance.gradient(x) - alpha * gradient(x, c)
            pulled = torch.func.jacrev(distance.mirror)(y).T @ z
            w = w + alpha * A @ pulled  # d(grad f)/dc = -A'
            hessian_psi = torch.diag(1 / x) if first_factor else torch.eye(3, dtype=D)
            z = (hessian_psi - alpha * A.T @ A).T @ pulled
        return w

    node = FixedPointNode(ForwardBackward(gradient, alpha, distance), (3,), [(3,)], start=xs[0], derivative=Unrolled(n))
    leaf = c.clone().requires_grad_()
    (found,) = torch.autograd.grad(node(leaf) @ xi, leaf)
    torch.testing.assert_close(found, reverse(True), rtol=1e-12, atol=1e-13)
    assert (found - reverse(False)).norm() > 0.1 * found.norm()  # the printed form


def primal_dual() -> PrimalDual:
    """Min over the simplex of <c, u> + 1/2 |u|^2 + |diag(w) A u|_1, by its saddle point."""
    return PrimalDual(
        gradient=lambda u, c, w: c + u,
        product=lambda u, c, w: w * (A @ u),
        adjoint=lambda p, c, w: A.T @ (w * p),
        tau=0.3,
        sigma=0.5,
        primal_shape=(3,),
        dual_shape=(3,),
        primal=SimplexEntropy(),
        dual=BoxEntropy(),
    )


THETA = (torch.tensor([0.1, -0.3, 0.2], dtype=D), torch.tensor([0.4, 0.3, 0.2], dtype=D))
START = torch.cat([torch.full((3,), 1 / 3, dtype=D), torch.zeros(3, dtype=D)])


def test_corrected_algorithm_3_with_ergodic_average() -> None:
    n = 8
    algorithm = primal_dual()
    c, w = THETA
    loss = torch.tensor([1.0, -2.0, 0.5, 0.3, 0.7, -0.4], dtype=D)  # in u and p

    def primal_step(u: torch.Tensor, p: torch.Tensor, c: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return algorithm.unpack(algorithm(algorithm.pack(u, p), c, w))[0]

    def dual_step(bar: torch.Tensor, p: torch.Tensor, c: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return BoxEntropy().move(p, -algorithm.sigma * w * (A @ bar))

    us, ps = [START[:3]], [START[3:]]
    for _ in range(n):
        us.append(primal_step(us[-1], ps[-1], c, w))
        ps.append(dual_step(2 * us[-1] - us[-2], ps[-1], c, w))

    def reverse(average: bool) -> tuple[torch.Tensor, torch.Tensor]:
        share = loss / (n + 1) if average else loss
        z_loss, q_loss = share[:3], share[3:]
        u_bar, p_bar = z_loss, q_loss
        grads = [torch.zeros(3, dtype=D), torch.zeros(3, dtype=D)]
        for k in reversed(range(n)):
            bar = 2 * us[k + 1] - us[k]
            pull_dual = torch.func.vjp(dual_step, bar, ps[k], c, w)[1]
            of_bar, of_p, of_c, of_w = pull_dual(p_bar)
            u_bar = u_bar + 2 * of_bar  # the loss in p depends on the first z too
            pull_primal = torch.func.vjp(primal_step, us[k], ps[k], c, w)[1]
            of_u, of_p2, of_c2, of_w2 = pull_primal(u_bar)
            grads = [grads[0] + of_c + of_c2, grads[1] + of_w + of_w2]
            u_bar, p_bar = of_u - of_bar, of_p + of_p2
            if average:
                u_bar, p_bar = u_bar + z_loss, p_bar + q_loss
        return grads[0], grads[1]

    for average in (False, True):
        node = FixedPointNode(
            algorithm, algorithm.shape, [(3,), (3,)], start=START, derivative=Unrolled(n, average=average)
        )
        leaves = tuple(tensor.clone().requires_grad_() for tensor in THETA)
        found = torch.autograd.grad(node(*leaves) @ loss, leaves)
        torch.testing.assert_close(found, reverse(average), rtol=1e-11, atol=1e-12)
        assert gradcheck(node, leaves)


def test_primal_dual_agrees_with_the_convex_layer() -> None:
    u, c, w = cp.Variable(3), cp.Parameter(3), cp.Parameter(3, nonneg=True)
    # The weights multiply |A u| from outside; w (A u) would not be DPP.
    objective = cp.Minimize(c @ u + 0.5 * cp.sum_squares(u) + w @ cp.abs(A.numpy() @ u))
    layer = ConvexLayer(cp.Problem(objective, [u >= 0, cp.sum(u) == 1]), [c, w], [u])
    algorithm = primal_dual()
    node = FixedPointNode(
        algorithm, algorithm.shape, [(3,), (3,)], start=START, derivative=Implicit(max_iter=100_000, tol=1e-13)
    )
    leaves = tuple(tensor.clone().requires_grad_() for tensor in THETA)
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=D)
    (from_layer,) = layer(*leaves)
    expected = torch.autograd.grad(from_layer @ weights, leaves)
    from_node, _ = algorithm.unpack(node(*leaves))
    found = torch.autograd.grad(from_node @ weights, leaves)
    torch.testing.assert_close(from_node, from_layer, rtol=0, atol=1e-7)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)


def test_custom_proximal_maps() -> None:
    # min 1/2 |A x - c|^2 + lam |x|_1 by soft thresholding, and with the dual norm's ball as a prox of h*.
    def shrink(y: torch.Tensor, step_size: float, c: torch.Tensor, lam: torch.Tensor) -> torch.Tensor:
        return torch.sign(y) * (y.abs() - step_size * lam).clamp(min=0.0)

    def smooth(x: torch.Tensor, c: torch.Tensor, lam: torch.Tensor) -> torch.Tensor:
        return gradient(x, c)

    c = torch.tensor([0.6, -0.5, 0.3], dtype=D, requires_grad=True)
    lam = torch.tensor(0.1, dtype=D, requires_grad=True)
    forward_backward = FixedPointNode(ForwardBackward(smooth, 0.4, prox=shrink), (3,), [(3,), ()])
    algorithm = PrimalDual(
        gradient=smooth,
        product=lambda u, c, lam: u,
        adjoint=lambda p, c, lam: p,
        tau=0.3,
        sigma=0.5,
        primal_shape=(3,),
        dual_shape=(3,),
        dual_prox=lambda y, sigma, c, lam: torch.maximum(torch.minimum(y, lam), -lam),
    )
    primal_dual = FixedPointNode(algorithm, algorithm.shape, [(3,), ()])
    x, (u, _) = forward_backward(c, lam), algorithm.unpack(primal_dual(c, lam))
    torch.testing.assert_close(u, x, rtol=0, atol=1e-10)
    torch.testing.assert_close(
        torch.autograd.grad(u.sum(), (c, lam)), torch.autograd.grad(x.sum(), (c, lam)), rtol=0, atol=1e-8
    )


def test_pack_and_unpack_keep_leading_axes() -> None:
    algorithm = primal_dual()
    u, p = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    packed = algorithm.pack(u, p)
    assert packed.shape == (2, 5, *algorithm.shape)
    for found, expected in zip(algorithm.unpack(packed), (u, p), strict=True):
        assert torch.equal(found, expected)
