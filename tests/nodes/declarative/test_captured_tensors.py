"""Gradients of tensors that a node's functions capture: weights of modules and closures."""

from __future__ import annotations

import pytest
import torch
from torch.autograd.gradcheck import gradcheck

from convexlayer import DerivativeError, ProblemError
from convexlayer.nodes import (
    ArgminNode,
    EqualityNode,
    FixedPointNode,
    ForwardMode,
    Implicit,
    InequalityNode,
    LinearEqualityNode,
    LinearForm,
    Unrolled,
)

D = torch.float64

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, at the first jvp


def values(*shape: int, seed: int = 0) -> torch.Tensor:
    drawn = torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))
    return drawn.requires_grad_()


def test_captured_tensor_gets_the_gradient_of_a_parameter() -> None:
    w, x = values(3, seed=1), values(5, 3, seed=2)

    def objective(y: torch.Tensor, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.logsumexp(w * y, 0) + 0.5 * (y - x).square().sum()

    asked = ArgminNode(objective, (3,), [(3,), (3,)])
    captured = ArgminNode(lambda y, x: objective(y, x, w), (3,), [(3,)])
    weights = values(5, 3, seed=3).detach()
    expected = torch.autograd.grad((weights * asked(x, w)).sum(), (x, w))
    found = torch.autograd.grad((weights * captured(x)).sum(), (x, w))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


def test_sources_of_a_captured_tensor_get_gradients() -> None:
    v, x = values(3, seed=1), values(3, seed=2)

    def node(v: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        w = v.square() + 1.0  # not a leaf
        return ArgminNode(lambda y, x: (w * y.pow(4)).sum() + (y - x).square().sum(), (3,), [(3,)])(x) + w

    assert gradcheck(node, (v, x))


@pytest.mark.parametrize("kind", ["equality", "inequality"])
def test_constraints_may_capture_tensors(kind: str) -> None:
    c, x = values(1, seed=4), values(2, 2, seed=5)

    def constraint(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return (y.square().sum() - 0.1 - 0.01 * c.square()).reshape(1)

    def distance(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return (y - x).square().sum()

    node = (EqualityNode if kind == "equality" else InequalityNode)(distance, constraint, (2,), [(2,)])
    assert gradcheck(lambda c, x: node(x), (c, x))


@pytest.mark.parametrize("form", LinearForm)
def test_linear_equalities_train_A_and_b(form: LinearForm) -> None:
    A, b = torch.nn.Parameter(values(1, 3, seed=6)), torch.nn.Parameter(values(1, seed=7))
    node = LinearEqualityNode(lambda y, x: (y - x).pow(4).sum() + y.square().sum(), A, b, [(3,)], form=form)
    assert {id(p) for p in node.parameters()} >= {id(A), id(b)}
    assert gradcheck(lambda A, b, x: node(x), (A, b, values(2, 3, seed=8)))


class Layer(torch.nn.Module):
    """A contraction with weights, as a step of a deep-equilibrium network."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.inner = torch.nn.Parameter(0.3 * torch.randn(4, 4, dtype=D, generator=generator))
        self.outer = torch.nn.Linear(3, 4, dtype=D)

    def forward(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.inner @ z + self.outer(x))


def test_module_weights_get_the_gradients_of_the_unrolled_iteration() -> None:
    step, x = Layer(), values(6, 3)
    implicit = FixedPointNode(step, (4,), [(3,)])
    unrolled = FixedPointNode(step, (4,), [(3,)], derivative=Unrolled(200))
    assert len(list(implicit.parameters())) == 3
    wanted = (x, *step.parameters())
    expected = torch.autograd.grad(unrolled(x).square().sum(), wanted)
    found = torch.autograd.grad(implicit(x).square().sum(), wanted)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_objective_module_is_a_submodule_and_trains() -> None:
    class Energy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Sequential(torch.nn.Linear(2, 4, dtype=D), torch.nn.Softplus())

        def forward(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return self.net(y).sum() + 0.5 * (y - x).square().sum()

    node, x = ArgminNode(Energy(), (2,), [(2,)]), values(8, 2)
    optimizer = torch.optim.SGD(node.parameters(), lr=0.1)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (node(x.detach()) - 1.0).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_unsupported_derivatives_of_captured_tensors_are_rejected() -> None:
    w, x = values(3, seed=1), values(3, seed=2)
    node = ArgminNode(lambda y, x: (w.exp() * y.pow(2)).sum() + (y - x).pow(4).sum(), (3,), [(3,)])
    (gradient,) = torch.autograd.grad(node(x).sum(), w, create_graph=True)
    with pytest.raises(DerivativeError, match="for second ones"):
        gradient.sum().backward()
    forward = FixedPointNode(lambda z, x: 0.5 * w * z.sin() + x, (3,), [(3,)], derivative=ForwardMode(3))
    with pytest.raises(ProblemError, match="Unrolled or Implicit"):
        forward(x)

    def of(w: torch.Tensor) -> torch.Tensor:
        step = FixedPointNode(lambda z, x: 0.1 * w * z.sin() + x, (3,), [(3,)], derivative=Implicit())
        return step(x.detach()).sum()

    with pytest.raises(ProblemError, match="captures a tensor that torch"):
        torch.func.grad(of)(w.detach())
