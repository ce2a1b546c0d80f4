"""Canonicalisation by CVXPY, for a solver class that declares the cones of ``program.py`` in their order.

Only this module, ``translate.py`` (which reads the canonical form), ``detached.py`` and ``discipline.py`` depend on
CVXPY internals. Unknown parts of a canonical form raise an error: no constraint is dropped, no parameter is fixed.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import cvxpy as cp
import numpy as np
import scipy.sparse as sp

from convexlayer.canon.detached import assign, detached
from convexlayer.canon.discipline import check_problem, check_release, explain_failure
from convexlayer.canon.parameters import random_value, specification
from convexlayer.canon.quadratic import lift_arguments
from convexlayer.canon.workarounds import with_workarounds
from convexlayer.errors import ProblemError, UnsupportedError
from convexlayer.program import Array

try:
    from cvxpy.constraints import SOC, ExpCone, PowCone3D, SvecPSD
    from cvxpy.reductions.dcp2cone.cone_matrix_stuffing import ParamConeProg
    from cvxpy.reductions.dgp2dcp.dgp2dcp import Dgp2Dcp
    from cvxpy.reductions.eval_params import EvalParams
    from cvxpy.reductions.solvers.conic_solvers.conic_solver import ConicSolver
    from cvxpy.settings import PARAM_PROB
    from cvxpy.utilities.psd_utils import TriangleKind
except ImportError:
    check_release()  # raises an error that names the supported releases
    raise

__all__ = [
    "CanonicalForm",
    "Instance",
    "canonical_form",
    "instance",
    "instance_of_constants",
]

logger = logging.getLogger(__name__)

BACKEND = "COO"
"""CVXPY's canonicalisation backend: the fastest with parameters, and correct for permuted axes (CVXPY 1.9.3)."""


class _StandardForm(ConicSolver):  # type: ignore[misc]  # CVXPY is not checked for types
    """Solver interface that makes CVXPY canonicalise to the standard form of ``program.py``, not instantiated."""

    SUPPORTED_CONSTRAINTS = [*ConicSolver.SUPPORTED_CONSTRAINTS, SOC, SvecPSD, ExpCone, PowCone3D]  # noqa: RUF012 (CVXPY's own form)
    PSD_TRIANGLE_KIND = TriangleKind.LOWER
    PSD_SQRT2_SCALING = True
    EXP_CONE_ORDER = [0, 1, 2]  # noqa: RUF012 (CVXPY's own form)

    def name(self) -> str:
        return "CONVEXLAYER"

    def import_solver(self) -> None:
        """Do nothing: this interface solves nothing."""

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
    """CVXPY's canonical form of a detached problem.

    Attributes:
        problem: the detached problem, with workarounds.
        param_prog: CVXPY's parametric cone program.
        chain: CVXPY's chain of reductions.
        inverse_data: the data with which the chain is inverted.
    """

    problem: cp.Problem
    param_prog: ParamConeProg
    chain: Any
    inverse_data: Any

    @property
    def geometric(self) -> bool:
        """Whether the problem is a geometric program, solved in the logarithms of its variables."""
        return any(isinstance(reduction, Dgp2Dcp) for reduction in self.chain.reductions)


def canonical_form(problem: cp.Problem, *, gp: bool) -> CanonicalForm:
    """Canonicalise a detached problem, after checking that it is supported.

    Raises:
        ProblemError: the problem is not DCP (or DGP), has no variables, or is too large.
        NotDPPError: the program data are not affine in the parameters.
        UnsupportedError: integer or complex leaves, DQCP, an unsupported CVXPY release or canonical form.
    """
    check_release()
    problem = _prepared(problem)
    check_problem(problem, gp=gp)
    try:
        data, chain, inverse_data = _canonicalised(problem, gp=gp, ignore_dpp=False)
    except MemoryError as error:
        raise ProblemError(f"the problem is too large for CVXPY's canonicalisation on this machine: {error}") from error
    except Exception as error:
        raise explain_failure(error, problem, needs_values=_has_form_with_values(problem, gp=gp)) from error
    if any(isinstance(reduction, EvalParams) for reduction in chain.reductions):
        raise UnsupportedError("CVXPY canonicalises the problem as if it were not DPP, although is_dpp() is true")
    if not isinstance(data, dict) or not isinstance(data.get(PARAM_PROB), ParamConeProg):
        raise UnsupportedError(
            f"CVXPY canonicalised the problem to {type(data).__name__}, not to a parametric cone program"
        )
    param_prog: ParamConeProg = data[PARAM_PROB]
    _check_program(param_prog)
    return CanonicalForm(problem, param_prog, chain, inverse_data)


