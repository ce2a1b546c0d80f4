"""Translation of CVXPY's canonical form to a ParametricProgram."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
from cvxpy.lin_ops.lin_op import CONSTANT_ID
from cvxpy.reductions.cvx_attr2constr import CvxAttr2Constr
from cvxpy.reductions.dcp2cone.cone_matrix_stuffing import ParamConeProg
from cvxpy.reductions.dgp2dcp.dgp2dcp import Dgp2Dcp

from convexlayer.canon.affine_map import AffineMap, Features
from convexlayer.canon.frontend import CanonicalForm
from convexlayer.canon.parameters import ParameterSpec, specification
from convexlayer.canon.parametric import Objective, ParametricProgram
from convexlayer.canon.recovery import OutputSpec, Recovery
from convexlayer.errors import ProblemError, UnsupportedError
from convexlayer.program import Array, Cones, IndexArray, Pattern, Structure

__all__ = ["parametric_program", "recovery_of"]

ENTRYWISE_RTOL = 1e-12
"""Relative difference that rounding explains between a recovered variable and one entry of the solution times a factor:
the few operations of CVXPY's inversion leave about 1e-15."""


def parametric_program(
    form: CanonicalForm, parameters: Sequence[cp.Parameter], variables: Sequence[cp.Variable]
) -> ParametricProgram:
    """Translate a canonical form; the detached problem has kept the ids of the user's parameters and variables."""
    specs = tuple(specification(parameter) for parameter in parameters)
    into_columns, features = _feature_map(form, parameters, specs)
    structure, data = _program_data(form.param_prog, into_columns)
    maximize = isinstance(form.problem.objective, cp.Maximize)
    return ParametricProgram(
        parameters=specs,
        structure=structure,
        features=features,
        data=data,
        recovery=recovery_of(form, variables, structure),
        objective=Objective(maximize=maximize, log=form.geometric),
    )


def _feature_map(
    form: CanonicalForm, parameters: Sequence[cp.Parameter], specs: Sequence[ParameterSpec]
) -> tuple[sp.csr_matrix, Features]:
    """The linear map from (features, 1) to CVXPY's parameter vector, whose last entry is the constant 1, and Features.

    A reduction of CVXPY may replace a parameter by another one: its logarithm, the upper triangle of a symmetric one,
    the entries of a sparse one. Arrays of positions are sent through the replacements to trace each entry. A triangle
    of a symmetric parameter is read as the mean of both triangles, so that the gradient is symmetric.
    """
    param_prog = form.param_prog
    taken = Features.of_parameters(specs, np.zeros(0, dtype=np.int64))
    positions, mirror = _positions(parameters, specs)
    for reduction in form.chain.reductions[:-1]:
        for old, new_ids in reduction.param_id_map.items():
            if old not in positions:
                continue
            if isinstance(reduction, Dgp2Dcp):
                positions[new_ids[0]] = (positions[old][0], True)
            elif isinstance(reduction, CvxAttr2Constr):
                where, log = positions.pop(old)
                positions[new_ids[0]] = (np.asarray(reduction.param_forward({old: where})[new_ids[0]]), log)
            else:
                raise UnsupportedError(
                    f"CVXPY's reduction {type(reduction).__name__} replaces parameters in an unknown way"
                )
    rows: list[IndexArray] = []
    cols: list[IndexArray] = []
    weights: list[Array] = []
    log_positions: list[IndexArray] = []
    n_log = 0
    for param_id, column in param_prog.param_id_to_col.items():
        if param_id == CONSTANT_ID:
            continue
        if param_id not in positions:
            raise UnsupportedError("CVXPY's canonical form has a parameter that is not in the problem")
        where, log = positions[param_id]
        flat = where.ravel(order="F").astype(np.int64)
        target = column + np.arange(len(flat), dtype=np.int64)
        target, flat = target[flat >= 0], flat[flat >= 0]
        if log:
            log_positions.append(flat)
            rows.append(target)
            cols.append(taken.entries + n_log + np.arange(len(flat), dtype=np.int64))
            weights.append(np.ones(len(flat)))
            n_log += len(flat)
        else:
            rows += [target, target]
            cols += [flat, mirror[flat]]
            weights.append(np.full(2 * len(flat), 0.5))
    features = replace(taken, log=np.concatenate([np.zeros(0, dtype=np.int64), *log_positions]))
    rows.append(np.array([param_prog.total_param_size]))
    cols.append(np.array([features.size]))
    weights.append(np.ones(1))
    shape = (param_prog.total_param_size + 1, features.size + 1)
    into = sp.coo_matrix((np.concatenate(weights), (np.concatenate(rows), np.concatenate(cols))), shape=shape).tocsr()
    return into, features


