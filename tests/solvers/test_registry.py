"""Solver registry: available solvers, rejected names and options, and reasons."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest

from convexlayer import NotInstalledError, Options, SolverError
from convexlayer.layers.choice import choose
from convexlayer.program import Cones
from convexlayer.runtime import kernel_cache
from convexlayer.solvers.auto import CLARABEL_PSD, FALLBACK_PSD, LARGE_PSD, candidates
from convexlayer.solvers.registry import SolverInfo, available, solver_for
from convexlayer.testing.programs import KINDS, dense_structure, known

QP = dense_structure(3, KINDS["qp"], quadratic=True)


def info(name: str) -> SolverInfo:
    return next(entry for entry in available() if entry.name == name)


def test_lists_native_solvers_first_and_each_name_once() -> None:
    names = [entry.name for entry in available()]
    natives = ["batched", "clarabel", "daqp", "dense", "scs"]
    assert names[: len(natives)] == natives
    assert len(set(names)) == len(names)
    assert {"cvxopt", "daqp", "ecos", "highs", "osqp", "piqp", "qoco"} < set(names)
    assert [entry.native for entry in available()] == [name in natives for name in names]


def test_native_solvers_support_everything() -> None:
    for name in ("clarabel", "scs"):
        assert info(name).cones == frozenset(Cones.__dataclass_fields__)
        assert info(name).quadratic
        assert info(name).installed


def test_auto_gives_a_reason() -> None:
    solver, reason = solver_for("auto", QP)
    assert solver.name == ("daqp" if kernel_cache.ready() else "clarabel")
    assert "nonnegative, zero" in reason
    assert solver_for("scs", QP)[1] == "requested by name"


@pytest.mark.parametrize("order", [LARGE_PSD - 1, LARGE_PSD, CLARABEL_PSD, FALLBACK_PSD, FALLBACK_PSD + 1])
def test_auto_chooses_scs_for_large_semidefinite_blocks(order: int) -> None:
    """Clarabel is the fallback if it is affordable; a solver requested by name has no fallback."""
    structure = dense_structure(1, Cones(psd=(3, order)), quadratic=True)
    large = order >= LARGE_PSD
    chosen = choose("auto", structure)
    assert chosen.solver.name == ("scs" if large else "batched" if kernel_cache.ready() else "clarabel")
    if large:
        assert f"semidefinite blocks of order {order}" in chosen.reason
        assert (chosen.fallback is not None) is (order <= FALLBACK_PSD)
        assert ("clarabel" in candidates(structure)) is (order <= CLARABEL_PSD)
        assert "batched" not in candidates(structure)
    assert choose("scs", structure).fallback is None


def test_auto_supports_programs_without_rows() -> None:
    assert "no constraints" in solver_for("auto", dense_structure(2, Cones(), quadratic=True))[1]


def test_names_are_case_insensitive() -> None:
    assert solver_for(cp.SCS, QP)[0] is solver_for("scs", QP)[0]


def test_error_for_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(SolverError, match=r"no solver 'simplex'.*auto.*clarabel.*ecos.*scs"):
        solver_for("simplex", QP)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cp, "installed_solvers", lambda: ["CLARABEL"])
    with pytest.raises(NotInstalledError, match=r"'highs'.*pip install highspy.*convexlayer\[solvers\]"):
        solver_for("highs", QP)


def test_missing_packages_of_native_solvers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convexlayer.solvers.scs_.find_spec", lambda name: None)
    assert not info("scs").installed
    with pytest.raises(NotInstalledError, match=r"'scs'.*pip install scs"):
        solver_for("scs", QP)


def test_other_cvxpy_solvers_work() -> None:
    if "SCIPY" not in cp.installed_solvers():
        pytest.skip("CVXPY has no SciPy here")
    case = known(KINDS["lp"], quadratic=False)
    solver, _ = solver_for("scipy", case.program.structure)
    found = solver.solve(solver.init(case.program.structure), case.program, Options())
    assert found.stats["ran"] == ("SCIPY", "SCIPY")
    np.testing.assert_allclose(found.x, case.solution.x, atol=1e-6)
    np.testing.assert_allclose(found.y, case.solution.y, atol=1e-6)


def test_other_cvxpy_solvers_reject_unsupported_programs() -> None:
    if "SCIPY" not in cp.installed_solvers():
        pytest.skip("CVXPY has no SciPy here")
    case = known(KINDS["sdp"], quadratic=True)
    solver, _ = solver_for("scipy", case.program.structure)
    with pytest.raises(SolverError, match="'scipy' cannot take this problem"):
        solver.solve(solver.init(case.program.structure), case.program, Options())
    with pytest.raises(SolverError, match="'scipy' has no max_iter"):
        solver.solve(None, case.program, Options(max_iter=3))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"tol": 0.0}, "tol must lie between"),
        ({"tol": float("nan")}, "tol must lie between"),
        ({"max_iter": 0}, "max_iter must be at least 1"),
        ({"time_limit_s": 0.0}, "time_limit_s must be positive"),
        ({"time_limit_s": float("nan")}, "time_limit_s must be positive"),
        ({"max_iters": 3}, r"unknown option 'max_iters'; the options are: tol, max_iter, "),
    ],
)
def test_invalid_portable_options_raise(bad: dict[str, float], message: str) -> None:
    with pytest.raises(SolverError, match=message):
        Options.of(bad, Options())


def test_options_are_changes_to_the_defaults_or_complete() -> None:
    default = Options(tol=1e-6, max_iter=7)
    assert Options.of(None, default) is default
    assert Options.of({"tol": 1e-4}, default) == Options(tol=1e-4, max_iter=7)
    assert Options.of(Options(), default) == Options()


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("clarabel", {"max_iter": "many"}),
        ("clarabel", {"max_iter": -1}),
        ("clarabel", {"direct_solve_method": "guessing"}),
        ("clarabel", {"default": 1}),
        ("scs", {"alpha": 5.0}),
        ("scs", {"max_iters": "many"}),
    ],
)
def test_invalid_values_of_raw_options_raise(name: str, raw: dict[str, object]) -> None:
    case = known(KINDS["qp"], quadratic=True, batch=5)
    solver, _ = solver_for(name, case.program.structure)
    with pytest.raises(SolverError, match=rf"(?i){name}"):
        solver.solve(solver.init(case.program.structure), case.program, Options(solver_options={name: raw}))


@pytest.mark.parametrize(("name", "raw"), [("clarabel", {"max_iter": 2}), ("scs", {"max_iters": 2})])
def test_raw_options_override_the_portable_ones(name: str, raw: dict[str, object]) -> None:
    case = known(KINDS["qp"], quadratic=True, batch=1)
    solver, _ = solver_for(name, case.program.structure)
    options = Options(max_iter=50, solver_options={name: raw})
    found = solver.solve(solver.init(case.program.structure), case.program, options)
    assert found.iterations.tolist() == [2]
