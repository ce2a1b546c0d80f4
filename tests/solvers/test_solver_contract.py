"""Requirements of all solver adapters, on programs with known solutions, for all registered solvers."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from convexlayer import Options, SolverError, Status
from convexlayer.diff import KKTSystem, polish
from convexlayer.program import ConeProgram, Cones
from convexlayer.solution import Solution
from convexlayer.solvers import AbstractSolver
from convexlayer.solvers.cvxpy_ import CvxpySolver
from convexlayer.solvers.registry import available, solver_for
from tests.solvers.programs import (
    FEASIBLE,
    INFEASIBLE,
    KINDS,
    UNBOUNDED,
    Known,
    dense_structure,
    known,
    product_of,
    rows,
    stack,
)

SOLVERS = {info.name: info for info in available()}

# Known limitations of the solvers themselves.
TOO_SLOW = {("osqp", "lp")}  # a first-order method: 200 000 iterations do not reach 1e-8 on a vertex
NO_CERTIFICATES = {"qoco"}  # does not detect infeasible and unbounded problems, and reports the latter as solved
SILENT_AT_LIMITS = {"cvxopt"}  # CVXPY discards its last iterate
WITHOUT_CLOCK = {
    "batched",
    "cvxopt",
    "daqp",
    "ecos",
    "mosek",
    "piqp",
    "qoco",
}  # no time limit, or none in CVXPY's options

WHOLE_BATCHES = {"batched"}  # one call for several elements
ROUNDED_BY_PLACE = {"dense"}  # rounding of torch's LAPACK depends on memory alignment

# The function of each solver's package that solves.
ENTRANCES = {
    "clarabel": "clarabel:DefaultSolver",
    "scs": "scs:SCS",
    "cvxopt": "cvxopt.solvers:conelp",
    "batched": "convexlayer.interior_point.lanes.solve:solve_range",
    "daqp": "daqp:solve",
    "dense": "torch.linalg:cholesky_ex",
    "ecos": "ecos:solve",
    "highs": "highspy:Highs",
    "osqp": "osqp:OSQP",
    "piqp": "piqp:SparseSolver",
    "qoco": "qoco:QOCO",
}

everywhere = pytest.mark.parametrize("name", SOLVERS)
ALL_CONES = frozenset(Cones.__dataclass_fields__)
CURVED = {
    "second_order": Cones(zero=1, second_order=(3,)),
    "psd": Cones(zero=1, psd=(2,)),
    "exponential": Cones(zero=1, exponential=1),
    "power": Cones(zero=1, power=(0.5,)),
}


def cones_of(name: str, kind: str) -> Cones:
    """The cones of a kind of problem; "product" has a block of every cone that the solver supports."""
    return product_of(SOLVERS[name].cones) if kind == "product" else KINDS[kind]


@pytest.fixture
def get() -> Callable[[str, ConeProgram], tuple[AbstractSolver, Any]]:
    """A solver by name, and its state for a program; skips the test if it is not installed."""

    def prepared(name: str, program: ConeProgram) -> tuple[AbstractSolver, Any]:
        if not SOLVERS[name].installed:
            pytest.skip(f"{name} is not installed")
        solver, _ = solver_for(name, program.structure)
        return solver, solver.init(program.structure)

    return prepared


def problem(name: str, kind: str, *, batch: int = 2) -> Known:
    """A problem of a kind that the solver supports."""
    return known(cones_of(name, kind), quadratic=kind != "lp", batch=batch)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name, info in SOLVERS.items()
        for kind in (*KINDS, "product")
        if cones_of(name, kind).kinds <= info.cones and (name, kind) not in TOO_SLOW
    ],
)
def test_finds_the_known_solution(name: str, kind: str, get: Any) -> None:
    """x, y and s are accurate to the solver's tolerance, and after polishing to double precision."""
    case = problem(name, kind)
    solver, state = get(name, case.program)
    found = solver.solve(state, case.program, Options())
    assert all(status.solved for status in found.status)
    for ours, theirs in ((found.x, case.x), (found.y, case.y), (found.s, case.s)):
        np.testing.assert_allclose(ours, theirs, atol=2e-3)
    polished, residuals = polish(KKTSystem(case.program.structure), case.program, found).certified(case.program, 1e-9)
    assert polished.status == (Status.OPTIMAL,) * 2
    assert residuals.worst.max() <= 1e-8
    for ours, theirs in ((polished.x, case.x), (polished.y, case.y), (polished.s, case.s)):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@everywhere
