"""Results of solve, vjp and jvp, compared with the library."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np
import pytest

import convexlayer
from convexlayer_server import Settings, create_app
from convexlayer_server.compute.protocol import ComputeRequest

from .calls import BATCH, FEASIBILITY, answered, read, sent, theta
from .conftest import DOCUMENT, VALUES, AppClient


@pytest.fixture(scope="module")
def reference() -> convexlayer.SolutionMap:
    A, b, lam = cp.Parameter((4, 3), name="A"), cp.Parameter(4, name="b"), cp.Parameter(nonneg=True, name="lam")
    x = cp.Variable(3, name="x")
    constraints = [x >= -1, cp.sum(x) == 1]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b) + lam * cp.norm1(x)), constraints)
    duals = [constraint.dual_variables[0] for constraint in constraints]
    return convexlayer.SolutionMap(convexlayer.canonicalize(problem, [A, b, lam], [x, *duals]))


@pytest.mark.parametrize("encoding", ["list", "base64"])
def test_solve(client: AppClient, path: str, reference: convexlayer.SolutionMap, encoding: str) -> None:
    values = theta()
    body = {"parameters": sent(values, encoding), "return": ["variables", "duals"], "encoding": encoding}
    answer = answered(client, f"{path}/solve", body)
    solved = reference.solve(list(values.values()))
    for name, expected in zip(("x", "c0", "c1"), solved.outputs, strict=True):
        part = "variables" if name == "x" else "duals"
        np.testing.assert_allclose(read(answer[part][name]), expected, atol=1e-9)
    np.testing.assert_allclose(answer["objective"], solved.objective, atol=1e-9)
    assert answer["status"] == ["optimal"] * BATCH
    assert set(answer["residuals"]) == {"primal", "dual", "gap", "natural"}
    assert max(max(column) for column in answer["residuals"].values()) < 1e-8
    assert len(answer["iterations"]) == BATCH
    meta = answer["meta"]
    assert (meta["problem_id"], meta["batch"], meta["batched"]) == (path.rpartition("/")[2], BATCH, True)
    assert set(meta["versions"]) == {"convexlayer", "cvxpy"}


def test_outputs_are_batched_iff_an_input_is(client: AppClient, path: str) -> None:
    values = theta()
    single = values | {"b": values["b"][2]}
    answer = answered(client, f"{path}/solve", {"parameters": sent(single)})
    batch = answered(client, f"{path}/solve", {"parameters": sent(values)})
    assert "duals" not in answer
    assert read(answer["variables"]["x"]).shape == (3,)
    assert answer["meta"]["batched"] is False
    np.testing.assert_allclose(read(answer["variables"]["x"]), read(batch["variables"]["x"])[2], atol=1e-9)
    one = answered(client, f"{path}/solve", {"parameters": sent(values | {"b": values["b"][2:3]})})
    assert read(one["variables"]["x"]).shape == (1, 3)


def test_options_and_solver(client: AppClient, path: str) -> None:
    values = sent(theta())
    answer = answered(client, f"{path}/solve", {"parameters": values, "options": {"solver": "scs", "tol": 1e-6}})
    assert answer["meta"]["solver"] == "scs"
    limited = answered(client, f"{path}/solve", {"parameters": values, "options": {"max_iter": 1}})
    assert max(limited["iterations"]) == 1


def test_allowed_solvers() -> None:
    client = AppClient(create_app(Settings(workers=0, solvers="SCS, clarabel")))
    try:
        path = client.register(DOCUMENT)
        for solver, status in (("auto", 200), ("scs", 200), ("CLARABEL", 200), ("daqp", 422)):
            response = client.post(f"{path}/solve", {"parameters": VALUES, "options": {"solver": solver}})
            assert response.status_code == status, solver
        assert response.json()["detail"] == "/options/solver: this server allows auto, SCS, clarabel; got daqp"
        names = {entry["name"].lower() for entry in client.get("/v1/capabilities").json()["solvers"]}
        assert names == {"scs", "clarabel"}
    finally:
        client.close()


def test_vjp(client: AppClient, path: str, reference: convexlayer.SolutionMap) -> None:
    values, rng = theta(), np.random.default_rng(1)
    cotangents = {
        "x": rng.standard_normal((BATCH, 3)),
        "c0": rng.standard_normal((BATCH, 3)),
        "c1": rng.standard_normal(BATCH),
        "objective": rng.standard_normal(BATCH),
    }
    answer = answered(client, f"{path}/vjp", {"parameters": sent(values), "cotangents": sent(cotangents)})
    solved = reference.solve(list(values.values()))
    (A, b, lam), _ = solved.vjp([cotangents[name] for name in ("x", "c0", "c1", "objective")])
    assert A is not None
    assert b is not None
    assert lam is not None
    np.testing.assert_allclose(read(answer["gradients"]["A"]), A.sum(axis=0), atol=1e-8)
    np.testing.assert_allclose(read(answer["gradients"]["b"]), b, atol=1e-8)
    np.testing.assert_allclose(read(answer["gradients"]["lam"]), lam.sum(), atol=1e-8)
    assert answer["report"]["status"] == ["ok"] * BATCH
    assert all(len(column) == BATCH for column in answer["report"].values())


def test_vjp_of_some_parameters(client: AppClient, path: str) -> None:
    body = {"parameters": sent(theta()), "cotangents": {"x": [1.0, 0.0, 0.0]}, "wrt": ["b"]}
    assert list(answered(client, f"{path}/vjp", body)["gradients"]) == ["b"]
    objective = body | {"cotangents": {"objective": 1.0}}
    assert answered(client, f"{path}/vjp", objective)["report"]["status"] == ["ok"] * BATCH


def test_batched_cotangents_of_one_solution(client: AppClient, path: str) -> None:
    """If only cotangents have a batch axis, the gradients of parameters are summed over the batch."""
    values = theta() | {"b": theta()["b"][0]}
    body = {"parameters": sent(values), "wrt": ["b"]}
    rows = [answered(client, f"{path}/vjp", body | {"cotangents": {"x": row}}) for row in np.eye(3).tolist()]
    both = answered(client, f"{path}/vjp", body | {"cotangents": {"x": np.eye(3).tolist()}})
    total = sum(read(row["gradients"]["b"]) for row in rows)
    np.testing.assert_allclose(read(both["gradients"]["b"]), total, atol=1e-9)
    assert both["meta"]["batch"] == 3


def test_jvp(client: AppClient, path: str, reference: convexlayer.SolutionMap) -> None:
    values, rng = theta(), np.random.default_rng(2)
    tangents = {"A": rng.standard_normal((4, 3)), "b": rng.standard_normal((BATCH, 4))}
    body = {"parameters": sent(values), "tangents": sent(tangents), "return": ["variables", "duals"]}
    answer = answered(client, f"{path}/jvp", body)
    (*outputs, objective), _ = reference.solve(list(values.values())).jvp([tangents["A"], tangents["b"], None])
    for name, expected in zip(("x", "c0", "c1"), outputs, strict=True):
        np.testing.assert_allclose(read(answer["tangents"][name]), expected, atol=1e-8)
    np.testing.assert_allclose(answer["objective"], objective, atol=1e-8)


def test_jvp_of_an_unbatched_solution_along_many_directions(client: AppClient, path: str) -> None:
    values = theta() | {"b": theta()["b"][0]}
    body = {"parameters": sent(values), "tangents": {"b": np.eye(4).tolist()}}
    jacobian = read(answered(client, f"{path}/jvp", body)["tangents"]["x"])
    step = 1e-6
    for column in range(4):
        sides = [values | {"b": values["b"] + sign * step * np.eye(4)[column]} for sign in (1, -1)]
        answers = [answered(client, f"{path}/solve", {"parameters": sent(side)}) for side in sides]
        moved = [read(answer["variables"]["x"]) for answer in answers]
        np.testing.assert_allclose(jacobian[column], (moved[0] - moved[1]) / (2 * step), atol=1e-5)


@pytest.mark.parametrize(
    ("document", "values", "expected"),
    [
        (
            {
                "parameters": {"a": {"pos": True}},
                "variables": {"x": {"pos": True}, "y": {"pos": True}},
                "minimize": "a / (x * y)",
                "subject_to": ["x * y ** 2 <= 8", "y >= 1", "x <= 2 * y"],
                "gp": True,
            },
            {"a": 4.0},
            None,
        ),
        (
            {
                "parameters": {"C": {"shape": [3, 3], "symmetric": True}},
                "variables": {"X": {"shape": [3, 3], "PSD": True}},
                "minimize": "trace(C @ X)",
                "subject_to": ["trace(X) == 1"],
            },
            {"C": [[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 5.0]]},
            1.0,
        ),
        (
            {
                "parameters": {"c": {"shape": [3]}},
                "variables": {"x": {"shape": [3]}, "t": {}},
                "maximize": "c @ x - t",
                "subject_to": ["soc(1, x)", "exp_cone(0, 1, t)", "x[0] >= 0"],
            },
            {"c": [3.0, 0.0, 4.0]},
            4.0,
        ),
        ({"parameters": {}, "variables": {"x": {"shape": [2]}}, "minimize": "norm(x - [1, 2], 'inf')"}, {}, 0.0),
    ],
)
def test_other_kinds_of_problems(
    client: AppClient, document: dict[str, Any], values: dict[str, Any], expected: float | None
) -> None:
    path = client.register({"kind": "expression"} | document)
    answer = answered(client, f"{path}/solve", {"parameters": values, "return": ["variables", "duals"]})
    assert answer["status"] == ["optimal"]
    if expected is not None:
        assert answer["objective"][0] == pytest.approx(expected, abs=1e-6)


def test_cone_program_documents(client: AppClient, reference: convexlayer.SolutionMap) -> None:
    path = client.register({"kind": "cone_program", "program": reference.program.to_document()})
    detail = client.get(path).json()
    assert list(detail["parameters"]) == ["A", "b", "lam"]
    values = theta()
    answer = answered(client, f"{path}/solve", {"parameters": sent(values)})
    solved = reference.solve(list(values.values()))
    for output, expected in zip(reference.program.outputs, solved.outputs, strict=True):
        np.testing.assert_allclose(read(answer["variables"][output.name]), expected, atol=1e-8)
    name = reference.program.outputs[0].name
    gradients = answered(client, f"{path}/vjp", {"parameters": sent(values), "cotangents": {name: [1.0, 0.0, 0.0]}})
    assert set(gradients["gradients"]) == {"A", "b", "lam"}


def test_evicted_problems_are_canonicalised_again() -> None:
    client = AppClient(create_app(Settings(workers=0, cached_problems=1)))
    try:
        first, second = client.register(FEASIBILITY), client.register(DOCUMENT)
        assert client.get("/readyz").json()["cached_problems"] == 1
        values = {"lower": 0.0, "upper": 0.5, "slope": 1.0}
        answer = answered(client, f"{first}/solve", {"parameters": values})
        assert answer["variables"]["x"] == pytest.approx(0.5)
        assert client.get(second).status_code == 200
    finally:
        client.close()


def test_concurrent_requests_survive_eviction_and_equal_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_app(Settings(workers=0, cached_problems=1))
    client = AppClient(app)
    seen: list[str] = []
    run = app.state.service.compute.run

    async def watched(request: ComputeRequest, *arguments: Any) -> Any:
        seen.append(request.request_id)
        return await run(request, *arguments)

    monkeypatch.setattr(app.state.service.compute, "run", watched)
    documents = [FEASIBILITY | {"constants": {"marker": float(number)}} for number in range(3)]
    try:
        paths = [client.register(document) for document in documents]
        body = {"parameters": {"lower": 0.0, "upper": 0.5, "slope": 1.0}}
        headers = {"X-Request-Id": "same"}
        answers = client.together(*[("POST", f"{path}/solve", body) for path in paths * 4], headers=headers)
    finally:
        client.close()
    assert [response.json()["variables"]["x"] for response in answers] == pytest.approx([0.5] * 12)
    assert {response.headers["X-Request-Id"] for response in answers} == {"same"}
    assert len(set(seen)) == 12


def test_concurrent_requests_do_not_mix(client: AppClient, path: str) -> None:
    bodies = [{"parameters": sent(theta(seed))} for seed in range(8)]
    alone = [answered(client, f"{path}/solve", body)["variables"]["x"] for body in bodies]
    together = client.together(*[("POST", f"{path}/solve", body) for body in bodies])
    for response, expected in zip(together, alone, strict=True):
        np.testing.assert_allclose(response.json()["variables"]["x"], expected, atol=1e-9)


def test_a_portable_state_is_checked(client: AppClient, path: str) -> None:
    parameters = sent(theta())
    solved = answered(client, f"{path}/solve", {"parameters": parameters, "return": ["portable"]})["portable"]
    body = {"parameters": parameters, "cotangents": {"x": [1, 0, 0]}}
    assert answered(client, f"{path}/vjp", {**body, "state": solved})["report"]["status"] == ["ok"] * BATCH
    unknown = client.post(f"{path}/vjp", {**body, "state": {**solved, "status": ["splendid"] * BATCH}})
    assert unknown.status_code == 422
    assert unknown.json()["errors"][0]["pointer"].startswith("/state")
    rows = {name: solved[name][:2] for name in ("status", "x", "y", "s")}
    fewer = client.post(f"{path}/vjp", {**body, "state": {**solved, **rows}})
    assert fewer.status_code == 422
    assert "has 2 elements, but the request has 5" in fewer.text
