"""Round trip from CVXPY to a problem document and back."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from cvxpy.atoms.affine.binary_operators import MulExpression
from cvxpy.atoms.affine.index import special_index
from cvxpy.atoms.affine.unary_operators import NegExpression

from convexlayer_client.emitters import CONSTRAINTS, EXPRESSIONS
from convexlayer_client.errors import UnsupportedExpressionError
from convexlayer_client.expression import ProblemDocument, to_document
from convexlayer_server.documents import ExpressionDocument
from convexlayer_server.documents.cvxpy_problem import CvxpyProblem, build_problem
from convexlayer_server.documents.grammar import Grammar
from convexlayer_server.settings import Settings

SETTINGS = Settings()
GRAMMAR = Grammar(SETTINGS)
Z = np.random.default_rng(7).standard_normal((3, 4))
SPD = Z @ Z.T + np.eye(3)

x = cp.Variable(4, name="x")
y = cp.Variable(3, name="y")
X = cp.Variable((3, 4), name="X")
S = cp.Variable((3, 3), symmetric=True, name="S")
t = cp.Variable(name="t")
u = cp.Variable(4, nonneg=True, name="u")
g = cp.Variable(4, pos=True, name="g")
G = cp.Variable((3, 3), pos=True, name="G")
A = cp.Parameter((3, 4), name="A")
b = cp.Parameter(3, name="b")
lam = cp.Parameter(nonneg=True, name="lam")
c = cp.Parameter(4, pos=True, name="c")
Q = cp.Parameter((3, 3), PSD=True, name="Q")

OBJECTIVES: dict[str, Callable[[], Any]] = {
    "sum": lambda: cp.sum(x) + cp.sum(cp.sum(X, axis=0)) + cp.sum(cp.sum(X, axis=1, keepdims=True)),
    "single sum": lambda: cp.AddExpression([t]),
    "differences": lambda: cp.sum(x - (u - 2 * x) - (-x) + (x + 1)) - lam * (t - (t - 3)),
    "negative constants": lambda: t * -2.5 + cp.sum(-x * 3) - (-4.0),
    "promotions": lambda: cp.sum_squares(t + x) + cp.sum_squares(lam - x) + cp.sum_squares(cp.promote(t, (4,)) + lam),
    "two promotions": lambda: cp.sum(cp.promote(t, (4,)) + cp.promote(lam, (4,)) + x),
    "broadcasts": lambda: cp.sum_squares(X + x) + cp.sum_squares(cp.reshape(y, (3, 1), order="F") + X),
    "broadcast_to": lambda: cp.sum_squares(cp.broadcast_to(x, (3, 4)) - A),
    "matrix products": lambda: cp.sum_squares(A @ x - b) + cp.sum(Z @ (X.T @ np.ones(3))) + c @ x,
    "elementwise products": lambda: cp.sum(cp.multiply(A, X)) + cp.sum(lam * X) + cp.sum(cp.multiply(c, x) * 2),
    "column products": lambda: cp.sum(cp.multiply(np.ones((3, 1)), X)) + cp.sum(cp.multiply([2.0], x)),
    "quotients": lambda: cp.sum((x + u) / 4) + cp.sum(x / np.arange(1.0, 5)) + t / 2 / 3 + t / (2 * lam),
    "transposes": lambda: cp.sum((A.T @ b) @ X.T) + cp.sum(cp.transpose(X, axes=[1, 0])) + cp.trace(S.T @ SPD),
    "slices": lambda: (
        x[0] + x[-1] + cp.sum(x[1:3]) + cp.sum(x[::2]) + cp.sum(x[::-1]) + cp.sum(X[1, 1:]) + cp.sum(X[:, 2])
    ),
    "selections": lambda: cp.sum(x[[0, 2]]) + cp.sum(x[np.array([True, False, True, True])]) + cp.sum(x[[-1, -1]]),
    "matrix selections": lambda: (
        cp.sum(X[[0, 2], 1:]) + cp.sum(X[:, np.array([0, 3])]) + cp.sum(X[X.shape[0] - 1, None])
    ),
    "mask": lambda: cp.sum_squares(X[Z > 0]),
    "reshape": lambda: cp.sum_squares(cp.reshape(X, (4, 3), order="C") @ b) + cp.sum(cp.vec(X, order="F")[2:7]),
    "scalar reshape": lambda: cp.reshape(x[:1], (), order="F") * 2,
    "stacks": lambda: cp.sum_squares(cp.hstack([x, t, 1.0])) + cp.sum_squares(cp.vstack([x, u, c]) - 1),
    "blocks": lambda: cp.lambda_max(cp.bmat([[S, cp.reshape(y, (3, 1), order="F")], [y[None, :], t * np.eye(1)]])),
    "concatenate": lambda: cp.sum_squares(cp.concatenate([X, A], axis=1)) + cp.sum_squares(cp.stack([x, u], axis=1)),
    "cumsum": lambda: (
        cp.norm(cp.cumsum(x))
        + cp.sum_squares(cp.cumsum(X, axis=1))
        + cp.sum_squares(cp.cumsum(X, axis=None))
        + cp.sum_squares(cp.diff(x))
    ),
    "kron": lambda: cp.sum_squares(cp.kron(np.eye(2), X)) + cp.sum_squares(cp.kron(A, x[None, :])),
    "convolutions": lambda: cp.sum_squares(cp.convolve(c, x)) + cp.sum_squares(cp.convolve([1.0, -1.0], y)),
    "diagonals": lambda: cp.lambda_max(cp.diag(x) + cp.diag(x[1:], k=1) + cp.diag(x[1:], k=-1)) + cp.sum(cp.diag(S)),
    "upper_tri": lambda: cp.norm1(cp.upper_tri(S)) + cp.sum(cp.diag(S, k=1)),
    "vdot": lambda: cp.vdot(c, x) + cp.sum(cp.real(x)) + cp.sum(cp.outer(b, x)),
    "elementwise": lambda: cp.sum(cp.abs(x) + cp.exp(x) - cp.log(u) + cp.logistic(x) - cp.entr(u) - cp.log1p(u)),
    "xexp": lambda: cp.sum(cp.xexp(u)),
    "divergences": lambda: cp.sum(cp.kl_div(u, c)) + cp.sum(cp.rel_entr(u, c + 1)),
    "huber": lambda: cp.sum(cp.huber(x)) + cp.sum(cp.huber(x, 0.5)) + cp.sum(cp.huber(y, lam)),
    "extrema": lambda: (
        cp.sum(cp.maximum(x, 0, u)) + cp.max(X) - cp.min(x) + cp.sum(cp.max(X, axis=0)) - cp.sum(cp.minimum(x, 1))
    ),
    "cummax": lambda: cp.sum(cp.cummax(x)) + cp.sum(cp.cummax(X, axis=1)),
    "powers": lambda: cp.sum(u**1.5 + x**2 + cp.power(x, 4)) - cp.sum(cp.sqrt(u)) + cp.sum(cp.inv_pos(u)) + lam**2 * t,
    "exact powers": lambda: (
        cp.sum(cp.power(u, 2.7, approx=False)) - cp.sum(cp.power(u, 0.3, approx=False, max_denom=8))
    ),
    "norms": lambda: cp.norm(x) + cp.norm1(x) + cp.norm_inf(x) + cp.norm(X, "fro") + cp.sum(cp.norm(X, 2, axis=0)),
    "axis norms": lambda: (
        cp.sum(cp.norm1(X, axis=1)) + cp.sum(cp.norm_inf(X, axis=0, keepdims=True)) + cp.mixed_norm(X, 2, 1)
    ),
    "p norms": lambda: cp.pnorm(x, 3) + cp.pnorm(x, 2.5, approx=False) + cp.pnorm(x, 1.7, max_denom=20),
    "matrix norms": lambda: cp.norm(X, "nuc") + cp.sigma_max(X) + cp.norm(X, 1),
    "quadratic forms": lambda: cp.quad_form(y, SPD) + cp.quad_form(y - b, Q) + cp.quad_form(y, cp.psd_wrap(SPD)),
    "quadratic over linear": lambda: cp.quad_over_lin(x, t + 4) + cp.sum(cp.sum_squares(X, axis=0)),
    "statistics": lambda: cp.mean(x) + cp.var(x) + cp.std(x) + cp.sum_largest(x, 2) - cp.sum_smallest(x, 2),
    "order": lambda: cp.dotsort(x, [1.0, 2.0]) + cp.sum_largest(x, 1.5) + cp.cvar(x, 0.6),
    "log_sum_exp": lambda: cp.log_sum_exp(x) + cp.sum(cp.log_sum_exp(X, axis=1)),
    "geometric means": lambda: (
        -cp.geo_mean(u) - cp.geo_mean(u, p=[1, 2, 0, 1]) - cp.geo_mean(u, [0.2, 0.3, 0.5, 1], approx=False)
    ),
    "total variation": lambda: cp.tv(x) + cp.tv(X),
    "eigenvalues": lambda: cp.lambda_max(S) - cp.lambda_min(S) + cp.lambda_sum_largest(S, 2),
    "determinants": lambda: (
        -cp.log_det(S + 9 * np.eye(3)) + cp.tr_inv(S + 9 * np.eye(3)) + cp.matrix_frac(y, S + 9 * np.eye(3))
    ),
    "wraps": lambda: cp.lambda_max(cp.symmetric_wrap(SPD * t)),
    "shared": lambda: (lambda r: cp.sum_squares(r) + cp.norm1(r) + cp.max(r) + lam * cp.sum(r))(A @ x - b),
    "constant": lambda: cp.Constant(3.0) + t * 0,
}

GEOMETRIC: dict[str, Callable[[], Any]] = {
    "monomials": lambda: cp.prod(g) + g[0] * g[1] / g[2] + cp.max(c * 2 / g) + cp.sum(cp.multiply(g, g) ** -0.5),
    "parametric exponents": lambda: g[0] ** lam + g[1],
    "products": lambda: (
        cp.sum(cp.gmatmul(np.array([[1.0, 2, -1, 0]]), g))
        + 1 / cp.min(g)
        + cp.max(1 / cp.minimum(g, 2))
        + cp.pf_eigenvalue(G)
    ),
    "inverses": lambda: cp.trace(cp.eye_minus_inv(G / 99)) + cp.sum(1 / cp.one_minus_pos(g / 99)),
}

CONES: dict[str, Callable[[], list[Any]]] = {
    "comparisons": lambda: [x >= c, cp.Constant(np.zeros(4)) <= x, A @ x == b, cp.norm(x) <= lam, cp.Constant(0) <= 1],
    "elementary": lambda: [cp.NonNeg(x - 1), cp.constraints.Zero(A @ x - b)],
    "matrix inequalities": lambda: [S >> 0, S << Q, cp.constraints.PSD(S - t * np.eye(3)), X[:, :3] + X[:, :3].T >> 0],
    "second-order": lambda: [cp.SOC(t, x), cp.SOC(x, X), cp.SOC(y + 1, X, axis=1), cp.SOC(cp.Constant(2), y)],
    "exponential": lambda: [cp.ExpCone(x, u, x + 1), cp.ExpCone(t, t, t)],
    "power": lambda: [
        cp.PowCone3D(x, u, x - 1, 0.3),
        cp.PowCone3D(t, t, t, 0.5),
        cp.PowCone3D(x, x, u, [0.1, 0.2, 0.3, 0.4]),
    ],
}


def problems() -> Iterator[Any]:
    for name, objective in OBJECTIVES.items():
        yield pytest.param(lambda f=objective: cp.Problem(cp.Minimize(f())), False, id=name)
    for name, objective in GEOMETRIC.items():
        yield pytest.param(lambda f=objective: cp.Problem(cp.Minimize(f())), True, id=f"geometric {name}")
    for name, constraints in CONES.items():
        yield pytest.param(lambda f=constraints: cp.Problem(cp.Maximize(-t), f()), False, id=f"constraints {name}")


TABLE = list(problems())


def rebuilt(document: ProblemDocument) -> CvxpyProblem:
    wire_form = json.loads(json.dumps(document.body, allow_nan=False))
    return build_problem(ExpressionDocument.model_validate(wire_form), GRAMMAR, SETTINGS)


def draw(leaf: Any) -> Any:
    value = np.random.default_rng(leaf.size).standard_normal(leaf.shape)
    if leaf.attributes["pos"] or leaf.attributes["nonneg"]:
        return np.abs(value) + 0.1
    if leaf.attributes["PSD"]:
        return value @ value.T
    return value + value.T if leaf.attributes["symmetric"] else value


def signature(problem: cp.Problem) -> Any:
    """Sense, curvature, sign and shape of the objective."""
    objective = problem.objective.args[0]
    return (type(problem.objective), objective.curvature, objective.sign, objective.shape)


@pytest.mark.parametrize(("build", "gp"), TABLE)
def test_the_rebuilt_problem_has_the_same_values(build: Callable[[], cp.Problem], gp: bool) -> None:
    problem = build()
    parameters = problem.parameters()
    document = to_document(problem, parameters, problem.variables(), gp=gp)
    built = rebuilt(document)
    assert built.gp is gp
    assert signature(built.problem) == signature(problem)
    assert atoms_in(built.problem.objective.args[0]) == atoms_in(problem.objective.args[0])
    for _ in range(3):
        for name, leaf in zip(document.parameters, parameters, strict=True):
            leaf.value = built.parameters[name].value = draw(leaf)
        for name, leaf in zip(document.outputs, problem.variables(), strict=True):
            leaf.value = built.variables[name].value = draw(leaf)
        np.testing.assert_allclose(built.problem.objective.value, problem.objective.value, rtol=1e-12, atol=1e-12)
        for ours, theirs in zip(built.problem.constraints, problem.constraints, strict=True):
            assert [dual.shape for dual in ours.dual_variables] == [dual.shape for dual in theirs.dual_variables]
            np.testing.assert_allclose(magnitude(ours), magnitude(theirs), rtol=1e-12, atol=1e-12)


def atoms_in(expression: Any) -> Counter[type]:
    """Count the atoms of an expression, except those that the round trip may rewrite."""
    rewritten = {
        cp.Constant,
        cp.AddExpression,
        NegExpression,
        special_index,
        MulExpression,
        cp.reshape,
        cp.real,
        cp.conj,
    }
    return Counter(kind for kind in classes_in(expression) if kind not in rewritten)


def magnitude(constraint: Any) -> Any:
    """Absolute value of the constrained expression: CVXPY stores `x >= 0` as `0 <= x`."""
    expressions = [constraint.expr] if len(constraint.dual_variables) == 1 else constraint.args
    return np.abs(np.concatenate([np.ravel(expression.value) for expression in expressions]))


def classes_in(expression: Any) -> Iterator[type]:
    yield type(expression)
    for argument in expression.args:
        yield from classes_in(argument)


def test_the_table_covers_every_emitter() -> None:
    covered: set[type] = set()
    for parameter_set in TABLE:
        problem = parameter_set.values[0]()
        for root in [problem.objective.args[0], *problem.constraints]:
            covered.update(classes_in(root))
    assert (EXPRESSIONS.keys() | CONSTRAINTS.keys()) - covered <= {cp.conv, cp.NonPos}  # deprecated in CVXPY


def test_valid_unique_names_are_kept() -> None:
    odd = cp.Variable(name="not an identifier")
    twins = cp.Variable(name="w"), cp.Variable(name="w")
    reserved = cp.Variable(name="c0")
    unnamed, fine = cp.Variable(), cp.Variable(name="speed")
    variables = [odd, *twins, reserved, unnamed, fine]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(cp.hstack(variables))))
    assert to_document(problem, [], variables).outputs == ("x0", "x1", "x2", "x3", "x4", "speed")


def test_documents_do_not_depend_on_generated_names() -> None:
    def document() -> Any:
        v, p = cp.Variable(3), cp.Parameter(3)
        problem = cp.Problem(cp.Minimize(cp.sum_squares(v - p)), [cp.norm1(v) <= 1])
        return to_document(problem, [p], [v]).body

    assert document() == document()


def test_shared_subexpressions_and_equal_constants_are_written_once() -> None:
    r = Z @ x - b
    document = to_document(cp.Problem(cp.Minimize(cp.sum_squares(r) + cp.max(r) + cp.sum(Z @ x))), [b], [x])
    assert document.body["let"] == {"e0": "k0 @ x - b"}
    assert list(document.body["constants"]) == ["k0"]


def test_long_sums_are_split_below_the_servers_limit() -> None:
    terms = [cp.square(x[i % 4] - i) for i in range(900)]
    problem = cp.Problem(cp.Minimize(sum(terms[1:], terms[0])))
    document = to_document(problem, [], [x])
    x.value = np.random.default_rng(0).standard_normal(4)
    built = rebuilt(document)
    built.variables["x"].value = x.value
    np.testing.assert_allclose(built.problem.objective.value, problem.objective.value, rtol=1e-12)


def test_duals_are_named_by_the_position_of_their_constraint() -> None:
    constraints = [x >= 0, cp.SOC(t, x), cp.sum(x) == 1]
    duals = [dual for constraint in constraints for dual in constraint.dual_variables]
    document = to_document(cp.Problem(cp.Minimize(t), constraints), [], [*duals, t])
    assert document.outputs == ("c0", "c1.0", "c1.1", "c2", "t")
    built = rebuilt(document)
    assert [built.duals[name].shape for name in document.outputs[:-1]] == [dual.shape for dual in duals]


@pytest.mark.parametrize("flag", ["nonneg", "nonpos", "pos", "neg", "symmetric", "PSD", "NSD", "diag"])
def test_attributes_of_leaves_are_kept(flag: str) -> None:
    v, p = cp.Variable((2, 2), name="v", **{flag: True}), cp.Parameter((2, 2), name="p", **{flag: True})
    built = rebuilt(to_document(cp.Problem(cp.Minimize(cp.sum_squares(v - p))), [p], [v]))
    assert built.variables["v"].attributes[flag] is True
    assert built.parameters["p"].attributes[flag] is True


def test_bounds_of_variables_become_the_last_constraints() -> None:
    v = cp.Variable(2, bounds=[np.zeros(2), lam * np.ones(2)], name="v")
    document = to_document(cp.Problem(cp.Minimize(cp.sum(v)), [v[0] == 1]), [lam], [v])
    assert document.body["subject_to"] == ["v[0] == 1.0", "v >= k0", "v <= lam * k1"]


@pytest.mark.parametrize("leaf", ["parameters", "variables"])
def test_leaves_must_match_the_problem(leaf: str) -> None:
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - c)))
    given: dict[str, Any] = {"parameters": [c], "variables": [x]} | {leaf: [] if leaf == "parameters" else [y]}
    with pytest.raises(ValueError, match=leaf):
        to_document(problem, **given)


@pytest.mark.parametrize(
    "build",
    [
        lambda: cp.Problem(cp.Minimize(cp.von_neumann_entr(S))),
        lambda: cp.Problem(cp.Minimize(t), [cp.PowConeND(u, t, np.full(4, 0.25))]),
        lambda: cp.Problem(cp.Minimize(cp.sum(cp.Variable(3, integer=True)))),
    ],
    ids=["expression", "constraint", "attribute"],
)
def test_unsupported_expressions_are_named_without_the_library(
    build: Callable[[], cp.Problem], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "convexlayer", None)
    problem = build()
    with pytest.raises(UnsupportedExpressionError, match=r"von_neumann_entr|PowConeND|integer"):
        to_document(problem, [], problem.variables())
