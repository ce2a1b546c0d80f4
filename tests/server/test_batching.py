"""Batched requests, their states, and messages to workers."""

from __future__ import annotations

import socket
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from convexlayer_server.compute.batching import BatchedRequest, merge, split
from convexlayer_server.compute.protocol import ComputeResult, PortableState
from convexlayer_server.compute.states import state_digest
from convexlayer_server.errors import InvalidError
from convexlayer_server.shared.channel import receive, send

from .backends import request

SUMMARY: dict[str, Any] = {
    "parameters": {"A": {"shape": [2, 3]}, "b": {"shape": [2]}},
    "variables": {"x": {"shape": [3]}},
    "duals": {},
}


@pytest.mark.parametrize("size", [0, 1, 100, 100_000])
def test_messages_arrive_unchanged(size: int) -> None:
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
        received["array"][:] = 0.0  # writable
        ours.close()
        with pytest.raises(EOFError):
            receive(theirs)


def random_arrays(rng: np.random.Generator, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


def test_slices_cover_the_batch_and_share_arrays_without_a_batch_axis() -> None:
    rng = np.random.default_rng(0)
    parameters = random_arrays(rng, A=(2, 3), b=(10, 2))
    whole = request(parameters=parameters, operation="vjp", directions=random_arrays(rng, x=(3,)))
    batched = BatchedRequest.of(whole, SUMMARY)
    assert (batched.elements, batched.batched) == (10, (frozenset("b"), frozenset()))
    chunks = [slice(0, 3), slice(3, 6), slice(6, 10)]
    parts = [batched.slice(chunk, f"k/{chunk.start}") for chunk in chunks]
    assert [part.elements for part in parts] == [3, 3, 4]
    joined = np.concatenate([part.request.parameters["b"] for part in parts])
    np.testing.assert_array_equal(joined, whole.parameters["b"])
    assert all(part.request.parameters["A"] is whole.parameters["A"] for part in parts)
    assert batched.slice(slice(0, 10), "k").request.parameters is whole.parameters


def test_shared_arrays_bound_the_number_of_chunks() -> None:
    large = np.zeros((2**22, 2))  # 64 MiB
    summary = SUMMARY | {"parameters": {"A": {"shape": [2**22, 2]}, "b": {"shape": [2]}}}
    batched = BatchedRequest.of(request(parameters={"A": large, "b": np.zeros((100, 2))}), summary)
    assert batched.min_chunk == 50
    small = BatchedRequest.of(request(parameters={"A": np.zeros((2, 3)), "b": np.zeros((100, 2))}), SUMMARY)
    assert small.min_chunk == 1


def test_batch_sizes_must_agree() -> None:
    rng = np.random.default_rng(0)
    wrong = request(
        parameters=random_arrays(rng, A=(2, 3), b=(4, 2)), operation="vjp", directions=random_arrays(rng, x=(5, 3))
    )
    with pytest.raises(InvalidError, match="/cotangents/x: has 5 elements, but the parameters have 4"):
        BatchedRequest.of(wrong, SUMMARY)


def result(size: int, arrays: dict[str, np.ndarray], **fields: Any) -> ComputeResult:
    numbers = np.arange(float(size))
    values: dict[str, Any] = {
        "arrays": arrays,
        "batched": True,
        "status": tuple(f"status {element}" for element in range(size)),
        "objective": None,
        "iterations": tuple(range(size)),
        "residuals": {"gap": numbers},
        "report": {"margin": numbers.tolist()},
        "solver": "s",
        "reason": "r",
        "seconds": {"solve": 1.0},
    }
    return ComputeResult(**values | fields)


def test_requests_are_merged_and_their_result_is_split() -> None:
    rng = np.random.default_rng(0)
    single = request(
        "1", parameters=random_arrays(rng, A=(2, 3), b=(2,)), operation="vjp", directions=random_arrays(rng, x=(3,))
    )
    batch = request(
        "2", parameters=random_arrays(rng, A=(2, 3), b=(4, 2)), operation="vjp", directions=random_arrays(rng, x=(4, 3))
    )
    requests = [BatchedRequest.of(each, SUMMARY) for each in (single, batch)]
    merged = merge(requests)
    assert {name: value.shape for name, value in merged.parameters.items()} == {"A": (5, 2, 3), "b": (5, 2)}
    for element in range(4):
        np.testing.assert_array_equal(merged.parameters["A"][1 + element], batch.parameters["A"])
        np.testing.assert_array_equal(merged.directions["x"][1 + element], batch.directions["x"][element])
    gradients = random_arrays(rng, A=(5, 2, 3), b=(5, 2))
    first, second = split(result(5, gradients), requests)
    np.testing.assert_array_equal(first.arrays["b"], gradients["b"][0])
    np.testing.assert_array_equal(second.arrays["b"], gradients["b"][1:])
    np.testing.assert_allclose(second.arrays["A"], gradients["A"][1:].sum(axis=0))
    assert (first.batched, second.batched) == (False, True)
    assert second.status == ("status 1", "status 2", "status 3", "status 4")
    assert second.report == {"margin": [1.0, 2.0, 3.0, 4.0]}


def test_states_and_outputs_are_merged_and_split() -> None:
    rng = np.random.default_rng(0)
    values = random_arrays(rng, A=(2, 3), b=(2,))
    points = PortableState(digest="d", **random_arrays(rng, x=(1, 3), y=(1, 2), s=(1, 2)), status=("optimal",))
    directions = random_arrays(rng, b=(3, 2))
    with_state = request("1", parameters=values, operation="jvp", directions=directions, state=points)
    requests = [BatchedRequest(with_state, 3, (frozenset(), frozenset("b"))) for _ in range(2)]
    merged = merge(requests)
    assert isinstance(merged.state, PortableState)
    assert merged.state.x.shape == (6, 3)
    assert merged.state.status == ("optimal",) * 6
    outputs = [
        BatchedRequest(replace(request(), outputs=(name,), keep=name == "x"), 2, (frozenset("c"), frozenset()))
        for name in "xy"
    ]
    assert merge(outputs).outputs is None
    assert merge(outputs).portable
    state = PortableState(digest="", **random_arrays(rng, x=(4, 3), y=(4, 2), s=(4, 2)), status=("optimal",) * 4)
    first, second = split(result(4, random_arrays(rng, x=(4, 3), y=(4, 2)), portable=state), outputs)
    assert (list(first.arrays), list(second.arrays)) == (["x"], ["y"])
    assert first.portable is not None
    assert first.portable.x.base is None, "a kept state must not hold the elements of other requests"
    assert second.portable is None


def test_a_digest_depends_on_everything() -> None:
    rng = np.random.default_rng(0)
    state = PortableState(digest="", **random_arrays(rng, x=(1, 3), y=(1, 2), s=(1, 2)), status=("optimal",))
    values = random_arrays(rng, A=(2, 3), b=(2,))
    changed = [
        ("q", values, state),
        ("p", values | {"b": values["b"] + 1e-12}, state),
        ("p", {"A": values["A"], "c": values["b"]}, state),
        ("p", values | {"b": values["b"].reshape(1, 2)}, state),
        ("p", values, replace(state, y=state.y + 1.0)),
        ("p", values, replace(state, status=("infeasible",))),
    ]
    digests = [state_digest("p", values, state), *(state_digest(*each) for each in changed)]
    assert len(set(digests)) == len(digests)
    assert state_digest("p", dict(reversed(values.items())), state) == digests[0]


def test_details_follow_their_elements() -> None:
    """Splitting and joining change their positions."""
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
    each = request(parameters={}, operation="solve", outputs=("x",))
    requests = [BatchedRequest(each, size, both) for size in (1, 3, 1)]
    parts = split(result, requests)
    assert [dict(part.details) for part in parts] == [{}, {0: "first", 2: "second"}, {0: "third"}]
    whole = request(parameters=random_arrays(rng, A=(5, 2, 3), b=(5, 2)), operation="solve")
    joined = BatchedRequest.of(whole, SUMMARY).join(parts)
    assert joined.details == result.details
    assert joined.status == status
