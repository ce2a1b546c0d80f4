"""The pieces that the engine is made of: messages, cuts, merged requests, kept states."""

from __future__ import annotations

import socket
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from convexlayer_server.channel import receive, send
from convexlayer_server.engine import ComputeResult, PortableState
from convexlayer_server.engine.merging import Member, merged, split
from convexlayer_server.engine.parts import Cutter
from convexlayer_server.engine.states import digest
from convexlayer_server.errors import InvalidError

from .engines import request

SUMMARY: dict[str, Any] = {
    "parameters": {"A": {"shape": [2, 3]}, "b": {"shape": [2]}},
    "variables": {"x": {"shape": [3]}},
    "duals": {},
}


@pytest.mark.parametrize("size", [0, 1, 100, 100_000])
def test_messages_arrive_as_they_were(size: int) -> None:
    ours, theirs = socket.socketpair()
    message = {"array": np.arange(float(size)).reshape(-1, 1), "part": np.arange(10.0)[::2], "text": "x" * size}
    with ours, theirs:
        sender = threading.Thread(target=send, args=(ours, message))
        sender.start()
        received = receive(theirs)
        sender.join()
        np.testing.assert_array_equal(received["array"], message["array"])
        np.testing.assert_array_equal(received["part"], message["part"])
        assert received["text"] == message["text"]
        received["array"][:] = 0.0  # may be written to, and is its receiver's own
        ours.close()
        with pytest.raises(EOFError):
            receive(theirs)


