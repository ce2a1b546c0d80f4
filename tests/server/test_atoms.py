"""Every atom: valid calls give the expressions of CVXPY."""

from __future__ import annotations

import json
import re
from typing import Any

import cvxpy as cp
import numpy as np
import pytest

from convexlayer_server.compute.canonical import CanonicalProblem, canonicalise_document
from convexlayer_server.documents import ExpressionDocument, problem_documents
from convexlayer_server.documents.atoms import ATOMS, CONSTRAINTS
from convexlayer_server.documents.cvxpy_problem import CvxpyProblem, build_problem
from convexlayer_server.documents.evaluate import Evaluator
from convexlayer_server.documents.grammar import Grammar
from convexlayer_server.documents.values import Value
from convexlayer_server.errors import DocumentError
from convexlayer_server.settings import Settings

SETTINGS = Settings()
GRAMMAR = Grammar(SETTINGS)
VARIABLES: dict[str, Any] = {
    "t": {},
    "x": {"shape": [4]},
    "y": {"shape": [4]},
    "X": {"shape": [2, 3]},
    "S": {"shape": [3, 3], "symmetric": True},
    "Q": {"shape": [4, 4], "symmetric": True},
    "u": {"shape": [4], "pos": True},
    "v": {"shape": [4], "pos": True},
    "U": {"shape": [3, 3], "pos": True},
    "g": {"shape": [2], "pos": True},
    "col": {"shape": [4, 1]},
}
PARAMETERS: dict[str, Any] = {"p": {"shape": [4]}, "L": {"shape": [3, 3], "PSD": True}, "M": {"nonneg": True}}
CONSTANTS: dict[str, Any] = {"w": [1.0, 2.0, 3.0, 4.0], "D": [[1.0, 0.5], [0.25, 1.0]]}

