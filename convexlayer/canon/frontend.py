"""CVXPY problem -> CVXPY's canonical form, for a solver class of our own that takes our cones in our order.

With ``translate.py``, which reads that form, ``detached.py`` and ``discipline.py``, the only code that knows CVXPY's
internals. What it does not know raises: a constraint is never dropped, a parameter never frozen.
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
from convexlayer.canon.discipline import check_problem, check_release, explained
from convexlayer.canon.parameters import random_value, specification
from convexlayer.canon.quadratic import name_arguments
from convexlayer.canon.repairs import repaired
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
    check_release()  # says which releases have them
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
"""The backend that builds CVXPY's matrices: the fastest with parameters, and it permutes axes right (1.9.3)."""


class _StandardForm(ConicSolver):  # type: ignore[misc]  # CVXPY is not checked for types
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


def canonical_form(problem: cp.Problem, *, gp: bool) -> CanonicalForm:
    """Canonicalise a detached problem, after checking that it is one of those we know.

    Raises:
        ProblemError: not DCP (or DGP), or without variables.
        NotDPPError: parameters are used in a way that program data are not affine in them.
        UnsupportedError: integer or complex leaves, DQCP, another CVXPY release, or a form we do not know.
    """
    check_release()
    problem = _prepared(problem)
    check_problem(problem, gp=gp)
    try:
        data, chain, inverse_data = _canonicalised(problem, gp=gp, ignore_dpp=False)
    except MemoryError as error:
        raise ProblemError(f"the problem is too large for CVXPY's canonicalisation on this machine: {error}") from error
    except Exception as error:
        raise explained(error, problem, needs_values=_has_form_with_values(problem, gp=gp)) from error
    if any(isinstance(reduction, EvalParams) for reduction in chain.reductions):
        raise UnsupportedError("CVXPY takes the problem for one that is not DPP, though its own check says that it is")
    if not isinstance(data, dict) or not isinstance(data.get(PARAM_PROB), ParamConeProg):
        raise UnsupportedError(
            f"CVXPY canonicalised the problem to {type(data).__name__}, not to a parametric cone program"
        )
    param_prog: ParamConeProg = data[PARAM_PROB]
    _check_program(param_prog)
    return CanonicalForm(problem, param_prog, chain, inverse_data)


def _prepared(problem: cp.Problem) -> cp.Problem:
    """A detached problem in a form that CVXPY canonicalises, and does so right."""
    return name_arguments(repaired(problem))


def _canonicalised(problem: cp.Problem, *, gp: bool, ignore_dpp: bool) -> tuple[Any, Any, Any]:
    """What CVXPY makes of a problem for the standard form, the chain of its reductions, and how to invert them."""
    solver = _StandardForm()
    with _own_warnings_off():
        chain = problem._construct_chain(solver=solver, gp=gp, ignore_dpp=ignore_dpp, canon_backend=BACKEND)
        # Atoms that canonicalise a problem of their own, such as perspective, look the solver up by this name, which
        # may be the solver itself.
        chain.solver_context.solver_name = solver
        data, inverse_data = chain.apply(problem)
    return data, chain, inverse_data


def _has_form_with_values(problem: cp.Problem, *, gp: bool) -> bool:
    """Whether CVXPY can canonicalise a problem once its parameters have values."""
    rng = np.random.default_rng(0)
    values = {parameter.id: random_value(specification(parameter), rng) for parameter in problem.parameters()}
    return bool(values) and instance_of_constants(problem, values, gp=gp) is not None


@contextmanager
def _own_warnings_off() -> Iterator[None]:
    """CVXPY warns of what it does itself: reading sparse values, and taking another backend than its first choice."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Reading from a sparse CVXPY expression", category=RuntimeWarning)
        warnings.filterwarnings("ignore", message=".*backend", category=UserWarning)
        yield


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


class Instance(NamedTuple):
    """One cone program in the standard form, as CVXPY gives it."""

    P: sp.csc_matrix
    q: Array
    r: Array
    A: sp.csc_matrix
    b: Array


def instance(form: CanonicalForm, values: Mapping[int, Array]) -> Instance:
    """CVXPY's own instance of a canonical form, at parameter values by id."""
    assign(form.problem, values)
    with _own_warnings_off():
        for reduction in form.chain.reductions:
            reduction.update_parameters(form.problem)
        return _instantiated(form.param_prog)


def instance_of_constants(problem: cp.Problem, values: Mapping[int, Array], *, gp: bool) -> Instance | None:
    """The standard form of the problem with its parameters replaced by constants; None where CVXPY has none."""
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
    P = 0.5 * (P + P.T)  # which the objective does not see; psd_wrap lets one pass that is not symmetric
    return Instance(P.tocsc(), q, np.ravel(r)[:1], -sp.csc_matrix(A), np.ravel(b))
