from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import cvxpy as cp
import numpy as np
import pytest

from convexlayer_server.documents import ExpressionDocument, identify
from convexlayer_server.documents.cvxpy_problem import CvxpyProblem, build_problem
from convexlayer_server.documents.grammar import Grammar
from convexlayer_server.encodings.arrays import encode
from convexlayer_server.errors import DocumentError, MalformedError
from convexlayer_server.settings import Settings

from .conftest import DOCUMENT

SETTINGS = Settings()
GRAMMAR = Grammar(SETTINGS)


def built(document: dict[str, Any], settings: Settings = SETTINGS) -> CvxpyProblem:
    """Build the CVXPY problem of a document, as the server does."""
    text = identify(json.dumps(document).encode(), settings).text
    return build_problem(ExpressionDocument.model_validate(json.loads(text)), GRAMMAR, settings)


def identity(document: dict[str, Any]) -> str:
    return identify(json.dumps(document).encode(), SETTINGS).id


def with_constant(value: Any) -> dict[str, Any]:
    return DOCUMENT | {"constants": {"C": value}}


def test_the_problem_equals_that_of_cvxpy() -> None:
    result = built(DOCUMENT)
    A, b, lam = (result.parameters[name] for name in ("A", "b", "lam"))
    x = result.variables["x"]
    problem = cp.Problem(
        cp.Minimize(cp.sum_squares(A @ x - b) + lam * cp.norm1(x)),
        [x >= cp.Constant(-1.0), cp.sum(x) == cp.Constant(1.0)],
    )
    assert str(result.problem) == str(problem)
    assert lam.is_nonneg()
    assert list(result.duals) == ["c0", "c1"]
    assert [dual.shape for dual in result.duals.values()] == [(3,), ()]


def test_attributes_and_maximize() -> None:
    result = built(
        {
            "kind": "expression",
            "variables": {"X": {"shape": [3, 3], "PSD": True}, "d": {"shape": [3, 3], "diag": True}},
            "parameters": {"C": {"shape": [3, 3], "symmetric": True}},
            "maximize": "trace(C @ X) + trace(d)",
            "subject_to": ["trace(X) <= 1", "X - d << 0"],
        }
    )
    assert isinstance(result.problem.objective, cp.Maximize)
    assert result.variables["X"].is_psd()
    assert result.parameters["C"].is_symmetric()


def test_let_in_any_order() -> None:
    document = DOCUMENT | {"let": {"a": "b2 + 1", "b2": "2 * c", "c": "x + 1"}, "minimize": "sum_squares(a)"}
    written_out = DOCUMENT | {"let": {}, "minimize": "sum_squares(2 * (x + 1) + 1)"}
    assert str(built(document).problem) == str(built(written_out).problem)
    shuffled = document | {"let": {"c": "x + 1", "a": "b2 + 1", "b2": "2 * c"}}
    assert identity(document) == identity(shuffled)


def test_identity_does_not_depend_on_formatting() -> None:
    base = identity(with_constant([[1.0, 2.0], [3.0, 4.0]]))
    assert base.startswith("p_")
    assert len(base) == 54
    assert base == base.lower()
    assert base == identity(with_constant([[1, 2], [3, 4]]))
    assert base == identity(with_constant(encode(np.array([[1.0, 2.0], [3.0, 4.0]]), "base64")))
    assert base == identity(dict(reversed(with_constant([[1, 2], [3, 4]]).items())))
    spelled_out = with_constant([[1, 2], [3, 4]]) | {"gp": False, "maximize": None}
    assert base == identity(spelled_out)
    assert identity(with_constant([0.0])) == identity(with_constant([-0.0]))


FORMERLY = [
    (DOCUMENT, "p_snrpidawymzyu7vm3hd7ummlgivnpltnri6lhd5qkjmpwscqbmgq"),
    (
        DOCUMENT | {"constants": {"C": [[1, 2.5], [-0.0, 1e-300]], "s": 3}},
        "p_75it2n7ge6hh5qrmkc3lh5pnxhkxtlenzgrvjevfdctehjp26j7a",
    ),
    (
        DOCUMENT | {"constants": {"C": {"dtype": "<f4", "shape": [2], "b64": "AACAPwAAAEA="}}},
        "p_trucwaqod7b4y3ri6romrivgtc3fqsasqti7bgygr7xf7cvub4bq",
    ),
    (
        DOCUMENT | {"constants": {"C": (np.arange(40000.0).reshape(200, 200) / 7).tolist(), "I": list(range(50000))}},
        "p_te6x46pcoml27lsynew3k745ek76df32fopexf7oui5nnkgacrsa",
    ),
    (
        {"kind": "expression", "variables": {"x": {}}, "minimize": "square(x) # é", "gp": False, "maximize": None},
        "p_fpy2lscrwp2hluj4zbmistyvbnr6tqxxocgbl4iseq34np6xzgla",
    ),
    (
        {
            "kind": "cone_program",
            "program": {
                "n": 3,
                "é": [1.0, 2, -0.0, 1e22, 1e-7, 123456789012345678901234567890, True, None, "x\u2028"],
                "z": {"b": 1, "a": []},
            },
        },
        "p_6buxxg2hae4o56gklgebyykvkfxqvg3osfagkxvamwob4ie444mq",
    ),
]