# call -> shape of the result
CALLS: dict[str, tuple[int, ...]] = {
    "abs(x)": (4,),
    "bmat([[x[0], t], [1, 2]])": (2, 2),
    "broadcast_to(t, [2, 3])": (2, 3),
    "broadcast_to(t, 3)": (3,),
    "concatenate([x, y])": (8,),
    "concatenate(x, y, axis=0)": (8,),
    "conv(w, x)": (7,),
    "conv([1, 2], col)": (5, 1),
    "convolve(w, x)": (7,),
    "cummax(x)": (4,),
    "cumprod(u)": (4,),
    "cumsum(X, axis=1)": (2, 3),
    "cumsum(X, 0)": (2, 3),
    "cvar(x, 0.5)": (),
    "diag(x)": (4, 4),
    "diag(S)": (3,),
    "diag(x, k=1)": (5, 5),
    "diff(x)": (3,),
    "diff(x, 2)": (2,),
    "diff_pos(u, v)": (4,),
    "dotsort(x, w)": (),
    "entr(x)": (4,),
    "exp(x)": (4,),
    "eye_minus_inv(U)": (3, 3),
    "geo_mean(x)": (),
    "geo_mean(x, p=[1, 2, 3, 4], approx=False)": (),
    "gmatmul(D, g)": (2,),
    "harmonic_mean(x)": (),
    "hstack([x, y])": (8,),
    "hstack(x, 1, [2, 3])": (7,),
    "huber(x)": (4,),
    "huber(x, M)": (4,),
    "huber(x, M=2.5)": (4,),
    "inv_pos(x)": (4,),
    "inv_prod(x)": (),
    "kl_div(x, y)": (4,),
    "kron(D, S)": (6, 6),
    "lambda_max(S)": (),
    "lambda_min(S)": (),
    "lambda_sum_largest(S, 2)": (),
    "lambda_sum_smallest(S, k=2)": (),
    "log(x)": (4,),
    "log1p(x)": (4,),
    "log_det(S)": (),
    "log_normcdf(x)": (4,),
    "log_sum_exp(X, axis=0)": (3,),
    "log_sum_exp(X, axis=[0, 1])": (),
    "loggamma(x)": (4,),
    "logistic(x)": (4,),
    "matmul(D, X)": (2, 3),
    "matrix_frac(x, Q)": (),
    "max(X, axis=1, keepdims=True)": (2, 1),
    "maximum(x, y, 0)": (4,),
    "mean(X, axis=0)": (3,),
    "min(x)": (),
    "minimum(x, 1)": (4,),
    "mixed_norm(X, 2, 1)": (),
    "moveaxis(X, 0, 1)": (3, 2),
    "multiply(w, x)": (4,),
    "neg(x)": (4,),
    "norm(x)": (),
    "norm(x, 1)": (),
    "norm(X, 'fro')": (),
    "norm(X, 'nuc')": (),
    "norm(X, 2, axis=1)": (2,),
    "norm(x, p='inf')": (),
    "norm1(X, axis=1)": (2,),
    "norm2(X, axis=0)": (3,),
    "norm_fro(X)": (),
    "norm_inf(x)": (),
    "norm_nuc(X)": (),
    "one_minus_pos(u)": (4,),
    "outer(w, x)": (4, 4),
    "partial_trace(kron(D, S), dims=[2, 3], axis=0)": (3, 3),
    "partial_transpose(kron(D, S), dims=[2, 3], axis=0)": (6, 6),
    "permute_dims(X, [1, 0])": (3, 2),
    "pf_eigenvalue(U)": (),
    "pnorm(x, 3)": (),
    "pnorm(x, p=1.5, approx=False)": (),
    "pos(x)": (4,),
    "power(x, 3)": (4,),
    "power(x, 1/3, approx=False)": (4,),
    "power(x, p=-1, max_denom=64)": (4,),
    "prod(u)": (),
    "promote(t, [3])": (3,),
    "psd_wrap(D)": (2, 2),
    "ptp(x)": (),
    "quad_form(x[:3], L)": (),
    "quad_over_lin(x, t)": (),
    "rel_entr(x, y)": (4,),
    "reshape(X, [3, 2])": (3, 2),
    "reshape(X, 6, order='C')": (6,),
    "reshape(X, [-1, 1], 'C')": (6, 1),
    "resolvent(U, 2)": (3, 3),
    "scalar_product(w, x)": (),
    "scalene(x, 1, 2)": (4,),
    "sigma_max(X)": (),
    "skew_symmetric_wrap(S - S.T)": (3, 3),
    "sqrt(x)": (4,),
    "square(x)": (4,),
    "squeeze(col)": (4,),
    "stack([x, y], axis=1)": (4, 2),
    "std(x)": (),
    "std(x, ddof=1)": (),
    "sum(X, 0)": (3,),
    "sum_largest(x, 2)": (),
    "sum_smallest(x, k=2)": (),
    "sum_squares(x)": (),
    "swapaxes(X, 0, 1)": (3, 2),
    "symmetric_wrap(S)": (3, 3),
    "tr_inv(S)": (),
    "trace(S)": (),
    "transpose(X)": (3, 2),
    "transpose(X, axes=[1, 0])": (3, 2),
    "tv(x)": (),
    "tv(X)": (),
    "upper_tri(S)": (3, 1),
    "var(x)": (),
    "vdot(w, x)": (),
    "vec(X)": (6,),
    "vec(X, 'C')": (6,),
    "vec_to_upper_tri(x[:3])": (2, 2),
    "vec_to_upper_tri(x[:3], strict=True)": (3, 3),
    "vstack([x, y])": (2, 4),
    "xexp(u)": (4,),
}
CONES = {
    "soc(t, x)": 2,
    "soc(x[:3], X, axis=0)": 2,
    "exp_cone(t, t, t)": 3,
    "pow_cone(x, y, x, [0.1, 0.2, 0.3, 0.4])": 3,
}


def document(**parts: Any) -> dict[str, Any]:
    """A document that declares the variables of its texts."""
    names = set(re.findall(r"\w+", str(parts)))
    variables = {name: leaf for name, leaf in VARIABLES.items() if name in names}
    return {"kind": "expression", "parameters": PARAMETERS, "variables": variables, "constants": CONSTANTS, **parts}


def canonicalised(**parts: Any) -> CanonicalProblem:
    return canonicalise_document("p_test", json.dumps(document(**parts)).encode(), GRAMMAR, SETTINGS)


def built(**parts: Any) -> CvxpyProblem:
    read = problem_documents.validate_python(document(**parts))
    assert isinstance(read, ExpressionDocument)
    return build_problem(read, GRAMMAR, SETTINGS)


def evaluated(call: str) -> cp.Expression:
    kinds = ((PARAMETERS, cp.Parameter), (VARIABLES, cp.Variable))
    leaves = {
        name: kind(tuple(leaf.get("shape", ())), **{key: flag for key, flag in leaf.items() if key != "shape"})
        for group, kind in kinds
        for name, leaf in group.items()
    }
    constants = {name: cp.Constant(np.array(value)) for name, value in CONSTANTS.items()}
    scope = {name: Value(leaf) for name, leaf in {**leaves, **constants}.items()}
    return Evaluator(scope, SETTINGS, "").expression(GRAMMAR.expression(call, "")).content