def test_the_solvers_package_is_called(name: str, get: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's solve function is called once per element, and the statistics name the solver."""
    case = problem(name, "qp", batch=3)
    solver, state = get(name, case.program)
    module, _, attribute = ENTRANCES[name].partition(":")
    package, entered = import_module(module), []
    original = getattr(package, attribute)

    def counted(*args: Any, **keywords: Any) -> Any:
        entered.append(name)
        return original(*args, **keywords)

    monkeypatch.setattr(package, attribute, counted)
    stats = solver.solve(state, case.program, Options()).stats
    assert len(entered) >= (1 if name in WHOLE_BATCHES else 3)
    assert stats["solver"] == name
    assert stats.get("ran", (name.upper(),) * 3) == (name.upper(),) * 3


@everywhere
def test_programs_without_rows(name: str, get: Any) -> None:
    case = known(Cones(), quadratic=True)
    solver, state = get(name, case.program)
    found = solver.solve(state, case.program, Options())
    np.testing.assert_allclose(found.x, case.x, atol=1e-4)
    assert found.y.shape == found.s.shape == (2, 0)


@everywhere
def test_infeasible_and_unbounded_elements(name: str, get: Any) -> None:
    program = stack(INFEASIBLE, FEASIBLE, UNBOUNDED)
    solver, state = get(name, program)
    said = solver.solve(state, program, Options())
    judged, _ = said.certified(program, 1e-8)
    if name in NO_CERTIFICATES:
        assert [status.solved for status in judged.status] == [False, True, False]
    else:
        assert said.status == judged.status == (Status.INFEASIBLE, Status.OPTIMAL, Status.UNBOUNDED)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name, info in SOLVERS.items()
        for kind in CURVED
        if kind in info.cones and name not in NO_CERTIFICATES
    ],
)
def test_infeasible_cones(name: str, kind: str, get: Any) -> None:
    """An entry that is nonnegative in K (z of an exponential cone, the first of the others) is constrained to -1."""
    entry = 2 if kind == "exponential" else 0
    program = rows(CURVED[kind], [np.eye(3)[entry].tolist(), *(-np.eye(3)).tolist()], [-1, 0, 0, 0], [0, 0, 0])
    solver, state = get(name, program)
    assert solver.solve(state, program, Options()).status == (Status.INFEASIBLE,)


@everywhere
def test_a_batch_equals_its_elements_alone(name: str, get: Any) -> None:
    """Bitwise, except for solvers whose rounding depends on memory: elements do not depend on their neighbours."""
    case = problem(name, "product", batch=5)
    solver, state = get(name, case.program)
    whole = solver.solve(state, case.program, Options())
    for i in range(5):
        single = solver.solve(state, case.program.select(slice(i, i + 1)), Options())
        for part in ("x", "y", "s", "iterations"):
            alone, among = getattr(single, part)[0], getattr(whole, part)[i]
            if name in ROUNDED_BY_PLACE:
                np.testing.assert_allclose(alone, among, rtol=1e-8, atol=1e-8)
            else:
                np.testing.assert_array_equal(alone, among)


@everywhere
def test_a_state_is_thread_safe(name: str, get: Any) -> None:
    case = problem(name, "product", batch=3)
    solver, state = get(name, case.program)
    alone = solver.solve(state, case.program, Options())
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: solver.solve(state, case.program, Options()), range(8)))
    for answer in answers:
        np.testing.assert_array_equal(answer.x, alone.x)
        np.testing.assert_array_equal(answer.y, alone.y)


@everywhere
def test_data_are_not_modified(name: str, get: Any) -> None:
    case = problem(name, "product")
    solver, state = get(name, case.program)
    for part in (case.program.P, case.program.q, case.program.A, case.program.b):
        part.flags.writeable = False  # writing raises
    before = case.program.select(np.arange(2))
    solver.solve(state, case.program, Options())
    np.testing.assert_array_equal(before.A, case.program.A)


@everywhere
def test_iteration_limit(name: str, get: Any) -> None:
    case = problem(name, "qp")
    solver, state = get(name, case.program)
    stopped = solver.solve(state, case.program, Options(max_iter=1))
    expected = Status.NUMERICAL_ERROR if name in SILENT_AT_LIMITS else Status.ITERATION_LIMIT
    assert stopped.status == (expected,) * 2
    assert not np.any(np.isinf(stopped.x))


