"""CVXPY -> ParametricProgram. The only file that knows CVXPY's internals; written for CVXPY 1.9.

CVXPY canonicalises a detached copy of the problem, every parameter unset, for a solver class of our own that takes
our cones in our order. What this file does not know raises: a constraint is never dropped, a parameter never frozen.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
from cvxpy.constraints import SOC, ExpCone, PowCone3D, SvecPSD
from cvxpy.constraints.constraint import Constraint
from cvxpy.lin_ops.lin_op import CONSTANT_ID
from cvxpy.reductions.cvx_attr2constr import CvxAttr2Constr
from cvxpy.reductions.dcp2cone.cone_matrix_stuffing import ParamConeProg
from cvxpy.reductions.dgp2dcp.dgp2dcp import Dgp2Dcp
from cvxpy.reductions.eval_params import EvalParams
from cvxpy.reductions.solvers.conic_solvers.conic_solver import ConicSolver
from cvxpy.utilities.canonical import Canonical
from cvxpy.utilities.psd_utils import TriangleKind

from convexlayer.canon.affine_map import AffineMap, Features
from convexlayer.canon.parametric import Objective, ParameterSpec, ParametricProgram
from convexlayer.canon.recovery import OutputSpec, Recovery
from convexlayer.errors import NotDPPError, ProblemError, UnsupportedError
from convexlayer.program import Array, Cones, IndexArray, Pattern, Structure

__all__ = ["CanonicalForm", "canonical_form", "detached", "parametric_program"]

SUPPORTED_VERSIONS = ("1.9.",)


class _StandardForm(ConicSolver):
    """The solver that CVXPY canonicalises for: the standard form of ``program.py``, with nothing instantiated."""

    SUPPORTED_CONSTRAINTS = [*ConicSolver.SUPPORTED_CONSTRAINTS, SOC, SvecPSD, ExpCone, PowCone3D]  # noqa: RUF012 (CVXPY's own form)
    PSD_TRIANGLE_KIND = TriangleKind.LOWER
    PSD_SQRT2_SCALING = True
    EXP_CONE_ORDER = [0, 1, 2]  # noqa: RUF012 (CVXPY's own form)

    def name(self) -> str:
        return "CONVEXLAYER"

    def import_solver(self) -> None:
        """Nothing to import: nothing is solved here."""

    def supports_quad_obj(self) -> bool:
        return True

    def cite(self, data: Any) -> str:
        return ""

    def apply(self, problem: ParamConeProg) -> tuple[dict[str, Any], dict[str, Any]]:
        _, data, inverse_data = self._prepare_data_and_inv_data(problem)
        inverse_data["offset"] = 0.0
        return data, inverse_data

    def solve_via_data(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("the standard form is solved by convexlayer.solvers")


@dataclass(frozen=True, eq=False)
class CanonicalForm:
    """What CVXPY made of a detached problem."""

    problem: cp.Problem
    param_prog: ParamConeProg
    chain: Any
    inverse_data: Any

    @property
    def geometric(self) -> bool:
        """Whether the program was posed in logarithms."""
        return any(isinstance(reduction, Dgp2Dcp) for reduction in self.chain.reductions)


def detached(problem: cp.Problem) -> cp.Problem:
    """A structural copy of a problem: same ids, parameters unset, nothing shared that CVXPY writes to.

    Cached curvature and canonical forms are left behind, since they may have been computed from parameter values.
    """
    memo: dict[int, Any] = {}

    def clone(value: Any) -> Any:
        if isinstance(value, cp.Problem):
            return cp.Problem(clone(value.objective), [clone(constraint) for constraint in value.constraints])
        if isinstance(value, list | tuple):
            parts = [clone(part) for part in value]
            return type(value)(parts) if type(value) in (list, tuple) else copy.copy(value)
        if isinstance(value, dict):
            return {key: clone(part) for key, part in value.items()}
        if not isinstance(value, Canonical):
            return value
        if id(value) not in memo:
            new = object.__new__(type(value))
            memo[id(value)] = new
            for key, part in vars(value).items():
                if not key.endswith("__cache__") and not key.startswith("_lazy"):
                    new.__dict__[key] = clone(part)
            if isinstance(value, cp.Parameter):
                new._value = None
        return memo[id(value)]

    copied: cp.Problem = clone(problem)
    return copied


def canonical_form(problem: cp.Problem, *, gp: bool) -> CanonicalForm:
    """Canonicalise a detached problem, after checking that it is one of those we know.

    Raises:
        ProblemError: not DCP (or DGP), or without variables.
        NotDPPError: parameters are used in a way that program data are not affine in them.
        UnsupportedError: integer or complex leaves, DQCP, another CVXPY release, or a form we do not know.
    """
    _check_version()
    _check_kind(problem, gp=gp)
    try:
        data, chain, inverse_data = problem.get_problem_data(_StandardForm(), gp=gp)
    except Exception as error:
        raise _explain(error, problem) from error
    if any(isinstance(reduction, EvalParams) for reduction in chain.reductions):
        raise NotDPPError(_NOT_DPP)
    if not isinstance(data, dict) or not isinstance(data.get("param_prob"), ParamConeProg):
        raise UnsupportedError(f"CVXPY canonicalised the problem to {type(data).__name__}, not to a parametric cone program")
    param_prog: ParamConeProg = data["param_prob"]
    _check_program(param_prog)
    return CanonicalForm(problem, param_prog, chain, inverse_data)


_NOT_DPP = (
    "the problem is not DPP: its data are not affine in the parameters. Products of two parameters, or of a parameter "
    "and a nonlinear function of another, must be replaced by a new parameter (compute the product outside); see "
    "https://www.cvxpy.org/tutorial/dpp"
)


def _check_version() -> None:
    if not cp.__version__.startswith(SUPPORTED_VERSIONS):
        expected = " or ".join(version + "x" for version in SUPPORTED_VERSIONS)
        raise UnsupportedError(f"this release reads the internals of CVXPY {expected}; installed is {cp.__version__}")


def _check_kind(problem: cp.Problem, *, gp: bool) -> None:
    leaves = [*problem.variables(), *problem.parameters(), *problem.constants()]
    if not problem.variables():
        raise ProblemError("the problem has no variables: there is nothing to solve for")
    if problem.is_mixed_integer():
        raise UnsupportedError("the problem has boolean or integer variables: its solution map is piecewise constant")
    if any(leaf.is_complex() for leaf in leaves):
        raise UnsupportedError(
            "the problem has complex variables, parameters or constants; write it with real and imaginary parts"
        )
    if gp:
        if not problem.is_dgp():
            raise ProblemError("the problem is not a disciplined geometric program; leave out gp=True or see problem.is_dgp()")
        if not problem.is_dpp("dgp"):
            raise NotDPPError(_NOT_DPP)
        return
    if not problem.is_dcp():
        if problem.is_dqcp():
            raise UnsupportedError("the problem is quasiconvex (DQCP): it is solved by bisection, which has no derivative here")
        hint = "; it is a geometric program: pass gp=True" if problem.is_dgp() else ""
        raise ProblemError(f"the problem is not convex by CVXPY's rules (DCP){hint}")
    if not problem.is_dpp(quad_form_dpp="qp"):
        raise NotDPPError(_NOT_DPP)


def _explain(error: Exception, problem: cp.Problem) -> ProblemError:
    """What a failure of CVXPY's canonicalisation means."""
    if problem.parameters():
        return NotDPPError(
            f"CVXPY could not canonicalise the problem without the values of its parameters ({type(error).__name__}: "
            f"{error}). A parameter is used where its value is needed, such as quad_form(x, P) outside the objective; "
            "write sum_squares(L @ x) with P = L'L instead"
        )
    return UnsupportedError(f"CVXPY could not canonicalise the problem: {type(error).__name__}: {error}")


