"""Numeric LDL' of a fixed pattern for several matrices at once, compiled.

The batch is the innermost axis: a vector is an array (N, V) of V elements, the lanes, and every scalar operation of the
textbook algorithm becomes one vector instruction on V numbers. V is the length of the tuple ``lanes`` that every
function takes first, so it is known when the function is compiled; 8 is a vector register, 1 a single matrix.

The factorisation is up-looking (row after row). Runs of up to four neighbouring columns with the same pattern below
them (supernodes) are handled together, which saves most of the loads and stores of a dense part. What compilers do not
vectorise by themselves, loops over indirect rows, is written in LLVM's vector types here: ``eliminate``, ``substitute``
and ``column_products``.

Everything here is inlined into the few entry points that are cached on disk.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba import int64, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from convexlayer.program import Array, IndexArray

__all__ = ["RUN", "LanePlan", "column_products", "factorise", "multiply", "solve_in_place"]

RUN = 4
"""Columns that are handled together."""

PIVOT = 1e-13
"""Pivots of the wrong sign, or smaller than this, are replaced ..."""

BUMPED = 2e-7
"""... by this, with the right sign."""

_INDEX = ir.IntType(64)


class LanePlan(NamedTuple):
    """The symbolic factorisation of the permuted matrix, as arrays of indices (int32).

    Attributes:
        column_start: where each column of the upper triangle starts, (N + 1,).
        row: row of each entry of the upper triangle, the diagonal last in its column, (nnz,).
        factor_start: where each column of L starts, (N + 1,).
        factor_row: row of each entry of L, ascending in a column, (nnz(L),).
        run_start: where the runs of each row of L start, (N + 1,).
        run_column: first column of each run.
        run_length: its number of columns, 1 or RUN.
        run_end: position in L of the row's entry in the last column of the run.
        chunk_column: first columns of the runs that all columns of L fall into, for the triangular solves.
        chunk_length: their lengths, 1 or RUN.
        signs: expected sign of each pivot, (N,) float.
        permutation: original index of each permuted one, (N,).
    """

    column_start: IndexArray
    row: IndexArray
    factor_start: IndexArray
    factor_row: IndexArray
    run_start: IndexArray
    run_column: IndexArray
    run_length: IndexArray
    run_end: IndexArray
    chunk_column: IndexArray
    chunk_length: IndexArray
    signs: Array
    permutation: IndexArray


class _Lanes:
    """LLVM values of one intrinsic: vectors of V doubles in arrays whose last axis is the lanes."""

    def __init__(self, context: Any, builder: Any, count: int) -> None:
        self.context, self.builder = context, builder
        self.vector = ir.VectorType(ir.DoubleType(), count)
        self.count = _INDEX(count)

    def data(self, kind: Any, value: Any) -> Any:
        return self.context.make_array(kind)(self.context, self.builder, value).data

    def index(self, value: Any) -> Any:
        return value if value.type == _INDEX else self.builder.sext(value, _INDEX)

    def entry(self, indices: Any, position: Any) -> Any:
        return self.index(self.builder.load(self.builder.gep(indices, [position], inbounds=True)))

    def load(self, data: Any, row: Any) -> Any:
        loaded = self.builder.load(self._address(data, row))
        loaded.align = 8
        return loaded

    def store(self, data: Any, row: Any, value: Any) -> None:
        stored = self.builder.store(value, self._address(data, row))
        stored.align = 8

    def multiply_add(self, total: Any, left: Any, right: Any) -> Any:
        flags = ("contract",)
        return self.builder.fadd(total, self.builder.fmul(left, right, flags=flags), flags=flags)

    def _address(self, data: Any, row: Any) -> Any:
        start = self.builder.gep(data, [self.builder.mul(row, self.count)], inbounds=True)
        return self.builder.bitcast(start, self.vector.as_pointer())


def _eliminate(width: int) -> Any:
    """``eliminate``: y[row[first + c]] -= sum over q < width of L[positions[q] + c] y[j + q], for c < count."""

    def typed(_: Any, lanes: Any, y: Any, L: Any, row: Any, first: Any, count: Any, j: Any, positions: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _, y_type, L_type, row_type, *_ = signature.args
            _, y_value, L_value, row_value, first_, count_, j_, positions_ = arguments
            at = _Lanes(context, builder, signature.args[0].count)
            y_data, L_data, rows = at.data(y_type, y_value), at.data(L_type, L_value), at.data(row_type, row_value)
            first_, count_, j_ = at.index(first_), at.index(count_), at.index(j_)
            starts = [at.index(start) for start in cgutils.unpack_tuple(builder, positions_, width)]
            factors = [builder.fneg(at.load(y_data, builder.add(j_, _INDEX(q)))) for q in range(width)]
            with cgutils.for_range_slice(builder, _INDEX(0), count_, _INDEX(1), _INDEX) as (c, _):
                i = at.entry(rows, builder.add(first_, c))
                total = at.load(y_data, i)
                for start, factor in zip(starts, factors, strict=True):
                    total = at.multiply_add(total, at.load(L_data, builder.add(start, c)), factor)
                at.store(y_data, i, total)
            return context.get_dummy_value()

        return types.void(lanes, y, L, row, first, count, j, positions), generate

    return intrinsic(typed)


def _substitute(width: int) -> Any:
    """``substitute``: y[j + q] -= sum over c < count of L[positions[q] + c] y[row[first + c]], for q < width."""

    def typed(_: Any, lanes: Any, y: Any, L: Any, row: Any, first: Any, count: Any, j: Any, positions: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _, y_type, L_type, row_type, *_ = signature.args
            _, y_value, L_value, row_value, first_, count_, j_, positions_ = arguments
            at = _Lanes(context, builder, signature.args[0].count)
            y_data, L_data, rows = at.data(y_type, y_value), at.data(L_type, L_value), at.data(row_type, row_value)
            first_, count_, j_ = at.index(first_), at.index(count_), at.index(j_)
            starts = [at.index(start) for start in cgutils.unpack_tuple(builder, positions_, width)]
            totals = [cgutils.alloca_once(builder, at.vector) for _ in range(width)]
            for q, total in enumerate(totals):
                builder.store(at.load(y_data, builder.add(j_, _INDEX(q))), total)
            with cgutils.for_range_slice(builder, _INDEX(0), count_, _INDEX(1), _INDEX) as (c, _):
                known = builder.fneg(at.load(y_data, at.entry(rows, builder.add(first_, c))))
                for start, total in zip(starts, totals, strict=True):
                    left = at.load(L_data, builder.add(start, c))
                    builder.store(at.multiply_add(builder.load(total), left, known), total)
            for q, total in enumerate(totals):
                at.store(y_data, builder.add(j_, _INDEX(q)), builder.load(total))
            return context.get_dummy_value()

        return types.void(lanes, y, L, row, first, count, j, positions), generate

    return intrinsic(typed)


_eliminate_one, _eliminate_run = _eliminate(1), _eliminate(RUN)
_substitute_one, _substitute_run = _substitute(1), _substitute(RUN)


@intrinsic  # type: ignore[misc, untyped-decorator, unused-ignore]
def column_products(
    _: Any, lanes: Any, M: Any, row: Any, first: Any, last: Any, x: Any, j: Any, out: Any, z: Any, out_t: Any
) -> Any:
    """One column of M x and of M'z: out[row[p]] += M[p] x[j] and out_t[j] += M[p] z[row[p]], for first <= p < last."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, M_type, row_type, _, _, x_type, _, out_type, z_type, out_t_type = signature.args
        _, M_value, row_value, first_, last_, x_value, j_, out_value, z_value, out_t_value = arguments
        at = _Lanes(context, builder, signature.args[0].count)
        M_data, rows = at.data(M_type, M_value), at.data(row_type, row_value)
        x_data, out_data = at.data(x_type, x_value), at.data(out_type, out_value)
        z_data, out_t_data = at.data(z_type, z_value), at.data(out_t_type, out_t_value)
        first_, last_, j_ = at.index(first_), at.index(last_), at.index(j_)
        factor = at.load(x_data, j_)
        total = cgutils.alloca_once_value(builder, ir.Constant(at.vector, [0.0] * signature.args[0].count))
        with cgutils.for_range_slice(builder, first_, last_, _INDEX(1), _INDEX) as (p, _):
            i = at.entry(rows, p)
            value = at.load(M_data, p)
            builder.store(at.multiply_add(builder.load(total), value, at.load(z_data, i)), total)
            at.store(out_data, i, at.multiply_add(at.load(out_data, i), value, factor))
        at.store(out_t_data, j_, builder.fadd(at.load(out_t_data, j_), builder.load(total)))
        return context.get_dummy_value()

    return types.void(lanes, M, row, first, last, x, j, out, z, out_t), generate