def _prepared(problem: cp.Problem) -> cp.Problem:
    """Rewrite a detached problem so that CVXPY canonicalises it correctly."""
    return lift_arguments(with_workarounds(problem))


def _canonicalised(problem: cp.Problem, *, gp: bool, ignore_dpp: bool) -> tuple[Any, Any, Any]:
    """Canonicalise with CVXPY; return the data, the chain of reductions, and their inverse data."""
    solver = _StandardForm()
    with _without_cvxpy_warnings():
        chain = problem._construct_chain(solver=solver, gp=gp, ignore_dpp=ignore_dpp, canon_backend=BACKEND)
        # Atoms that canonicalise an inner problem, such as perspective, look the solver up by this attribute, which
        # may hold the solver object.
        chain.solver_context.solver_name = solver
        data, inverse_data = chain.apply(problem)
    return data, chain, inverse_data


def _has_form_with_values(problem: cp.Problem, *, gp: bool) -> bool:
    """Whether CVXPY can canonicalise the problem once its parameters have values."""
    rng = np.random.default_rng(0)
    values = {parameter.id: random_value(specification(parameter), rng) for parameter in problem.parameters()}
    return bool(values) and instance_of_constants(problem, values, gp=gp) is not None


@contextmanager
def _without_cvxpy_warnings() -> Iterator[None]:
    """Suppress warnings that CVXPY causes itself, by reading sparse values and changing its backend."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Reading from a sparse CVXPY expression", category=RuntimeWarning)
        warnings.filterwarnings("ignore", message=".*backend", category=UserWarning)
        yield


def _check_program(param_prog: ParamConeProg) -> None:
    """Reject parts that the translation would lose silently: bounds, direct cones, n-dimensional power cones, integers.

    Raises:
        UnsupportedError: the program has one of them.
    """
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


class Instance(NamedTuple):
    """Data of one cone program in the standard form, computed by CVXPY."""

    P: sp.csc_matrix
    q: Array
    r: Array
    A: sp.csc_matrix
    b: Array


def instance(form: CanonicalForm, values: Mapping[int, Array]) -> Instance:
    """Instantiate a canonical form with CVXPY, at parameter values by id."""
    assign(form.problem, values)
    with _without_cvxpy_warnings():
        for reduction in form.chain.reductions:
            reduction.update_parameters(form.problem)
        return _instantiated(form.param_prog)


def instance_of_constants(problem: cp.Problem, values: Mapping[int, Array], *, gp: bool) -> Instance | None:
    """Canonicalise the problem with constants in place of its parameters; None if CVXPY cannot."""
    constant = _prepared(detached(problem))
    assign(constant, values)
    try:
        data, _, _ = _canonicalised(constant, gp=gp, ignore_dpp=True)
    except Exception:
        logger.debug("CVXPY cannot canonicalise the problem with constants", exc_info=True)
        return None
    return _instantiated(data[PARAM_PROB]) if isinstance(data, dict) else None


def _instantiated(param_prog: ParamConeProg) -> Instance:
    n = int(param_prog.x.size)
    if param_prog.P is None:
        q, r, A, b = param_prog.apply_parameters()
        P = sp.csc_matrix((n, n))
    else:
        P, q, r, A, b = param_prog.apply_parameters(quad_obj=True)
    P = sp.csc_matrix(P)
    P = 0.5 * (P + P.T)  # leaves the objective unchanged; psd_wrap admits a P that is not symmetric
    return Instance(P.tocsc(), q, np.ravel(r)[:1], -sp.csc_matrix(A), np.ravel(b))