def _check_program(param_prog: ParamConeProg) -> None:
    """Refuse what would be lost in silence: bounds, direct cones, n-dimensional power cones, integrality."""
    unknown = {
        "variable bounds": any(
            bound is not None
            for bound in (param_prog.lower_bounds, param_prog.upper_bounds, param_prog.lb_tensor, param_prog.ub_tensor)
        ),
        "direct cones": bool(param_prog.dir_cones),
        "n-dimensional power cones": bool(param_prog.cone_dims.pnd),
        "integer variables": bool(param_prog.is_mixed_integer()),
    }
    present = [name for name, here in unknown.items() if here]
    if present:
        raise UnsupportedError(f"CVXPY's canonical form holds {', '.join(present)}, which Convexlayer does not read")


def parametric_program(
    form: CanonicalForm, parameters: Sequence[cp.Parameter], variables: Sequence[cp.Variable]
) -> ParametricProgram:
    """Read a canonical form; ``parameters`` and ``variables`` are the user's, whose ids the detached problem kept."""
    into_columns, features = _feature_map(form, parameters)
    structure, data = _program_data(form.param_prog, into_columns)
    maximize = isinstance(form.problem.objective, cp.Maximize)
    return ParametricProgram(
        parameters=tuple(_parameter_spec(parameter) for parameter in parameters),
        structure=structure,
        features=features,
        data=data,
        recovery=_recovery(form, variables, structure),
        objective=Objective(maximize=maximize, log=form.geometric),
    )


