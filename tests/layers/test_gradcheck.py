"""torch.autograd.gradcheck on every family, duals among the outputs, in reverse and in forward mode."""

from __future__ import annotations

import pytest
import torch

from tests.families import SMOOTH, family

ACCURATE = {"tol": 1e-11}  # finite differences divide the solver's error by their step


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # by torch, at the first jvp
@pytest.mark.parametrize("name", SMOOTH)
def test_gradcheck(name: str) -> None:
    case = family(name)
    layer = case.layer(options=ACCURATE, on_degenerate="raise")

    def outputs(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        solution, report = layer.solve(*case.prepared(tensors))
        return (*solution, report.objective)

    assert torch.autograd.gradcheck(
        outputs,
        case.tensors(),
        eps=1e-4,
        atol=5e-5,
        rtol=1e-4,
        check_forward_ad=True,
    )


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("name", SMOOTH)
def test_gradcheck_of_a_batch_with_shared_parameters(name: str) -> None:
    case = family(name)
    layer = case.layer(options=ACCURATE, on_degenerate="raise")
    batched, shared = case.tensors(2), case.tensors()
    tensors = (batched[0], *shared[1:])
    assert torch.autograd.gradcheck(
        lambda *ts: layer(*case.prepared(ts)),
        tensors,
        eps=1e-4,
        atol=5e-5,
        rtol=1e-4,
        fast_mode=True,
        check_forward_ad=True,
    )
