"""Thousands of requests that are almost right: every one is answered, none with a 5xx, all in the wire format."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from convexlayer_server import Settings, create_app
from convexlayer_server.documents.atoms import ATOMS, CONSTRAINTS

from .conftest import DOCUMENT, VALUES, AppClient

REQUESTS = 500  # for each seed
SEEDS = range(5)
SETTINGS = Settings(
    max_body_bytes=200_000,
    max_text_length=2_000,
    max_nodes=300,
    max_leaf_size=300,
    max_variable_size=100,
    max_expression_size=300,
    max_canonical_size=10_000,
    max_batch=8,
    max_batch_size=100_000,
    compiled_problems=8,
)
CONES: dict[str, Any] = {
    "kind": "expression",
    "parameters": {"C": {"shape": [2, 2], "symmetric": True}, "a": {"pos": True}},
    "variables": {"X": {"shape": [2, 2], "PSD": True}, "y": {"shape": [3]}, "t": {}},
    "constants": {"k": [[1.0, 2.0], [3.0, 4.0]]},
    "maximize": "a * log_det(X) - t",
    "subject_to": ["trace(k @ X) <= 3", "soc(t, y)", "exp_cone(y[0], 1, t)", "X << 2 * [[1, 0], [0, 1]]", "y == a"],
}
PROGRAM: dict[str, Any] = {
    "version": 1,
    "n": 1,
    "parameters": [{"name": "c", "shape": [], "attributes": [], "sparsity": None}],
    "log": [],
    "cones": {"zero": 0, "nonnegative": 1, "second_order": [], "psd": [], "exponential": 0, "power": []},
    "P": {"rows": [0], "cols": [0]},
    "A": {"rows": [0], "cols": [0]},
    "data": {"constant": [1.0, 0.0, 0.0, -1.0, 0.0], "rows": [1], "cols": [0], "values": [1.0]},
    "outputs": [{"name": "x", "shape": [], "log": False}],
    "recovery": {"rows": [0], "cols": [0], "values": [1.0]},
    "objective": {"maximize": False, "log": False},
}
DIRECTIONS: dict[str, Any] = {"x": [1.0, 0.0, -1.0], "c1": 1.0, "objective": 1.0}
PACKED = {"dtype": "<f8", "shape": [4], "b64": "AAAAAAAA8D8AAAAAAAAAQAAAAAAAAAhAAAAAAAAAEEA="}
JUNK: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3.5, 1e308, -1e308, 1e-308, 10**25, 10**400, float("nan"), float("inf"),
    "", "x", "A", "0", "NaN", "c0", "objective", "\ud800", "\u0000", "é" * 50, "x" * 3_000,
    "variables", "base64", "list", "scs", "clarabel", "nobody", "expression", "cone_program",
    "sum(x)", "x >= 0", "r.T[0]",
    [], {}, [[]], [1], [1, 2], [[1, 2], [3]], [None], ["1"], {"": 1}, {"a/b~c": 1},
    PACKED, PACKED | {"shape": [10**9] * 3}, PACKED | {"dtype": "O"}, PACKED | {"b64": "=" * 43},
]  # fmt: skip
KEYS = ["z", "x", "A", "a b", "kind", "c0", "", "é"]
LEAVES = [
    "x", "A", "b", "lam", "r", "X", "1", "2", "-1", "0", "0.5", "1e300", "x[0]", "[1, 2, 3]", "[[1, 2], [3, 4]]",
    "'fro'", "None", "True", "x[0:2]", "x[[0, 1]]", "A.T", "x[9]", "unknown",
]  # fmt: skip
SIMPLE_LEAVES = ["x", "x", "x[0]", "2", "[1, 2, 3]"]  # what they make has a meaning more often
SUFFIXES = ["[0]", "[:, 0]", ".T", " ** 2", " ** 0.3", "[1:]"]
OPTIONS = ["0", "1", "2", "-1", "0.5", "True", "None", "[1, 2]", "'F'", "'inf'", "10000000"]


def nested(depth: int) -> Any:
    value: Any = 1.0
    for _ in range(depth):
        value = [value]
    return value


class Generator:
    """Requests from one seed."""

    def __init__(self, seed: int, compute_path: str) -> None:
        self._random = random.Random(seed)
        self._path = compute_path
        self._leaves = LEAVES

    def requests(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Method, path and the options for httpx."""
        for _ in range(REQUESTS):
            path, body = self._random.choice(self._valid())
            body = copy.deepcopy(body)
            for _ in range(self._random.randint(0, 2)):
                body = self._mutated(body)
            content = json.dumps(body).encode()
            media_type = "application/json"
            match self._random.randint(0, 24):
                case 0:
                    content = content[: self._random.randrange(len(content) + 1)]
                case 1:
                    position = self._random.randrange(len(content) + 1)
                    content = content[:position] + self._random.randbytes(3) + content[position:]
                case 2:
                    media_type = self._random.choice(["text/plain", "", "application/json; charset=utf-16", "\t;"])
                case 3:
                    path += self._random.choice(["/", "x", "?validate_only=maybe", "/../solve", "%00", "%ff"])
            method = self._random.choices(["POST", "GET", "DELETE", "PUT", "HEAD"], [40, 2, 1, 1, 1])[0]
            if method == "DELETE":
                path = self._random.choice(["/v1/problems", "/v1/problems/p_none", "/v1/problems/%2e%2e"])
            yield method, path, {"content": content, "headers": {"Content-Type": media_type}}

    def _valid(self) -> list[tuple[str, Any]]:
        variant = copy.deepcopy(DOCUMENT)
        if self._random.random() < 0.5:
            variant["maximize"] = variant.pop("minimize")
        variant[self._random.choice(["minimize", "maximize"])] = f"sum({self._expression(3)})"
        if self._random.random() < 0.5:
            variant["subject_to"].append(self._constraint())
        batched = VALUES | {"lam": [0.1, 0.2], "b": PACKED}
        solve, vjp, jvp = (f"{self._path}/{operation}" for operation in ("solve", "vjp", "jvp"))
        self._leaves = self._random.choice([LEAVES, SIMPLE_LEAVES])
        generated = {
            "kind": "expression",
            "variables": {"x": {"shape": [3]}},
            "minimize": f"sum({self._expression(2)})",
        }
        return [
            ("/v1/problems", DOCUMENT),
            ("/v1/problems", CONES),
            ("/v1/problems", {"kind": "cone_program", "program": PROGRAM}),
            ("/v1/problems?validate_only=true", variant),
            ("/v1/problems", generated),
            (solve, {"parameters": VALUES, "return": ["variables", "duals"], "options": {}}),
            (solve, {"parameters": batched, "encoding": "base64", "options": {"tol": 1e-6}}),
            (vjp, {"parameters": batched, "cotangents": DIRECTIONS, "wrt": ["b", "lam"]}),
            (jvp, {"parameters": batched, "tangents": {"lam": 1.0, "A": VALUES["A"]}}),
        ]

    def _mutated(self, body: Any) -> Any:
        """The body with one place changed."""
        places = list(_places(body))
        if not places or self._random.random() < 0.02:
            return self._junk()
        container, key = self._random.choice(places)
        if isinstance(container, dict):
            match self._random.randint(0, 4):
                case 0:
                    del container[key]
                case 1:
                    container[self._random.choice(["z", "x", "A", "a b", "kind", "c0", "", "é", str(key) + "_"])] = (
                        container[key]
                    )
                case _:
                    container[key] = self._junk()
        elif self._random.random() < 0.3:
            container.append(self._junk())
        else:
            container[key] = self._junk()
        return body

    def _junk(self) -> Any:
        match self._random.randint(0, 9):
            case 0 | 1:
                return self._expression(4)
            case 2:
                return self._constraint()
            case 3:
                return nested(self._random.choice([3, 30, 300]))
            case 4:
                return self._random.uniform(-10, 10)
            case _:
                return copy.deepcopy(self._random.choice(JUNK))

    def _constraint(self) -> str:
        if self._random.random() < 0.3:
            return self._call(2, self._random.choice(list(CONSTRAINTS)))
        operator = self._random.choice(["<=", ">=", "==", ">>", "<<", "<", "="])
        return f"{self._expression(2)} {operator} {self._expression(2)}"

    def _expression(self, depth: int) -> str:
        if depth == 0 or self._random.random() < 0.15:
            return self._random.choice(self._leaves)
        match self._random.randint(0, 5):
            case 0:
                return f"-({self._expression(depth - 1)})"
            case 1:
                return f"({self._expression(depth - 1)}){self._random.choice(SUFFIXES)}"
            case 2 | 3:
                return self._call(depth, self._random.choice(list(ATOMS)))
            case _:
                operator = self._random.choice(["+", "-", "*", "/", "@", "**"])
                return f"({self._expression(depth - 1)} {operator} {self._expression(depth - 1)})"

    def _call(self, depth: int, name: str) -> str:
        atom = (ATOMS | CONSTRAINTS)[name]
        count = atom.least + self._random.choice([0, 0, 1])
        arguments = [self._expression(depth - 1) for _ in range(count)]
        for position, option in enumerate(atom.options):
            if self._random.random() < (0.9 if position < atom.required else 0.2):
                arguments.append(f"{option}={self._random.choice(OPTIONS)}")
        return f"{name}({', '.join(arguments)})"


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a JSON value with every key or position in it."""
    stack = [value]
    while stack:
        current = stack.pop()
        keys = list(current) if isinstance(current, dict) else range(len(current)) if isinstance(current, list) else ()
        for key in keys:
            yield current, key
            stack.append(current[key])


def check(response: httpx.Response, request: Any) -> None:
    """An answer in the wire format, whatever was asked."""
    assert response.status_code < 500, (request, response.text)
    assert response.headers["X-Request-Id"]
    if response.request.method == "HEAD" or response.status_code == 204:
        return

    def refuse(literal: str) -> None:
        raise AssertionError(f"{literal} is not JSON: {request}")

    body = json.loads(response.content, parse_constant=refuse)
    if response.status_code >= 400:
        assert response.headers["Content-Type"] == "application/problem+json", request
        assert body["status"] == response.status_code
        assert body["type"].startswith("urn:convexlayer:problem:")
        assert body["detail"]


@pytest.mark.filterwarnings(
    "ignore::RuntimeWarning", "ignore::UserWarning"
)  # what a caller's numbers make of CVXPY's sums
@pytest.mark.parametrize("seed", SEEDS)
def test_no_request_breaks_the_server(seed: int) -> None:
    client = AppClient(create_app(SETTINGS))
    try:
        path = client.register(DOCUMENT)
        statuses = set()
        for method, target, options in Generator(seed, path).requests():
            response = client.request(method, target, **options)
            check(response, (method, target, options["content"][:3000]))
            statuses.add(response.status_code)
        assert {200, 201, 400, 404, 405, 415, 422} <= statuses
        assert client.post(f"{path}/solve", {"parameters": VALUES}).status_code == 200
    finally:
        client.close()