def _parameter_spec(parameter: cp.Parameter) -> ParameterSpec:
    known = ("nonneg", "nonpos", "pos", "neg", "symmetric", "PSD", "NSD", "diag")
    attributes = {name for name in known if parameter.attributes[name]}
    sparsity = None
    if parameter.sparse_idx is not None:
        attributes.add("sparse")
        sparsity = tuple(np.ravel_multi_index(parameter.sparse_idx, parameter.shape).tolist())
    return ParameterSpec(parameter.name(), parameter.shape, frozenset(attributes), sparsity)


def _feature_map(form: CanonicalForm, parameters: Sequence[cp.Parameter]) -> tuple[sp.csr_matrix, Features]:
    """Features (parameters, then logarithms) -> CVXPY's parameter vector, whose last entry is the constant 1.

    Every reduction may replace a parameter by another (its logarithm, the upper triangle of a symmetric one, the
    entries of a sparse one); arrays of positions are sent through the replacements, which shows what goes where.
    Where a symmetric parameter is replaced by a triangle, the mean of both triangles is taken, so that its gradient
    comes out symmetric. The last column of the result is the constant.
    """
    param_prog = form.param_prog
    offsets = np.cumsum([0, *(parameter.size for parameter in parameters)]).astype(np.int64)
    positions: dict[int, tuple[Array, bool]] = {}
    for parameter, offset in zip(parameters, offsets, strict=False):
        positions[parameter.id] = (np.arange(offset, offset + parameter.size, dtype=float).reshape(parameter.shape), False)
    mirror = np.concatenate(
        [
            (offset + np.arange(parameter.size).reshape(parameter.shape).swapaxes(-1, -2).ravel())
            if any(parameter.attributes[name] for name in ("symmetric", "PSD", "NSD"))
            else np.arange(offset, offset + parameter.size)
            for parameter, offset in zip(parameters, offsets, strict=False)
        ]
        or [np.zeros(0)]
    ).astype(np.int64)
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
                raise UnsupportedError(f"CVXPY's reduction {type(reduction).__name__} replaces parameters in an unknown way")
    rows: list[IndexArray] = []
    cols: list[IndexArray] = []
    weights: list[Array] = []
    log_positions: list[IndexArray] = []
    n_log = 0
    for param_id, column in param_prog.param_id_to_col.items():
        if param_id == CONSTANT_ID:
            continue
        if param_id not in positions:
            raise UnsupportedError("CVXPY's canonical form has a parameter that is none of the problem's")
        where, log = positions[param_id]
        flat = where.ravel(order="F").astype(np.int64)
        target = column + np.arange(len(flat), dtype=np.int64)
        if log:
            log_positions.append(flat)
            rows.append(target)
            cols.append(offsets[-1] + n_log + np.arange(len(flat), dtype=np.int64))
            weights.append(np.ones(len(flat)))
            n_log += len(flat)
        else:
            rows += [target, target]
            cols += [flat, mirror[flat]]
            weights.append(np.full(2 * len(flat), 0.5))
    features = Features(
        tuple(parameter.size for parameter in parameters),
        np.concatenate(log_positions) if log_positions else np.zeros(0, dtype=np.int64),
    )
    rows.append(np.array([param_prog.total_param_size]))
    cols.append(np.array([features.size]))
    weights.append(np.ones(1))
    shape = (param_prog.total_param_size + 1, features.size + 1)
    into = sp.coo_matrix((np.concatenate(weights), (np.concatenate(rows), np.concatenate(cols))), shape=shape).tocsr()
    return into, features