def _positions(
    parameters: Sequence[cp.Parameter], specs: Sequence[ParameterSpec]
) -> tuple[dict[int, tuple[Array, bool]], IndexArray]:
    """Positions of parameter entries in the feature vector by id, paired with log=False; positions of mirror images.

    The position of a structural zero is -1. The mirror image of entry (i, j) of a symmetric parameter is (j, i);
    entries of other parameters are their own mirror images.
    """
    positions: dict[int, tuple[Array, bool]] = {}
    mirrors: list[IndexArray] = [np.zeros(0, dtype=np.int64)]
    start = 0
    for parameter, spec in zip(parameters, specs, strict=True):
        count = spec.size if spec.entries is None else len(spec.entries)
        own = start + np.arange(count, dtype=np.int64)
        where = np.full(spec.size, -1, dtype=np.int64)
        where[slice(None) if spec.entries is None else spec.entries] = own
        where = where.reshape(spec.shape)
        symmetric = spec.attributes & {"symmetric", "PSD", "NSD"}
        mirrors.append(where.swapaxes(-1, -2).ravel() if symmetric else own)
        positions[parameter.id] = where.astype(float), False
        start += count
    return positions, np.concatenate(mirrors)


def _program_data(param_prog: ParamConeProg, into_columns: sp.csr_matrix) -> tuple[Structure, AffineMap]:
    """The structure, and the affine map from features to (P, q, r, A, b).

    CVXPY's tensors have one row per entry of [A b] (or [q; r], or P) in column-major order, and one column per entry of
    the parameter vector. CVXPY's constraints are A x + b in K, and its P is already doubled.
    """
    dims = param_prog.cone_dims
    cones = Cones(dims.zero, dims.nonneg, tuple(dims.soc), tuple(dims.psd), dims.exp, tuple(float(a) for a in dims.p3d))
    n, m = int(param_prog.x.size), cones.m
    if param_prog.A.shape[0] != m * (n + 1):
        raise UnsupportedError(
            f"CVXPY's canonical form has {param_prog.A.shape[0]} entries where the cones call for {m * (n + 1)}"
        )
    index, A_and_b = _entries(param_prog.A, into_columns)
    split = int(np.searchsorted(index, m * n))
    A_pattern, b_rows = _pattern(index[:split], (m, n)), index[split:] - m * n
    q_and_r_rows, q_and_r = _entries(param_prog.q, into_columns)
    P_pattern, P = _symmetric_part(param_prog.P, into_columns, n)
    starts = np.cumsum([0, P_pattern.nnz, n + 1, A_pattern.nnz, m])
    places = [np.arange(P_pattern.nnz), q_and_r_rows, np.arange(A_pattern.nnz), b_rows]
    rows = np.concatenate([start + place for start, place in zip(starts[:-1], places, strict=True)])
    stacked = sp.vstack([P, q_and_r, -A_and_b[:split], A_and_b[split:]]).tocoo()
    shape = (int(starts[-1]), into_columns.shape[1])
    everything = sp.coo_matrix((stacked.data, (rows[stacked.row], stacked.col)), shape=shape).tocsc()
    constant = everything[:, [-1]].toarray()[:, 0]
    matrix = everything[:, :-1].tocsr()
    matrix.sort_indices()
    if not (np.all(np.isfinite(constant)) and np.all(np.isfinite(matrix.data))):
        raise ProblemError(
            "the problem has coefficients that are not finite: a constant in it is infinite or not a number, or an "
            "expression of constants divides by zero or overflows; leave out constraints with infinite bounds"
        )
    return Structure(P_pattern, A_pattern, cones), AffineMap(matrix, constant)


def _entries(tensor: Any, into_columns: sp.csr_matrix) -> tuple[IndexArray, sp.csr_matrix]:
    """Indices of the nonzero rows of a tensor, and these rows as functions of the features.

    A tensor has one row per entry of a dense matrix, so memory must scale with its nonzero rows only.
    """
    coordinates = tensor.tocoo()
    index, place = np.unique(coordinates.row.astype(np.int64), return_inverse=True)
    compact = sp.csr_matrix((coordinates.data, (place, coordinates.col)), shape=(len(index), tensor.shape[1]))
    values = (compact @ into_columns).tocsr()
    values.eliminate_zeros()
    kept = np.flatnonzero(np.diff(values.indptr))
    return index[kept], values[kept]


