"""The requirements of a solver adapter, as a class of tests to subclass."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np

from convexlayer.diff import KKTSystem, polish
from convexlayer.errors import SolverError
from convexlayer.program import ConeProgram, Cones
from convexlayer.solution import Solution
from convexlayer.solvers import AbstractSolver, Options
from convexlayer.status import Status
from convexlayer.testing.expectations import expect, expect_close, expect_equal, expect_raises, skip
from convexlayer.testing.programs import (
    FEASIBLE,
    INFEASIBLE,
    KINDS,
    UNBOUNDED,
    Known,
    dense_program,
    dense_structure,
    known,
    product_of,
    stack,
)

__all__ = ["SolverContract"]

ALL_CONES = frozenset(Cones.__dataclass_fields__)

VERTEX_ROWS = 15
"""Nonnegative rows that programs without a quadratic term have at least, so that their solutions are unique."""

CURVED = {
    "second_order": Cones(zero=1, second_order=(3,)),
    "psd": Cones(zero=1, psd=(2,)),
    "exponential": Cones(zero=1, exponential=1),
    "power": Cones(zero=1, power=(0.5,)),
}
"""An equality and a curved block of three rows."""

ACCURACY = 2e-3
"""Absolute error that a solution of a program with data of order 1 may have before polishing."""

POLISHED_ACCURACY = 1e-6
"""Absolute error that it may have after polishing."""


class SolverContract:
    """The tests of a solver adapter. Subclass it in a test module, and pytest runs them.

        class TestMySolver(SolverContract):
            solver = MySolver()

    The programs have known solutions and contain the cones that the solver declares; they have quadratic objectives if
    the solver declares that it takes them. What a solver cannot do at all is declared by the attributes below. A test
    that does not apply is skipped, as are all if the solver's package is not installed.

    Attributes:
        solver: the adapter.
        solve_function: the function or class of the solver's package that solves, as ``module:name``. A test counts its
            calls. None skips that test.
        one_by_one: whether the elements of a batch are solved one after another: ``solve_function`` is called for each,
            and a time limit keeps later ones from being started.
        inaccurate_on: names of the programs (keys of ``convexlayer.testing.programs.KINDS``, or ``product``) on which
            the method does not reach its tolerance.
        detects_infeasibility: whether infeasible and unbounded programs are reported as such.
        reports_iteration_limit: whether the status at the iteration limit says so.
        bitwise_batches: whether an element's bits are independent of the others in its batch; otherwise they agree to
            eight digits.
    """

    solver: ClassVar[AbstractSolver]
    solve_function: ClassVar[str | None] = None
    one_by_one: ClassVar[bool] = True
    inaccurate_on: ClassVar[frozenset[str]] = frozenset()
    detects_infeasibility: ClassVar[bool] = True
    reports_iteration_limit: ClassVar[bool] = True
    bitwise_batches: ClassVar[bool] = True

    # --- what the adapter declares -----------------------------------------------------------------------------------

    def test_declarations(self) -> None:
        """A lower-case name, a package, and known cones."""
        name = self.solver.name
        expect(name and name == name.lower(), f"name: expected a lower-case name, got {name!r}")
        expect(self.solver.package, f"package of {name!r}: expected the distribution to install, got nothing")
        unknown = sorted(self.solver.cones - ALL_CONES)
        expect(not unknown, f"cones of {name!r}: expected some of {sorted(ALL_CONES)}, got {unknown}")

    def test_a_reason_names_unsupported_cones(self) -> None:
        """``unsupported_reason`` names what is missing, and is None where nothing is."""
        for kind in sorted(ALL_CONES):
            cones = product_of(frozenset({kind}))
            reason = self.solver.unsupported_reason(dense_structure(2, cones, quadratic=False))
            if kind in self.solver.cones:
                expect_equal(reason, None, f"unsupported_reason of a program with the cone {kind}")
            else:
                expect(kind in (reason or ""), f"unsupported_reason: expected it to name {kind!r}, got {reason!r}")

    # --- solutions ---------------------------------------------------------------------------------------------------

    def test_linear_programs(self) -> None:
        """The known vertex."""
        self._finds_the_known_solution("lp")

    def test_quadratic_programs(self) -> None:
        """The known solution of a program with flat cones."""
        self._finds_the_known_solution("qp")

    def test_second_order_programs(self) -> None:
        """The known solution of a program with second-order cones."""
        self._finds_the_known_solution("socp")

    def test_semidefinite_programs(self) -> None:
        """The known solution of a program with semidefinite cones."""
        self._finds_the_known_solution("sdp")

    def test_exponential_programs(self) -> None:
        """The known solution of a program with exponential cones."""
        self._finds_the_known_solution("exponential")

    def test_power_programs(self) -> None:
        """The known solution of a program with power cones."""
        self._finds_the_known_solution("power")

    def test_product_of_cones(self) -> None:
        """The known solution of a program with a block of every cone that the solver supports."""
        self._finds_the_known_solution("product")

    def test_programs_without_rows(self) -> None:
        """Without constraints, y and s are empty."""
        if not self.solver.quadratic:
            skip("without constraints a linear objective has no minimum")
        case = known(Cones(), quadratic=True)
        found = self._solve(case.program)
        expect_close(found.x, case.solution.x, "x of a program without rows", atol=1e-4)
        expect_equal((found.y.shape, found.s.shape), ((2, 0), (2, 0)), "shapes of y and s without rows")

    def test_tolerance_has_the_same_meaning(self) -> None:
        """A smaller ``tol`` is at least as accurate; every solver accepts the same values."""
        case = self._case("qp")
        loose, fine = (self._solve(case.program, tol=tol).residuals(case.program).worst.max() for tol in (1e-3, 1e-9))
        expect(loose <= 1e-1, f"largest residual with tol=1e-3: expected at most 0.1, got {loose:.1e}")
        expect(fine <= max(loose, 1e-12), f"largest residual: {loose:.1e} with tol=1e-3, but {fine:.1e} with tol=1e-9")

    def test_a_warm_start_is_used_or_ignored(self) -> None:
        """A start at the solution gives the solution; where warm starts are not supported, the same bits."""
        case = self._case("qp")
        state = self._init(case.program)
        cold, warm = (self.solver.solve(state, case.program, Options(), start) for start in (None, case.solution))
        expect_close(warm.x, case.solution.x, "x after a warm start", atol=ACCURACY)
        if not self.solver.supports_warm_start and self.bitwise_batches:
            expect_close(warm.x, cold.x, "x after a warm start that is ignored")

    # --- certificates ------------------------------------------------------------------------------------------------

    def test_infeasible_and_unbounded_elements(self) -> None:
        """Beside a feasible element of the same batch; the certificates pass ``Solution.certified``."""
        program = stack(INFEASIBLE, FEASIBLE, UNBOUNDED)
        expected = (Status.INFEASIBLE, Status.OPTIMAL, Status.UNBOUNDED)
        raw = self._solve(program)
        judged, _ = raw.certified(program, 1e-8)
        if self.detects_infeasibility:
            expect_equal(raw.status, expected, "statuses of an infeasible, a feasible and an unbounded element")
            expect_equal(judged.status, expected, "the same after certification: are x and y the rays?")
        else:
            solved = [status.solved for status in judged.status]
            expect_equal(solved, [False, True, False], "solved, of an infeasible, a feasible and an unbounded element")

    def test_infeasible_second_order_programs(self) -> None:
        """t = -1 in a second-order cone."""
        self._detects_an_empty_cone("second_order")

    def test_infeasible_semidefinite_programs(self) -> None:
        """A diagonal entry -1 in a semidefinite cone."""
        self._detects_an_empty_cone("psd")

    def test_infeasible_exponential_programs(self) -> None:
        """z = -1 in an exponential cone."""
        self._detects_an_empty_cone("exponential")

    def test_infeasible_power_programs(self) -> None:
        """x = -1 in a power cone."""
        self._detects_an_empty_cone("power")

    # --- batches -----------------------------------------------------------------------------------------------------

    def test_a_batch_equals_its_elements_alone(self) -> None:
        """Bitwise, unless ``bitwise_batches`` is false: elements do not depend on their neighbours."""
        case = self._case("product", batch=5)
        state = self._init(case.program)
        whole = self.solver.solve(state, case.program, Options())
        tolerance = 0.0 if self.bitwise_batches else 1e-8
        for i in range(5):
            single = self.solver.solve(state, case.program.select(slice(i, i + 1)), Options())
            for part in ("x", "y", "s", "iterations"):
                alone, among = getattr(single, part)[0], getattr(whole, part)[i]
                what = f"{part} of element {i} in a batch, compared with the element alone"
                expect_close(among, alone, what, rtol=tolerance, atol=tolerance)

    def test_a_bad_element_does_not_affect_the_others(self) -> None:
        """The second of three elements is not convex, infinite, NaN or huge; nothing is raised."""
        program = self._case("qp", batch=3).program
        alone = self._solve(program)
        for change, wrong in _spoilt(program).items():
            with np.errstate(all="ignore"):
                found = self._solve(wrong)
            for i in (0, 2):
                what = f"of element {i} beside one that is {change}"
                expect_equal(found.status[i], alone.status[i], f"status {what}")
                if self.bitwise_batches:
                    expect_close(found.x[i], alone.x[i], f"x {what}")
                    expect_close(found.y[i], alone.y[i], f"y {what}")

    def test_a_state_is_thread_safe(self) -> None:
        """Eight solves with one state in four threads give the bits of one solve alone."""
        case = self._case("product", batch=3)
        state = self._init(case.program)
        alone = self.solver.solve(state, case.program, Options())
        with ThreadPoolExecutor(4) as threads:
            answers = list(threads.map(lambda _: self.solver.solve(state, case.program, Options()), range(8)))
        for answer in answers:
            expect_close(answer.x, alone.x, "x of a solve beside others with the same state")
            expect_close(answer.y, alone.y, "y of a solve beside others with the same state")

    def test_data_are_not_modified(self) -> None:
        """The arrays of the program are read-only here, so that writing raises."""
        program = self._case("product").program
        before = program.select(np.arange(program.batch))
        for part in ("P", "q", "A", "b"):
            getattr(program, part).flags.writeable = False
        self._solve(program)
        for part in ("P", "q", "A", "b"):
            expect_close(getattr(program, part), getattr(before, part), f"{part} of the program after a solve")

    # --- options and limits ------------------------------------------------------------------------------------------

    def test_the_package_is_called(self) -> None:
        """``solve_function`` is called for every element; ``stats["solver"]`` is the name."""
        if self.solve_function is None:
            skip("solve_function is not given")
            return
        case = self._case("qp", batch=3)
        state, calls = self._init(case.program), 0
        module, _, name = self.solve_function.partition(":")
        original = getattr(import_module(module), name)

        def counted(*args: Any, **keywords: Any) -> Any:
            nonlocal calls
            calls += 1
            return original(*args, **keywords)

        with patch.object(import_module(module), name, counted):
            stats = self.solver.solve(state, case.program, Options()).stats
        least = case.program.batch if self.one_by_one else 1
        expect(calls >= least, f"calls of {self.solve_function}: expected at least {least}, got {calls}")
        expect_equal(stats.get("solver"), self.solver.name, 'stats["solver"]')

    def test_iteration_limit(self) -> None:
        """``max_iter=1`` stops the solver; its iterate is finite or NaN, never infinite."""
        case = self._case("qp")
        stopped = self._solve(case.program, max_iter=1)
        expected = Status.ITERATION_LIMIT if self.reports_iteration_limit else Status.NUMERICAL_ERROR
        expect_equal(stopped.status, (expected,) * 2, "statuses with max_iter=1")
        expect(not np.any(np.isinf(stopped.x)), "x with max_iter=1 has infinite entries")

    def test_time_limit_or_an_error(self) -> None:
        """A limit that the solver does not support raises and is not ignored."""
        program = self._case("qp").program
        if self.solver.supports_time_limit:
            found = self._solve(program, time_limit_s=1e-9)
            expect_equal(found.status, (Status.TIME_LIMIT,) * 2, "statuses with time_limit_s=1e-9")
        else:
            with expect_raises(SolverError, self.solver.name, "no time_limit_s", what="a time limit"):
                self._solve(program, time_limit_s=1e-9)

    def test_a_time_limit_applies_to_the_whole_batch(self) -> None:
        """No element is started after the limit. The clock is that of ``Clock``, here a second ahead at every look."""
        if not (self.solver.supports_time_limit and self.one_by_one):
            skip("the solver has no time limit, or does not solve one element after another")
        case = self._case("qp" if "lp" in self.inaccurate_on else "lp")
        state = self._init(case.program)
        alone = self.solver.solve(state, case.program, Options())
        repeated, now = case.program.select(np.zeros(12, dtype=np.int64)), iter(np.arange(0.0, 1e4))
        clock = SimpleNamespace(perf_counter=lambda: float(next(now)))
        with patch("convexlayer.solvers.options.time", clock):
            found = self.solver.solve(state, repeated, Options(time_limit_s=9.5))
        begun = np.asarray(~np.isnan(found.x).any(axis=1))
        count = np.count_nonzero(begun)
        expect(0 < count < 6, f"elements started within the limit of the batch: expected 1 to 5 of 12, got {count}")
        late = {status for status, was in zip(found.status, begun, strict=True) if not was}
        expect_equal(late, {Status.TIME_LIMIT}, "statuses of the elements that were not started")
        expect_close(found.x[begun][0], alone.x[0], "x of an element within the limit", atol=1e-6)

    def test_unknown_raw_options_raise(self) -> None:
        """With the name of the option."""
        name = self.solver.name
        with expect_raises(SolverError, "no_such_option", what="an unknown raw option"):
            self._solve(self._case("qp").program, solver_options={name: {"no_such_option": 1}})

    def test_raw_options_of_other_solvers_are_ignored(self) -> None:
        """The same options may be passed to several solvers."""
        other = {f"not_{self.solver.name}": {"no_such_option": 1}}
        found = self._solve(self._case("qp").program, solver_options=other)
        expect_equal(len(found.status), 2, "number of statuses")

    # --- how they are made -------------------------------------------------------------------------------------------

    def _case(self, kind: str, *, batch: int = 2) -> Known:
        """Programs of a kind, for this solver; skips the test if it does not support their cones."""
        cones = product_of(self.solver.cones) if kind == "product" else KINDS[kind]
        quadratic = self.solver.quadratic and kind != "lp"
        if not quadratic and cones.nonnegative < VERTEX_ROWS:
            cones = replace(cones, nonnegative=VERTEX_ROWS)
        missing = cones.kinds - self.solver.cones
        if missing:
            skip(f"{self.solver.name} does not support {', '.join(sorted(missing))}")
        return known(cones, quadratic=quadratic, batch=batch)

    def _init(self, program: ConeProgram) -> Any:
        """The solver's state for a program; skips the test if the solver is not installed."""
        if not self.solver.installed():
            skip(f"{self.solver.name} is not installed: pip install {self.solver.package}")
        return self.solver.init(program.structure)

    def _solve(self, program: ConeProgram, **options: Any) -> Solution:
        return self.solver.solve(self._init(program), program, Options(**options))

    def _finds_the_known_solution(self, kind: str) -> None:
        """x, y and s are accurate to the solver's tolerance, and after polishing to double precision."""
        case = self._case(kind)
        if kind in self.inaccurate_on:
            skip(f"{self.solver.name} does not reach its tolerance on {kind!r}, by inaccurate_on")
        found = self._solve(case.program)
        expect(all(status.solved for status in found.status), f"statuses of {kind!r}: {found.status}")
        for part in ("x", "y", "s"):
            expect_close(getattr(found, part), getattr(case.solution, part), f"{part} of {kind!r}", atol=ACCURACY)
        better = polish(KKTSystem(case.program.structure), case.program, found)
        polished, residuals = better.certified(case.program, 1e-9)
        expect_equal(polished.status, (Status.OPTIMAL,) * 2, f"certified statuses of {kind!r} after polishing")
        expect(residuals.largest <= 1e-8, f"largest residual of {kind!r} after polishing: {residuals.largest:.1e}")
        for part in ("x", "y", "s"):
            what = f"{part} of {kind!r} after polishing"
            expect_close(getattr(polished, part), getattr(case.solution, part), what, atol=POLISHED_ACCURACY)

    def _detects_an_empty_cone(self, kind: str) -> None:
        """An entry that is nonnegative in K (z of an exponential cone, else the first) is constrained to -1."""
        if not self.detects_infeasibility or not {kind, "zero"} <= self.solver.cones:
            skip(f"{self.solver.name} does not support {kind}, or does not detect infeasibility")
        entry = 2 if kind == "exponential" else 0
        A = [np.eye(3)[entry].tolist(), *(-np.eye(3)).tolist()]
        found = self._solve(dense_program(CURVED[kind], None, [[0, 0, 0]], [A], [[-1, 0, 0, 0]]))
        expect_equal(found.status, (Status.INFEASIBLE,), f"status of an infeasible program with the cone {kind}")


def _spoilt(program: ConeProgram) -> dict[str, ConeProgram]:
    """Copies of a batch in which the second element is invalid, by what is wrong with it."""
    wrong: dict[str, ConeProgram] = {}

    def changed(change: str, part: str, entry: int, value: float) -> None:
        values = getattr(program, part).copy()
        values[1, entry] = value
        wrong[change] = replace(wrong.get(change, program), **{part: values})

    diagonal = np.flatnonzero(program.structure.P.rows == program.structure.P.cols)
    if len(diagonal):
        changed("not convex", "P", diagonal[0], program.P[1, diagonal[0]] - 10.0)
    changed("infinite", "A", 3, np.inf)
    changed("not a number", "q", 0, np.nan)
    changed("huge", "A", 5, 1e300)
    changed("huge", "q", 1, 1e200)
    return wrong
