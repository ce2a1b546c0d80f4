"""Infeasibility and unboundedness need certificates; unproved claims are numerical errors with a message."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import scipy.sparse as sp
import torch

from convexlayer import ConvexLayer, FailedElementsError, Options, SolutionMap, Status, canonicalize
from convexlayer.layers.choice import choose
from convexlayer.program import ConeProgram, Structure
from convexlayer.rays import infeasibility_ray, unboundedness_ray
from convexlayer.runtime import kernel_cache
from convexlayer.solution import Solution
from convexlayer.solvers.base import AbstractSolver
from convexlayer.solvers.clarabel_ import ClarabelSolver
from convexlayer.solvers.daqp_ import DaqpSolver
from convexlayer.solvers.registry import available
from convexlayer.solvers.scs_ import ScsSolver

D = torch.float64
QP = [info.name for info in available() if info.installed and info.cones >= {"zero", "nonnegative"}]

x = cp.Variable(3, name="x")
p, low = cp.Parameter(3, name="p"), cp.Parameter(name="low")


def statuses(report: Any) -> list[str]:
    return [str(word) for word in report.status]


# --- correct statuses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [*QP, "auto"])
def test_rows_that_are_zero_at_some_parameters(solver: str) -> None:
    """p'x >= 1 and x >= 0: infeasible if p has no positive entry, including p = 0."""
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x)), [p @ x >= 1, x >= 0])
    layer = ConvexLayer(problem, [p], [x], solver=solver, on_failure="nan")
    rows = [[0.0, 0, 0], [-1, -2, -1], [1, 1, 1], [0, 0, -3], [0, 2, 0]]
    (out,), report = layer.solve(torch.tensor(rows, dtype=D))
    assert statuses(report) == ["infeasible", "infeasible", "optimal", "infeasible", "optimal"]
    torch.testing.assert_close(out[[2, 4]], torch.tensor([[1, 1, 1], [0, 1.5, 0]], dtype=D) / 3, rtol=0, atol=1e-6)


@pytest.mark.parametrize("solver", ["auto", "clarabel", "scs"])
@pytest.mark.parametrize("value", [0.0, 1e-12, 1.0])
def test_zero_rows_of_other_cones(solver: str, value: float) -> None:
    """Equality, second-order, semidefinite and exponential rows that constrain x only if p is not zero."""
    a = cp.Parameter(nonneg=True)
    X = cp.Variable((2, 2), symmetric=True)
    problems = [
        ([a * x[0] == 1], [x]),
        ([cp.norm(a * x + np.array([2.0, 0, 0])) <= 1], [x]),
        ([a * X - np.diag([1.0, 0.0]) >> 0], [X]),
        ([cp.exp(a * x[0]) <= 0.5], [x]),
    ]
    for constraints, outputs in problems:
        objective = cp.Minimize(sum(cp.sum_squares(v) for v in outputs))
        layer = ConvexLayer(
            cp.Problem(objective, constraints), [a], outputs, solver=solver, on_failure="nan", self_check=False
        )
        report = layer.solve(torch.tensor(value, dtype=D))[1]
        if value == 0.0:
            assert statuses(report) == ["infeasible"], constraints
        elif value == 1.0:
            assert report.status[0].solved, constraints
        else:  # a solution of size 1e12 may or may not be found, but the problem is not infeasible
            assert report.status[0] is not Status.INFEASIBLE, constraints


UNBOUNDED = {
    "log": (-cp.log(x[0]) + p @ x * 0.0, [x >= 0.1]),
    "logs": (-cp.sum(cp.log(x)) + 0.0 * low, [x >= 0.1]),
    "root": (-cp.sqrt(x[0]) + 0.0 * low, [x >= 0.1]),
    "line": (-x[0] + 0.0 * low, [x >= 0.1]),
}


@pytest.mark.parametrize("solver", ["auto", "batched", "clarabel", "ecos"])
@pytest.mark.parametrize("name", UNBOUNDED)
def test_unbounded_with_and_without_a_ray(solver: str, name: str) -> None:
    objective, constraints = UNBOUNDED[name]
    problem = cp.Problem(cp.Minimize(objective), constraints)
    layer = ConvexLayer(problem, problem.parameters(), [x], solver=solver, on_failure="nan", self_check=False)
    report = layer.solve(*(torch.zeros(q.shape, dtype=D) for q in problem.parameters()))[1]
    assert statuses(report) == ["unbounded"]
    details = report.details.get(0, "")
    assert details == ("" if name == "line" else "the objective is unbounded below, but along no ray")


