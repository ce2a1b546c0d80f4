"""Contract of every closed form: first and second derivatives, batches, transforms, float32 and float64."""

from __future__ import annotations

import pytest
import torch

from convexlayer.errors import DerivativeError, ProblemError, ShapeError
from tests.nodes.closed_form.cases import FORMS, Form

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, at the first jvp

every = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())


@every
def test_gradcheck(form: Form) -> None:
    assert torch.autograd.gradcheck(form.outputs, form.tensors(), check_forward_ad=True, fast_mode=True)


@every
def test_gradgradcheck(form: Form) -> None:
    assert torch.autograd.gradgradcheck(form.outputs, form.tensors(), fast_mode=True)


@every
def test_batch_equals_single_elements(form: Form) -> None:
    batched = form.tensors(3)
    outputs = form.outputs(*batched)
    cotangents = [torch.randn_like(output) for output in outputs]
    gradients = torch.autograd.grad(outputs, batched, cotangents)
    for index in range(3):
        single = tuple(t[index].detach().requires_grad_() for t in batched)
        alone = form.outputs(*single)
        for row, output in zip(alone, outputs, strict=True):
            torch.testing.assert_close(row, output[index], rtol=1e-9, atol=1e-10)
        expected = torch.autograd.grad(alone, single, [c[index] for c in cotangents])
        for row, gradient in zip(expected, gradients, strict=True):
            torch.testing.assert_close(row, gradient[index], rtol=1e-8, atol=1e-9)


@every
def test_shared_inputs_get_summed_gradients(form: Form) -> None:
    batched = form.tensors(3)
    shared = (batched[0], *(t[0].detach().requires_grad_() for t in batched[1:]))
    spread = (batched[0], *(t.detach().expand(3, *t.shape).clone().requires_grad_() for t in shared[1:]))
    outputs, expected = form.outputs(*shared), form.outputs(*spread)
    cotangents = [torch.randn_like(output) for output in outputs]
    gradients = torch.autograd.grad(outputs, shared, cotangents)
    wide = torch.autograd.grad(expected, spread, cotangents)
    torch.testing.assert_close(outputs, expected)
    for gradient, rows, tensor in zip(gradients, wide, shared, strict=True):
        torch.testing.assert_close(gradient, rows if tensor is batched[0] else rows.sum(0), rtol=1e-8, atol=1e-9)


@every
def test_vmap_of_the_function_and_of_its_jacobian(form: Form) -> None:
    batched = tuple(t.detach() for t in form.tensors(2))
    torch.testing.assert_close(torch.func.vmap(form.outputs)(*batched), form.outputs(*batched))
    several = tuple(range(len(batched)))
    reverse = torch.func.vmap(torch.func.jacrev(form.outputs, argnums=several))(*batched)
    forward = torch.func.jacfwd(form.outputs, argnums=several)(*(t[1] for t in batched))
    for rows, ahead in zip(reverse, forward, strict=True):
        for row, column in zip(rows, ahead, strict=True):
            torch.testing.assert_close(row[1], column, rtol=1e-7, atol=1e-8)


@every
def test_batched_cotangents(form: Form) -> None:
    """The pullback under vmap, for a graph recorded outside of it."""
    single = form.tensors()
    output = form.outputs(*single)[-1]
    basis = torch.eye(output.numel(), dtype=output.dtype).reshape(-1, *output.shape)
    rows = torch.autograd.grad(output, single, basis, is_grads_batched=True, retain_graph=True)
    for index in (0, output.numel() - 1):
        for row, alone in zip(rows, torch.autograd.grad(output, single, basis[index], retain_graph=True), strict=True):
            torch.testing.assert_close(row[index], alone, rtol=1e-9, atol=1e-10)


@every
def test_hessian_is_forward_over_reverse(form: Form) -> None:
    single = tuple(t.detach() for t in form.tensors())

    def loss(first: torch.Tensor) -> torch.Tensor:
        return sum((o * o.detach().roll(1, -1)).sum() for o in form.outputs(first, *single[1:]))  # type: ignore[return-value]

    hessian = torch.func.hessian(loss)(single[0])
    matrix = hessian.reshape(single[0].numel(), single[0].numel())
    torch.testing.assert_close(matrix, matrix.T, rtol=1e-6, atol=1e-7)


@every
def test_nested_forward_mode_is_rejected(form: Form) -> None:
    """torch loses the outer tangents of custom functions, so nested forward mode must raise."""
    single = tuple(t.detach() for t in form.tensors())
    with pytest.raises(DerivativeError, match="hessian"):
        torch.func.jacfwd(torch.func.jacfwd(lambda first: form.outputs(first, *single[1:])[0]))(single[0])


@every
def test_empty_batch(form: Form) -> None:
    single = tuple(t.detach() for t in form.tensors())
    empty = form.outputs(*(t.expand(0, *t.shape) for t in single))
    assert [tuple(t.shape) for t in empty] == [(0, *t.shape) for t in form.outputs(*single)]


@every
def test_float32_inputs_give_float32_outputs(form: Form) -> None:
    doubles = form.tensors(2)
    singles = tuple(t.detach().float().requires_grad_() for t in doubles)
    expected, found = form.outputs(*doubles), form.outputs(*singles)
    assert {output.dtype for output in found} == {torch.float32}
    wanted = torch.autograd.grad([o.square().sum() for o in expected], doubles)
    gradients = torch.autograd.grad([o.square().sum() for o in found], singles)
    for low, high in zip((*found, *gradients), (*expected, *wanted), strict=True):
        torch.testing.assert_close(low.double(), high, rtol=form.tolerance, atol=form.tolerance)


@every
def test_invalid_inputs_are_rejected_by_name(form: Form) -> None:
    tensors = tuple(t.detach() for t in form.tensors())
    with pytest.raises(ShapeError):
        form.outputs(tensors[0].sum(), *tensors[1:])
    with pytest.raises((ProblemError, ShapeError), match="expected"):
        form.outputs(tensors[0].long(), *tensors[1:])
    poisoned = tensors[0].clone()
    poisoned.view(-1)[0] = torch.nan
    with pytest.raises(ProblemError, match="finite"):
        form.outputs(poisoned, *tensors[1:])