def _program_data(param_prog: ParamConeProg, into_columns: sp.csr_matrix) -> tuple[Structure, AffineMap]:
    """The structure, and the map from features to (P, q, r, A, b).

    CVXPY's tensors have one row an entry of [A b] (or [q; r], or P), column by column, and one column an entry of the
    parameter vector; constraints are A x + b in K there, P is already doubled.
    """
    dims = param_prog.cone_dims
    cones = Cones(dims.zero, dims.nonneg, tuple(dims.soc), tuple(dims.psd), dims.exp, tuple(float(a) for a in dims.p3d))
    n, m = int(param_prog.x.size), cones.m
    if param_prog.A.shape[0] != m * (n + 1):
        raise UnsupportedError(f"CVXPY's canonical form has {param_prog.A.shape[0]} entries where the cones call for {m * (n + 1)}")
    stacked = (sp.csr_matrix(param_prog.A) @ into_columns).tocsr()
    A_rows, A_pattern = _occurring(stacked[: m * n], (m, n))
    q_rows = (sp.csr_matrix(param_prog.q) @ into_columns).tocsr()
    if param_prog.P is None:
        P_rows, P_pattern = _occurring(sp.csr_matrix((n * n, into_columns.shape[1])), (n, n))
    else:
        half = (sp.csr_matrix(param_prog.P) @ into_columns).tocsr() * 0.5
        flipped = half[np.arange(n * n).reshape(n, n).ravel(order="F")] if n else half
        P_rows, P_pattern = _occurring((half + flipped).tocsr(), (n, n))
    everything = sp.vstack([P_rows, q_rows, -A_rows, stacked[m * n :]]).tocsc()
    constant = np.asarray(everything[:, -1].todense()).ravel()
    matrix = everything[:, :-1].tocsr()
    matrix.eliminate_zeros()
    matrix.sort_indices()
    return Structure(P_pattern, A_pattern, cones), AffineMap(matrix, constant)


def _occurring(entries: sp.csr_matrix, shape: tuple[int, int]) -> tuple[sp.csr_matrix, Pattern]:
    """The rows with an entry of a map to a matrix's entries (column by column), and the pattern that they make."""
    entries.eliminate_zeros()
    kept = np.flatnonzero(np.diff(entries.indptr)).astype(np.int64)
    height = max(shape[0], 1)
    return entries[kept], Pattern(shape, kept % height, kept // height)


def _recovery(form: CanonicalForm, variables: Sequence[cp.Variable], structure: Structure) -> Recovery:
    """Read where every output entry lies in (x, y), by sending three vectors through CVXPY's inverse reductions.

    Each entry must be a multiple of one entry of x or of y: ones give the multiple, positions give the place, and
    random numbers verify both.
    """
    primal = {variable.id for variable in form.problem.variables()}
    size = max(structure.n, structure.m)
    rng = np.random.default_rng(0)
    probes = [np.ones(size), np.arange(1.0, size + 1.0), rng.uniform(1.0, 2.0, size)]
    answers = [
        _primal_values(form, probe[: structure.n]) | _dual_values(form, probe[: structure.m], structure) for probe in probes
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
        if not np.allclose(check, expected, rtol=1e-12, atol=0.0):
            raise UnsupportedError(f"the value of {variable.name()!r} is not an entrywise multiple of the cone program's solution")
        outputs.append(OutputSpec(variable.name(), variable.shape, log=form.geometric and is_primal))
        rows.append(start + nonzero)
        cols.append(column if is_primal else column + structure.n)
        scales.append(ones[nonzero])
        start += variable.size
    entries = (np.concatenate(scales), (np.concatenate(rows), np.concatenate(cols)))
    matrix = sp.coo_matrix(entries, shape=(start, structure.n + structure.m)).tocsr()
    return Recovery(tuple(outputs), matrix, structure.n)


def _primal_values(form: CanonicalForm, x: Array) -> dict[int, Any]:
    """Values of the problem's variables at x, by id; their logarithms in a geometric program."""
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
    """Values of the dual variables of the problem's constraints at y, by id of the dual variable."""
    zero = structure.cones.zero
    solution = {"status": "optimal", "value": 0.0, "primal": np.zeros(structure.n), "eq_dual": y[:zero], "ineq_dual": y[zero:]}
    duals = form.chain.invert(solution, form.inverse_data).dual_vars
    values: dict[int, Any] = {}
    for constraint in form.problem.constraints:
        if constraint.id in duals:
            constraint.save_dual_value(duals[constraint.id])
            values |= {dual.id: dual.value for dual in constraint.dual_variables if dual.value is not None}
    return values


def _dense(value: Any, shape: tuple[int, ...]) -> Array:
    """A probe's answer as a flat row-major vector."""
    array = value.toarray() if sp.issparse(value) else np.asarray(value, dtype=float)
    return np.broadcast_to(array.reshape(shape), shape).ravel().astype(float)
