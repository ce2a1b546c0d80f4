"""Checks that a problem is supported (DCP or DGP, DPP, continuous, real); errors name the offending subexpressions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import cvxpy as cp
from cvxpy.utilities import scopes

from convexlayer.canon.naming import shortened
from convexlayer.errors import NotDPPError, ProblemError, UnsupportedError

__all__ = ["check_problem", "check_release", "explain_failure"]

FIRST_RELEASE, END_OF_RELEASES = (1, 9, 3), (1, 10)
"""Supported CVXPY releases: this package reads CVXPY internals, tested from the first release to below the second."""

MAX_NAMED = 4
"""Maximum number of subexpressions named in a message; more make it unreadable."""


def check_release() -> None:
    """Check that the installed CVXPY release is supported.

    Raises:
        UnsupportedError: it is not.
    """
    numbers = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", cp.__version__)
    release = tuple(int(number or 0) for number in numbers.groups()) if numbers else ()
    if not FIRST_RELEASE <= release < END_OF_RELEASES:
        first, end = (".".join(map(str, numbers)) for numbers in (FIRST_RELEASE, END_OF_RELEASES))
        raise UnsupportedError(
            f"this release reads the internals of CVXPY {first} and later, below {end}; installed is {cp.__version__}: "
            f"pip install 'cvxpy>={first},<{end}'"
        )


def check_problem(problem: cp.Problem, *, gp: bool) -> None:
    """Check that a problem is continuous, real, DCP (or DGP) and DPP.

    Raises:
        ProblemError: the problem is not DCP (or DGP), or has no variables.
        NotDPPError: the program data are not affine in the parameters.
        UnsupportedError: the problem has integer or complex leaves, or is only quasiconvex (DQCP).
    """
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
            raise ProblemError(
                "the problem is not a disciplined geometric program; leave out gp=True or see problem.is_dgp()"
                f"{_violations(problem, _is_dgp)}"
            )
        if not problem.is_dpp("dgp"):
            raise _not_dpp(problem, _is_dgp)
        return
    if not problem.is_dcp():
        if problem.is_dqcp():
            raise UnsupportedError(
                "the problem is quasiconvex (DQCP): it is solved by bisection, which has no derivative here"
            )
        hint = "; it is a geometric program: pass gp=True" if problem.is_dgp() else _violations(problem, _is_dcp)
        raise ProblemError(f"the problem is not convex by CVXPY's rules (DCP){hint}")
    if not problem.is_dpp(quad_form_dpp="qp"):
        raise _not_dpp(problem, _is_dcp)


def explain_failure(error: Exception, problem: cp.Problem, *, needs_values: bool) -> ProblemError:
    """Translate an exception of CVXPY's canonicalisation.

    Args:
        error: the exception.
        problem: the problem.
        needs_values: whether canonicalisation succeeds once the parameters have values. If it does and the exception
            comes from the canonicalisation of an atom, the problem is not DPP; otherwise CVXPY does not support it.

    Returns:
        A NotDPPError or an UnsupportedError.
    """
    at = _canonicalised(error.__traceback__)
    needs_values = needs_values and at is not None
    where = "the problem" if at is None else shortened(at)
    message = f"CVXPY {cp.__version__} could not canonicalise {where} ({type(error).__name__}: {error})"
    if needs_values:
        return NotDPPError(
            f"{message} without values of its parameters, though it can with values: an atom needs the value of a "
            "parameter, such as quad_form(x, P) outside the objective (write sum_squares(L @ x) with P = L'L)"
        )
    return UnsupportedError(message)


def _not_dpp(problem: cp.Problem, holds: Callable[[Any], bool]) -> NotDPPError:
    with scopes.dpp_scope():
        violations = _violations(problem, holds)
    return NotDPPError(
        f"the problem is not DPP: its data are not affine in the parameters{violations}. Products of two parameters, "
        "or of a parameter and a nonlinear function of another, must be replaced by a new parameter (compute the "
        "product outside); see https://www.cvxpy.org/tutorial/dpp"
    )


def _is_dcp(expression: Any) -> bool:
    return bool(expression.is_dcp())


def _is_dgp(expression: Any) -> bool:
    return bool(expression.is_dgp())


def _violations(problem: cp.Problem, holds: Callable[[Any], bool]) -> str:
    """The smallest subexpressions that violate a rule, formatted as the end of a sentence."""
    found: dict[str, None] = {}
    with scopes.quad_form_dpp_scope():
        found |= dict.fromkeys(_named(problem.objective, "the objective", holds))
    for constraint in problem.constraints:
        found |= dict.fromkeys(_named(constraint, f"the constraint {shortened(constraint)}", holds))
    for variable in problem.variables():
        for bound in variable.bounds or ():
            if isinstance(bound, cp.Expression) and not holds(bound):
                smallest = list(_minimal_violations(bound, holds)) or [bound]
                found |= dict.fromkeys(f"{shortened(part)} (in the bounds of {variable.name()})" for part in smallest)
    named = list(found)
    more = f" and {len(named) - MAX_NAMED} more" if len(named) > MAX_NAMED else ""
    return f": {', '.join(named[:MAX_NAMED])}{more}" if named else ""


def _named(root: Any, place: str, holds: Callable[[Any], bool]) -> list[str]:
    """The subexpressions of an objective or a constraint that violate a rule, formatted for a message."""
    if holds(root):
        return []
    parts = [f"{shortened(part)}{_remedy(part, holds)} (in {place})" for part in _minimal_violations(root, holds)]
    return parts or [f"{place} as a whole"]


def _remedy(part: Any, holds: Callable[[Any], bool]) -> str:
    leaf = isinstance(part, cp.Variable | cp.Parameter)
    return ", to be declared pos=True" if leaf and holds is _is_dgp else ""


def _minimal_violations(root: Any, holds: Callable[[Any], bool]) -> Iterator[Any]:
    """Subexpressions below the root that violate a rule although all their arguments satisfy it."""
    seen: set[int] = set()
    left = [root]
    while left:
        node = left.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        parts = [node.objective, *node.constraints] if isinstance(node, cp.Problem) else node.args
        wrong = [part for part in parts if not holds(part)]
        if not wrong and node is not root:
            yield node
        left += reversed(wrong)


def _canonicalised(trace: TracebackType | None) -> Any:
    """The innermost expression that CVXPY was canonicalising when it raised; None if it was not canonicalising."""
    expression = None
    while trace is not None:
        if trace.tb_frame.f_code.co_name == "canonicalize_expr":
            expression = trace.tb_frame.f_locals.get("expr", expression)
        trace = trace.tb_next
    return expression
