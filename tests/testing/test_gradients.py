"""assert_gradients accepts right derivatives at all scales, and names wrong ones, kinks and noise."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import cvxpy as cp
import pytest
import torch

from convexlayer import ConvexLayer, ProblemError
from convexlayer.nodes import ArgminNode
from convexlayer.testing import assert_gradients
from tests.families import SMOOTH, family

Tensor = torch.Tensor


class Scaled(torch.autograd.Function):
    """y = sin(x), whose derivatives are multiplied by factors in reverse and in forward mode."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, reverse: float, forward: float) -> Tensor:
        ctx.x, ctx.factors = x, (reverse, forward)
        ctx.save_for_forward(x)
        return torch.sin(x)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None, None]:
        return ctx.factors[0] * torch.cos(ctx.x) * v, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return ctx.factors[1] * torch.cos(ctx.x) * tangent


def scaled(x: Tensor, reverse: float, forward: float) -> Tensor:
    y: Tensor = Scaled.apply(x, reverse, forward)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return y


def point(*shape: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (scale * values).requires_grad_()


@pytest.mark.parametrize("name", SMOOTH)
def test_layers_pass(name: str) -> None:
    case = family(name)
    layer = case.layer(on_degenerate="raise")
    tensors = [tensor.detach().requires_grad_() for tensor in case.prepared(case.tensors())]
    assert_gradients(layer, *tensors)


@pytest.mark.parametrize("name", ["quadratic", "parametric_quad_form", "logistic_regression", "nearest_correlation"])
def test_layers_with_batches_and_shared_parameters_pass(name: str) -> None:
    case = family(name)
    layer = case.layer(on_degenerate="raise")
    batched, shared = case.prepared(case.tensors(3)), case.prepared(case.tensors())
    tensors = [each.detach().requires_grad_() for each in (batched[0], *shared[1:])]
    assert_gradients(layer, *tensors)


def test_a_solution_map_elsewhere_knows_the_shapes_of_its_parameters() -> None:
    """Of which the first has the batch axis; attributes are given as CVXPY's parameters."""
    x, c, weight = cp.Variable(3), cp.Parameter(3, name="c"), cp.Parameter(nonneg=True, name="weight")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - c) + weight * cp.norm1(x)))

    class Elsewhere:
        """A solution map as on a server."""

        def __init__(self) -> None:
            self._map = ConvexLayer(problem, [c, weight], [x]).solution_map
            self.parameters = [SimpleNamespace(name=each.name, shape=each.shape) for each in self._map.parameters]

        def __getattr__(self, name: str) -> Any:
            return getattr(self._map, name)

    layer = ConvexLayer.from_solution_map(cast("Any", Elsewhere()))
    one = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    assert_gradients(layer, point(2, 3), one)
    assert_gradients(layer, point(2, 3), one, parameters=[c, weight])
    kink = torch.tensor([[1.0, 2.0, 3.0], [0.5, 4.0, 2.0]], dtype=torch.float64, requires_grad=True)
    with pytest.raises(AssertionError, match="element 1 along parameter"):
        assert_gradients(layer, kink, one, modes=[])


def test_nodes_pass() -> None:
    def objective(y: Tensor, A: Tensor, b: Tensor) -> Tensor:
        return (A @ y - b).square().sum() + y.pow(4).sum()

    node = ArgminNode(objective, variable=(3,), parameters=[(4, 3), (4,)])
    assert_gradients(node, point(2, 4, 3), point(4, seed=1))


@pytest.mark.parametrize("scale", [1e-150, 1e-6, 1.0, 1e6, 1e150])
def test_the_unit_does_not_matter(scale: float) -> None:
    x = point(5, scale=scale)

    def right(x: Tensor) -> tuple[Tensor, Tensor]:
        return scale * scaled(x / scale, 1.0, 1.0), x.sum() / scale

    def wrong(x: Tensor) -> tuple[Tensor, Tensor]:
        return scale * scaled(x / scale, 1.001, 1.0), x.sum() / scale

    assert_gradients(right, x)
    with pytest.raises(AssertionError, match="reverse mode is wrong"):
        assert_gradients(wrong, x)


@pytest.mark.parametrize("factor", [1.001, 0.999, -1.0, 0.0, float("nan")])
def test_wrong_derivatives_are_named(factor: float) -> None:
    def function(a: Tensor, x: Tensor) -> list[Tensor]:
        return [a.exp(), a.sum() + scaled(x, factor, 1.0), scaled(x, 1.0, 1.0)]

    with pytest.raises(AssertionError) as failure:
        assert_gradients(function, point(2), point(2, 3, seed=1))
    pattern = (
        r"reverse mode is wrong: argument 1 of shape \(2, 3\), direction [01], output 1 \(a random cotangent\)\n"
        r" +analytic .*\n +finite difference .*, estimated error .*\n +difference .*, tolerance .* \(rtol=1e-05\)\n"
        r"Failed in reverse mode.\nWhat to try:"
    )
    assert re.match(pattern, str(failure.value)), str(failure.value)


