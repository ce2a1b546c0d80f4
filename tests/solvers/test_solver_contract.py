"""The solver contract on every registered solver, and what concerns the registry or CVXPY's adapter alone."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest

from convexlayer import Options, SolverError
from convexlayer.diff import KKTSystem, polish
from convexlayer.program import Cones
from convexlayer.solution import Solution
from convexlayer.solvers.batched_ import BatchedSolver
from convexlayer.solvers.clarabel_ import ClarabelSolver
from convexlayer.solvers.cvxpy_ import CvxpySolver
from convexlayer.solvers.daqp_ import DaqpSolver
from convexlayer.solvers.dense_ import DenseSolver
from convexlayer.solvers.registry import available, solver_for
from convexlayer.solvers.scs_ import ScsSolver
from convexlayer.testing import SolverContract
from convexlayer.testing.programs import KINDS, dense_structure, known, product_of

SOLVERS = {info.name: info for info in available()}
ALL_CONES = frozenset(Cones.__dataclass_fields__)


class TestBatched(SolverContract):
    solver = BatchedSolver()
    solve_function = "convexlayer.interior_point.lanes.solve:solve_range"
    one_by_one = False


class TestClarabel(SolverContract):
    solver = ClarabelSolver()
    solve_function = "clarabel:DefaultSolver"


class TestCvxopt(SolverContract):
    solver = CvxpySolver("cvxopt")
    solve_function = "cvxopt.solvers:conelp"
    reports_iteration_limit = False  # CVXPY discards its last iterate


class TestDaqp(SolverContract):
    solver = DaqpSolver()
    solve_function = "daqp:solve"


class TestDense(SolverContract):
    solver = DenseSolver()
    solve_function = "torch.linalg:cholesky_ex"
    one_by_one = False
    bitwise_batches = False  # rounding of torch's LAPACK depends on memory alignment


class TestEcos(SolverContract):
    solver = CvxpySolver("ecos")
    solve_function = "ecos:solve"


class TestGurobi(SolverContract):
    solver = CvxpySolver("gurobi")


class TestHighs(SolverContract):
    solver = CvxpySolver("highs")
    solve_function = "highspy:Highs"


class TestMosek(SolverContract):
    solver = CvxpySolver("mosek")


class TestOsqp(SolverContract):
    solver = CvxpySolver("osqp")
    solve_function = "osqp:OSQP"
    inaccurate_on: ClassVar = frozenset({"lp"})  # first-order: 200 000 iterations do not reach 1e-8 on a vertex


class TestPiqp(SolverContract):
    solver = CvxpySolver("piqp")
    solve_function = "piqp:SparseSolver"


class TestQoco(SolverContract):
    solver = CvxpySolver("qoco")
    solve_function = "qoco:QOCO"
    detects_infeasibility = False  # reports unbounded programs as solved


class TestScs(SolverContract):
    solver = ScsSolver()
    solve_function = "scs:SCS"


def test_every_registered_solver_is_tested() -> None:
    contracts = [each for name, each in globals().items() if name.startswith("Test")]
    assert sorted(contract.solver.name for contract in contracts) == sorted(SOLVERS)


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, info in SOLVERS.items() for kind in sorted(ALL_CONES - info.cones)]
)
def test_the_registry_refuses_unsupported_cones(name: str, kind: str) -> None:
    if not SOLVERS[name].installed:
        pytest.skip(f"{name} is not installed")
    structure = dense_structure(2, product_of(frozenset({kind})), quadratic=False)
    with pytest.raises(SolverError, match=rf"{name}.*{kind}.*auto"):
        solver_for(name, structure)


@pytest.mark.parametrize("name", [name for name, info in SOLVERS.items() if info.installed and not info.native])
def test_cvxpy_runs_the_solver_that_is_named(name: str) -> None:
    case = known(KINDS["qp"], quadratic=True)
    assert CvxpySolver(name).solve(None, case.program, Options()).stats["ran"] == (name.upper(),) * 2


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
