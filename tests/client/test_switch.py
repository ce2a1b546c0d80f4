"""With CONVEXLAYER_URL a ConvexLayer computes on a server, without a change to the program."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

from convexlayer import ConvexLayer, SolutionMap
from convexlayer.errors import (
    DerivativeError,
    FailedElementsError,
    InvalidElementsError,
    NotInstalledError,
    ShapeError,
    UnsupportedError,
)
from convexlayer.solvers import Options
from convexlayer_client import RemoteSolutionMap
from tests.client.test_layer import BUDGETS, A, box
from tests.families import family


@pytest.fixture
def server_url(url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("CONVEXLAYER_URL", url)
    return url


def program(**keywords: Any) -> tuple[ConvexLayer, list[torch.Tensor]]:
    """A program for a local layer: return the layer, its outputs and gradients."""
    case = family("least_norm")
    layer = ConvexLayer(case.problem, parameters=case.parameters, variables=case.outputs, **keywords)
    tensors = case.tensors(3, seed=2, batched=(True, False, True))
    outputs, report = layer.solve(*tensors, warm_start=None)
    assert report.status == ("optimal",) * 3
    assert max(report.residuals.primal) < 1e-8
    assert report.solver
    (sum(output.square().sum() for output in outputs) + report.objective.sum()).backward()
    return layer, [*outputs, *(tensor.grad for tensor in tensors)]


def test_results_are_the_same(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    local, local_values = program()
    monkeypatch.setenv("CONVEXLAYER_URL", url)
    remote, remote_values = program(options=Options(tol=1e-9), presolve=False, tune=True)
    assert type(local) is type(remote) is ConvexLayer
    assert isinstance(local.solution_map, SolutionMap)
    assert isinstance(remote.solution_map, RemoteSolutionMap)
    for ours, theirs in zip(remote_values, local_values, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def test_invalid_elements_raise_the_error_of_the_library(server_url: str) -> None:
    case = box()
    layer = ConvexLayer(case.problem, case.parameters, case.outputs)
    with pytest.raises(InvalidElementsError, match=r"Element 1: .*'budget' is not finite"):
        layer(A, torch.tensor([0.6, float("inf"), 0.9], dtype=torch.float64))


def test_errors_are_those_of_the_library(server_url: str) -> None:
    case = box()
    layer = ConvexLayer(case.problem, case.parameters, case.outputs)
    with pytest.raises(FailedElementsError) as caught:
        layer(A, BUDGETS)
    assert caught.value.indices == (1,)
    with pytest.raises(ShapeError):
        layer(A[:2], BUDGETS)
    kink = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    strict = ConvexLayer(case.problem, case.parameters, case.outputs, on_degenerate="raise")
    with pytest.raises(DerivativeError):
        strict(kink, torch.tensor(1.0, dtype=torch.float64))[0].sum().backward()


@pytest.mark.parametrize(
    "keywords",
    [{"derivative": "diffcp"}, {"on_failure": "keep"}, {"check_attributes": False}, {"options": {"polish": False}}],
)
def test_unsupported_options_are_rejected(keywords: dict[str, Any], server_url: str) -> None:
    case = box()
    with pytest.raises(UnsupportedError, match=r"unset CONVEXLAYER_URL|needs the solver's last iterates"):
        ConvexLayer(case.problem, case.parameters, case.outputs, **keywords)


def test_local_layers_stay_local(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = box()
    layer = ConvexLayer(case.problem, case.parameters, case.outputs)
    text = pickle.dumps(layer)
    monkeypatch.setenv("CONVEXLAYER_URL", url)
    for copied in (copy.deepcopy(layer), pickle.loads(text)):
        assert type(copied) is ConvexLayer
        torch.testing.assert_close(copied(A, BUDGETS[:1]), layer(A, BUDGETS[:1]))


def test_remote_layers_can_be_pickled(server_url: str) -> None:
    case = box()
    layer = ConvexLayer(case.problem, case.parameters, case.outputs)
    copied = pickle.loads(pickle.dumps(layer))
    torch.testing.assert_close(copied(A, BUDGETS[:1]), layer(A, BUDGETS[:1]))


def test_the_error_of_a_missing_client_names_the_package(server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convexlayer.layers.remote.entry_points", lambda **_: ())
    case = box()
    with pytest.raises(NotInstalledError, match="convexlayer-client"):
        ConvexLayer(case.problem, case.parameters, case.outputs)


def test_an_error_of_the_client_is_not_taken_for_a_missing_one(
    server_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("of the client")

    monkeypatch.setattr(RemoteSolutionMap, "__init__", refuse)
    case = box()
    with pytest.raises(ValueError, match=r"^of the client$"):
        ConvexLayer(case.problem, case.parameters, case.outputs)
