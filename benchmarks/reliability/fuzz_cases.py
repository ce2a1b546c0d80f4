"""Fuzz cases: nearly valid requests from a seed, and the check of their responses."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, final

import httpx
import numpy as np

from convexlayer_server.documents.atoms import ATOMS, CONSTRAINTS
from convexlayer_server.encodings.safetensors import MEDIA_TYPE

__all__ = ["DOCUMENT", "LIMITS", "VALUES", "Case", "Generator", "check"]

LIMITS: dict[str, Any] = {
    "max_body_bytes": 200_000,
    "max_text_length": 2_000,
    "max_nodes": 300,
    "max_leaf_size": 300,
    "max_variable_size": 100,
    "max_expression_size": 300,
    "max_canonical_size": 10_000,
    "max_batch": 8,
    "max_batch_size": 100_000,
    "cached_problems": 8,
    "max_problems_per_key": 100_000,
}
"""Limits that keep most requests small, so that many can be sent."""

DOCUMENT: dict[str, Any] = {
    "kind": "expression",
    "parameters": {"A": {"shape": [4, 3]}, "b": {"shape": [4]}, "lam": {"nonneg": True}},
    "variables": {"x": {"shape": [3]}},
    "let": {"r": "A @ x - b"},
    "minimize": "sum_squares(r) + lam * norm1(x)",
    "subject_to": ["x >= -1", "sum(x) == 1"],
}
"""A valid problem, from which cases are made by changes."""

VALUES: dict[str, Any] = {
    "A": [[1.0, 0.2, 0.0], [0.0, 2.0, 0.1], [0.3, 0.0, 1.5], [0.5, 0.5, 0.5]],
    "b": [1.0, 2.0, 0.5, -1.0],
    "lam": 0.1,
}
"""Valid parameters of DOCUMENT."""

CONES: dict[str, Any] = {
    "kind": "expression",
    "parameters": {"C": {"shape": [2, 2], "symmetric": True}, "a": {"pos": True}},
    "variables": {"X": {"shape": [2, 2], "PSD": True}, "y": {"shape": [3]}, "t": {}},
    "constants": {"k": [[1.0, 2.0], [3.0, 4.0]]},
    "maximize": "a * log_det(X) - t",
    "subject_to": ["trace(k @ X) <= 3", "soc(t, y)", "exp_cone(y[0], 1, t)", "X << 2 * [[1, 0], [0, 1]]", "y == a"],
}
"""A valid problem with several cones, attributes and constants."""

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
"""A valid cone program document: minimise x^2 / 2 + c x over x >= 0."""

COTANGENTS: dict[str, Any] = {"x": [1.0, 0.0, -1.0], "c1": 1.0, "objective": 1.0}
"""Valid cotangents of DOCUMENT."""

PACKED = {"dtype": "<f8", "shape": [4], "b64": "AAAAAAAA8D8AAAAAAAAAQAAAAAAAAAhAAAAAAAAAEEA="}
"""The array [1, 2, 3, 4] in base64."""

JUNK: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3.5, 1e308, -1e308, 1e-308, 10**25, 10**400, float("nan"), float("inf"),
    "", "x", "A", "0", "NaN", "c0", "objective", "\ud800", "\u0000", "é" * 50, "x" * 3_000,
    "variables", "base64", "list", "scs", "clarabel", "nobody", "expression", "cone_program",
    "sum(x)", "x >= 0", "r.T[0]",
    [], {}, [[]], [1], [1, 2], [[1, 2], [3]], [None], ["1"], {"": 1}, {"a/b~c": 1},
    PACKED, PACKED | {"shape": [10**9] * 3}, PACKED | {"dtype": "O"}, PACKED | {"b64": "=" * 43},
]  # fmt: skip
"""Values that replace those of a valid request."""

LEAVES = [
    "x", "A", "b", "lam", "r", "X", "1", "2", "-1", "0", "0.5", "1e300", "x[0]", "[1, 2, 3]", "[[1, 2], [3, 4]]",
    "'fro'", "None", "True", "x[0:2]", "x[[0, 1]]", "A.T", "x[9]", "unknown",
]  # fmt: skip
"""Smallest parts of generated expressions."""

SIMPLE_LEAVES = ["x", "x", "x[0]", "2", "[1, 2, 3]"]
"""Leaves whose expressions are valid more often."""

_BINARY_FRACTION = 0.2
"""Share of the requests that are in binary form."""

_BROKEN_FRACTION = 0.1
"""Share of the bodies that cannot be parsed."""

SUFFIXES = ["[0]", "[:, 0]", ".T", " ** 2", " ** 0.3", "[1:]"]
"""What may follow a generated expression."""

OPTIONS = ["0", "1", "2", "-1", "0.5", "True", "None", "[1, 2]", "'F'", "'inf'", "10000000"]
"""Values of the options of atoms."""


@dataclass(frozen=True)
class Case:
    """One request.

    Attributes:
        method: HTTP method.
        path: path.
        content: body.
        headers: headers.
    """

    method: str
    path: str
    content: bytes
    headers: dict[str, str] = field(default_factory=dict)


@final
class Generator:
    """Generates requests from a seed.

    Args:
        seed: random seed.
        compute_path: path of the registered ``DOCUMENT``.
    """

    def __init__(self, seed: int, compute_path: str) -> None:
        self._random = random.Random(seed)
        self._path = compute_path
        self._leaves = LEAVES

    def cases(self, count: int) -> Iterator[Case]:
        """Yield ``count`` requests."""
        for _ in range(count):
            yield self._binary() if self._random.random() < _BINARY_FRACTION else self._json()

    def _json(self) -> Case:
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
                media_type = self._random.choice(["text/plain", "", "application/json; charset=utf-16", "/;"])
            case 3:
                path += self._random.choice(["/", "x", "?validate_only=maybe", "/../solve", "%00", "%ff"])
        method = self._random.choices(["POST", "GET", "DELETE", "PUT", "HEAD"], [40, 2, 1, 1, 1])[0]
        if method == "DELETE":
            path = self._random.choice(["/v1/problems", "/v1/problems/p_none", "/v1/problems/%2e%2e"])
        return Case(method, path, content, {"Content-Type": media_type})

    def _binary(self) -> Case:
        """Return a solve, vjp or jvp as safetensors, usually with one error."""
        operation, part = self._random.choice([("solve", None), ("vjp", "cotangents"), ("jvp", "tangents")])
        arrays = {f"parameters/{name}": np.array(value) for name, value in VALUES.items()}
        if part == "cotangents":
            arrays["cotangents/x"] = np.ones((self._random.choice([1, 2]), 3))
        elif part == "tangents":
            arrays["tangents/lam"] = np.array(1.0)
        values = np.concatenate([array.ravel() for array in arrays.values()])
        header: dict[str, Any] = {"__metadata__": {"body": json.dumps({"encoding": "list"})}}
        begin = 0
        for name, array in arrays.items():
            offsets = [begin, begin + array.nbytes]
            header[name] = {"dtype": "F64", "shape": list(array.shape), "data_offsets": offsets}
            begin = offsets[1]
        name = self._random.choice(list(arrays))
        entry = header[name]
        match self._random.randint(0, 12):
            case 0:  # overlaps or gaps
                entry["data_offsets"] = [
                    place + self._random.choice([-8, 8, 4, 10**6]) for place in entry["data_offsets"]
                ]
            case 1:
                entry["shape"] = self._random.choice([[10**9] * 3, [-1], [2**63], [0], [1.5], "3", [[3]], [True], []])
            case 2:
                entry["dtype"] = self._random.choice(["F32", "I64", "BF16", "", None, "F64 "])
            case 3:
                header["__metadata__"] = self._random.choice([{}, {"body": "{"}, {"body": "[" * 5000}, [], {"body": 1}])
            case 4:
                header["__metadata__"]["body"] = json.dumps(self._mutated({"options": {}, "encoding": "base64"}))
            case 5:
                values[self._random.randrange(len(values))] = self._random.choice([np.nan, np.inf, 1e308, 5e-324])
            case 6:
                header[self._random.choice(["x", "parameters/z", "options/tol", "", "a/b/c", "parameters"])] = entry
            case 7:
                header[name] = self._random.choice([None, [], {}, {"dtype": "F64"}, nested(500)])
        text = json.dumps(header).encode()
        if self._random.random() < _BROKEN_FRACTION:  # deeply nested, huge, or not JSON
            text = self._random.choice([b"[" * 50_000, b"{", b"", text + b" " * 9, b'{"a":' * 3000, text[:-1] + b",}"])
        length = self._random.choices([len(text), 0, 2**63, 2**64 - 1, len(text) + 1], [40, 1, 1, 1, 1])[0]
        content = length.to_bytes(8, "little") + text + values.tobytes()
        if self._random.random() < _BROKEN_FRACTION:
            content = content[: self._random.randrange(len(content) + 1)]
        return Case("POST", f"{self._path}/{operation}", content, {"Content-Type": MEDIA_TYPE})

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
            (vjp, {"parameters": batched, "cotangents": COTANGENTS, "wrt": ["b", "lam"]}),
            (jvp, {"parameters": batched, "tangents": {"lam": 1.0, "A": VALUES["A"]}}),
        ]

    def _mutated(self, body: Any) -> Any:
        """Change one value of a body."""
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
        atom = ATOMS.get(name) or CONSTRAINTS[name]
        count = atom.least + self._random.choice([0, 0, 1])
        arguments = [self._expression(depth - 1) for _ in range(count)]
        for position, option in enumerate(atom.options):
            if self._random.random() < (0.9 if position < atom.required else 0.2):
                arguments.append(f"{option}={self._random.choice(OPTIONS)}")
        return f"{name}({', '.join(arguments)})"


def nested(depth: int) -> Any:
    """Return a number within ``depth`` lists."""
    value: Any = 1.0
    for _ in range(depth):
        value = [value]
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every container of a JSON value with each of its keys or positions."""
    stack = [value]
    while stack:
        current = stack.pop()
        keys = list(current) if isinstance(current, dict) else range(len(current)) if isinstance(current, list) else ()
        for key in keys:
            yield current, key
            stack.append(current[key])


def check(response: httpx.Response, request: Any) -> None:
    """Check that a response has the wire format.

    Raises:
        AssertionError: it does not, or the server failed.
    """
    assert response.status_code < 500, (request, response.text)
    assert response.headers["X-Request-Id"]
    if response.request.method == "HEAD" or response.status_code == 204:
        return

    def refuse(literal: str) -> None:
        raise AssertionError(f"{literal} is not JSON: {request}")

    if "json" not in response.headers.get("Content-Type", ""):
        assert response.status_code < 400, request
        return
    body = json.loads(response.content, parse_constant=refuse)
    if response.status_code >= 400:
        assert response.headers["Content-Type"] == "application/problem+json", request
        assert body["status"] == response.status_code
        assert body["type"].startswith("urn:convexlayer:problem:")
        assert body["detail"]