def given(rng: np.random.Generator, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


def test_cuts_cover_the_batch_and_share_what_is_shared() -> None:
    rng = np.random.default_rng(0)
    whole = request(parameters=given(rng, A=(2, 3), b=(10, 2)), operation="vjp", directions=given(rng, x=(3,)))
    cutter = Cutter.of(whole, SUMMARY)
    assert (cutter.batch, cutter.batched) == (10, (frozenset("b"), frozenset()))
    rows = [slice(0, 3), slice(3, 6), slice(6, 10)]
    parts = [cutter.part(part, f"k/{part.start}") for part in rows]
    np.testing.assert_array_equal(np.concatenate([part.parameters["b"] for part in parts]), whole.parameters["b"])
    assert all(part.parameters["A"] is whole.parameters["A"] for part in parts)
    assert cutter.part(slice(0, 10), "k").parameters is whole.parameters


def test_what_every_part_would_have_bounds_their_number() -> None:
    large = np.zeros((2**22, 2))  # 64 MiB
    summary = SUMMARY | {"parameters": {"A": {"shape": [2**22, 2]}, "b": {"shape": [2]}}}
    cutter = Cutter.of(request(parameters={"A": large, "b": np.zeros((100, 2))}), summary)
    assert cutter.least_rows == 50
    small = Cutter.of(request(parameters={"A": np.zeros((2, 3)), "b": np.zeros((100, 2))}), SUMMARY)
    assert small.least_rows == 1


def test_batch_sizes_agree() -> None:
    rng = np.random.default_rng(0)
    wrong = request(parameters=given(rng, A=(2, 3), b=(4, 2)), operation="vjp", directions=given(rng, x=(5, 3)))
    with pytest.raises(InvalidError, match="/cotangents/x: has 5 elements, but the parameters have 4"):
        Cutter.of(wrong, SUMMARY)


def result(rows: int, arrays: dict[str, np.ndarray], **fields: Any) -> ComputeResult:
    numbers = np.arange(float(rows))
    values: dict[str, Any] = {
        "arrays": arrays,
        "batched": True,
        "status": tuple(f"status {row}" for row in range(rows)),
        "objective": None,
        "iterations": tuple(range(rows)),
        "residuals": {"gap": numbers},
        "report": {"margin": numbers.tolist()},
        "solver": "s",
        "reason": "r",
        "seconds": {"solve": 1.0},
    }
    return ComputeResult(**values | fields)


def test_merged_requests_and_what_each_is_given() -> None:
    rng = np.random.default_rng(0)
    single = request("1", parameters=given(rng, A=(2, 3), b=(2,)), operation="vjp", directions=given(rng, x=(3,)))
    batch = request("2", parameters=given(rng, A=(2, 3), b=(4, 2)), operation="vjp", directions=given(rng, x=(4, 3)))
    members = []
    for each in (single, batch):
        cutter = Cutter.of(each, SUMMARY)
        members.append(Member(each, cutter.batch, cutter.batched))
    one = merged(members)
    assert {name: value.shape for name, value in one.parameters.items()} == {"A": (5, 2, 3), "b": (5, 2)}
    for row in range(4):
        np.testing.assert_array_equal(one.parameters["A"][1 + row], batch.parameters["A"])
        np.testing.assert_array_equal(one.directions["x"][1 + row], batch.directions["x"][row])
    gradients = given(rng, A=(5, 2, 3), b=(5, 2))
    first, second = split(result(5, gradients), members)
    np.testing.assert_array_equal(first.arrays["b"], gradients["b"][0])
    np.testing.assert_array_equal(second.arrays["b"], gradients["b"][1:])
    np.testing.assert_allclose(second.arrays["A"], gradients["A"][1:].sum(axis=0))
    assert (first.batched, second.batched) == (False, True)
    assert second.status == ("status 1", "status 2", "status 3", "status 4")
    assert second.report == {"margin": [1.0, 2.0, 3.0, 4.0]}


def test_merged_states_and_outputs() -> None:
    rng = np.random.default_rng(0)
    values = given(rng, A=(2, 3), b=(2,))
    points = PortableState(digest="d", **given(rng, x=(1, 3), y=(1, 2), s=(1, 2)), status=("optimal",))
    stated = request("1", parameters=values, operation="jvp", directions=given(rng, b=(3, 2)), state=points)
    members = [Member(stated, 3, (frozenset(), frozenset("b"))), Member(stated, 3, (frozenset(), frozenset("b")))]
    one = merged(members)
    assert isinstance(one.state, PortableState)
    assert one.state.x.shape == (6, 3)
    assert one.state.status == ("optimal",) * 6
    outputs = [
        Member(replace(request(), outputs=(name,), keep=name == "x"), 2, (frozenset("c"), frozenset())) for name in "xy"
    ]
    assert merged(outputs).outputs is None
    assert merged(outputs).portable
    kept = PortableState(digest="", **given(rng, x=(4, 3), y=(4, 2), s=(4, 2)), status=("optimal",) * 4)
    first, second = split(result(4, given(rng, x=(4, 3), y=(4, 2)), portable=kept), outputs)
    assert (list(first.arrays), list(second.arrays)) == (["x"], ["y"])
    assert first.portable is not None
    assert first.portable.x.base is None, "what is kept does not hold the others' rows"
    assert second.portable is None


def test_a_digest_says_all() -> None:
    rng = np.random.default_rng(0)
    state = PortableState(digest="", **given(rng, x=(1, 3), y=(1, 2), s=(1, 2)), status=("optimal",))
    values = given(rng, A=(2, 3), b=(2,))
    changed = [
        ("q", values, state),
        ("p", values | {"b": values["b"] + 1e-12}, state),
        ("p", {"A": values["A"], "c": values["b"]}, state),
        ("p", values | {"b": values["b"].reshape(1, 2)}, state),
        ("p", values, replace(state, y=state.y + 1.0)),
        ("p", values, replace(state, status=("infeasible",))),
    ]
    digests = [digest("p", values, state), *(digest(*each) for each in changed)]
    assert len(set(digests)) == len(digests)
    assert digest("p", dict(reversed(values.items())), state) == digests[0]


def test_details_go_with_their_elements() -> None:
    """Through merging, splitting and joining, with new positions."""
    rng = np.random.default_rng(0)
    status = ("optimal", "invalid", "optimal", "invalid", "numerical_error")
    result = ComputeResult(
        arrays={"x": rng.standard_normal((5, 3))},
        batched=True,
        status=status,
        objective=np.zeros(5),
        iterations=(1,) * 5,
        residuals={"primal": np.zeros(5)},
        report=None,
        solver="s",
        reason="r",
        seconds={"solve": 1.0},
        details={1: "first", 3: "second", 4: "third"},
    )
    both = frozenset({"A", "b"}), frozenset[str]()
    sizes = (1, 3, 1)
    members = [Member(request(parameters={}, operation="solve", outputs=("x",)), rows, both) for rows in sizes]
    parts = split(result, members)
    assert [dict(part.details) for part in parts] == [{}, {0: "first", 2: "second"}, {0: "third"}]
    whole = request(parameters=given(rng, A=(5, 2, 3), b=(5, 2)), operation="solve")
    joined = Cutter.of(whole, SUMMARY).joined(parts)
    assert joined.details == result.details
    assert joined.status == status
