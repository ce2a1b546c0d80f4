"""CVXPY's parametric cone program of a problem as torch operations, for peers that take program data.

    theta -> values of P, q, A, b of  minimize 1/2 x'Px + q'x  subject to  Ax + s = b, s in K

The program is the one that CVXPY passes to Clarabel (PSD blocks are upper triangles), in CSR order, without presolve
and without Convexlayer; that of a geometric program is in the logarithms of parameters and variables. The map is one
SciPy matrix, which is much faster on a CPU than a sparse torch matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
import torch
from cvxpy.utilities import scopes

from benchmarks.problem import Problem, Tensors

__all__ = ["ConeData", "ConeMap"]


@dataclass(frozen=True, eq=False)
class ConeData:
    """Values of a batch of cone programs: P (B, nnz), q (B, n), A (B, nnz), b (B, m)."""

    P: torch.Tensor
    q: torch.Tensor
    A: torch.Tensor
    b: torch.Tensor


class ConeMap:
    """The parametric cone program of a problem.

    Attributes:
        n: number of variables.
        m: number of rows.
        dims: CVXPY's cone sizes.
        P: pattern of P, a CSR matrix.
        A: pattern of A, a CSR matrix.
    """

    def __init__(self, problem: Problem) -> None:
        """Canonicalise the problem, at random parameter values."""
        for parameter, value in zip(problem.parameters, problem.draw(np.random.default_rng(0)), strict=True):
            parameter.value = value
        with scopes.quad_form_dpp_scope():
            data, chain, _ = problem.problem.get_problem_data(cp.CLARABEL, gp=problem.gp)
        program = data["param_prob"]
        self.n, self.dims, self._gp = int(program.x.size), data["dims"], problem.gp
        constraints = program.reduced_A
        constraints.cache()
        rows, columns, shape = _entries(constraints.problem_data_index)
        self.m = shape[0]
        in_b = columns == self.n
        self.A, order = _csr(rows[~in_b], columns[~in_b], (self.m, self.n))
        values = sp.csr_matrix(constraints.reduced_mat)
        A_rows = -values[np.flatnonzero(~in_b)[order]]
        scatter = sp.csr_matrix((np.ones(in_b.sum()), (rows[in_b], np.flatnonzero(in_b))), (self.m, len(rows)))
        parts = [sp.csr_matrix(program.q)[: self.n], A_rows, scatter @ values]
        self.P = sp.csr_matrix((self.n, self.n))
        if program.P is not None:
            program.reduced_P.cache()
            P_rows, P_columns, _ = _entries(program.reduced_P.problem_data_index)
            self.P, order = _csr(P_rows, P_columns, (self.n, self.n))
            parts.insert(0, sp.csr_matrix(program.reduced_P.reduced_mat)[order])
        self._map = sp.csr_matrix(sp.vstack(parts) @ _selection(program, chain, problem))
        self._transpose = sp.csr_matrix(self._map.T)
        self._splits = [self.P.nnz, self.n, self.A.nnz, self.m]
        self._variables = [_Recovery(variable, program, chain) for variable in problem.variables]

    def data(self, theta: Tensors) -> ConeData:
        """The program values of a batch; differentiable by autograd."""
        batch = theta[0].shape[0]
        theta = tuple(t.log() for t in theta) if self._gp else theta
        flat = [t.movedim(tuple(range(1, t.ndim)), tuple(range(t.ndim - 1, 0, -1))).reshape(batch, -1) for t in theta]
        features = torch.cat([*flat, torch.ones(batch, 1, dtype=torch.float64)], dim=1)
        apply: Any = _SparseMap.apply  # untyped in torch
        values: torch.Tensor = apply(features, self._map, self._transpose)
        P, q, A, b = values.split(self._splits, dim=1)
        return ConeData(P.contiguous(), q.contiguous(), A.contiguous(), b.contiguous())

    def outputs(self, x: torch.Tensor) -> Tensors:
        """The variables of the problem, from the program's x (B, n)."""
        values = tuple(recovery(x) for recovery in self._variables)
        return tuple(value.exp() for value in values) if self._gp else values


class _SparseMap(torch.autograd.Function):
    """Product with a SciPy matrix, (B, p) -> (B, rows)."""

    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, matrix: sp.csr_matrix, transpose: sp.csr_matrix) -> torch.Tensor:
        ctx.transpose = transpose
        return torch.from_numpy(np.ascontiguousarray((matrix @ features.numpy().T).T))

    @staticmethod
    def backward(ctx: Any, cotangent: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return torch.from_numpy(np.ascontiguousarray((ctx.transpose @ cotangent.numpy().T).T)), None, None


class _Recovery:
    """Extracts a variable from x, where it is stored column by column, or as an upper triangle if it is symmetric."""

    def __init__(self, variable: cp.Variable, program: Any, chain: Any) -> None:
        (identity,) = chain.compose_var_id_map().get(variable.id, (variable.id,))
        start = program.var_id_to_col[identity]
        if variable.is_symmetric() and variable.ndim == 2:
            position = np.zeros(variable.shape, dtype=np.int64)
            rows, columns = np.triu_indices(variable.shape[0])
            position[rows, columns] = position[columns, rows] = start + np.arange(len(rows))
        else:
            position = start + np.arange(variable.size).reshape(variable.shape, order="F")
        self._position = torch.from_numpy(np.ascontiguousarray(position.reshape(-1)))
        self._shape = variable.shape

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, self._position].reshape(len(x), *self._shape)


def _entries(index: tuple[Any, Any, tuple[int, int]]) -> tuple[Any, Any, tuple[int, int]]:
    """Rows and columns of a CSC pattern."""
    indices, indptr, shape = index
    return np.asarray(indices), np.repeat(np.arange(shape[1]), np.diff(indptr)), shape


def _csr(rows: Any, columns: Any, shape: tuple[int, int]) -> tuple[sp.csr_matrix, Any]:
    """A CSR pattern, and the permutation that sorts the entries into it."""
    order = np.lexsort((columns, rows))
    pattern = sp.csr_matrix((np.ones(len(rows)), (rows[order], columns[order])), shape)
    return pattern, order


def _selection(program: Any, chain: Any, problem: Problem) -> sp.csr_matrix:
    """The matrix from our features (all parameters column by column, then 1) to CVXPY's parameter vector.

    CVXPY stores the upper triangle of a symmetric parameter, row by row.
    """
    renamed = chain.compose_param_id_map()
    ours, theirs, start = [], [], 0
    for parameter in problem.parameters:
        (identity,) = renamed.get(parameter.id, (parameter.id,))
        kept = np.arange(parameter.size)
        if program.param_id_to_size[identity] < parameter.size:
            rows, columns = np.triu_indices(parameter.shape[0])
            kept = rows + parameter.shape[0] * columns
        ours.append(start + kept)
        theirs.append(program.param_id_to_col[identity] + np.arange(len(kept)))
        start += parameter.size
    ours.append(np.array([start]))
    theirs.append(np.array([program.total_param_size]))
    entries = (np.concatenate(theirs), np.concatenate(ours))
    return sp.csr_matrix((np.ones(len(entries[0])), entries), (program.total_param_size + 1, start + 1))
