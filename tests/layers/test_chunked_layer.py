"""The torch layer on batches that are solved in chunks: autograd, transforms, failures."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from convexlayer import ConvexLayer, FailedElementsError
from convexlayer.layers import scaling
from tests.families import Family, family

from .running import run

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # by torch, at the first jvp

BATCH = 6
ROUNDED: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-10}


def layers(case: Family, **keywords: Any) -> tuple[ConvexLayer, ConvexLayer]:
    return case.layer(**keywords), case.layer(options={"chunk_size": 2}, **keywords)


def detached(case: Family, batch: int | None = None) -> tuple[torch.Tensor, ...]:
    return tuple(t.detach() for t in case.prepared(case.tensors(batch)))


@pytest.mark.parametrize("name", ["quadratic", "portfolio", "nearest_correlation"])
@pytest.mark.parametrize("shared", [False, True])
def test_outputs_gradients_and_report(name: str, shared: bool) -> None:
    case, results = family(name), []
    for layer in layers(case):
        tensors = case.tensors(BATCH, batched=[i == 0 or not shared for i in range(len(case.parameters))])
        outputs, gradients = run(layer, *case.prepared(tensors))
        _, report = layer.solve(*case.prepared(tensors))
        report.objective.sum().backward()
        results.append((outputs, gradients, report))
    (outputs, gradients, report), (chunked_outputs, chunked_gradients, chunked_report) = results
    for ours, theirs in zip(chunked_outputs, outputs, strict=True):
        assert torch.equal(ours, theirs)
    torch.testing.assert_close(chunked_gradients, gradients, **ROUNDED)
    torch.testing.assert_close(chunked_report.objective, report.objective, rtol=0, atol=0)
    assert chunked_report.derivative.status == report.derivative.status
    assert set(chunked_report.seconds) == set(report.seconds)


@pytest.mark.parametrize("mode", ["jacrev", "jacfwd", "vmap", "vmap of grad", "jvp"])
def test_transforms(mode: str) -> None:
    case, results = family("quadratic"), list[Any]()
    first, *rest = detached(case, BATCH)
    others = [value[0] for value in rest]
    for layer in layers(case):

        def solution(value: torch.Tensor, layer: ConvexLayer = layer) -> torch.Tensor:
            return layer(value, *others)[0]

        def loss(value: torch.Tensor, layer: ConvexLayer = layer) -> torch.Tensor:
            return layer(value, *others)[0].square().sum()

        transformed: dict[str, Callable[[], Any]] = {
            "jacrev": lambda: torch.func.jacrev(solution)(first),
            "jacfwd": lambda: torch.func.jacfwd(solution)(first),
            "vmap": lambda: torch.func.vmap(solution)(first),
            "vmap of grad": lambda: torch.func.vmap(torch.func.grad(loss))(first),
            "jvp": lambda: torch.func.jvp(solution, (first,), (torch.ones_like(first),))[1],
        }
        results.append(transformed[mode]())
    torch.testing.assert_close(results[1], results[0], **ROUNDED)


def test_a_jacobian_rebuilds_each_chunk_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows of the Jacobian of a chunk use its one factorisation."""
    case, built = family("quadratic"), list[int]()
    layer = layers(case)[1]
    first, *rest = detached(case, BATCH)
    others = [value[0] for value in rest]
    differentiate = scaling.differentiate_scaled

    def counted(*arguments: Any, **keywords: Any) -> Any:
        built.append(len(arguments[4].x))
        return differentiate(*arguments, **keywords)

    monkeypatch.setattr("convexlayer.layers.solution_map.differentiate_scaled", counted)
    jacobian = torch.func.jacrev(lambda value: layer(value, *others)[0])(first)
    assert jacobian.shape == (BATCH, 4, BATCH, 4)
    assert built == [2, 2, 2]


def test_gradcheck() -> None:
    case = family("quadratic")
    layer = layers(case)[1]
    first, *rest = case.tensors(3)
    others = [value.detach() for value in rest]
    assert torch.autograd.gradcheck(lambda value: layer(value, *others)[0], (first,))


@pytest.mark.parametrize("policy", ["nan", "keep", "raise"])
def test_failed_elements(policy: str) -> None:
    case, results = family("quadratic"), list[Any]()
    for layer in layers(case, on_failure=policy):
        tensors = [t.detach() for t in case.tensors(BATCH)]
        tensors[0][3] = float("nan")
        tensors[0].requires_grad_()
        if policy == "raise":
            with pytest.raises(FailedElementsError) as caught:
                layer(*tensors)
            outputs = caught.value.outputs
            results.append([str(caught.value), caught.value.indices])
        else:
            outputs = layer(*tensors)
            results.append([])
        gradient, = torch.autograd.grad(outputs[0].nansum(), tensors[0])  # fmt: skip
        assert np.all(gradient[3].numpy() == 0.0)
        results[-1] += [outputs[0].detach(), gradient]
    assert results[0][:-2] == results[1][:-2]
    torch.testing.assert_close(results[1][-2], results[0][-2], equal_nan=True, rtol=0, atol=0)
    torch.testing.assert_close(results[1][-1], results[0][-1], **ROUNDED)


def test_options_of_a_call_and_of_the_layer(capsys: pytest.CaptureFixture[str]) -> None:
    case = family("quadratic")
    tensors = case.tensors(BATCH)
    outputs = case.layer()(*tensors, options={"chunk_size": 3, "progress": True})
    outputs[0].sum().backward()
    shown = capsys.readouterr().err
    assert "solve: 100%" in shown
    assert "vjp: 100%" in shown
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with torch.no_grad():
            same = case.layer(options={"chunk_size": 3})(*tensors, options={"chunk_size": None})
    assert torch.equal(outputs[0], same[0])
