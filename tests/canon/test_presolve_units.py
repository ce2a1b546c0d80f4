"""Presolve does not depend on the units of variables and rows."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from convexlayer import ParametricProgram
from convexlayer.canon import OutputSpec, ParameterSpec, presolved
from convexlayer.canon.affine_map import AffineMap, Features
from convexlayer.canon.affine_matrix import AffineMatrix
from convexlayer.canon.parametric import Objective
from convexlayer.canon.recovery import Recovery
from convexlayer.canon.rows import drop_redundant_rows
from convexlayer.canon.tracked_matrix import multiply, subtract, tracked
from convexlayer.program import Cones, Pattern, Structure
from tests.families import family

Array = np.ndarray


def equality_program(P: Array, A: Array, b: Array) -> ParametricProgram:
    """minimize x'Px / 2 + theta'x subject to A x = b, with x and the duals as outputs."""
    m, n = A.shape
    P_pattern, A_pattern = (Pattern(M.shape, *np.nonzero(M.T)[::-1]) for M in (P, A))
    values = [P[P_pattern.rows, P_pattern.cols], np.zeros(n), np.zeros(1), A[A_pattern.rows, A_pattern.cols], b]
    constant = np.concatenate(values)
    slopes = sp.lil_matrix((len(constant), n))
    slopes[range(P_pattern.nnz, P_pattern.nnz + n), range(n)] = 1.0
    return ParametricProgram(
        parameters=(ParameterSpec("theta", (n,)),),
        structure=Structure(P_pattern, A_pattern, Cones(zero=m)),
        features=Features((n,), (None,), np.zeros(0, dtype=np.int64)),
        data=AffineMap(slopes.tocsr(), constant),
        recovery=Recovery((OutputSpec("x", (n,)), OutputSpec("y", (m,))), sp.identity(n + m, format="csr"), n),
        objective=Objective(),
    )


def solved(program: ParametricProgram, theta: Array) -> tuple[Array, Array]:
    """Solve for x and y by a dense factorisation of the equilibrated KKT matrix."""
    features = program.features.apply([theta[None]], 1)
    made, shape = program.instantiate(features), program.structure
    P, A = shape.P.csc(made.P[0]).toarray(), shape.A.csc(made.A[0]).toarray()
    K = np.block([[P, A.T], [A, np.zeros((shape.m, shape.m))]])
    scale = np.ones(len(K))
    for _ in range(60):
        scale /= np.sqrt(np.max(np.abs(scale[:, None] * K * scale), axis=1))
    right = np.concatenate([-made.q[0], made.b[0]])
    z = scale * np.linalg.solve(scale[:, None] * K * scale, scale * right)
    x, y = program.recovery.apply(features, z[None, : shape.n], z[None, shape.n :])
    return x[0], y[0]


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("decades", [3, 9])
def test_solutions_do_not_depend_on_units(decades: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, m = 9, 5
    A = np.zeros((m, n))
    for row in A:  # defining equalities that may form chains
        row[rng.choice(n, rng.integers(2, 5), replace=False)] = rng.choice([-2.0, -1.0, 1.0, 3.0])
        row[rng.integers(n)] = 1.0
    P, b, theta = np.diag(rng.uniform(0.5, 2.0, n)), rng.standard_normal(m), rng.standard_normal(n)
    x, y = solved(equality_program(P, A, b), theta)
    of_x, of_rows = (10.0 ** rng.uniform(-decades, decades, size) for size in (n, m))
    given = equality_program(of_x[:, None] * P * of_x, of_rows[:, None] * A * of_x, of_rows * b)
    program = presolved(given)
    assert program.presolve is not None
    assert program.presolve.eliminated_variables > 0
    there, dual = solved(program, of_x * theta)
    np.testing.assert_allclose(of_x * there, x, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(of_rows * dual, y, rtol=1e-8, atol=1e-9)


def test_small_entries_beside_large_ones_are_kept() -> None:
    """u = 1e9 x_1 and v = x_2 / 1e9: the small coefficient is not a rounding error."""
    A = np.array([[1e9, 0.0, -1.0, 0.0], [0.0, 1e-9, 0.0, -1.0]])
    P = np.diag([2.0, 2.0, 2e-18, 2e18])
    program = presolved(equality_program(P, A, np.zeros(2)))
    assert (program.structure.n, program.structure.m) == (2, 0)
    x, _ = solved(program, np.array([-2.0, -2.0, 0.0, 0.0]))
    np.testing.assert_allclose(x, [0.5, 0.5, 0.5e9, 0.5e-9], rtol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e9])
def test_dependent_rows_are_dropped_in_any_unit(scale: float) -> None:
    """Elimination leaves rounding errors in dependent rows, which must not become pivots."""
    rng = np.random.default_rng(3)
    A = rng.standard_normal((3, 6))
    A = np.vstack([A, rng.standard_normal((3, 3)) @ A])
    A[:, 2] *= scale
    A[4] *= scale
    x = rng.standard_normal(6)
    program = presolved_without_duals(A, A @ x)
    assert program.structure.n == 3
    assert program.structure.m == 0


def presolved_without_duals(A: Array, b: Array) -> ParametricProgram:
    program = equality_program(np.eye(A.shape[1]) + 0.1, A, b)
    n, m = A.shape[1], A.shape[0]
    shown = Recovery((OutputSpec("x", (n,)),), sp.identity(n + m, format="csr")[:n], n)
    return presolved(
        ParametricProgram(
            program.parameters, program.structure, program.features, program.data, shown, program.objective
        )
    )


def test_cancellation_is_judged_by_all_accumulated_terms() -> None:
    """1e8 + 1 - 1e8 is 1 with an error of 1e-8, so after subtracting 1 the remainder counts as zero."""
    large = tracked(sp.csr_matrix([[1e8 + 0.1]]))
    left = subtract(large, tracked(sp.csr_matrix([[1e8]])))
    assert left.values.nnz == 1
    assert left.bounds[0] > 2e8
    assert subtract(left, tracked(sp.csr_matrix([[0.1]]))).values.nnz == 0
    tiny = tracked(sp.csr_matrix([[1e-200, 0.0], [0.0, 1e200]]))
    np.testing.assert_array_equal(
        multiply(tiny, tracked(sp.identity(2, format="csr"))).values.toarray(), tiny.values.toarray()
    )


def test_rows_are_compared_if_columns_times_features_exceed_32_bits() -> None:
    """Two identical rows x_1 <= theta_k are merged."""
    n, features = 3_000, 800_000
    A = AffineMatrix.of(Pattern((2, n), np.array([0, 1]), np.array([0, 0])), tracked(sp.csr_matrix(np.ones((2, 1)))))
    A = AffineMatrix(A.constant, A.rows, A.cols, tracked(sp.csr_matrix((0, features))))
    b = sp.csr_matrix((np.ones(2), ([0, 1], [features - 1, features - 1])), shape=(2, features + 1))
    assert drop_redundant_rows(A, tracked(b), Cones(nonnegative=2), np.zeros(2, dtype=bool)).shape == (1, 2)


def test_structural_zeros_are_not_features() -> None:
    case = family("attribute_parameters")
    program = case.program(self_check=True)
    assert program.features.size == 9 + 3 + 3 + 3  # symmetric, diagonal, nonnegative, sparse
    features = program.features.apply([value[None] for value in case.values()], 1)
    pulled = program.split(program.features.pull(features, np.ones_like(features)))
    np.testing.assert_array_equal(pulled[1][0], np.eye(3))
    np.testing.assert_array_equal(pulled[3][0], case.values()[3] != 0)