@pytest.mark.parametrize(("document", "expected"), FORMERLY)
def test_ids_equal_those_of_earlier_versions(document: dict[str, Any], expected: str) -> None:
    """Stored problems have these IDs."""
    found = identify(json.dumps(document).encode(), SETTINGS)
    assert found.id == expected
    assert identify(found.text, SETTINGS) == found


@pytest.mark.parametrize(
    "change",
    [
        {"minimize": "sum_squares(r)"},
        {"parameters": DOCUMENT["parameters"] | {"lam": {}}},
        {"constants": {"C": [[1.0, 3.0], [2.0, 4.0]]}},
        {"constants": {"C": [1.0, 2.0, 3.0, 4.0]}},
        {"subject_to": DOCUMENT["subject_to"][::-1]},
        {"gp": True},
    ],
)
def test_identity_depends_on_every_field(change: dict[str, Any]) -> None:
    base = with_constant([[1.0, 2.0], [3.0, 4.0]])
    assert identity(base) != identity(base | change)


def test_cone_programs_have_identities() -> None:
    one, other = ({"kind": "cone_program", "program": {"n": n}} for n in (1, 2))
    assert identity(one) != identity(other)
    with pytest.raises(DocumentError, match="finite"):
        identity({"kind": "cone_program", "program": {"n": float("nan")}})
    for depth in range(950, 1001):  # near the recursion limits of the parser and the serialiser
        with suppress(MalformedError, DocumentError):
            identify(nested(depth), SETTINGS)
    with pytest.raises(MalformedError, match="nested too deep"):
        identify(nested(100_000), SETTINGS)


def nested(depth: int) -> bytes:
    return b'{"kind": "cone_program", "program": {"n": ' + b"[" * depth + b"]" * depth + b"}}"


@pytest.mark.parametrize(
    ("change", "pointer", "message"),
    [
        ({"minimize": None}, "", "exactly one of minimize and maximize"),
        ({"maximize": "x[0]"}, "", "exactly one of minimize and maximize"),
        ({"minimize": "x"}, "/minimize", "must be a scalar, got shape [3]"),
        ({"minimize": "sum(z)"}, "/minimize", "line 1, column 5: unknown name 'z'"),
        ({"minimize": "sum(lan * x)"}, "/minimize", "did you mean lam"),
        ({"let": {"r": "A @ x -"}}, "/let/r", "line 1, column 8: the text ends"),
        ({"let": {"r": "q", "q": "r"}}, "/let", "form a cycle"),
        ({"let": {"r": "r + 1"}}, "/let", "form a cycle"),
        ({"let": {"r": "A @ x - b", "x": "b"}}, "/let/x", "is already declared in variables"),
        ({"constants": {"x": 1.0}}, "/constants/x", "is already declared in variables"),
        ({"variables": {"x": {"shape": [3]}, "true": {}}}, "/variables/true", "reserved word"),
        ({"variables": {"x": {"shape": [3]}, "objective": {}}}, "/variables/objective", "rename the variable"),
        (
            {"variables": {"x": {"shape": [3]}, "y": {}}},
            "/variables/y",
            "neither the objective nor a constraint uses",
        ),
        ({"variables": {"x": {"shape": [3], "PSD": True}}}, "/variables/x", "square"),
        ({"variables": {"x": {"shape": [3], "symmetric": True}}}, "/variables/x", "square"),
        ({"variables": {"x": {"shape": [1] * 5}}}, "/variables/x", "has 5 dimensions; the limit is 4"),
        ({"variables": {"x": {"shape": [10**9, 10**9]}}}, "/variables/x", "more than 100000 entries"),
        ({"parameters": {"A": {"shape": [10**6, 2]}}}, "/parameters/A", "more than 1000000 entries"),
        ({"subject_to": ["x >= 0", "norm1(x)"]}, "/subject_to/1", "a constraint is a comparison"),
        ({"subject_to": ["x"]}, "/subject_to/0", "a constraint is a comparison"),
        ({"subject_to": ["x + soc(1, x) >= 0"]}, "/subject_to/0", "expected an expression, got a constraint"),
        ({"subject_to": ["x >= [1, 2]"]}, "/subject_to/0", "line 1, column 3: '>='"),
        (
            {"variables": {"x": {"shape": [65]}}, "minimize": "-geo_mean(x)", "let": {}},
            "/minimize",
            "pass approx=False",
        ),
        ({"variables": {"x": {"shape": [65]}}, "minimize": "inv_prod(x)", "let": {}}, "/minimize", "approx=False"),
        ({"subject_to": ["x >> 0"]}, "/subject_to/0", "line 1, column 3: '>>'"),
    ],
)
def test_refusals(change: dict[str, Any], pointer: str, message: str) -> None:
    with pytest.raises(DocumentError) as error:
        built(DOCUMENT | change)
    (field,) = error.value.errors
    assert field.pointer == pointer
    assert message in field.detail