def test_a_wrong_forward_mode_is_named_by_its_entry() -> None:
    def function(x: Tensor) -> Tensor:
        return torch.cat([x[:1].exp(), scaled(x[1:], 1.0, 1.001)])

    with pytest.raises(AssertionError, match=r"forward mode is wrong: argument 0 .*, output 0, entry \([12],\)"):
        assert_gradients(function, point(3))
    assert_gradients(function, point(3), modes=["reverse"])
    with pytest.raises(AssertionError, match="Failed in forward and reverse mode"):
        assert_gradients(lambda x: scaled(x, 1.001, 1.001), point(3))


def test_the_batch_axis_may_be_that_of_a_tensor_without_gradient() -> None:
    def function(weight: Tensor, x: Tensor) -> Tensor:
        return weight * scaled(x, 1.0, 1.001).sum()

    weight, parameters = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64), [cp.Parameter(), cp.Parameter(4)]
    with pytest.raises(AssertionError, match=r"output 0, element [12]\n"):
        assert_gradients(function, weight, point(4), parameters=parameters)


def test_small_elements_of_a_batch_count_as_much_as_large_ones() -> None:
    """Only with the batch axis known; the first of three elements is 1e9 times smaller."""
    units = torch.tensor([1e-6, 1.0, 1e3], dtype=torch.float64)[:, None]

    def function(x: Tensor) -> Tensor:
        factor = torch.where(units == 1e-6, 1.001, 1.0)
        return units * (factor * torch.sin(x / units) + (1 - factor) * torch.sin(x / units).detach())

    x = (units * point(3, 4).detach()).requires_grad_()
    with pytest.raises(AssertionError, match=r"forward mode is wrong: parameter 'x' .*, output 0, element 0, entry"):
        assert_gradients(function, x, parameters=[cp.Parameter(4, name="x")])
    with pytest.raises(AssertionError, match="reverse mode is wrong"):
        assert_gradients(function, x, parameters=[cp.Parameter(4, name="x")], modes=["reverse"])


@pytest.mark.parametrize("function", [torch.relu, torch.abs, lambda x: torch.relu(x) + x.square()])
def test_kinks_are_not_blamed_on_the_derivative(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64, requires_grad=True)
    with pytest.raises(AssertionError, match=r"cannot judge the derivative of output 0 .*there is a kink"):
        assert_gradients(function, x)
    assert_gradients(function, (x + 1e-5).detach().requires_grad_())  # one side, with a kink nearby


