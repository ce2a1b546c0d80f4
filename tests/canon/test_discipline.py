"""Errors name the offending subexpressions, and distinguish errors of CVXPY from those of the user."""

from __future__ import annotations

import importlib.util

import cvxpy as cp
import numpy as np
import pytest
from cvxpy.reductions.dcp2cone.canonicalizers import CANON_METHODS

from convexlayer import NotDPPError, ProblemError, UnsupportedError, canonicalize
from convexlayer.canon import frontend

x, v = cp.Variable(3, name="x"), cp.Variable(2, pos=True, name="v")
a, c = cp.Parameter(name="a"), cp.Parameter(nonneg=True, name="c")
r, P = cp.Parameter(3, name="r"), cp.Parameter((3, 3), PSD=True, name="P")


def canonicalised(objective: cp.Expression, constraints: list[cp.Constraint], *, gp: bool = False) -> None:
    problem = cp.Problem(cp.Minimize(objective), constraints)
    parameters = {parameter.id: parameter for parameter in problem.parameters()}
    canonicalize(problem, list(parameters.values()), problem.variables(), gp=gp)


@pytest.mark.parametrize(
    ("objective", "constraints", "named"),
    [
        (cp.sum_squares(a * c * x - r), [], r"a \* c \(in the objective\)"),
        (cp.quad_form(a * c * x - r, np.eye(3)), [], r"a \* c \(in the objective\)"),
        (cp.sum_squares(x), [a * c * x[0] >= 1, x <= 2], r"a \* c \(in the constraint 1\.0 <= a \* c \* x\[0\]\)"),
        (cp.sum(x), [cp.quad_form(x, P) <= 1], r"QuadForm\(x, P\) \(in the constraint"),
        (cp.sum_squares(x) + cp.exp(a) * x[0], [], r"exp\(a\) @ x\[0\]|exp\(a\) \* x\[0\]"),
        (cp.sum(cp.maximum(x, c * cp.sqrt(c))), [], r"c \* (sqrt|PowerApprox)\(c.*\(in the objective\)"),
        (cp.sum_squares(cp.Variable(bounds=[a * c, None], name="w")), [], r"a \* c \(in the bounds of w\)"),
    ],
)
def test_a_dpp_error_names_the_smallest_subexpressions(
    objective: cp.Expression, constraints: list[cp.Constraint], named: str
) -> None:
    with pytest.raises(NotDPPError, match=named) as caught:
        canonicalised(objective, constraints)
    assert "not affine in the parameters" in str(caught.value)


@pytest.mark.parametrize(
    ("objective", "named"),
    [
        (cp.sum_squares(x) + cp.sum(cp.sqrt(cp.square(x))), r"PowerApprox\(PowerApprox\(x, 2\.0\), 0\.5\)"),
        (a * cp.square(x[0]), r"a \* PowerApprox\(x\[0\], 2\.0\) \(in the objective\)"),
        (-cp.sum_squares(x), "the objective as a whole"),
    ],
)
def test_a_dcp_error_names_the_smallest_subexpressions(objective: cp.Expression, named: str) -> None:
    with pytest.raises(ProblemError, match=named):
        canonicalised(objective, [])


def test_a_dgp_error_names_the_variables_that_must_be_positive() -> None:
    with pytest.raises(ProblemError, match=r"a, to be declared pos=True \(in the objective\)"):
        canonicalised(v[0] * v[1] + a * v[0], [], gp=True)


def test_long_messages_are_shortened() -> None:
    wide = cp.sum(cp.hstack([x[0]] * 40))
    with pytest.raises(NotDPPError) as caught:
        canonicalised(cp.sum_squares(x), [(k + a) * c * wide <= k for k in range(9)])
    assert " more" in str(caught.value)
    assert len(str(caught.value)) < 2500


def test_an_error_names_the_atom_that_needs_a_parameter_value() -> None:
    with pytest.raises(NotDPPError, match=r"QuadForm\(x, P\).*without values of its parameters"):
        canonicalised(cp.maximum(cp.quad_form(x, P), 1), [])
    s = cp.Variable(nonneg=True)
    with pytest.raises(NotDPPError, match="perspective"):
        canonicalised(cp.perspective(cp.square(x[0] - a), s) + s, [])


def broken(expression: cp.Expression, *arguments: object, **keywords: object) -> object:
    raise ValueError("broken")


def test_a_crash_in_an_atom_is_not_reported_as_a_dpp_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CANON_METHODS, cp.exp, broken)
    with pytest.raises(UnsupportedError, match=r"could not canonicalise exp\(x \+ -r\) \(ValueError: broken\)"):
        canonicalised(cp.sum(cp.exp(x - r)) - cp.sum(x), [])


class _Broken:
    def __call__(self, *arguments: object) -> object:
        raise RuntimeError("no expression at hand")


def test_a_crash_elsewhere_in_cvxpy_is_not_reported_as_a_dpp_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cvxpy.reductions.cvx_attr2constr.CvxAttr2Constr.apply", _Broken())
    with pytest.raises(UnsupportedError, match="could not canonicalise the problem"):
        canonicalised(cp.sum_squares(x - r), [])


@pytest.mark.parametrize("release", ["1.9.2", "1.9", "1.8.1", "1.10.0", "2.0", "1.10rc1", "unknown"])
def test_unsupported_releases_of_cvxpy_are_rejected(release: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cp, "__version__", release)
    with pytest.raises(UnsupportedError, match=rf"CVXPY 1\.9\.3 and later, below 1\.10; installed is {release}"):
        canonicalised(cp.sum_squares(x - r), [])


@pytest.mark.parametrize("release", ["1.9.3", "1.9.4", "1.9.10", "1.9.3.post1", "1.9.4rc1"])
def test_supported_releases_of_cvxpy_are_accepted(release: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cp, "__version__", release)
    canonicalised(cp.sum_squares(x - r), [])


def test_a_release_without_the_internals_is_rejected_at_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cp, "__version__", "1.8.1")
    monkeypatch.delattr("cvxpy.constraints.SvecPSD")
    spec = importlib.util.spec_from_file_location("frontend_again", frontend.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.raises(UnsupportedError, match=r"installed is 1\.8\.1"):
        spec.loader.exec_module(module)
