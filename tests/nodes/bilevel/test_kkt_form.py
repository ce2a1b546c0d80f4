"""The KKT form of solve_bilevel: agreement with the gradient form, optimistic and pessimistic choice, and errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.optimize import linprog

from convexlayer import FailedElementsError, ProblemError, ShapeError, SolverError
from convexlayer.nodes import (
    KKT,
    ArgmaxNode,
    ArgminNode,
    Box,
    EqualityNode,
    Given,
    GradientDescent,
    InequalityNode,
    L1Norm,
    NodeOptions,
    StationaryNode,
    Stop,
    solve_bilevel,
)
from convexlayer.nodes.bilevel import Stopped
from tests.nodes.bilevel.problems import D, bard_1991_1, number, solve, vector

# Agreement with the gradient form.


def quartic(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return 0.5 * (y - x).square().sum() + 0.25 * y.pow(4).sum()


LOWER = {
    "argmin": ArgminNode(quartic, (2,), [(2,)]),
    "argmax": ArgmaxNode(lambda y, x: -quartic(y, x), (2,), [(2,)]),
    "stationary": StationaryNode(quartic, (2,), [(2,)]),
    "equality": EqualityNode(quartic, lambda y, x: (y.sum() - 1 + 0.1 * x[0]).reshape(1), (2,), [(2,)]),
    "inequality": InequalityNode(quartic, lambda y, x: y - 0.3, (2,), [(2,)]),
}


@pytest.mark.parametrize("lower", LOWER.values(), ids=LOWER)
def test_both_forms_agree(lower: Any) -> None:
    def upper(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return (y - vector(0.2, 0.7)).square().sum() + 0.1 * (x - 1).square().sum()

    start = vector(0.1, 0.1)
    by_gradient = solve_bilevel(upper, lower, [start], stop=Stop(max_iter=100, gradient_tol=1e-7), progress=False)
    by_kkt = solve(upper, lower, start)
    assert by_kkt.stopped is Stopped.STATIONARY
    assert by_kkt.value == pytest.approx(by_gradient.value, rel=1e-9)
    torch.testing.assert_close(by_kkt.theta, by_gradient.theta, rtol=0, atol=1e-6)
    torch.testing.assert_close(by_kkt.solution, by_gradient.solution, rtol=0, atol=1e-6)
    point, _ = lower.solve(*by_kkt.theta)
    assert by_kkt.certificate is not None
    torch.testing.assert_close(by_kkt.certificate.lam, point.lam, rtol=0, atol=1e-6)
    torch.testing.assert_close(by_kkt.certificate.mu, point.mu, rtol=0, atol=1e-6)


def test_kkt_form_leaves_a_constraint_at_which_the_gradient_vanishes() -> None:
    """y = max(x, 0) has derivative zero at x = -1, but the relaxed problem leaves y = 0."""
    lower = InequalityNode(lambda y, x: (y - x).square().sum(), lambda y, x: -y, (1,), [(1,)])

    def upper(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return (y - 1).square().sum()

    by_gradient = solve_bilevel(upper, lower, [vector(-1.0)], progress=False)
    assert by_gradient.stopped is Stopped.STATIONARY
    assert by_gradient.value == pytest.approx(1.0)
    result = solve(upper, lower, vector(-1.0))
    assert result.value < 1e-12
    torch.testing.assert_close(result.theta[0], vector(1.0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("start", [vector(0.5), lambda x: x / 2, torch.tensor([[0.5], [-0.5]], dtype=D)])
def test_starts_of_all_kinds_and_given_solvers(start: Any) -> None:
    for solver in (None, Given(lambda x: x)):
        lower = ArgminNode(
            lambda y, x: (y - x).square().sum(), (1,), [(1,)], solver=solver, options=NodeOptions(start=start)
        )
        result = solve(lambda y, x: (y - 2).square().sum(), lower, vector(0.1).requires_grad_())
        torch.testing.assert_close(result.theta[0], vector(2.0), rtol=0, atol=1e-7)
        assert not result.theta[0].requires_grad


# Lower solutions that are not unique.


def face(target: float) -> tuple[Any, InequalityNode]:
    """F = (y_1 - target)^2 + x y_2 over S(x) = {x} x [-1, 1]: (x - target)^2 -+ |x| for the two choices."""
    lower = InequalityNode(
        lambda y, x: (y[0] - x[0]) ** 2, lambda y, x: torch.stack([y[1] - 1, -y[1] - 1]), (2,), [(1,)]
    )
    return lambda y, x: (y[0] - target) ** 2 + x[0] * y[1], lower


@pytest.mark.parametrize(
    ("target", "choice", "value", "x"),
    [
        (1.0, "optimistic", -1.25, 1.5),
        (1.0, "pessimistic", 0.75, 0.5),
        (0.2, "optimistic", -0.45, 0.7),
        (0.2, "pessimistic", 0.04, 0.0),  # at the kink of the worst case
    ],
)
def test_optimistic_and_pessimistic_choice_among_many_lower_solutions(
    target: float, choice: str, value: float, x: float
) -> None:
    upper, lower = face(target)
    result = solve(upper, lower, vector(0.3), choice=choice)
    assert result.value == pytest.approx(value, abs=2e-6)
    assert float(result.theta[0]) == pytest.approx(x, abs=2e-6)


def test_pessimistic_value_is_an_upper_bound_that_decreases_with_eps() -> None:
    upper, lower = face(1.0)
    values = [
        solve(upper, lower, vector(0.3), choice="pessimistic", perturbations=(eps,)).value for eps in (0.1, 1e-2, 1e-3)
    ]
    assert 0.75 <= values[2] <= values[1] <= values[0]
    assert values[2] <= 0.75 + 1e-3


@pytest.mark.parametrize(("choice", "worst"), [("optimistic", False), ("pessimistic", True)])
def test_both_choices_against_linear_programs(choice: str, worst: bool) -> None:
    """S(x) is a slice of a cube, so the best and worst case of a linear F are linear programs."""
    generator = torch.Generator().manual_seed(12)
    a, b, C, e = (torch.randn(*shape, dtype=D, generator=generator) for shape in ((3,), (3,), (3, 2), (2,)))
    lower = InequalityNode(
        lambda y, x: 0.5 * (a @ y - e @ x) ** 2, lambda y, x: torch.cat([y - 1, -y - 1]), (3,), [(2,)]
    )

    def case(x: torch.Tensor) -> float:
        """Best or worst F over S(x), by a linear program."""
        sign = -1.0 if worst else 1.0
        reach = float(a.abs().sum())
        level = float((e @ x).clamp(-reach, reach))
        found = linprog(sign * (b + C @ x).numpy(), A_eq=a.numpy()[None], b_eq=[level], bounds=[(-1, 1)] * 3)
        return sign * float(found.fun) + float((x - 1).square().sum())

    result = solve(
        lambda y, x: (b + C @ x) @ y + (x - 1).square().sum(),
        lower,
        torch.tensor([0.1, 0.0], dtype=D),  # at 0 rounding alone decides where the search goes
        choice=choice,
        relaxations=(1.0, 1e-4, 1e-8),
        perturbations=(1e-2, 1e-6),
    )
    (x,) = result.theta
    assert result.value == pytest.approx(case(x), abs=1e-6)
    near = [case(x + size * torch.randn(2, dtype=D, generator=generator)) for size in (0.1, 0.01) for _ in range(20)]
    assert min(near) >= result.value - 1e-5


def test_pessimistic_infimum_that_is_not_attained() -> None:
    """At x = 2 the worst case is 8; beyond, it is x."""
    result = bard_1991_1("pessimistic")
    assert result.value == pytest.approx(2 + 1e-6, abs=1e-9)
    assert float(result.theta[0]) == pytest.approx(2 + 1e-6, abs=1e-9)


def wells(*starts: float) -> ArgminNode:
    """Two equal minima at -1 and 1, independent of x."""
    return ArgminNode(lambda y, x: 0.25 * (y**2 - 1) ** 2 + 0 * x, (), [()], options=NodeOptions(start=vector(*starts)))


def test_both_choices_among_isolated_minima() -> None:
    def upper(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return (y - 0.5) ** 2 + (x - 1) ** 2

    best = solve(upper, wells(-0.9, 0.8), number(0.0))
    worst = solve(upper, wells(-0.9, 0.8), number(0.0), choice="pessimistic")
    assert best.value == pytest.approx(0.25)
    assert worst.value == pytest.approx(2.25, abs=1e-5)
    assert worst.value >= 2.25
    assert float(best.solution) == pytest.approx(1.0)
    assert float(worst.solution) == pytest.approx(-1.0, abs=1e-5)


# Points that do not solve the lower problem.


def test_lower_maximum_is_a_solution_for_a_stationary_node_only() -> None:
    def hill(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return 0.25 * (y**2 - 1) ** 2 + x * y / 8

    def upper(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return (y - 0.1) ** 2 + x**2

    options = NodeOptions(start=number(0.0))
    with pytest.raises(SolverError, match="saddle point or maximum of the lower problem, of curvature -"):
        solve(upper, ArgminNode(hill, (), [()], options=options), number(0.0))
    result = solve(upper, StationaryNode(hill, (), [()], options=options), number(0.0))
    # y = x / 8 + y^3: to third order x = 0.1 / (8 + 1 / 8).
    assert float(result.theta[0]) == pytest.approx(0.1 / (8 + 1 / 8), abs=1e-5)
    assert result.certificate is not None
    assert result.certificate.curvature == pytest.approx(-1.0, abs=1e-4)


def test_local_minimum_that_another_start_improves_is_rejected() -> None:
    tilted = ArgminNode(
        lambda y, x: 0.25 * (y**2 - 1) ** 2 + 0.1 * y + 0 * x, (), [()], options=NodeOptions(start=vector(-1.0, 1.0))
    )
    result = solve(lambda y, x: (y - 1) ** 2 + x**2, tilted, number(0.5))
    assert float(result.solution) < -1.0
    with pytest.raises(SolverError, match="no global minimum of the lower problem"):
        solve(
            lambda y, x: (y - 1) ** 2 + x**2,
            tilted,
            number(0.5),
            constraints=lambda y, x: -y.reshape(1),
        )


def empty_beyond_one() -> InequalityNode:
    """y >= x and y <= 1."""
    return InequalityNode(lambda y, x: y.square().sum(), lambda y, x: torch.cat([x - y, y - 1]), (1,), [(1,)])


def test_start_without_a_lower_solution() -> None:
    def upper(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return (y - 0.9).square().sum()

    with pytest.raises(FailedElementsError):
        solve_bilevel(upper, empty_beyond_one(), [vector(2.0)], progress=False)
    result = solve(upper, empty_beyond_one(), vector(2.0))
    assert result.value < 1e-12
    torch.testing.assert_close(result.theta[0], vector(0.9), rtol=0, atol=1e-6)


def test_infeasibility_for_all_parameters_is_reported() -> None:
    never = InequalityNode(
        lambda y, x: y.square().sum(), lambda y, x: torch.cat([y + x.square() + 1, -y]), (1,), [(1,)]
    )
    with pytest.raises(SolverError, match="stay violated"):
        solve(lambda y, x: y.sum(), never, vector(0.0))
    with pytest.raises(SolverError, match="stay violated"):
        solve(lambda y, x: y.sum(), empty_beyond_one(), vector(2.0), regulariser=Box(2.0, 3.0))


def test_box_and_constraints_hold() -> None:
    lower = ArgminNode(lambda y, x: (y - x).square().sum(), (2,), [(2,)])

    def upper(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return (y - vector(2.0, 0.5)).square().sum()

    boxed = solve(upper, lower, vector(0.0, 0.0), regulariser=Box(-1.0, 1.0))
    torch.testing.assert_close(boxed.theta[0], vector(1.0, 0.5), rtol=0, atol=1e-7)
    coupled = solve(upper, lower, vector(0.0, 0.0), constraints=lambda y, x: (y.sum() + x.sum() - 3).reshape(1))
    torch.testing.assert_close(coupled.theta[0], vector(1.5, 0.0), rtol=0, atol=1e-7)
    assert {boxed.stopped, coupled.stopped} == {Stopped.STATIONARY}


def test_history_and_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    upper, lower = face(1.0)
    result = solve_bilevel(upper, lower, [vector(0.3)], method=KKT(relaxations=(1.0, 1e-3)))
    assert "problem" in capsys.readouterr().err
    assert result.history.step_size == [1.0, 1e-3, 0.0]
    assert result.history.evaluations == [1, 2, 3]
    assert result.history.value[-1] == result.value


def test_invalid_arguments_are_rejected() -> None:
    upper, lower = face(1.0)
    x = vector(0.3)
    for options, message in (
        ({"choice": "random"}, "optimistic, pessimistic, got 'random'"),
        ({"relaxations": ()}, "relaxations: expected positive, decreasing numbers"),
        ({"relaxations": (1e-3, 1.0)}, "relaxations: expected positive, decreasing numbers"),
        ({"perturbations": (1e-3, 0.0)}, "perturbations: expected positive, decreasing numbers"),
        ({"regulariser": L1Norm(1.0)}, "expected a Box, got L1Norm"),
        ({"choice": "pessimistic", "constraints": upper}, "every lower solution"),
    ):
        with pytest.raises(ProblemError, match=message):
            KKT(**options)
    barrier = InequalityNode(lambda y, x: y.square().sum(), lambda y, x: y - x, (1,), [(1,)], t=10.0)
    for of, node, theta, message in (
        (upper, lambda x: x, [x], "expected an ArgminNode.*got function"),
        (upper, barrier, [x], "leave t out"),
        (upper, lower, [x.expand(2, 1)], "batch axis"),
        (upper, lower, [x.float()], r"torch\.float64"),
        (upper, lower, [], "at least one parameter"),
        (lambda y, x: y, lower, [x], "upper: expected a scalar"),
    ):
        with pytest.raises(ProblemError, match=message):
            solve_bilevel(of, node, theta, method=KKT(), progress=False)
    with pytest.raises(ShapeError):
        solve(upper, lower, vector(0.1, 0.2))
    with pytest.raises(ProblemError, match="does not support a StationaryNode"):
        solve(upper, LOWER["stationary"], vector(0.1, 0.2), choice="pessimistic")
    with pytest.raises(ProblemError, match="gradient form"):
        solve_bilevel(upper, lower, [x], method=KKT(), optimizer=GradientDescent(), progress=False)
    with pytest.raises(SolverError, match="the upper objective is"):
        solve(lambda y, x: y.sum() / 0 * 0, lower, x)
