"""FixedPointNode: all derivatives agree with each other, with finite differences and with the convex layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cvxpy as cp
import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from convexlayer import ConvexLayer, DerivativeError, FailedElementsError, ProblemError, ShapeError
from convexlayer.gallery.measure import saved_bytes
from convexlayer.nodes import (
    GMRES,
    AbstractDerivative,
    Euclidean,
    FixedPointNode,
    ForwardBackward,
    ForwardMode,
    Implicit,
    Neumann,
    OrthantEntropy,
    PrimalDual,
    SimplexEntropy,
    Unrolled,
    projected_gradient,
)

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, at the first jvp

D = torch.float64
Q = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.5, 0.3], [0.0, 0.3, 1.0]], dtype=D)


def quadratic(x: torch.Tensor, scale: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    return 0.5 * scale * x @ Q.to(x.dtype) @ x + c @ x


GRADIENT = torch.func.grad(quadratic)


def simplex_node(derivative: AbstractDerivative | None = None, **options: str) -> FixedPointNode:
    step = ForwardBackward(GRADIENT, 0.8, SimplexEntropy())
    start = torch.full((3,), 1 / 3, dtype=D)
    return FixedPointNode(step, (3,), [(), (3,)], start=start, derivative=derivative, **options)


def theta(*, batch: int | None = None, dtype: torch.dtype = D) -> tuple[torch.Tensor, torch.Tensor]:
    c = torch.tensor([0.1, -0.2, 0.15], dtype=dtype)
    if batch is not None:
        c = c + 0.1 * torch.linspace(-1, 1, batch, dtype=dtype)[:, None] * torch.tensor([1.0, 0.0, -1.0], dtype=dtype)
    return torch.tensor(1.3, dtype=dtype, requires_grad=True), c.requires_grad_()


EXACT: dict[str, AbstractDerivative] = {
    "implicit": Implicit(),
    "implicit, by products": Implicit(GMRES()),
    "unrolled": Unrolled(12),
    "average": Unrolled(12, average=True),
    "forward": ForwardMode(12),
}


@pytest.mark.parametrize("derivative", EXACT.values(), ids=EXACT)
def test_derivatives_match_finite_differences_of_the_output(derivative: AbstractDerivative) -> None:
    node = simplex_node(derivative)
    assert gradcheck(node, theta(), check_forward_ad=not isinstance(derivative, ForwardMode))
    assert gradcheck(node, theta(batch=2), fast_mode=True)


@pytest.mark.parametrize(
    "derivative", [Implicit(), Implicit(GMRES()), Unrolled(6)], ids=["implicit", "by products", "unrolled"]
)
def test_second_derivatives(derivative: AbstractDerivative) -> None:
    assert gradgradcheck(simplex_node(derivative), theta(), fast_mode=True)


def test_forward_mode_rejects_unsupported_derivatives() -> None:
    node = simplex_node(ForwardMode(3))
    scale, c = theta()
    (gradient,) = torch.autograd.grad(node(scale, c)[0], c, create_graph=True)
    with pytest.raises(DerivativeError, match="Unrolled"):
        torch.autograd.grad(gradient.sum(), c)
    with pytest.raises(DerivativeError, match="Unrolled"), forward_ad.dual_level():
        node(scale.detach(), forward_ad.make_dual(c.detach(), torch.ones_like(c)))


def test_forward_mode_inside_the_forward_mode_of_torch_func() -> None:
    scale, c = (tensor.detach() for tensor in theta())
    jacobians = [torch.func.jacfwd(simplex_node(each), argnums=1)(scale, c) for each in (ForwardMode(9), Unrolled(9))]
    torch.testing.assert_close(*jacobians, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("derivative", EXACT.values(), ids=EXACT)
def test_batches_vmap_and_jacobians_agree_with_single_calls(derivative: AbstractDerivative) -> None:
    node = simplex_node(derivative)
    scale, c = (tensor.detach() for tensor in theta(batch=3))
    single = torch.stack([node(scale, row) for row in c])
    torch.testing.assert_close(node(scale, c), single, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(torch.func.vmap(node, in_dims=(None, 0))(scale, c), single, rtol=1e-13, atol=1e-14)
    jacobians = torch.func.vmap(torch.func.jacrev(node, argnums=1), in_dims=(None, 0))(scale, c)
    for row, jacobian in zip(c, jacobians, strict=True):
        expected = torch.autograd.functional.jacobian(lambda v: node(scale, v), row)
        torch.testing.assert_close(jacobian, expected, rtol=1e-9, atol=1e-11)


def test_shared_parameter_gets_summed_gradients() -> None:
    for derivative in EXACT.values():
        node = simplex_node(derivative)
        scale, c = theta(batch=3)
        (total,) = torch.autograd.grad(node(scale, c)[:, 0].sum(), scale)
        parts = [torch.autograd.grad(node(scale, row)[0], scale)[0] for row in c]
        torch.testing.assert_close(total, torch.stack(parts).sum())


@pytest.mark.parametrize("derivative", EXACT.values(), ids=EXACT)
def test_float32_inputs_give_float32_outputs(derivative: AbstractDerivative) -> None:
    scale, c = theta(dtype=torch.float32)
    x = simplex_node(derivative)(scale, c)
    (gradient,) = torch.autograd.grad(x[0], c)
    reference_scale, reference_c = theta()
    reference = simplex_node(derivative)(reference_scale, reference_c)
    (expected,) = torch.autograd.grad(reference[0], reference_c)
    assert x.dtype == gradient.dtype == torch.float32
    torch.testing.assert_close(x.double(), reference, rtol=2e-3, atol=1e-4)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-2, atol=1e-3)


def test_a_long_unroll_a_long_series_and_the_implicit_derivative_agree() -> None:
    scale, c = theta()
    gradients = [
        torch.autograd.grad(simplex_node(derivative)(scale, c)[0], (scale, c))
        for derivative in (Implicit(), Implicit(Neumann(120)), Unrolled(120), ForwardMode(120))
    ]
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-9, atol=1e-12)


def test_truncated_unrolling_equals_a_truncated_series_after_convergence() -> None:
    scale, c = theta()
    for back in (1, 3, 10):
        truncated = torch.autograd.grad(simplex_node(Unrolled(120, back_iterations=back))(scale, c)[0], c)
        node = simplex_node(Implicit(Neumann(back)), on_degenerate="report")
        x, report = node.solve(scale, c)
        series = torch.autograd.grad(x[0], c)
        torch.testing.assert_close(series, truncated, rtol=1e-8, atol=1e-11)
        assert report.derivative is not None
        assert report.derivative.linear_residual[0] > 1e-4


def test_zero_back_iterations_give_a_zero_derivative() -> None:
    scale, c = theta()
    assert not simplex_node(Unrolled(5, back_iterations=0))(scale, c).requires_grad


def test_truncated_series_warns() -> None:
    scale, c = theta()
    with pytest.warns(UserWarning, match="linear system"):
        simplex_node(Implicit(Neumann(2)))(scale, c).square().sum().backward()


def test_fixed_point_agrees_with_the_convex_layer() -> None:
    x, offset = cp.Variable(3), cp.Parameter(3)
    objective = cp.Minimize(0.65 * cp.quad_form(x, cp.psd_wrap(Q.numpy())) + offset @ x)
    layer = ConvexLayer(cp.Problem(objective, [x >= 0, cp.sum(x) == 1]), [offset], [x])
    scale, c = theta(batch=4)
    weights = torch.randn(4, 3, dtype=D)
    (from_layer,) = layer(c)
    (expected,) = torch.autograd.grad((from_layer * weights).sum(), c)
    for step in (
        ForwardBackward(GRADIENT, 0.8, SimplexEntropy()),
        projected_gradient(GRADIENT, 0.3, lambda y, *_: _on_simplex(y)),
    ):
        node = FixedPointNode(step, (3,), [(), (3,)], start=torch.full((3,), 1 / 3, dtype=D))
        from_node = node(scale, c)
        (gradient,) = torch.autograd.grad((from_node * weights).sum(), c)
        torch.testing.assert_close(from_node, from_layer, rtol=0, atol=1e-7)
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-7)


def _on_simplex(y: torch.Tensor) -> torch.Tensor:
    ranked = torch.sort(y, descending=True).values
    levels = (ranked.cumsum(0) - 1) / torch.arange(1, len(y) + 1, dtype=y.dtype)
    return (y - levels.max()).clamp(min=0.0)


def test_weak_derivatives_are_exact_away_from_the_kinks_and_reported_at_them() -> None:
    step = projected_gradient(lambda x, c: x - c, 0.5, lambda y, _: y.clamp(min=0.0))
    node = FixedPointNode(step, (2,), [(2,)])
    assert gradcheck(node, (torch.tensor([0.3, -0.2], dtype=D, requires_grad=True),))
    kinked = torch.tensor([0.3, 0.0], dtype=D, requires_grad=True)
    with pytest.warns(UserWarning, match="jump"):
        node(kinked).sum().backward()


def test_fixed_point_on_the_domain_boundary_has_no_implicit_derivative() -> None:
    # x = 0 is a fixed point for every theta; a start there stays, and I - dA/dx is 0 where the slope is.
    node = FixedPointNode(ForwardBackward(lambda x, c: c * x, 0.5, OrthantEntropy()), (1,), [(1,)])
    c = torch.ones(1, dtype=D, requires_grad=True)
    with pytest.warns(UserWarning, match="boundary"):
        node(c).sum().backward()


def diverging(**options: Any) -> FixedPointNode:
    step = ForwardBackward(lambda x, c: c * x - 1, 1.0, Euclidean())  # x+ = (1 - c) x + 1 converges for 0 < c < 2
    return FixedPointNode(step, (1,), [(1,)], derivative=Implicit(max_iter=500), **options)


def test_unconverged_elements_do_not_affect_the_others() -> None:
    c = torch.tensor([[0.5], [3.0], [1.5]], dtype=D, requires_grad=True)
    with pytest.raises(FailedElementsError, match="max_iter") as raised:
        diverging()(c)
    assert raised.value.indices == (1,)
    for x in (raised.value.outputs[0], diverging(on_failure="nan")(c)):
        assert torch.isnan(x).flatten().tolist() == [False, True, False]
        (gradient,) = torch.autograd.grad(x[[0, 2]].sum(), c)
        torch.testing.assert_close(gradient, torch.tensor([[-4.0], [0.0], [-1 / 1.5**2]], dtype=D))
    x = diverging(on_failure="keep")(c)
    assert torch.isfinite(x).all()


def test_warm_start_saves_steps_without_changing_the_result() -> None:
    node = simplex_node()
    scale, c = (tensor.detach() for tensor in theta())
    x, cold = node.solve(scale, c)
    again, warm = node.solve(scale, c + 1e-6, warm_start=x)
    torch.testing.assert_close(again, node(scale, c + 1e-6), rtol=1e-10, atol=1e-12)
    assert int(warm.iterations[0]) < int(cold.iterations[0])


def test_memory_grows_with_the_differentiated_steps_only() -> None:
    def held(derivative: AbstractDerivative) -> int:
        node = simplex_node(derivative, on_failure="keep")
        return saved_bytes(lambda: node(*theta()))

    assert held(Implicit(tol=0.0, max_iter=5)) == held(Implicit(tol=0.0, max_iter=50))
    assert held(ForwardMode(5)) == held(ForwardMode(50))
    assert held(Unrolled(50, back_iterations=5)) == held(Unrolled(20, back_iterations=5))
    assert held(Unrolled(50)) > 5 * held(Unrolled(5))


def test_invalid_arguments_are_rejected() -> None:
    scale, c = (tensor.detach() for tensor in theta())
    with pytest.raises(ShapeError, match="parameter 1"):
        simplex_node()(scale, c[:2])
    with pytest.raises(ShapeError, match="warm_start"):
        simplex_node()(scale, c, warm_start=c[:2])
    with pytest.raises(ShapeError, match="start"):
        FixedPointNode(lambda x: x, (3,), [], start=c[:2])
    with pytest.raises(ShapeError, match="step"):
        FixedPointNode(lambda x, v: v, (3,), [(2,)])(c[:2])
    with pytest.raises(ProblemError, match="on_failure"):
        simplex_node(on_failure="ignore")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Unrolled(0), "iterations must be an integer of at least 1, got 0"),
        (lambda: Unrolled(2.5), "iterations must be an integer of at least 1, got 2.5"),  # type: ignore[arg-type]
        (lambda: Unrolled(2, back_iterations=3), "back_iterations: expected 0 to 2, the iterations, got 3"),
        (lambda: ForwardMode(0), "iterations must be an integer of at least 1, got 0"),
        (lambda: Implicit(max_iter=-1), "max_iter must be an integer of at least 0, got -1"),
        (lambda: Implicit(tol=-1.0), "tol must be a number of at least 0, got -1.0"),
        (lambda: Implicit(tol=float("nan")), "tol must be a number of at least 0, got nan"),
        (lambda: ForwardBackward(GRADIENT, 0.0), "step_size must be positive, got 0.0"),
        (lambda: PrimalDual(GRADIENT, GRADIENT, GRADIENT, 0.1, -1.0, (3,), (3,)), "sigma must be positive, got -1.0"),
    ],
)
def test_invalid_numbers_are_rejected(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        make()