@pytest.mark.parametrize(("call", "shape"), CALLS.items())
def test_shape(call: str, shape: tuple[int, ...]) -> None:
    assert evaluated(call).shape == shape


@pytest.mark.filterwarnings("ignore:The problem includes expressions that don't support CPP backend")
@pytest.mark.parametrize("call", CALLS)
def test_call_is_canonicalised(call: str) -> None:
    """Minimised if convex, maximised if concave, else in a geometric program."""
    expression = evaluated(call)
    total = f"sum({call}) + 0 * t"
    if expression.is_convex():
        parts: dict[str, Any] = {"minimize": total}
    elif expression.is_concave():
        parts = {"maximize": total}
    else:
        parts = {"minimize" if expression.is_log_log_convex() else "maximize": f"prod(vec({call}))", "gp": True}
    assert set(canonicalised(**parts).summary["variables"]) == set(document(**parts)["variables"])


def test_every_atom_is_called() -> None:
    assert {call.split("(")[0] for call in CALLS} == set(ATOMS)
    assert {call.split("(")[0] for call in CONES} == set(CONSTRAINTS)


@pytest.mark.parametrize(("call", "duals"), CONES.items())
def test_constraint_functions(call: str, duals: int) -> None:
    summary = canonicalised(minimize="t", subject_to=[call]).summary
    assert set(summary["duals"]) == {f"c0.{number}" for number in range(duals)}


def test_trees_equal_those_of_cvxpy() -> None:
    problem = built(minimize="norm(multiply(w, x) - y, 1) + huber(t, M) + power(t, 4)").problem
    x, y, t = cp.Variable(4, name="x"), cp.Variable(4, name="y"), cp.Variable(name="t")
    w, bound = cp.Constant([1.0, 2.0, 3.0, 4.0]), cp.Parameter(nonneg=True, name="M")
    expected = cp.norm(cp.multiply(w, x) - y, 1) + cp.huber(t, bound) + cp.power(t, 4)
    assert str(problem.objective.expr) == str(expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("sin(x)", "unknown function 'sin'"),
        ("sum_square(x)", "did you mean sum_squares"),
        ("__import__('os')", "unknown function"),
        ("norm(x, 'two')", "p of norm: expected one of 'inf', 'fro', 'nuc'"),
        ("norm(x, foo=1)", "unknown option of norm 'foo'"),
        ("norm(x, 2, p=2)", "norm got p twice"),
        ("norm()", "norm takes at least 1 expressions, got 0"),
        ("norm('x')", "expected an expression, got the string 'x'"),
        ("sum(x, 0, True, 1)", "too many arguments"),
        ("power(x)", "power needs p"),
        ("power(x, 1e9)", "expected an exponent from -1024 to 1024"),
        ("power(x, x)", "The exponent `p` must be"),
        ("abs(x, 1)", "too many arguments: abs takes 1 expressions"),
        ("diff(x, 3.5)", "expected an integer"),
        ("sum(x, keepdims=1)", "expected True or False"),
        ("reshape(x, [2, 3])", "reshape"),
        ("reshape(x, [1000000000, 1000000000])", "expected a list of positive lengths"),
        ("reshape(x, [2, 2], order='K')", "order of reshape"),
        ("bmat([x, y])", "bmat takes one list of rows"),
        ("soc(t, x)", "expected an expression, got a constraint"),
        ("hstack([])", "hstack takes at least 1 expressions"),
        ("sum([x, y])", "expected an expression, got a list"),
        ("sum([[1, 2], [3]])", "expected an expression, got a list"),
        ("trace(x)", "trace"),
        ("x @ S", "'@'"),
        ("X * S", "'*' takes a scalar on one side, got [2, 3] and [3, 3]"),
        ("x[7]", "the index"),
        ("x[0, 0]", "the index"),
        ("[1, 2] + [1, 2, 3]", "the sum"),
        ("1 / 0", "1.0 / 0.0"),
        ("1e300 * 1e300", "too large"),
        ("(-1) ** 0.5", "-1.0 ** 0.5"),
        ("2 @ 3", "'@'"),
    ],
)
def test_refusals(call: str, message: str) -> None:
    with pytest.raises(DocumentError) as error:
        built(minimize=f"t + sum({call})")
    (field,) = error.value.errors
    assert field.pointer == "/minimize"
    assert field.detail.startswith("line 1, column ")
    assert message in field.detail
