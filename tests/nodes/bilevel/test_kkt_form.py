"""solve_bilevel in its KKT form: published optima, closed forms, both choices, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.optimize import linprog

from convexlayer import FailedElementsError, ProblemError, ShapeError, SolverError
from convexlayer.gallery.softmax import in_ball, negative
from convexlayer.nodes import (
    KKT,
    ArgmaxNode,
    ArgminNode,
    BilevelResult,
    Box,
    EqualityNode,
    Given,
    GradientDescent,
    InequalityNode,
    InteriorPoint,
    L1Norm,
    NodeOptions,
    StationaryNode,
    Stop,
    solve_bilevel,
)
from convexlayer.nodes.bilevel import Stopped

D = torch.float64


def vector(*entries: float) -> torch.Tensor:
    return torch.tensor(entries, dtype=D)


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=D)


def solve(upper: Any, lower: Any, *theta: torch.Tensor, **options: Any) -> BilevelResult:
    return solve_bilevel(upper, lower, theta, method=KKT(**options), progress=False)


# Published problems.


def bard_1988_1(start: float = 1.0) -> BilevelResult:
    """Bard (1988), example 1: 17 at x = 1, y = 0."""
    lower = InequalityNode(
        lambda y, x: (y[0] - 1) ** 2 - 1.5 * x[0] * y[0],
        lambda y, x: torch.stack([3 - 3 * x[0] + y[0], x[0] - 0.5 * y[0] - 4, x[0] + y[0] - 7, -y[0]]),
        (1,),
        [(1,)],
    )
    return solve(
        lambda y, x: (x[0] - 5) ** 2 + (2 * y[0] + 1) ** 2, lower, vector(start), regulariser=Box(0.0, torch.inf)
    )


def bard_1988_2() -> BilevelResult:
    """Bard (1988), example 2: -6600, at x = (7, 3, 12, 18), y = (0, 10, 30, 0) and elsewhere."""
    limits, targets = vector(20, 20, 40, 40), vector(4, 13, 35, 2)

    def g(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        used = torch.stack(
            [
                0.4 * y[0] + 0.7 * y[1],
                0.6 * y[0] + 0.3 * y[1],
                0.4 * y[2] + 0.7 * y[3],
                0.6 * y[2] + 0.3 * y[3],
            ]
        )
        return torch.cat([used - x, -y, y - limits])

    def upper(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return -(200 - y[0] - y[2]) * (y[0] + y[2]) - (160 - y[1] - y[3]) * (y[1] + y[3])

    def constraints(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x - vector(10, 5, 15, 20), x.sum().reshape(1) - 40])

    lower = InequalityNode(lambda y, x: (y - targets).square().sum(), g, (4,), [(4,)])
    return solve(upper, lower, vector(5, 5, 15, 15), regulariser=Box(0.0), constraints=constraints)


def bard_1988_3() -> BilevelResult:
    """Bard (1988), example 3: -12.6787 at x = (0, 2), y = (1.875, 0.90625)."""
    lower = InequalityNode(
        lambda y, x: 2 * x[0] ** 2 + y[0] ** 2 - 5 * y[1],
        lambda y, x: torch.cat(
            [
                torch.stack(
                    [
                        -3 - (x[0] ** 2 - 2 * x[0] + x[1] ** 2 - 2 * y[0] + y[1]),
                        4 - (x[1] + 3 * y[0] - 4 * y[1]),
                    ]
                ),
                -y,
            ]
        ),
        (2,),
        [(2,)],
    )
    return solve(
        lambda y, x: -(x[0] ** 2) - 3 * x[1] - 4 * y[0] + y[1] ** 2,
        lower,
        vector(0.0, 1.0),
        regulariser=Box(0.0),
        constraints=lambda y, x: (x[0] ** 2 + 2 * x[1] - 4).reshape(1),
    )


def bard_1991_1(choice: str) -> BilevelResult:
    """Bard (1991), example 1: 2 at x = 2, y = (6, 0), where all y >= 0 with y_1 + y_2 = 6 are lower solutions."""
    lower = InequalityNode(
        lambda y, x: 2 * y[0] + x[0] * y[1],
        lambda y, x: torch.cat([(x[0] + 4 - y.sum()).reshape(1), -y]),
        (2,),
        [(1,)],
    )
    return solve(lambda y, x: x[0] + y[1], lower, vector(3.0), regulariser=Box(2.0, 4.0), choice=choice)


@pytest.mark.parametrize(
    ("problem", "value", "theta"),
    [
        (bard_1988_1, 17.0, vector(1.0)),
        (bard_1988_2, -6600.0, None),
        (bard_1988_3, -12.6787109375, vector(0.0, 2.0)),
        (lambda: bard_1991_1("optimistic"), 2.0, vector(2.0)),
    ],
    ids=["1988, 1", "1988, 2", "1988, 3", "1991, 1"],
)
def test_published_optima(problem: Callable[[], BilevelResult], value: float, theta: torch.Tensor | None) -> None:
    result = problem()
    assert result.stopped is Stopped.STATIONARY
    assert result.value == pytest.approx(value, rel=1e-8)
    if theta is not None:
        torch.testing.assert_close(result.theta[0], theta, rtol=0, atol=1e-7)
    assert result.certificate is not None
    assert result.certificate.residual < 1e-9
    assert result.certificate.gap < 1e-7
    assert result.certificate.curvature >= 0


def test_a_local_optimum_is_found_from_beside_it() -> None:
    """At x = 5 the lower problem of Bard (1988), example 1, has one feasible point, and beyond it none."""
    result = bard_1988_1(4.0)
    assert result.value == pytest.approx(25.0)
    torch.testing.assert_close(result.theta[0], vector(5.0))


@pytest.mark.parametrize("seed", [5, 15])
def test_random_quadratic_programs_are_solved_to_a_local_optimum(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    M, B, G, C, target = (
        torch.randn(*shape, dtype=D, generator=generator) for shape in ((3, 3), (3, 2), (4, 3), (4, 2), (3,))
    )
    Q = M @ M.T + 0.2 * torch.eye(3, dtype=D)
    lower = InequalityNode(
        lambda y, x: 0.5 * y @ Q @ y - (B @ x) @ y, lambda y, x: G @ y - 0.5 * C @ x - 0.5, (3,), [(2,)]
    )

    def upper(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return (y - 2 * target).square().sum(-1) + 0.05 * x.square().sum(-1)

    result = solve(upper, lower, torch.zeros(2, dtype=D), regulariser=Box(-3.0, 3.0))
    (x,) = result.theta
    torch.testing.assert_close(result.solution, lower(x), rtol=0, atol=1e-5)
    steps = torch.randn(60, 2, dtype=D, generator=generator) * torch.logspace(-5, -1, 60, dtype=D).unsqueeze(-1)
    beside = (x + steps).clamp(-3.0, 3.0)
    assert float(upper(lower(beside), beside).min()) >= result.value - 1e-8


def test_the_example_of_gould_section_5() -> None:
    generator = torch.Generator().manual_seed(2)
    A, b = torch.randn(3, 2, dtype=D, generator=generator), torch.randn(3, dtype=D, generator=generator)
    classes, angle = torch.eye(3, dtype=D), 2 * torch.pi / 3 * torch.arange(3, dtype=D)
    targets = torch.stack([torch.cos(angle), torch.sin(angle)], -1)
    lower = InequalityNode(
        lambda x, A, b: torch.stack([negative(x[i], A, b, classes[i]) for i in range(3)]).sum(),
        lambda x, A, b: torch.cat([in_ball(x[i]) for i in range(3)]),
        (3, 2),
        [(3, 2), (3,)],
    )
    result = solve(lambda x, A, b: 0.5 * (x - targets).square().sum(), lower, A, b)
    assert result.value < 1e-9  # the paper's gradient descent: to within 1e-9 of the optimum, 0
    assert [tuple(part.shape) for part in result.theta] == [(3, 2), (3,)]
    torch.testing.assert_close(result.solution, lower(*result.theta), rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"solver": InteriorPoint()}], ids=["SLSQP", "interior point"])
def test_a_linear_quadratic_problem_in_closed_form(options: dict[str, Any]) -> None:
    """The lower solution y = Q^-1 B x makes 1/2 |y - c|^2 + a/2 |x|^2 a least-squares problem in x."""
    generator = torch.Generator().manual_seed(0)
    M, B, c = (torch.randn(*shape, dtype=D, generator=generator) for shape in ((4, 4), (4, 3), (4,)))
    Q, a = M @ M.T + torch.eye(4, dtype=D), 0.3
    lower = ArgminNode(lambda y, x: 0.5 * y @ Q @ y - (B @ x) @ y, (4,), [(3,)])
    start = torch.zeros(3, dtype=D)
    result = solve(lambda y, x: 0.5 * (y - c).square().sum() + 0.5 * a * x.square().sum(), lower, start, **options)
    S = torch.linalg.solve(Q, B)
    x = torch.linalg.solve(S.T @ S + a * torch.eye(3, dtype=D), S.T @ c)
    torch.testing.assert_close(result.theta[0], x, rtol=0, atol=1e-8)
    torch.testing.assert_close(result.solution, S @ x, rtol=0, atol=1e-8)
    assert result.certificate is not None
    assert result.certificate.curvature == pytest.approx(float(torch.linalg.eigvalsh(Q)[0]))


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


def test_it_sees_past_a_constraint_at_which_the_gradient_is_zero() -> None:
    """y = max(x, 0) does not move with x = -1; the relaxed problem lets go of y = 0."""
    lower = InequalityNode(lambda y, x: (y - x).square().sum(), lambda y, x: -y, (1,), [(1,)])

    def upper(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return (y - 1).square().sum()

    by_gradient = solve_bilevel(upper, lower, [vector(-1.0)], progress=False)
    assert (by_gradient.stopped, by_gradient.value) == (Stopped.STATIONARY, pytest.approx(1.0))
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
def test_the_best_and_the_worst_of_many_lower_solutions(target: float, choice: str, value: float, x: float) -> None:
    upper, lower = face(target)
    result = solve(upper, lower, vector(0.3), choice=choice)
    assert result.value == pytest.approx(value, abs=2e-6)
    assert float(result.theta[0]) == pytest.approx(x, abs=2e-6)


def test_the_pessimistic_value_is_an_upper_bound_that_falls_with_eps() -> None:
    upper, lower = face(1.0)
    values = [
        solve(upper, lower, vector(0.3), choice="pessimistic", perturbations=(eps,)).value for eps in (0.1, 1e-2, 1e-3)
    ]
    assert 0.75 <= values[2] <= values[1] <= values[0]
    assert values[2] <= 0.75 + 1e-3


@pytest.mark.parametrize(("choice", "worst"), [("optimistic", False), ("pessimistic", True)])
def test_both_choices_against_linear_programs(choice: str, worst: bool) -> None:
    """S(x) is a slice of a cube, so that best and worst case of a linear F are linear programs."""
    generator = torch.Generator().manual_seed(12)
    a, b, C, e = (torch.randn(*shape, dtype=D, generator=generator) for shape in ((3,), (3,), (3, 2), (2,)))
    lower = InequalityNode(
        lambda y, x: 0.5 * (a @ y - e @ x) ** 2, lambda y, x: torch.cat([y - 1, -y - 1]), (3,), [(2,)]
    )

    def case(x: torch.Tensor) -> float:
        """The best or the worst F over S(x)."""
        sign = -1.0 if worst else 1.0
        reach = float(a.abs().sum())
        level = float((e @ x).clamp(-reach, reach))
        found = linprog(sign * (b + C @ x).numpy(), A_eq=a.numpy()[None], b_eq=[level], bounds=[(-1, 1)] * 3)
        return sign * float(found.fun) + float((x - 1).square().sum())

    result = solve(
        lambda y, x: (b + C @ x) @ y + (x - 1).square().sum(),
        lower,
        torch.zeros(2, dtype=D),
        choice=choice,
        relaxations=(1.0, 1e-4, 1e-8),
        perturbations=(1e-2, 1e-6),
    )
    (x,) = result.theta
    assert result.value == pytest.approx(case(x), abs=1e-6)
    near = [case(x + size * torch.randn(2, dtype=D, generator=generator)) for size in (0.1, 0.01) for _ in range(20)]
    assert min(near) >= result.value - 1e-5


def test_a_pessimistic_infimum_that_is_not_attained() -> None:
    """At x = 2 the worst case is 8, beyond it x alone."""
    result = bard_1991_1("pessimistic")
    assert result.value == pytest.approx(2 + 1e-6, abs=1e-9)
    assert float(result.theta[0]) == pytest.approx(2 + 1e-6, abs=1e-9)


def wells(*starts: float) -> ArgminNode:
    """Two minima as good as each other, at -1 and 1, whatever x is."""
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


# What solves nothing is told.


def test_a_lower_maximum_is_no_solution_but_for_a_stationary_node() -> None:
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


def test_a_local_minimum_that_another_start_betters_is_refused() -> None:
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


def test_the_start_need_not_have_a_lower_solution() -> None:
    def upper(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return (y - 0.9).square().sum()

    with pytest.raises(FailedElementsError):
        solve_bilevel(upper, empty_beyond_one(), [vector(2.0)], progress=False)
    result = solve(upper, empty_beyond_one(), vector(2.0))
    assert result.value < 1e-12
    torch.testing.assert_close(result.theta[0], vector(0.9), rtol=0, atol=1e-6)


def test_what_is_infeasible_for_all_parameters_is_told() -> None:
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


def test_the_course_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    upper, lower = face(1.0)
    result = solve_bilevel(upper, lower, [vector(0.3)], method=KKT(relaxations=(1.0, 1e-3)))
    assert "problem" in capsys.readouterr().err
    assert result.history.step_size == [1.0, 1e-3, 0.0]
    assert result.history.evaluations == [1, 2, 3]
    assert result.history.value[-1] == result.value


def test_what_does_not_fit_is_refused() -> None:
    upper, lower = face(1.0)
    x = vector(0.3)
    for options, message in (
        ({"choice": "random"}, "optimistic, pessimistic, got 'random'"),
        ({"relaxations": ()}, "relaxations: expected positive numbers that fall"),
        ({"relaxations": (1e-3, 1.0)}, "relaxations: expected positive numbers that fall"),
        ({"perturbations": (1e-3, 0.0)}, "perturbations: expected positive numbers that fall"),
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
    with pytest.raises(ProblemError, match="expected no StationaryNode"):
        solve(upper, LOWER["stationary"], vector(0.1, 0.2), choice="pessimistic")
    with pytest.raises(ProblemError, match="gradient form"):
        solve_bilevel(upper, lower, [x], method=KKT(), optimizer=GradientDescent(), progress=False)
    with pytest.raises(SolverError, match="the upper objective is"):
        solve(lambda y, x: y.sum() / 0 * 0, lower, x)
