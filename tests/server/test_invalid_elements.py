"""Invalid and failed elements of a batch do not affect the others."""

from __future__ import annotations

import numpy as np
import pytest

from convexlayer_server.encodings.arrays import Array, encode

from .calls import BATCH, FEASIBILITY, answered, read, sent, theta
from .conftest import AppClient

INFEASIBLE, UNBOUNDED = (3, 17, 20, 41, 63), (0, 18, 50)


@pytest.mark.parametrize("encoding", ["list", "base64"])
def test_failed_elements_do_not_affect_others(client: AppClient, encoding: str) -> None:
    rng = np.random.default_rng(3)
    values = {"lower": rng.uniform(-2, 2, 64), "slope": rng.uniform(0.5, 1.0, 64)}
    values["upper"] = values["lower"] + rng.uniform(0.1, 1.0, 64)
    values["upper"][list(INFEASIBLE)] = values["lower"][list(INFEASIBLE)] - 1.0
    values["slope"][list(UNBOUNDED)] = -1.0
    path = client.register(FEASIBILITY)
    body = {"parameters": sent(values), "return": ["variables", "duals"], "encoding": encoding}
    answer = answered(client, f"{path}/solve", body)
    expected = ["optimal"] * 64
    for index in INFEASIBLE:
        expected[index] = "infeasible"
    for index in UNBOUNDED:
        expected[index] = "unbounded"
    assert answer["status"] == expected
    good = np.array([status == "optimal" for status in expected])
    x = answer["variables"]["x"]
    if encoding == "list":
        assert [value is None for value in x] == (~good).tolist()
        x = [np.nan if value is None else value for value in x]
    x = np.asarray(x) if encoding == "list" else read(x)
    np.testing.assert_array_equal(np.isnan(x), ~good)
    np.testing.assert_allclose(x[good], np.clip(1.0, values["lower"], values["upper"])[good], atol=1e-8)
    assert [value is None for value in answer["objective"]] == (~good).tolist()

    # cotangents of failed elements may be NaN, as their outputs are
    cotangents = np.where(good, 1.0, np.nan)
    body = {"parameters": sent(values), "cotangents": {"x": encode(cotangents, "base64")}, "wrt": ["lower"]}
    gradient = read(answered(client, f"{path}/vjp", body)["gradients"]["lower"])
    at_lower = good & (values["lower"] > 1.0)
    np.testing.assert_allclose(gradient, at_lower.astype(float), atol=1e-7)
    body["cotangents"] = {"x": encode(np.full(64, np.nan), "base64")}
    assert client.post(f"{path}/vjp", body).status_code == 422


def with_invalid_element(values: dict[str, Array], name: str, value: float) -> dict[str, Array]:
    """The same values, but the second element of the batch is invalid."""
    whole = (
        np.repeat(values[name][None], BATCH, axis=0) if values[name].ndim < 2 and name != "b" else values[name].copy()
    )
    whole[1] = value
    return values | {name: whole}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("lam", -0.5, "parameter 'lam' is declared nonneg, but the value violates that by 0.5"),
        ("b", np.nan, "parameter 'b' is not finite: entry [0] is nan"),
        ("b", np.inf, "parameter 'b' is not finite: entry [0] is inf"),
    ],
)
def test_invalid_values_fail_their_element_alone(
    client: AppClient, path: str, name: str, value: float, said: str
) -> None:
    values = with_invalid_element(theta(), name, value)
    body = {"parameters": sent(values, "base64"), "return": ["variables", "state"], "encoding": "base64"}
    answer = answered(client, f"{path}/solve", body)
    assert answer["status"] == ["optimal", "invalid", "optimal", "optimal", "optimal"]
    assert list(answer["details"]) == ["1"]
    assert answer["details"]["1"].startswith(said)
    assert [number is None for number in answer["objective"]] == [False, True, False, False, False]
    x, good = read(answer["variables"]["x"]), [0, 2, 3, 4]
    assert np.isnan(x[1]).all()
    fine = {key: v[good] if v.shape[:1] == (BATCH,) else v for key, v in values.items()}
    expected = answered(client, f"{path}/solve", {"parameters": sent(fine, "base64")})
    assert expected["details"] == {}
    np.testing.assert_allclose(x[good], read(expected["variables"]["x"]), atol=1e-9)

    cotangents = {"x": encode(np.where(np.isnan(x), np.nan, 1.0), "base64")}
    by_state = answered(client, f"{path}/vjp", {"state": answer["state"], "cotangents": cotangents, "wrt": ["b"]})
    by_values = answered(
        client, f"{path}/vjp", {"parameters": sent(values, "base64"), "cotangents": cotangents, "wrt": ["b"]}
    )
    ones = {"parameters": sent(fine, "base64"), "cotangents": {"x": [1.0, 1.0, 1.0]}, "wrt": ["b"]}
    gradient = read(answered(client, f"{path}/vjp", ones)["gradients"]["b"])
    for pulled in (by_state, by_values):
        assert pulled["status"] == answer["status"]
        assert pulled["details"] == answer["details"]
        assert not read(pulled["gradients"]["b"])[1].any()
        np.testing.assert_allclose(read(pulled["gradients"]["b"])[good], gradient, atol=1e-8)


def test_a_portable_state_with_an_invalid_element(client: AppClient, path: str) -> None:
    values = sent(with_invalid_element(theta(), "lam", -1.0))
    state = answered(client, f"{path}/solve", {"parameters": values, "return": ["portable"]})["portable"]
    assert state["status"][1] == "invalid"
    body = {"parameters": values, "cotangents": {"x": [1, 0, 0]}, "wrt": ["lam"]}
    pulled = answered(client, f"{path}/vjp", body | {"state": state})
    np.testing.assert_allclose(
        pulled["gradients"]["lam"], answered(client, f"{path}/vjp", body)["gradients"]["lam"], atol=1e-8
    )
    assert pulled["gradients"]["lam"][1] == 0.0


def test_invalid_values_without_a_batch_are_an_error(client: AppClient, path: str) -> None:
    """Also if the request is merged with others."""
    single = theta() | {"b": theta()["b"][0]}
    wrong = single | {"lam": np.array(-0.5)}
    bodies = [{"parameters": sent(values)} for values in (single, wrong, single, theta(), wrong)]
    answers = client.together(*[("POST", f"{path}/solve", body) for body in bodies])
    assert [response.status_code for response in answers] == [200, 422, 200, 200, 422]
    (error,) = answers[1].json()["errors"]
    assert error["pointer"] == "/parameters"
    assert "parameter 'lam' is declared nonneg" in error["detail"]
    nan = client.post(f"{path}/solve", {"parameters": sent(single | {"lam": np.array(np.nan)}, "base64")})
    assert (nan.status_code, nan.json()["errors"][0]["pointer"]) == (422, "/parameters/lam")