@everywhere
def test_time_limit_or_an_error(name: str, get: Any) -> None:
    """A time limit that a solver does not support raises and is not ignored."""
    case = problem(name, "qp")
    solver, state = get(name, case.program)
    options = Options(time_limit_s=1e-9)
    if name in WITHOUT_CLOCK:
        with pytest.raises(SolverError, match="no time_limit_s"):
            solver.solve(state, case.program, options)
    else:
        assert solver.solve(state, case.program, options).status == (Status.TIME_LIMIT,) * 2


@pytest.mark.parametrize("name", ["clarabel", "scs", "osqp", "highs"])
def test_a_time_limit_applies_to_the_whole_batch(name: str, get: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elements are not started after the limit; each started element gets the remaining time."""
    case = problem(name, "qp" if name != "highs" else "lp")
    solver, state = get(name, case.program)
    alone = solver.solve(state, case.program, Options())
    now = iter(np.arange(0.0, 1e4))  # every reading of the clock advances it by a second
    monkeypatch.setattr("convexlayer.solvers.options.time", SimpleNamespace(perf_counter=lambda: float(next(now))))
    repeated = case.program.select(np.zeros(12, dtype=np.int64))
    found = solver.solve(state, repeated, Options(time_limit_s=9.5))
    begun = ~np.isnan(found.x).any(axis=1)
    assert 0 < np.count_nonzero(begun) < 6
    assert {status for status, was in zip(found.status, begun, strict=True) if not was} == {Status.TIME_LIMIT}
    np.testing.assert_allclose(found.x[begun][0], alone.x[0], atol=1e-6)


@everywhere
def test_tolerance_has_the_same_meaning(name: str, get: Any) -> None:
    """A smaller tolerance is at least as accurate; all solvers accept the same values."""
    case = problem(name, "qp")
    solver, state = get(name, case.program)
    loose, fine = (
        solver.solve(state, case.program, Options(tol=tol)).residuals(case.program).worst.max() for tol in (1e-3, 1e-9)
    )
    assert fine <= max(loose, 1e-12)
    assert loose <= 1e-1


@everywhere
def test_unknown_raw_options_raise(name: str, get: Any) -> None:
    case = problem(name, "qp")
    solver, state = get(name, case.program)
    with pytest.raises(SolverError, match="no_such_option"):
        solver.solve(state, case.program, Options(solver_options={name: {"no_such_option": 1}}))


@everywhere
def test_raw_options_of_other_solvers_are_ignored(name: str, get: Any) -> None:
    case = problem(name, "qp")
    solver, state = get(name, case.program)
    other = "scs" if name != "scs" else "clarabel"
    assert solver.solve(state, case.program, Options(solver_options={other: {"no_such_option": 1}})).status


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, info in SOLVERS.items() for kind in sorted(ALL_CONES - info.cones)]
)
def test_unsupported_cones_raise(name: str, kind: str) -> None:
    if not SOLVERS[name].installed:
        pytest.skip(f"{name} is not installed")
    structure = dense_structure(2, product_of(frozenset({kind})), quadratic=False)
    with pytest.raises(SolverError, match=rf"{name}.*{kind}.*auto"):
        solver_for(name, structure)


@pytest.mark.parametrize("kind", KINDS)
def test_the_cvxpy_adapter_supports_every_cone(kind: str) -> None:
    """Clarabel through CVXPY gives the result of the native adapter; solvers such as MOSEK use this path."""
    cones = KINDS[kind]
    case = known(cones, quadratic=kind != "lp")
    generic: Solution = CvxpySolver("clarabel").solve(None, case.program, Options())
    native, _ = solver_for("clarabel", case.program.structure)
    expected = native.solve(native.init(case.program.structure), case.program, Options())
    assert generic.stats["ran"] == ("CLARABEL",) * 2
    system = KKTSystem(case.program.structure)  # polish, because iteration counts may differ
    ours, theirs = (polish(system, case.program, solution) for solution in (generic, expected))
    np.testing.assert_allclose(ours.x, theirs.x, atol=1e-8)
    np.testing.assert_allclose(ours.y, theirs.y, atol=1e-8)
    np.testing.assert_allclose(ours.s, theirs.s, atol=1e-8)