def test_a_kink_of_a_layer_is_named() -> None:
    x, c = cp.Variable(2), cp.Parameter(2, name="c")
    layer = ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - c)), [x >= 0]), [c], [x], on_degenerate="report")
    at_kink = torch.tensor([[1.0, 2.0], [0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    with pytest.raises(AssertionError, match=r"output 0, element 1 along parameter 'c' of shape \(2, 2\), .* kink"):
        assert_gradients(layer, at_kink)


def test_noise_is_not_blamed_on_the_derivative() -> None:
    generator = torch.Generator().manual_seed(0)

    def noisy(x: Tensor, level: float) -> Tensor:
        return torch.sin(x) + level * torch.randn(x.shape, generator=generator, dtype=torch.float64)

    assert_gradients(lambda x: noisy(x, 1e-10), point(4))
    for level in (1e-6, 1e-4, 1e-2):
        with pytest.raises(AssertionError, match=r"cannot judge.*the differences do not converge"):
            assert_gradients(lambda x, level=level: noisy(x, level), point(4))
    assert_gradients(lambda x: noisy(x, 1e-6), point(4), rtol=1e-2)


def test_jumps_are_not_blamed_on_the_derivative() -> None:
    with pytest.raises(AssertionError, match="cannot judge"):
        assert_gradients(lambda x: torch.floor(x) + x, torch.zeros(2, dtype=torch.float64, requires_grad=True))


def test_steps_shrink_until_the_problem_is_feasible() -> None:
    """The constraint leaves room of 1e-4 on one side."""
    x, c = cp.Variable(), cp.Parameter()
    layer = ConvexLayer(cp.Problem(cp.Minimize(cp.square(x)), [x >= c, x <= 1.0001]), [c], [x], on_degenerate="report")
    assert_gradients(layer, torch.ones((), dtype=torch.float64, requires_grad=True))
    edge = torch.tensor(1.0001, dtype=torch.float64, requires_grad=True)
    with pytest.raises(AssertionError, match="cannot be evaluated near the point") as failure:
        assert_gradients(layer, edge, modes=["reverse"])
    assert "infeasible" in str(failure.value.__cause__)


@pytest.mark.parametrize(
    ("attributes", "value"),
    [
        ({"PSD": True}, torch.tensor([[1.0, 1.0], [1.0, 1.0]])),  # of rank one
        ({"NSD": True}, torch.tensor([[-1.0, 1.0], [1.0, -1.0]])),
        ({"symmetric": True}, torch.tensor([[1.0, 3.0], [3.0, -1.0]])),
        ({"diag": True}, torch.tensor([[1.0, 0.0], [0.0, -3.0]])),
        ({"nonneg": True}, torch.tensor([[1.0, 0.0], [2.0, 3.0]])),
        ({"neg": True}, torch.tensor([[-1.0, -1e-9], [-2.0, -3.0]])),
        ({"sparsity": [(0, 1), (1, 0)]}, torch.tensor([[0.0, 2.0], [0.0, 0.0]])),
    ],
)
def test_directions_keep_attributes(attributes: dict[str, Any], value: Tensor) -> None:
    """The function refuses values without them."""
    symmetric = bool(attributes.keys() & {"PSD", "NSD", "symmetric"})

    def function(theta: Tensor) -> Tensor:
        matrix = theta.detach()
        assert not symmetric or torch.allclose(matrix, matrix.mT, atol=1e-12)
        eigenvalues = torch.linalg.eigvalsh(0.5 * (matrix + matrix.mT))
        assert "PSD" not in attributes or eigenvalues.min() > -1e-12
        assert "NSD" not in attributes or eigenvalues.max() < 1e-12
        assert "nonneg" not in attributes or matrix.min() >= 0
        assert "neg" not in attributes or matrix.max() < 0
        assert "diag" not in attributes or not (matrix - torch.diag(matrix.diag())).any()
        assert "sparsity" not in attributes or not matrix.diag().any()
        return torch.sin(theta @ theta.mT) + theta

    theta = value.double().requires_grad_()
    assert_gradients(function, theta, parameters=[cp.Parameter((2, 2), **attributes)])


def test_weights_of_a_symmetric_gradient_count_once() -> None:
    """A gradient that belongs to one triangle alone is right along symmetric directions, and wrong along others."""

    def function(theta: Tensor) -> Tensor:
        return torch.sin(torch.triu(theta))

    theta = torch.tensor([[1.0, 3.0], [3.0, 2.0]], dtype=torch.float64, requires_grad=True)
    assert_gradients(function, theta, parameters=[cp.Parameter((2, 2), symmetric=True)])


def test_outputs_of_all_kinds_pass() -> None:
    """Constant, zero, empty and scalar outputs, and an argument that is not used or needs no gradient."""

    def function(x: Tensor, unused: Tensor, fixed: Tensor) -> tuple[Tensor, ...]:
        constant = torch.ones(2, dtype=torch.float64)
        return constant, 0.0 * x, x[:0], (x * fixed).sum(), x.detach() * 0.0

    assert_gradients(function, point(3), point(2, seed=1), point(3, seed=2).detach())


def test_a_derivative_of_a_constant_is_wrong() -> None:
    with pytest.raises(AssertionError, match="is wrong"):
        assert_gradients(lambda x: torch.ones(2, dtype=torch.float64) + (x.sum() - x.sum().detach()), point(3))


@pytest.mark.parametrize(
    ("arguments", "keywords", "message"),
    [
        ((torch.ones(2, requires_grad=True),), {}, "argument 0 is torch.float32.*double"),
        ((torch.ones(2, dtype=torch.float64),), {}, "no tensor requires a gradient"),
        (([1.0],), {}, "argument 0: expected a torch tensor, got"),
        ((point(2),), {"modes": ["backward"]}, "modes must be some of reverse, forward, got 'backward'"),
        ((point(2),), {"parameters": []}, "one tensor per parameter, got 1 and 0"),
        (
            (torch.zeros(2, dtype=torch.float64, requires_grad=True),),
            {"parameters": [cp.Parameter(2, pos=True, name="p")]},
            "parameter 'p' of shape .*no direction keeps its attributes",
        ),
    ],
)
def test_arguments_that_cannot_be_checked(arguments: Any, keywords: Any, message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        assert_gradients(torch.sin, *arguments, **keywords)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x.float(), "output 0 is torch.float32"),
        (lambda x: (x, "report"), "output 1: expected a tensor, got"),
    ],
)
def test_outputs_that_cannot_be_checked(function: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        assert_gradients(function, point(2))


def test_outputs_that_are_not_finite_are_named() -> None:
    with pytest.raises(AssertionError, match=r"output 0, entry \(1,\) is not finite at the point"):
        assert_gradients(torch.log, torch.tensor([1.0, -1.0], dtype=torch.float64, requires_grad=True))


class Forwardless(torch.autograd.Function):
    """A custom function without forward mode."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2.0 * x

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Tensor:
        return 2.0 * v


def test_a_missing_forward_mode_is_explained() -> None:
    with pytest.raises(AssertionError, match=r"forward mode failed: .*pass modes=\['reverse'\]"):
        assert_gradients(Forwardless.apply, point(2))
    assert_gradients(Forwardless.apply, point(2), modes=["reverse"])