def test_dual_names_do_not_clash_with_variables() -> None:
    document = {
        "kind": "expression",
        "variables": {"c0": {}, "c1": {}},
        "minimize": "c0 + c1",
        "subject_to": ["c0 + c1 >= 0"],
    }
    with pytest.raises(DocumentError, match="c0"):
        built(document)
    del document["variables"]["c0"]  # type: ignore[attr-defined]
    assert list(built(document | {"minimize": "c1", "subject_to": ["c1 >= 0"]}).duals) == ["c0"]


BOUNDS = Settings(
    max_nodes=200,
    max_expression_size=1000,
    max_canonical_size=20_000,
    max_constraints=3,
    max_names=20,
    max_leaf_size=300,
)
DOUBLING = {f"a{i}": f"a{i - 1} + a{i - 1}" if i else "x + 1" for i in range(8)}  # 8 lines, 256 leaves


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"let": DOUBLING | {"r": "a7"}}, "more than 200 nodes"),
        ({"subject_to": ["x >= " + "1 + " * 90 + "x"] * 3}, "more than 200 nodes"),
        ({"let": {"r": "broadcast_to(x[0], [1001])"}}, "has 1001 entries; the limit is 1000"),
        ({"let": {"r": "outer(vec(A), [" + "1," * 90 + "])"}}, "has 1080 entries; the limit is 1000"),
        ({"let": {"r": "kron(kron(A, A), A)"}}, "entries; the limit is 1000"),
        ({"let": {"r": "reshape(x, [1000000000])"}}, "reshape"),
        ({"let": {"r": "hstack(" + ", ".join(["A"] * 90) + ")"}}, "entries; the limit is 1000"),
        ({"constants": {"C": [[0.0] * 17] * 17}, "let": {"r": "C @ C @ C @ C @ C"}}, "more than 20000 coefficients"),
        ({"constants": {"C": [0.0] * 301}}, "more than 300 entries together"),
        ({"let": {"r": "geo_mean(x) + geo_mean(broadcast_to(x[0], [18]))"}}, "more than 20000 coefficients"),
        ({"subject_to": ["x >= 0"] * 4}, "has 4 constraints; the limit is 3"),
        ({"constants": {f"C{i}": 1.0 for i in range(16)}}, "declares 21 names; the limit is 20"),
    ],
)
def test_limits(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DocumentError, match=message):
        built(DOCUMENT | change, BOUNDS)


def test_exact_powers_have_any_number_of_entries() -> None:
    document = {"kind": "expression", "variables": {"x": {"shape": [200]}}, "minimize": "-geo_mean(x, approx=False)"}
    assert built(document | {"subject_to": ["sum(x) <= 1"]}).problem.is_dcp()


def test_depth_counts_let() -> None:
    chain = {f"a{i}": f"abs(a{i - 1})" if i else "abs(x)" for i in range(70)}
    with pytest.raises(DocumentError, match="nested deeper than 64"):
        built(DOCUMENT | {"let": chain | {"r": "x"}, "minimize": "sum(a69)"})


def test_the_deepest_allowed_problem_is_canonicalised() -> None:
    deep = built(
        DOCUMENT | {"minimize": "sum(" + "maximum(1, " * 30 + "x" + ")" * 30 + ")", "parameters": {}, "let": {}}
    )
    assert deep.problem.is_dcp(dpp=True)
