"""States between a solve and its derivatives, over HTTP; ``test_local_backend`` tests the backend's part."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from .conftest import VALUES, AppClient

BATCH = VALUES | {"b": [[1.0, 2.0, 0.5, -1.0], [0.0, 1.0, 2.0, 0.3]]}
COTANGENTS = {"x": [[1.0, 0.0, 0.0], [0.0, 1.0, -1.0]]}
TANGENTS = {"b": [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]}


def answered(client: AppClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = client.post(path, body)
    assert response.status_code == 200, response.text
    result: dict[str, Any] = response.json()
    return result


@pytest.fixture(scope="module")
def solved(client: AppClient, path: str) -> dict[str, Any]:
    return answered(client, f"{path}/solve", {"parameters": BATCH, "return": ["variables", "state", "portable"]})


@pytest.mark.parametrize("encoding", ["list", "base64"])
@pytest.mark.parametrize(
    ("call", "part", "directions"), [("vjp", "cotangents", COTANGENTS), ("jvp", "tangents", TANGENTS)]
)
def test_all_forms_of_the_state_give_the_same_derivative(
    client: AppClient, path: str, call: str, part: str, directions: dict[str, Any], encoding: str
) -> None:
    body = {"parameters": BATCH, "return": ["state", "portable"], "encoding": encoding}
    state = answered(client, f"{path}/solve", body)
    assert "variables" not in state
    assert state["state"].startswith("s_")
    ways = [
        {"parameters": BATCH},
        {"state": state["state"]},
        {"parameters": BATCH, "state": state["portable"]},
    ]
    recomputed, *others = (answered(client, f"{path}/{call}", way | {part: directions}) for way in ways)
    key = "gradients" if call == "vjp" else "tangents"
    for other in others:
        for name, value in recomputed[key].items():
            np.testing.assert_allclose(other[key][name], value, atol=1e-9)
        assert other["status"] == recomputed["status"]
        assert other["report"]["status"] == recomputed["report"]["status"]


def test_an_unknown_handle_is_410(client: AppClient, path: str) -> None:
    response = client.post(f"{path}/vjp", {"state": "s_unknown", "cotangents": COTANGENTS})
    assert response.status_code == 410
    assert response.json()["type"] == "urn:convexlayer:problem:gone"


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"parameters": BATCH, "state": "s_x"}, "/parameters"),
        ({"state": 1}, "/state"),
        ({"state": {"digest": "0"}}, "/state"),
    ],
)
def test_invalid_states(client: AppClient, path: str, change: dict[str, Any], pointer: str) -> None:
    response = client.post(f"{path}/vjp", {"cotangents": COTANGENTS} | change)
    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"].startswith(pointer)


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"digest": "0" * 64}, "/state"),
        ({"status": ["optimal"]}, "/state/x"),
        ({"x": [[0.0]]}, "/state/x"),
        ({"y": 1.0}, "/state/y"),
        ({"s": None}, "/state/s"),
    ],
)
def test_invalid_portable_states(
    client: AppClient, path: str, solved: dict[str, Any], change: dict[str, Any], pointer: str
) -> None:
    body = {"parameters": BATCH, "state": solved["portable"] | change, "cotangents": COTANGENTS}
    response = client.post(f"{path}/vjp", body)
    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == pointer


def test_a_portable_state_is_bound_to_its_parameters(client: AppClient, path: str, solved: dict[str, Any]) -> None:
    body = {"parameters": BATCH | {"lam": 0.2}, "state": solved["portable"], "cotangents": COTANGENTS}
    response = client.post(f"{path}/vjp", body)
    assert response.status_code == 422
    assert "other parameters" in response.json()["detail"]
