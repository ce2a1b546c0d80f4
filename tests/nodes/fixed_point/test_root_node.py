"""RootNode: Dini's circle, unsymmetric systems, several roots and no root."""

from __future__ import annotations

import pytest
import torch
from torch.autograd.gradcheck import gradcheck, gradgradcheck

from convexlayer import FailedElementsError, ProblemError
from convexlayer.nodes import GMRES, NodeOptions, RootNode

D = torch.float64

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, at the first jvp


def circle(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return x**2 + y**2 - 1.0


def start(*numbers: float) -> NodeOptions:
    return NodeOptions(start=torch.tensor(numbers if len(numbers) > 1 else numbers[0], dtype=D))


def test_branches_of_the_circle_have_its_slope() -> None:
    x = torch.linspace(-0.9, 0.9, 7, dtype=D, requires_grad=True)
    for sign in (1.0, -1.0):
        y = RootNode(circle, (), [()], options=start(sign))(x)
        torch.testing.assert_close(y, sign * (1.0 - x**2).sqrt(), rtol=1e-14, atol=0)
        (slope,) = torch.autograd.grad(y.sum(), x)
        torch.testing.assert_close(slope, (-x / y).detach(), rtol=1e-13, atol=1e-15)


def test_no_derivative_where_branches_meet_and_no_root_beyond() -> None:
    node = RootNode(circle, (), [()], options=start(1.0))
    x = torch.tensor(1.0, dtype=D, requires_grad=True)
    y, report = node.solve(x)
    assert abs(y.item()) < 1e-6
    with pytest.warns(UserWarning, match="vanish at the solution"):
        y.backward()
    assert report.derivative is not None
    assert report.derivative.status == ("degenerate",)
    with pytest.raises(FailedElementsError, match="iteration_limit"):
        node(torch.tensor(1.1, dtype=D))


def test_several_starts_give_the_first_or_the_chosen_root() -> None:
    x = torch.tensor([0.6, -0.8], dtype=D)
    both = start(-1.0, 1.0)
    torch.testing.assert_close(RootNode(circle, (), [()], options=both)(x), -((1.0 - x**2).sqrt()))
    upper = NodeOptions(start=both.start, choose=lambda y, left, x: y.argmax())
    torch.testing.assert_close(RootNode(circle, (), [()], options=upper)(x), (1.0 - x**2).sqrt())


def spiral(y: torch.Tensor, A: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """R = y + sin(A y) - b, whose Jacobian is unsymmetric."""
    return y + torch.sin(A @ y) - b


@pytest.mark.parametrize("options", [NodeOptions(), NodeOptions(linear=GMRES(tol=1e-13))], ids=["dense", "gmres"])
def test_unsymmetric_systems_are_twice_differentiable(options: NodeOptions) -> None:
    generator = torch.Generator().manual_seed(0)
    A = (0.4 * torch.randn(3, 3, dtype=D, generator=generator)).requires_grad_()
    b = torch.randn(2, 3, 2, dtype=D, generator=generator).requires_grad_()
    node = RootNode(spiral, (3, 2), [(3, 3), (3, 2)], options=options)
    y = node(A, b)
    torch.testing.assert_close(spiral(y, A, b), torch.zeros_like(b), rtol=0, atol=1e-13)
    assert gradcheck(node, (A, b), check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(node, (A, b), fast_mode=True)
    per_element = torch.func.vmap(torch.func.jacrev(node, argnums=1), in_dims=(None, 0))(A, b)
    whole = torch.func.jacrev(node, argnums=1)(A, b)
    torch.testing.assert_close(per_element, torch.stack([whole[i, :, :, i] for i in range(2)]))


def test_results_are_independent_of_units() -> None:
    """A root at 1e-7 beside one at 1e8, rows in units of 1e12 and 1e-12, single and double precision."""
    sizes, rows = torch.tensor([1e-7, 1e8], dtype=D), torch.tensor([1e12, 1e-12], dtype=D)
    for dtype, tol in ((torch.float64, 1e-13), (torch.float32, 1e-5)):
        scale, row = sizes.to(dtype), rows.to(dtype)

        def residual(u: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return u.exp() - x * torch.stack([u[1] + 3.0, u[0].cos() + 1.0])

        def scaled(
            y: torch.Tensor, x: torch.Tensor, scale: torch.Tensor = scale, row: torch.Tensor = row
        ) -> torch.Tensor:
            return row * residual(y / scale, x)

        x = torch.tensor(0.7, dtype=dtype, requires_grad=True)
        options = NodeOptions(on_degenerate="raise")
        u = RootNode(scaled, (2,), [()], options=options)(x) / scale
        v = RootNode(residual, (2,), [()], options=options)(x)
        torch.testing.assert_close(u, v, rtol=tol, atol=0)
        torch.testing.assert_close(*(torch.autograd.grad(w.sum(), x)[0] for w in (u, v)), rtol=10 * tol, atol=0)


def test_residual_of_another_shape_is_rejected() -> None:
    with pytest.raises(ProblemError, match=r"as 2 numbers in torch.float64, got \(3,\)"):
        RootNode(lambda y, x: torch.cat([y, x]), (2,), [(1,)])(torch.ones(1, dtype=D))
    with pytest.raises(ProblemError, match="at least one parameter"):
        RootNode(circle, (), [])
    with pytest.raises(ProblemError, match="max_iter must be an integer of at least 0, got -1"):
        RootNode(circle, (), [()], max_iter=-1)
    with pytest.raises(ProblemError, match="draws random numbers"):
        RootNode(lambda y, x: y - x + torch.rand(1, dtype=D), (1,), [(1,)])(torch.ones(1, dtype=D))