@pytest.mark.parametrize("solver", ["auto", "batched", "clarabel", "scs", "piqp"])
@pytest.mark.parametrize("n", [10, 200])
def test_powells_problem_is_solved(solver: str, n: int) -> None:
    """From the Maros-Meszaros set: all rows are active, and their sum is 0 >= 0."""
    y, scale = cp.Variable(n), cp.Parameter()
    k = np.arange(1, n)
    A = sp.diags([-np.ones(n), np.ones(n - 1), [1.0]], [0, 1, 1 - n])
    b = np.append((-1.0) ** k * k - 0.5, n - 0.5)
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(y)), [A.tocsr() @ y >= scale * b])
    layer = ConvexLayer(problem, [scale], [y], solver=solver, on_degenerate="report", self_check=False)
    (out,), report = layer.solve(torch.ones((), dtype=D))
    assert report.status[0].solved
    expected = np.concatenate([[0.0], np.cumsum(b[:-1])])
    np.testing.assert_allclose(out.detach(), expected - expected.mean(), atol=1e-4 * n)


def random_infeasible(batch: int) -> tuple[cp.Problem, list[cp.Parameter], list[torch.Tensor], list[int]]:
    """Rows G x <= h; in every other element two of them contradict each other."""
    G, h = cp.Parameter((6, 3)), cp.Parameter(6)
    rng = np.random.default_rng(4)
    rows, limits = rng.standard_normal((batch, 6, 3)), rng.uniform(0.5, 1.0, (batch, 6))
    wrong = list(range(0, batch, 2))
    rows[wrong, 5], limits[wrong, 5] = (
        -3.0 * rows[wrong, 2],
        -3.0 * limits[wrong, 2] - rng.uniform(1e-3, 1.0, len(wrong)),
    )
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - 1)), [G @ x <= h])
    return problem, [G, h], [torch.tensor(rows), torch.tensor(limits)], wrong


@pytest.mark.parametrize("solver", QP)
def test_every_infeasible_element_has_a_valid_ray(solver: str) -> None:
    """Even if the solver returns no ray, the report's solution contains a valid one."""
    problem, parameters, tensors, wrong = random_infeasible(10)
    program = canonicalize(problem, parameters, [x], self_check=False)
    report = SolutionMap(program, solver=solver).solve([t.numpy() for t in tensors]).report
    assert statuses(report) == ["infeasible" if i in wrong else "optimal" for i in range(10)]
    assert (report.solved_again != ()) == (solver == "daqp")
    programs, _ = program.normalised(program.features.apply([t.numpy() for t in tensors], 10))
    for i in wrong:
        assert infeasibility_ray(programs.select([i]), report.solution.y[i]) is not None


@pytest.mark.parametrize("solver", ["daqp", "osqp", "piqp", "ecos", "clarabel", "batched", "scs"])
def test_every_unbounded_element_has_a_valid_ray(solver: str) -> None:
    q = cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.square(x[0]) + q @ x), [x[1] >= -1, x[1] <= 1, x[2] >= x[1]])
    program = canonicalize(problem, [q], [x], self_check=False)
    values = np.array([[1.0, 1.0, -1.0], [1.0, 1.0, 1.0], [0.0, 0.0, -1e-3]])
    report = SolutionMap(program, solver=solver).solve([values]).report
    assert statuses(report) == ["unbounded", "optimal", "unbounded"]
    programs, _ = program.normalised(program.features.apply([values], 3))
    for i in (0, 2):
        assert unboundedness_ray(programs.select([i]), report.solution.x[i]) is not None


# --- false claims -------------------------------------------------------------------------------------------