def _pattern(index: IndexArray, shape: tuple[int, int]) -> Pattern:
    """The sparsity pattern of column-major linear indices."""
    height = max(shape[0], 1)
    return Pattern(shape, index % height, index // height)


def _symmetric_part(tensor: Any, into_columns: sp.csr_matrix, n: int) -> tuple[Pattern, sp.csr_matrix]:
    """Pattern and entries of (P + P') / 2 from the tensor of P; empty without a tensor."""
    if tensor is None:
        nothing = np.zeros(0, dtype=np.int64)
        return _pattern(nothing, (n, n)), sp.csr_matrix((0, into_columns.shape[1]))
    index, values = _entries(tensor, into_columns)
    flipped = index % n * n + index // n
    both, place = np.unique(np.concatenate([index, flipped]), return_inverse=True)
    half = np.full(2 * len(index), 0.5)
    mean = sp.csr_matrix((half, (place, np.tile(np.arange(len(index)), 2))), shape=(len(both), len(index)))
    return _pattern(both, (n, n)), (mean @ values).tocsr()


def recovery_of(form: CanonicalForm, variables: Sequence[cp.Variable], structure: Structure) -> Recovery:
    """Determine the recovery matrix by sending three probe vectors through CVXPY's inverse reductions.

    Each output entry must be a multiple of one entry of x or y. The probe of ones gives the factor, the probe of
    positions the index, and the random probe verifies both.

    Raises:
        UnsupportedError: an output is not an entrywise multiple of the solution.
    """
    primal = {variable.id for variable in form.problem.variables()}
    size = max(structure.n, structure.m)
    rng = np.random.default_rng(0)
    probes = [np.ones(size), np.arange(1.0, size + 1.0), rng.uniform(1.0, 2.0, size)]
    answers = [
        _primal_values(form, probe[: structure.n]) | _dual_values(form, probe[: structure.m], structure)
        for probe in probes
    ]
    outputs: list[OutputSpec] = []
    rows: list[IndexArray] = []
    cols: list[IndexArray] = []
    scales: list[Array] = []
    start = 0
    for variable in variables:
        is_primal = variable.id in primal
        if variable.id not in answers[0]:
            raise UnsupportedError(f"CVXPY does not give a value to {variable.name()!r} after canonicalisation")
        ones, places, check = (_dense(answer[variable.id], variable.shape) for answer in answers)
        nonzero = np.flatnonzero(ones)
        column = np.rint(places[nonzero] / ones[nonzero]).astype(np.int64) - 1
        expected = np.zeros_like(check)
        if np.all((column >= 0) & (column < size)):
            expected[nonzero] = ones[nonzero] * probes[2][column]
        if not np.allclose(check, expected, rtol=ENTRYWISE_RTOL, atol=0.0):
            raise UnsupportedError(
                f"the value of {variable.name()!r} is not an entrywise multiple of the cone program's solution"
            )
        outputs.append(OutputSpec(variable.name(), variable.shape, log=form.geometric and is_primal))
        rows.append(start + nonzero)
        cols.append(column if is_primal else column + structure.n)
        scales.append(ones[nonzero])
        start += variable.size
    entries = (np.concatenate(scales), (np.concatenate(rows), np.concatenate(cols)))
    matrix = sp.coo_matrix(entries, shape=(start, structure.n + structure.m)).tocsr()
    return Recovery(tuple(outputs), matrix, structure.n)


def _primal_values(form: CanonicalForm, x: Array) -> dict[int, Any]:
    """Values of the problem's variables at x by id; their logarithms in a geometric program."""
    param_prog = form.param_prog
    sizes = {variable.id: variable for variable in param_prog.variables}
    values: dict[int, Any] = {
        var_id: x[start : start + sizes[var_id].size].reshape(sizes[var_id].shape, order="F")
        for var_id, start in param_prog.var_id_to_col.items()
    }
    for reduction in reversed(form.chain.reductions[:-1]):
        if isinstance(reduction, Dgp2Dcp):
            back = {new[0]: old for old, new in reduction.var_id_map.items()}
            values = {back.get(var_id, var_id): value for var_id, value in values.items()}
        else:
            values = reduction.var_forward(values)
    for variable in form.problem.variables():
        values.setdefault(variable.id, np.zeros(variable.shape))
    return values


def _dual_values(form: CanonicalForm, y: Array, structure: Structure) -> dict[int, Any]:
    """Values of the dual variables of the problem's constraints at y, by id of the dual variable.

    They are computed by inverting CVXPY's chain of reductions at a solution with duals y.
    """
    zero = structure.cones.zero
    solution = {
        "status": "optimal",
        "value": 0.0,
        "primal": np.zeros(structure.n),
        "eq_dual": y[:zero],
        "ineq_dual": y[zero:],
    }
    duals = form.chain.invert(solution, form.inverse_data).dual_vars
    values: dict[int, Any] = {}
    for constraint in form.problem.constraints:
        if constraint.id in duals:
            constraint.save_dual_value(duals[constraint.id])
            values |= {dual.id: dual.value for dual in constraint.dual_variables if dual.value is not None}
    return values


def _dense(value: Any, shape: tuple[int, ...]) -> Array:
    """Convert a recovered value to a flat row-major vector."""
    array = value.toarray() if sp.issparse(value) else np.asarray(value, dtype=float)
    return np.broadcast_to(array.reshape(shape), shape).ravel().astype(float)
