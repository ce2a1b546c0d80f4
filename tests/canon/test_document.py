"""Programs survive a JSON round trip, and errors name the path of an invalid field."""

from __future__ import annotations

import copy
import json
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convexlayer import ParametricProgram, ProblemError, SolutionMap, canonicalize
from convexlayer.canon import presolved
from tests.families import family


def document_of(name: str) -> dict[str, Any]:
    case = family(name)
    return case.program().to_document()


@pytest.mark.parametrize("name", ["quadratic_program", "geometric_exponent", "attribute_parameters", "power_cone_nd"])
def test_a_json_round_trip_keeps_solutions(name: str) -> None:
    case = family(name)
    program = case.program(self_check=True)
    document = program.to_document()
    back = ParametricProgram.from_document(json.loads(json.dumps(document)))
    assert back.to_document() == document
    ours, theirs = SolutionMap(program).solve(case.values()), SolutionMap(presolved(back)).solve(case.values())
    for left, right in zip(ours.outputs, theirs.outputs, strict=True):
        np.testing.assert_array_equal(left, right)


def put(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(document)
    *parents, last = path.split("/")
    place: Any = changed
    for key in parents:
        place = place[int(key)] if isinstance(place, list) else place[key]
    place[last] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("version", 2, "/version: expected version 1"),
        ("extra", 1, "unknown field 'extra'"),
        ("n", -1, "/n: expected a nonnegative integer"),
        ("n", 5, "/recovery|/P|/A|/data"),
        ("cones/power", [1.5], "/cones/power: expected exponents"),
        ("cones/psd", [0], "at least 1"),
        ("cones/zero", 10**12, "/cones/zero"),
        ("P", {"rows": [1], "cols": [0]}, "/P: the pattern must be symmetric"),
        ("A", {"rows": [1, 0], "cols": [0, 0]}, "column by column"),
        ("data/values", [float("nan")], "finite"),
        ("data/constant", [0.0], "/data/constant: expected"),
        ("data/rows", ["0"], "integers"),
        ("parameters/0/shape", [3, -3], "/parameters/0/shape"),
        ("parameters/0/shape", [100000, 100000], "at most"),
        ("parameters/0/attributes", ["magic"], "/parameters/0/attributes"),
        ("outputs", [], "/outputs: expected at least one"),
        ("objective/maximize", 1, "true or false"),
        ("log", [10**6], "below"),
    ],
)
def test_an_error_names_the_path_of_an_invalid_field(path: str, value: Any, message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        ParametricProgram.from_document(put(document_of("quadratic_program"), path, value))


def test_an_asymmetric_quadratic_form_is_rejected() -> None:
    document = document_of("parametric_quad_form")
    values = document["data"]["values"]
    first_off_diagonal = next(i for i, row in enumerate(document["data"]["rows"]) if row == 1)
    with pytest.raises(ProblemError, match="P must be symmetric"):
        ParametricProgram.from_document(
            put(document, "data/values", [v + (i == first_off_diagonal) for i, v in enumerate(values)])
        )


@pytest.mark.parametrize(("curvature", "convex"), [([2.0, 1.0], True), ([2.0, 0.0], True), ([2.0, -1e-3], False)])
def test_a_constant_quadratic_form_must_be_positive_semidefinite(curvature: list[float], convex: bool) -> None:
    x, q = cp.Variable(2), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(x) + q @ x))
    document = canonicalize(problem, [q], [x]).to_document()
    assert document["P"]["rows"] == [0, 1]
    document = put(document, "data/constant", [*curvature, *document["data"]["constant"][2:]])
    if convex:
        ParametricProgram.from_document(document)
        return
    with pytest.raises(ProblemError, match="positive semidefinite"):
        ParametricProgram.from_document(document)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
DOCUMENT = document_of("attribute_parameters")
PATHS = sorted(
    [
        *DOCUMENT,
        *(f"{k}/{j}" for k, v in DOCUMENT.items() if isinstance(v, dict) for j in v),
        "parameters/0/shape",
        "outputs/0/name",
    ]
)


@settings(max_examples=300, deadline=None)
@given(path=st.sampled_from(PATHS), value=json_values)
def test_a_mutated_document_raises_only_problem_errors(path: str, value: Any) -> None:
    try:
        ParametricProgram.from_document(put(DOCUMENT, path, value))
    except ProblemError:
        return
