"""The solver contract catches faulty adapters, and accepts adapters for linear objectives only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from convexlayer import Options, SolverError, Status
from convexlayer.program import ConeProgram, Structure
from convexlayer.solution import Solution
from convexlayer.solvers import AbstractSolver, SolverState
from convexlayer.solvers.clarabel_ import ClarabelSolver
from convexlayer.testing import SolverContract

CLARABEL = ClarabelSolver()


class Wrapped(AbstractSolver):
    """Clarabel, with the attributes and methods that a test replaces."""

    name = "clarabel"
    package = "clarabel"
    cones = CLARABEL.cones
    quadratic = True

    def installed(self) -> bool:
        return True

    def init(self, structure: Structure) -> SolverState:
        return CLARABEL.init(structure)

    def solve(
        self, state: SolverState, program: ConeProgram, options: Options, warm_start: Solution | None = None
    ) -> Solution:
        return CLARABEL.solve(state, program, options)


class Linear(Wrapped):
    quadratic = False

    def solve(
        self, state: SolverState, program: ConeProgram, options: Options, warm_start: Solution | None = None
    ) -> Solution:
        assert not program.structure.P.nnz
        return super().solve(state, program, options)


class TestLinearObjectives(SolverContract):
    solver = Linear()
    solve_function = "clarabel:DefaultSolver"


class TestNotInstalled(SolverContract):
    class Missing(Wrapped):
        def installed(self) -> bool:
            return False

    solver = Missing()


def _wrong_sign(found: Solution, program: ConeProgram, options: Options) -> Solution:
    return replace(found, y=-found.y)


def _coarse(found: Solution, program: ConeProgram, options: Options) -> Solution:
    return replace(found, x=found.x + 0.01)


def _neighbours(found: Solution, program: ConeProgram, options: Options) -> Solution:
    return replace(found, x=found.x + 1e-13 * found.x.sum(axis=0))


def _scales_its_data(found: Solution, program: ConeProgram, options: Options) -> Solution:
    program.A[:] *= 1.0
    return found


def _never_infeasible(found: Solution, program: ConeProgram, options: Options) -> Solution:
    return replace(found, status=(Status.OPTIMAL,) * len(found.status))


def _infinite_iterate(found: Solution, program: ConeProgram, options: Options) -> Solution:
    return replace(found, x=np.full_like(found.x, np.inf)) if options.max_iter == 1 else found


def _inverted_tolerance(found: Solution, program: ConeProgram, options: Options) -> Solution:
    return replace(found, x=found.x + 1e-3) if options.tol < 1e-8 else found


def _wrong_name(found: Solution, program: ConeProgram, options: Options) -> Solution:
    return replace(found, stats={**found.stats, "solver": "another"})


def _raises_for_nan(found: Solution, program: ConeProgram, options: Options) -> Solution:
    if np.isnan(program.q).any():
        raise RuntimeError("not a number")
    return found


FAULTS: list[tuple[Callable[..., Solution], str, str]] = [
    (_wrong_sign, "test_quadratic_programs", r"y of 'qp': .* in elements 0, 1; the first is \(0, \d+\)"),
    (_coarse, "test_semidefinite_programs", "x of 'sdp'"),
    (_coarse, "test_programs_without_rows", "x of a program without rows"),
    (_neighbours, "test_a_batch_equals_its_elements_alone", "x of element 0 in a batch"),
    (_scales_its_data, "test_data_are_not_modified", "read-only"),
    (_never_infeasible, "test_infeasible_and_unbounded_elements", "expected .*INFEASIBLE"),
    (_never_infeasible, "test_infeasible_power_programs", "the cone power"),
    (_infinite_iterate, "test_iteration_limit", "infinite"),
    (_inverted_tolerance, "test_tolerance_has_the_same_meaning", "with tol=1e-9"),
    (_wrong_name, "test_the_package_is_called", "'another'"),
    (_raises_for_nan, "test_a_bad_element_does_not_affect_the_others", "not a number"),
]


@pytest.mark.parametrize(("change", "test", "message"), FAULTS)
def test_a_faulty_result_is_caught(change: Callable[..., Solution], test: str, message: str) -> None:
    class Faulty(Wrapped):
        def solve(self, state: Any, program: ConeProgram, options: Options, warm_start: Any = None) -> Solution:
            return change(super().solve(state, program, options), program, options)

    check(Wrapped(), test)
    with pytest.raises((AssertionError, ValueError, RuntimeError), match=message):
        check(Faulty(), test)


def _no_limit(options: Options) -> Options:
    return replace(options, time_limit_s=None)


def _no_raw_options(options: Options) -> Options:
    return replace(options, solver_options={})


def _own_raw_options(options: Options) -> Options:
    return replace(options, solver_options={"clarabel": next(iter(options.solver_options.values()), {})})


@pytest.mark.parametrize(
    ("change", "test", "message"),
    [
        (_no_limit, "test_time_limit_or_an_error", "time_limit_s=1e-9"),
        (_no_limit, "test_a_time_limit_applies_to_the_whole_batch", "got 12"),
        (_no_raw_options, "test_unknown_raw_options_raise", "nothing was raised"),
        (_own_raw_options, "test_raw_options_of_other_solvers_are_ignored", "no_such_option"),
    ],
)
def test_an_ignored_option_is_caught(change: Callable[[Options], Options], test: str, message: str) -> None:
    class Faulty(Wrapped):
        def solve(self, state: Any, program: ConeProgram, options: Options, warm_start: Any = None) -> Solution:
            return super().solve(state, program, change(options))

    check(Wrapped(), test)
    with pytest.raises((AssertionError, SolverError), match=message):
        check(Faulty(), test)


def test_false_declarations_are_caught() -> None:
    class Faulty(Wrapped):
        name = "Clarabel"
        cones = frozenset({"zero", "spherical"})
        supports_time_limit = False

        def unsupported_reason(self, structure: Structure) -> str | None:
            return None

    with pytest.raises(AssertionError, match="lower-case"):
        check(Faulty(), "test_declarations")
    with pytest.raises(AssertionError, match="expected it to name 'exponential', got None"):
        check(Faulty(), "test_a_reason_names_unsupported_cones")
    Faulty.name, Faulty.cones = "clarabel", CLARABEL.cones
    with pytest.raises(AssertionError, match="a time limit: expected a SolverError"):
        check(Faulty(), "test_time_limit_or_an_error")


def check(adapter: AbstractSolver, test: str) -> None:
    """Run one test of the contract."""
    attributes = {"solver": adapter, "solve_function": "clarabel:DefaultSolver"}
    getattr(type("Contract", (SolverContract,), attributes)(), test)()