def with_false_claims(monkeypatch: pytest.MonkeyPatch, kind: type[AbstractSolver], word: Status, *, ray: bool) -> None:
    """Make a solver report ``word`` for every element of a batch, with a wrong ray or none; not for single elements."""
    honest = kind.solve

    def solve(self: Any, state: Any, program: ConeProgram, options: Options, warm_start: Any = None) -> Solution:
        answer = honest(self, state, program, options)
        if program.batch == 1:
            return answer
        fill = 1.0 if ray else np.nan
        x, y = np.full_like(answer.x, fill), np.full_like(answer.y, fill)
        return replace(answer, x=x, y=y, s=np.full_like(answer.s, np.nan), status=(word,) * program.batch)

    monkeypatch.setattr(kind, "solve", solve)


def projection(solver: str, **keywords: Any) -> ConvexLayer:
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.sum(x) == 1, x >= 0])
    return ConvexLayer(problem, [p], [x], solver=solver, self_check=False, **keywords)


THETA = torch.tensor([[0.3, 1.0, -0.2], [0.5, 0.1, 0.9]], dtype=D)


@pytest.mark.parametrize("word", [Status.INFEASIBLE, Status.UNBOUNDED])
@pytest.mark.parametrize("ray", [True, False])
@pytest.mark.parametrize(("name", "kind"), [("clarabel", ClarabelSolver), ("daqp", DaqpSolver)])
def test_the_fallback_corrects_a_false_claim(
    monkeypatch: pytest.MonkeyPatch, name: str, kind: type[AbstractSolver], word: Status, ray: bool
) -> None:
    (expected,) = projection(name)(THETA)
    with_false_claims(monkeypatch, kind, word, ray=ray)
    (out,), report = projection(name).solve(THETA)
    assert statuses(report) == ["optimal"] * 2
    assert report.solved_again == (0, 1)
    torch.testing.assert_close(out, expected, rtol=0.0, atol=1e-7)


@pytest.mark.parametrize("word", [Status.INFEASIBLE, Status.UNBOUNDED])
@pytest.mark.parametrize("ray", [True, False])
def test_a_false_claim_without_a_fallback_is_a_numerical_error(
    monkeypatch: pytest.MonkeyPatch, word: Status, ray: bool
) -> None:
    """A solver named by the caller has no fallback."""
    with_false_claims(monkeypatch, ScsSolver, word, ray=ray)
    report = projection("scs", on_failure="nan").solve(THETA)[1]
    assert statuses(report) == ["numerical_error"] * 2
    assert set(report.details.values()) == {f"the solver reports {word}, but no certificate was found"}
    with pytest.raises(
        FailedElementsError, match=f"Element 1: the solver reports {word}, but no certificate was found"
    ):
        projection("scs")(THETA)


def test_clarabels_fallback_needs_compiled_kernels_and_a_small_program(monkeypatch: pytest.MonkeyPatch) -> None:
    structure = projection("clarabel").program.structure
    assert (choose("clarabel", structure).fallback is not None) == kernel_cache.ready()
    monkeypatch.setattr("convexlayer.solvers.auto.LARGE", 3)
    assert choose("clarabel", structure).fallback is None
    monkeypatch.undo()
    monkeypatch.setattr("convexlayer.solvers.auto.kernel_cache.ready", lambda: False)
    assert choose("clarabel", structure).fallback is None


def test_a_fallback_is_initialised_on_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: list[str] = []
    init = ClarabelSolver.init

    def counted(self: ClarabelSolver, structure: Structure) -> Any:
        prepared.append("clarabel")
        return init(self, structure)

    monkeypatch.setattr(ClarabelSolver, "init", counted)
    projection("batched")(THETA)
    assert prepared == []


def test_a_fallback_without_time_limits_is_not_used_under_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with_false_claims(monkeypatch, ClarabelSolver, Status.INFEASIBLE, ray=False)
    report = projection("clarabel", on_failure="nan", options={"time_limit_s": 60.0}).solve(THETA)[1]
    assert statuses(report) == ["numerical_error"] * 2
    assert report.solved_again == ()


def test_elements_stopped_by_a_limit_are_not_searched_for_rays() -> None:
    """Elements that were stopped by a limit are not searched for rays."""
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x)), [p @ x >= 1, x >= 0])
    layer = ConvexLayer(problem, [p], [x], solver="clarabel", on_failure="nan", options={"max_iter": 1})
    report = layer.solve(torch.zeros(2, 3, dtype=D))[1]
    assert statuses(report) == ["iteration_limit"] * 2
    assert report.details == {}
