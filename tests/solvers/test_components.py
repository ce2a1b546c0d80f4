"""Connected components of a program: detection, and accuracy of each component."""

from __future__ import annotations

import cvxpy as cp
import numpy as np

from convexlayer import SolutionMap, Status, canonicalize
from convexlayer.program import Cones, Pattern, Structure
from convexlayer.rays import block_of_rows
from convexlayer.solvers.components import components

EVERY = Cones(zero=1, nonnegative=2, second_order=(3, 4), psd=(2, 3), exponential=2, power=(0.3, 0.6))


def structure(of_block: list[int], P: Pattern | None = None) -> Structure:
    """A structure in which every row of a block has one entry, in the block's column."""
    blocks, n = block_of_rows(EVERY), max(of_block) + 1
    cols = np.array(of_block)[blocks]
    order = np.lexsort((np.arange(EVERY.m), cols))
    diagonal = Pattern((n, n), np.arange(n), np.arange(n))
    return Structure(P or diagonal, Pattern((EVERY.m, n), np.arange(EVERY.m)[order], cols[order]), EVERY)


def test_separate_blocks_are_components_with_their_cones() -> None:
    parts = components(structure(list(range(11))))
    assert len(parts) == 11
    assert all(part.structure.cones.m == part.structure.m == len(part.rows) for part in parts)
    kinds = [next(iter(part.structure.cones.kinds)) for part in parts]
    assert kinds == [
        "zero",
        *["nonnegative"] * 2,
        *["second_order"] * 2,
        *["psd"] * 2,
        *["exponential"] * 2,
        *["power"] * 2,
    ]
    assert [part.structure.cones.psd for part in parts if part.structure.cones.psd] == [(2,), (3,)]
    assert [part.structure.cones.power for part in parts if part.structure.cones.power] == [(0.3,), (0.6,)]


def test_components_keep_the_order_of_cones() -> None:
    even, odd = components(structure([i % 2 for i in range(11)]))
    assert even.structure.cones == Cones(1, 1, (4,), (3,), 1, (0.6,))
    assert odd.structure.cones == Cones(0, 1, (3,), (2,), 1, (0.3,))
    assert sorted([*even.rows, *odd.rows]) == list(range(EVERY.m))


def test_connected_programs_have_no_components() -> None:
    n = 11
    rows, cols = np.nonzero(np.ones((n, n)))
    assert components(structure(list(range(n)), Pattern((n, n), cols, rows))) == []


def test_a_component_with_a_small_objective_is_solved_accurately() -> None:
    x, a, p = cp.Variable(5), cp.Parameter(5, nonneg=True), cp.Parameter(5)
    problem = cp.Problem(cp.Minimize(a @ cp.exp(x) - p @ x))
    weights = 10.0 ** np.random.default_rng(0).uniform(-4.0, 4.0, size=(2, 60, 5))
    solved = SolutionMap(canonicalize(problem, [a, p], [x])).solve(list(weights))
    assert solved.report.solved_again
    assert set(solved.report.status) == {Status.OPTIMAL}
    np.testing.assert_allclose(solved.outputs[0], np.log(weights[1] / weights[0]), rtol=1e-6, atol=1e-6)