@njit(nogil=True, error_model="numpy")
def factorise(lanes: Any, plan: LanePlan, values: Array, L: Array, D: Array, D_inverse: Array, y: Array) -> None:
    """L D L' of V matrices, unit lower triangular L.

    A pivot of the wrong sign or below PIVOT is replaced by a small one of the right sign, which refinement mends.

    Args:
        lanes: a tuple of V floats.
        plan: the symbolic factorisation.
        values: upper triangles, (nnz, V).
        L: out, (nnz(L), V).
        D: out, (N, V).
        D_inverse: out, (N, V).
        y: work, (N, V), zero on entry and on return.
    """
    V = len(lanes)
    start, row, Lp, Li = plan.column_start, plan.row, plan.factor_start, plan.factor_row
    for k in range(len(Lp) - 1):
        last = start[k + 1] - 1
        for p in range(start[k], last):
            i = row[p]
            for v in range(V):
                y[i, v] = values[p, v]
        for v in range(V):
            D[k, v] = values[last, v]
        for t in range(plan.run_start[k], plan.run_start[k + 1]):
            j, end = plan.run_column[t], plan.run_end[t]
            if plan.run_length[t] == 1:
                count = end - Lp[j]
                _eliminate_one(lanes, y, L, Li, Lp[j], count, j, (Lp[j],))
                for v in range(V):
                    pivot_row = y[j, v]
                    entry = pivot_row * D_inverse[j, v]
                    D[k, v] -= entry * pivot_row
                    L[end, v] = entry
                    y[j, v] = 0.0
            else:
                p0, p1, p2, p3 = int64(Lp[j]), int64(Lp[j + 1]), int64(Lp[j + 2]), int64(Lp[j + 3])
                for v in range(V):
                    y[j + 1, v] -= L[p0, v] * y[j, v]
                    y[j + 2, v] -= L[p0 + 1, v] * y[j, v] + L[p1, v] * y[j + 1, v]
                    y[j + 3, v] -= L[p0 + 2, v] * y[j, v] + L[p1 + 1, v] * y[j + 1, v] + L[p2, v] * y[j + 2, v]
                count = end - p3
                positions = (p0 + 3, p1 + 2, p2 + 1, p3)
                _eliminate_run(lanes, y, L, Li, p3, count, j, positions)
                for q in range(RUN):
                    target = positions[q] + count
                    for v in range(V):
                        pivot_row = y[j + q, v]
                        entry = pivot_row * D_inverse[j + q, v]
                        D[k, v] -= entry * pivot_row
                        L[target, v] = entry
                        y[j + q, v] = 0.0
        sign = plan.signs[k]
        for v in range(V):
            pivot = D[k, v] if D[k, v] * sign > PIVOT else sign * BUMPED
            D[k, v] = pivot
            D_inverse[k, v] = 1.0 / pivot


