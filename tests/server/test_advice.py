"""Advice on notation of CVXPY, NumPy and mathematics."""

from __future__ import annotations

import json
from typing import Any

import pytest

from convexlayer_server.documents import ExpressionDocument, identify
from convexlayer_server.documents.advice import character_advice, token_advice
from convexlayer_server.documents.cvxpy_problem import build_problem
from convexlayer_server.documents.grammar import Grammar
from convexlayer_server.errors import DocumentError, InvalidError
from convexlayer_server.settings import Settings

SETTINGS = Settings()
GRAMMAR = Grammar(SETTINGS)
DOCUMENT: dict[str, Any] = {
    "kind": "expression",
    "parameters": {"A": {"shape": [4, 3]}, "Q": {"shape": [3, 3], "symmetric": True}, "lam": {"nonneg": True}},
    "variables": {"x": {"shape": [3]}, "X": {"shape": [3, 3], "symmetric": True}},
    "minimize": "sum_squares(x) + sum_squares(X)",
}


def refusal(**parts: Any) -> str:
    with pytest.raises(DocumentError) as error:
        build_problem(ExpressionDocument.model_validate(DOCUMENT | parts), GRAMMAR, SETTINGS)
    return error.value.detail


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("cp.sum_squares(A @ x)", "unexpected character '.'; write sum_squares(...), without cp. before it"),
        ("1 + cvxpy . norm(x, 1)", "; write norm(...), without cvxpy. before it"),
        ("np.linalg.norm(x)", "; write norm(...), without np.linalg. before it"),
        ("cp.Minimize(cp.sum(x))", "there is no cp.Minimize; write the expression alone, as the document's minimize"),
        ("Maximize(sum(x))", "unknown function 'Maximize'; write the expression alone, as the document's maximize"),
        ("cp.Variable(3)", "declare it in variables, and write its name"),
        ("sum(cp.Parameter(3))", "declare it in parameters, and write its name"),
        ("np.eye(3)", "put the array in constants, and write its name"),
        ("cp.sum_entries(x)", "there is no cp.sum_entries; write sum(x)"),
        ("normNuc(X)", "unknown function 'normNuc'; write norm_nuc(X)"),
        ("cp.sum_square(x)", "there is no cp.sum_square; did you mean sum_squares"),
        ("norm(x, np.inf)", "there is no np.inf; write 'inf'"),
        ("norm(x, inf)", "unknown name 'inf'; write 'inf'"),
        ("sun_squares(x)", "unknown function 'sun_squares'; did you mean sum_squares"),
        ("Norm(x)", "unknown function 'Norm'; write norm(...)"),
        ("ceil(x)", "this function of CVXPY is not supported here"),
        ("x(0)", "unknown function 'x'; x is declared: write x[0] for an entry"),
        ("sum + 1", "unknown name 'sum'; sum is a function: write sum(...)"),
        ("x.sum()", "; write sum(...) around it"),
        ("(A @ x).sum()", "; write sum(...) around it"),
        ("A.dot(x)", "; write x @ y"),
        ("x.value", "; write the name alone"),
        ("A.shape[0]", "; .T is the only attribute"),
        ("x.*x", "; write multiply(x, y)"),
        ("x' * x", "; write .T for a transposed matrix"),
        ("A*x", "'*' takes a scalar on one side, got [4, 3] and [3]; write '@' or multiply(a, b)"),
        ("x**2", "the objective must be a scalar, got shape [3]; write sum(...) around it"),
        ("x^2", "; write ** for a power"),
        ("2x", "; write 2 * x"),
        ("2 x", "unexpected 'x'; an operator such as * or @ is missing before it"),
        ("lambda x: x", "unexpected 'x'; functions cannot be defined"),
        ("sum(x for x in X)", "unexpected 'for'; loops and conditions are not supported"),
        ("sum(x) # all", "; comments are not supported"),
        ("λ * sum(x)", "; names consist of the letters a to z"),
        ("sum(x) \N{MINUS SIGN} 1", "; write -"),
        ("max(x[0], x[1])", "for several expressions write maximum(...)"),
        ("x.T @ x", "is not convex by CVXPY's rules (DCP); its sides are: unknown; write sum_squares(x) for x.T @ x"),
        ("1 + x @ x", "; write sum_squares(x) for x.T @ x"),
        ("x.T @ Q @ x", "; the matrix of a quadratic form must be positive semidefinite"),
        ("quad_form(x, Q)", "; the matrix of a quadratic form must be positive semidefinite"),
        ("sqrt(sum_squares(A @ x))", "; write norm(x) for sqrt(sum_squares(x))"),
    ],
)
def test_objectives(text: str, advice: str) -> None:
    assert advice in refusal(minimize=text)


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("x >= 0, x <= 1", "; write each constraint as an entry of subject_to"),
        ("x >= 0 and x <= 1", "; write each constraint as an entry of subject_to"),
        ("x >= 0 & x <= 1", "; write each constraint as an entry of subject_to"),
        ("[x >= 0]", "; write each constraint as an entry of subject_to, without brackets"),
        ("0 <= x <= 1", "; split it into two constraints"),
        ("x = 1", "; write <=, >= or =="),
        ("x => 0", "; write <=, >= or =="),
        ("x ≥ 0", "; write >="),
        ("x != 0", "; a constraint with != is not convex"),
        ("x >= 0 or x <= -1", "; a disjunction is not convex"),
        ("cp.sum(x) == 1", "; write sum(...), without cp. before it"),
        ("cp.SOC(lam, x)", "there is no cp.SOC; write soc(t, x)"),
        ("SOC(lam, x)", "; write soc(t, x)"),
        ("cp.PSD(X)", "; write X >> 0"),
        ("cp.NonNeg(x)", "; write x >= 0"),
    ],
)
def test_constraints(text: str, advice: str) -> None:
    assert advice in refusal(subject_to=[text])


@pytest.mark.parametrize(
    ("document", "pointer", "message"),
    [
        ({"minimize": "x"}, "/kind", 'is missing; write "kind": "expression"'),
        ({"program": {}}, "/kind", 'is missing; write "kind": "cone_program"'),
        ({"kind": "Expression"}, "/kind", 'got \'Expression\'; write "kind": "expression"'),
        ({"kind": None}, "/kind", "got None; write"),
        ({"kind": ["k" * 1000]}, "/kind", "got ['kkk"),
        ([1], "", "expected an object with kind"),
    ],
)
def test_documents_without_a_kind(document: Any, pointer: str, message: str) -> None:
    with pytest.raises(InvalidError) as error:
        identify(json.dumps(document).encode(), SETTINGS)
    (field,) = error.value.errors
    assert field.pointer == pointer
    assert message in field.detail
    assert len(field.detail) < 200


def test_advice_on_long_texts_is_fast() -> None:
    """Only the neighbourhood of the error is examined."""
    for part in ("a", " ", ".a", "(", "a "):
        text = part * 10_000 + ". b"
        assert character_advice(text, len(text) - 3) == character_advice(text[-400:], 397)
        assert token_advice("b", text, constraint=True, operator=True) == token_advice(
            "b", text[-400:], constraint=True, operator=True
        )
