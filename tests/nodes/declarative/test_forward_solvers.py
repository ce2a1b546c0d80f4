"""Forward solvers: the interior-point method, SciPy's methods and given solutions."""

from __future__ import annotations

import pytest
import torch

from convexlayer.nodes import (
    AbstractForwardSolver,
    ArgminNode,
    ConjugateGradients,
    EqualityNode,
    Given,
    GivenBatch,
    InequalityNode,
    InteriorPoint,
    NodeOptions,
    ScipyMinimize,
    StationaryNode,
)


def rosenbrock(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Minimum 0 at (x, x^2)."""
    return (y[0] - x) ** 2 + 100.0 * (y[1] - y[0] ** 2) ** 2


def double(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


@pytest.mark.parametrize(
    "solver",
    [
        InteriorPoint(),
        ScipyMinimize(),
        ScipyMinimize("trust-ncg", {"gtol": 1e-8}),
        Given(lambda x: (float(x), float(x) ** 2)),
        GivenBatch(lambda x: torch.stack([x, x**2], -1)),
    ],
)
def test_all_solvers_give_the_same_solution_and_gradient(solver: AbstractForwardSolver) -> None:
    x = double(-0.5, 1.0, 2.0).requires_grad_()
    options = NodeOptions(start=double(-1.2, 1.0), linear=ConjugateGradients())
    y = ArgminNode(rosenbrock, (2,), [()], solver=solver, options=options)(x)
    torch.testing.assert_close(y, torch.stack([x, x**2], -1), rtol=0, atol=1e-9)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, 1.0 + 2.0 * x.detach(), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("solver", [InteriorPoint(), ScipyMinimize("SLSQP", {"ftol": 1e-14})])
def test_nonlinear_problem_with_all_kinds_of_constraints(solver: AbstractForwardSolver) -> None:
    """Problem 71 of Hock and Schittkowski, whose solution is known."""

    def f(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return x * y[0] * y[3] * (y[0] + y[1] + y[2]) + y[2]

    def g(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([(25.0 - y[0] * y[1] * y[2] * y[3]).reshape(1), 1.0 - y, y - 5.0])

    def h(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return (y.square().sum() - 40.0).reshape(1)

    node = InequalityNode(
        f,
        g,
        (4,),
        [()],
        h=h,
        solver=solver,
        options=NodeOptions(start=double(1.0, 5.0, 5.0, 1.0), on_degenerate="raise"),
    )
    y = node(double(1.0))[0]
    torch.testing.assert_close(y, double(1.0, 4.74299963, 3.82114998, 1.37940829), rtol=0, atol=1e-7)


def test_projection_on_a_sphere_from_a_distant_start() -> None:
    x = double(3.0, -4.0).requires_grad_()
    node = EqualityNode(
        lambda y, x: (y - x).square().sum(),
        lambda y, x: (y.square().sum() - 1.0).reshape(1),
        (2,),
        [(2,)],
        options=NodeOptions(start=double(5.0, 5.0)),
    )
    torch.testing.assert_close(node(x), x / 5.0, rtol=0, atol=1e-12)


def test_vertex_of_a_linear_program_moves_with_its_constraints() -> None:
    bounds = double(1.0, 2.0).requires_grad_()
    node = InequalityNode(
        lambda y, c: -y[0] - 2.0 * y[1], lambda y, c: torch.stack([y.sum() - c[1], y[1] - c[0], -y[0]]), (2,), [(2,)]
    )
    torch.testing.assert_close(node(bounds), double(1.0, 1.0), rtol=0, atol=1e-10)
    jacobian = torch.func.jacrev(node)(bounds.detach())
    torch.testing.assert_close(jacobian, torch.tensor([[-1.0, 1.0], [1.0, 0.0]], dtype=torch.float64))


def test_newton_finds_a_saddle_that_the_minimiser_avoids() -> None:
    def monkey(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return y[0] ** 2 - (y[1] - x) ** 2 + 0.25 * (y[1] - x) ** 4

    start = NodeOptions(start=double(0.3, 0.1))
    saddle = StationaryNode(monkey, (2,), [()], options=start)(double(0.0))
    minimum = ArgminNode(monkey, (2,), [()], options=start)(double(0.0))
    torch.testing.assert_close(saddle[0], double(0.0, 0.0), rtol=0, atol=1e-10)
    torch.testing.assert_close(minimum[0].abs(), double(0.0, 2.0**0.5), rtol=0, atol=1e-10)


def test_start_may_depend_on_parameters_and_warm_start_replaces_it() -> None:
    def wave(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.cos(y - x)

    node = ArgminNode(wave, (), [()], options=NodeOptions(start=lambda x: x + 3.0))
    x = double(0.0, 10.0)
    torch.testing.assert_close(node(x), x + torch.pi)
    torch.testing.assert_close(node(x[1]), x[1] + torch.pi)
    torch.testing.assert_close(node(x, warm_start=x + 9.0), x + 3.0 * torch.pi)


def test_slow_element_does_not_change_the_others() -> None:
    options = NodeOptions(start=double(-1.2, 1.0))
    node = ArgminNode(rosenbrock, (2,), [()], options=options)
    x = double(-1.0, 1.0, 7.0)
    together, report = node.solve(x)
    for i in range(3):
        alone, own = node.solve(x[i])
        torch.testing.assert_close(alone.y, together.y[i], rtol=1e-13, atol=0)
        assert int(own.iterations) == int(report.iterations[i])