@njit(nogil=True, error_model="numpy")
def solve_in_place(lanes: Any, plan: LanePlan, L: Array, D_inverse: Array, x: Array) -> None:
    """x <- (L D L')^-1 x, (N, V), in permuted order."""
    V = len(lanes)
    Lp, Li = plan.factor_start, plan.factor_row
    chunks = len(plan.chunk_column)
    for chunk in range(chunks):
        j = plan.chunk_column[chunk]
        if plan.chunk_length[chunk] == 1:
            _eliminate_one(lanes, x, L, Li, Lp[j], Lp[j + 1] - Lp[j], j, (Lp[j],))
        else:
            p0, p1, p2, p3 = int64(Lp[j]), int64(Lp[j + 1]), int64(Lp[j + 2]), int64(Lp[j + 3])
            for v in range(V):
                x[j + 1, v] -= L[p0, v] * x[j, v]
                x[j + 2, v] -= L[p0 + 1, v] * x[j, v] + L[p1, v] * x[j + 1, v]
                x[j + 3, v] -= L[p0 + 2, v] * x[j, v] + L[p1 + 1, v] * x[j + 1, v] + L[p2, v] * x[j + 2, v]
            _eliminate_run(lanes, x, L, Li, p3, Lp[j + 4] - p3, j, (p0 + 3, p1 + 2, p2 + 1, p3))
    for i in range(len(D_inverse)):
        for v in range(V):
            x[i, v] *= D_inverse[i, v]
    for chunk in range(chunks - 1, -1, -1):
        j = plan.chunk_column[chunk]
        if plan.chunk_length[chunk] == 1:
            _substitute_one(lanes, x, L, Li, Lp[j], Lp[j + 1] - Lp[j], j, (Lp[j],))
        else:
            p0, p1, p2, p3 = int64(Lp[j]), int64(Lp[j + 1]), int64(Lp[j + 2]), int64(Lp[j + 3])
            _substitute_run(lanes, x, L, Li, p3, Lp[j + 4] - p3, j, (p0 + 3, p1 + 2, p2 + 1, p3))
            for v in range(V):
                x[j + 2, v] -= L[p2, v] * x[j + 3, v]
                x[j + 1, v] -= L[p1, v] * x[j + 2, v] + L[p1 + 1, v] * x[j + 3, v]
                x[j, v] -= L[p0, v] * x[j + 1, v] + L[p0 + 1, v] * x[j + 2, v] + L[p0 + 2, v] * x[j + 3, v]


@njit(nogil=True, error_model="numpy")
def multiply(lanes: Any, plan: LanePlan, values: Array, x: Array, out: Array) -> None:
    """Out <- M x, (N, V), for symmetric M of upper triangle ``values`` (nnz, V), in permuted order."""
    V = len(lanes)
    start, row = plan.column_start, plan.row
    for j in range(len(start) - 1):
        last = start[j + 1] - 1
        for v in range(V):
            out[j, v] = values[last, v] * x[j, v]
        column_products(lanes, values, row, start[j], last, x, j, out, x, out)
