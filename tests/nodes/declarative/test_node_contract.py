"""Contract of every node given by functions: derivatives, batches, transforms, dtypes, warm starts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch

from tests.nodes.declarative.cases import CASES, Case, Tensors

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, at the first jvp

cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def near_its_solution(case: Case, tensors: Tensors) -> Callable[..., torch.Tensor]:
    """The case's node, which starts near its solution: differences need many solutions for almost these tensors."""
    node = case.make()
    return partial(node, warm_start=node(*tensors).detach() + 1e-3)


@cases
def test_gradcheck_in_both_modes(case: Case) -> None:
    tensors = case.tensors()
    assert torch.autograd.gradcheck(near_its_solution(case, tensors), tensors, check_forward_ad=True, fast_mode=True)


@cases
def test_gradgradcheck_of_a_batch(case: Case) -> None:
    tensors = (*case.tensors()[:-1], *case.tensors(2)[-1:])
    assert torch.autograd.gradgradcheck(near_its_solution(case, tensors), tensors, fast_mode=True)


@cases
def test_batch_equals_single_elements(case: Case) -> None:
    node, tensors = case.make(), case.tensors(4)
    together = node(*tensors)
    weights = torch.randn_like(together)
    gradients = torch.autograd.grad((together * weights).sum(), tensors)
    for i in range(4):
        rows = [t[i].detach().requires_grad_() for t in tensors]
        alone = node(*rows)
        torch.testing.assert_close(alone, together[i], rtol=0, atol=1e-12)
        own = torch.autograd.grad((alone * weights[i]).sum(), rows)
        for mine, batched in zip(own, gradients, strict=True):
            torch.testing.assert_close(mine, batched[i], rtol=1e-9, atol=1e-10)


@cases
def test_vmap_equals_the_batch(case: Case) -> None:
    node, tensors = case.make(), case.tensors(3)
    torch.testing.assert_close(torch.func.vmap(node)(*tensors), node(*tensors), rtol=0, atol=1e-12)
    one = case.tensors()
    in_dims = (*[None] * (len(one) - 1), 0)
    mixed = torch.func.vmap(node, in_dims=in_dims)(*one[:-1], tensors[-1])
    torch.testing.assert_close(mixed, node(*one[:-1], tensors[-1]), rtol=0, atol=1e-12)


@cases
def test_vmap_of_gradients_and_of_batches(case: Case) -> None:
    node, tensors = case.make(), case.tensors(3)

    def loss(*parameters: torch.Tensor) -> torch.Tensor:
        return node(*parameters).square().sum()

    each = torch.func.vmap(torch.func.grad(loss, argnums=tuple(range(len(tensors)))))(*tensors)
    for found, expected in zip(each, torch.autograd.grad(loss(*tensors), tensors), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    nested = torch.func.vmap(node)(*(torch.stack([t, t]) for t in tensors))
    torch.testing.assert_close(nested, torch.stack([node(*tensors)] * 2), rtol=0, atol=1e-12)


@cases
def test_jacobians_of_both_modes_and_hessians_agree(case: Case) -> None:
    node, tensors = case.make(), tuple(t.detach() for t in case.tensors())
    reverse = torch.func.jacrev(node, argnums=len(tensors) - 1)(*tensors)
    forward = torch.func.jacfwd(node, argnums=len(tensors) - 1)(*tensors)
    torch.testing.assert_close(reverse, forward, rtol=1e-9, atol=1e-11)

    def loss(last: torch.Tensor) -> torch.Tensor:
        return node(*tensors[:-1], last).square().sum()

    hessian = torch.func.hessian(loss)(tensors[-1])
    expected = torch.autograd.functional.hessian(loss, tensors[-1])
    torch.testing.assert_close(hessian, expected, rtol=1e-8, atol=1e-9)


@cases
def test_float32_stays_float32_and_is_close(case: Case) -> None:
    if case.double_only:
        pytest.skip("its tolerance is below float32's rounding")
    node = case.make()
    single = node(*case.tensors(2, torch.float32))
    double = node(*case.tensors(2))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-4)
    tensors, doubles = case.tensors(2, torch.float32), case.tensors(2)
    found = torch.autograd.grad(node(*tensors).sum(), tensors)
    expected = torch.autograd.grad(node(*doubles).sum(), doubles)
    for f, e in zip(found, expected, strict=True):
        assert f.dtype == torch.float32
        torch.testing.assert_close(f.double(), e, rtol=5e-3, atol=5e-3)


@cases
def test_warm_start_at_the_solution_takes_fewer_iterations(case: Case) -> None:
    node, tensors = case.make(), case.tensors(3)
    cold, report = node.solve(*tensors)
    warm, again = node.solve(*tensors, warm_start=cold.y)
    torch.testing.assert_close(warm.y, cold.y, rtol=0, atol=1e-9)
    assert int(again.iterations.sum()) <= int(report.iterations.sum())


@cases
def test_no_grad_deepcopy_and_report(case: Case) -> None:
    node, tensors = case.make(), case.tensors(2)
    with torch.no_grad():
        assert not node(*tensors).requires_grad
    point, report = copy.deepcopy(node).solve(*tensors)
    assert report.derivative is None
    point.y.sum().backward()
    assert report.derivative is not None
    assert report.derivative.trusted, report.reasons
    assert not report.failed
    assert float(report.distance.max()) < 1e-12


@pytest.mark.parametrize("name", [name for name in CASES if "equality" in name])
def test_multipliers_are_differentiable_outputs(name: str) -> None:
    node, tensors = CASES[name].make(), CASES[name].tensors()

    def multipliers(*parameters: torch.Tensor) -> torch.Tensor:
        point = node.solve(*parameters)[0]
        return torch.cat([point.lam, point.mu])

    assert multipliers(*tensors).abs().max() > 1e-3
    assert torch.autograd.gradcheck(multipliers, tensors, fast_mode=True)
