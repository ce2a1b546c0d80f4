"""Nodes as torch modules: pickle, autocast, torch.compile, half precision and training loops."""

from __future__ import annotations

import pickle
import warnings

import pytest
import torch

from convexlayer import FailedElementsError, ProblemError
from convexlayer.nodes import (
    AbstractNode,
    ArgmaxNode,
    ArgminNode,
    EqualityNode,
    Euclidean,
    FixedPointNode,
    ForwardBackward,
    ForwardMode,
    InequalityNode,
    LinearEqualityNode,
    LinearForm,
    NodeOptions,
    PseudoHuber,
    RootNode,
    StationaryNode,
    Unrolled,
    robust_pool,
)

D = torch.float64

pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated",  # torch's own, at the first jvp
    "ignore:The .grad attribute of a Tensor",  # torch._dynamo's own
)


def f(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return (y - x).pow(4).sum() + y.square().sum()


def minus_f(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return -f(y, x)


def h(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return y.sum().reshape(1) - 1.0


def g(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return -y - 0.1


def residual(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return y + y.sin() - x


def slope(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return y - x


def half(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x


NODES: dict[str, torch.nn.Module] = {
    "argmin": ArgminNode(f, (3,), [(3,)], options=NodeOptions(start=half)),
    "argmax": ArgmaxNode(minus_f, (3,), [(3,)]),
    "argmin of a matrix": ArgminNode(f, (1, 3), [(3,)]),
    "stationary": StationaryNode(f, (3,), [(3,)]),
    "equality": EqualityNode(f, h, (3,), [(3,)]),
    "inequality": InequalityNode(f, g, (3,), [(3,)], h=h),
    "barrier": InequalityNode(f, g, (3,), [(3,)], t=100.0),
    "root": RootNode(residual, (3,), [(3,)]),
    "fixed point": FixedPointNode(ForwardBackward(slope, 0.5, Euclidean()), (3,), [(3,)]),
    "unrolled": FixedPointNode(ForwardBackward(slope, 0.5, Euclidean()), (3,), [(3,)], derivative=Unrolled(50)),
    "forward mode": FixedPointNode(ForwardBackward(slope, 0.5, Euclidean()), (3,), [(3,)], derivative=ForwardMode(50)),
    **{
        form.value: LinearEqualityNode(
            f, torch.ones(1, 3), torch.ones(1), [(3,)], form=form, options=NodeOptions(start=half)
        )
        for form in LinearForm
    },
}

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NODES)
def test_nodes_pickle(name: str) -> None:
    again = pickle.loads(pickle.dumps(NODES[name]))
    torch.testing.assert_close(again(X), NODES[name](X), rtol=0, atol=0)


@pytest.mark.parametrize("name", NODES)
def test_autocast_runs_in_float32(name: str) -> None:
    weights = torch.eye(3, requires_grad=True)
    expected = NODES[name]((X @ weights).bfloat16().float())
    (gradient,) = torch.autograd.grad(expected.sum(), weights)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = X @ weights
        assert hidden.dtype == torch.bfloat16
        y = NODES[name](hidden)
        (mixed,) = torch.autograd.grad(y.sum(), weights)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(mixed, gradient, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("name", ["argmin", "inequality", "root", "fixed point"])
def test_torch_compile_breaks_the_graph_around_a_node(name: str) -> None:
    node = NODES[name]

    def network(x: torch.Tensor) -> torch.Tensor:
        return node(x.sin()).cos() + x

    compiled = torch.compile(network, backend="eager")
    x, again = (X.clone().requires_grad_() for _ in range(2))
    torch.testing.assert_close(compiled(x), network(again))
    compiled(x).sum().backward()
    network(again).sum().backward()
    torch.testing.assert_close(x.grad, again.grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["argmin", "root", "fixed point"])
def test_half_precision_is_rejected_with_a_remedy(name: str, dtype: torch.dtype) -> None:
    with pytest.raises(ProblemError, match=r"convert it, as by .float\(\)"):
        NODES[name](X.to(dtype))


def test_functions_with_random_numbers_are_rejected() -> None:
    def noisy(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * y + x + 0.1 * torch.randn_like(y)

    for derivative in (None, Unrolled(3), ForwardMode(3)):
        node = FixedPointNode(noisy, (3,), [(3,)], derivative=derivative)
        for x in (X[0], X):
            with pytest.raises(ProblemError, match="draws random numbers"):
                node(x)
    dropout = torch.nn.Dropout(0.5)
    with pytest.raises(ProblemError, match="eval mode"):
        ArgminNode(lambda y, x: dropout(y - x).square().sum(), (3,), [(3,)])(X[0])
    dropout.eval()
    torch.testing.assert_close(ArgminNode(lambda y, x: dropout(y - x).square().sum(), (3,), [(3,)])(X[0]), X[0])


def test_dependent_equalities_are_named_in_the_error() -> None:
    def twice(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([y.sum() - 1.0, y.sum() - 2.0])

    with pytest.raises(FailedElementsError, match=r"the 2 equalities of element 0 are dependent \(rank 1\)"):
        EqualityNode(f, twice, (3,), [(3,)])(X.double())


@pytest.mark.parametrize("name", ["argmin", "root", "fixed point"])
def test_warm_start_of_another_batch_size_is_ignored_with_a_warning(name: str) -> None:
    node = NODES[name]
    before = node(X).detach()
    with pytest.warns(UserWarning, match="one of 4 elements, the batch has 3"):
        y = node(X[:3], warm_start=before)
    torch.testing.assert_close(y, before[:3])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        node(X, warm_start=before)
        node(X, warm_start=before[0])


def test_robust_pooling_ignores_a_start_of_another_batch_size() -> None:
    x = torch.randn(4, 5, 2, generator=torch.Generator().manual_seed(0))
    before = robust_pool(x, PseudoHuber())
    with pytest.warns(UserWarning, match=r"batch shape \(4,\), the points have \(3,\)"):
        u = robust_pool(x[:3], PseudoHuber(), start=before)
    torch.testing.assert_close(u, before[:3])
    torch.testing.assert_close(robust_pool(x, PseudoHuber(), start=before[0]), before, rtol=1e-5, atol=1e-6)


def test_forward_mode_propagates_only_differentiated_parameters() -> None:
    large = torch.zeros(2000, dtype=D)  # its tangents would be a batch of 2000
    x = torch.ones(3, dtype=D, requires_grad=True)
    seen = []

    def step(y: torch.Tensor, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        seen.append(c)
        return 0.5 * y + 0.5 * x + c.sum()

    node = FixedPointNode(step, (3,), [(3,), (2000,)], derivative=ForwardMode(40))
    node(x, large).sum().backward()
    torch.testing.assert_close(x.grad, torch.ones(3, dtype=D))
    assert all(torch.autograd.forward_ad.unpack_dual(c).tangent is None for c in seen)


@pytest.mark.parametrize("warm", [False, True])
def test_robust_pooling_trains_with_a_smaller_last_batch(warm: bool) -> None:
    """Points around a hidden centre, a third of them outliers, in float32 and batches of 16, 16 and 8."""
    generator = torch.Generator().manual_seed(0)
    centre = torch.randn(40, 1, 2, generator=generator)
    points = centre + 0.1 * torch.randn(40, 9, 2, generator=generator)
    points[:, :3] += 5.0
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(points, centre[:, 0]), batch_size=16)
    embed, alpha = torch.nn.Linear(2, 2), torch.nn.Parameter(torch.tensor(1.0))
    penalty = PseudoHuber()

    def energy(u: torch.Tensor, x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        s = (u - x).square().sum(-1)
        return penalty.value(s, alpha.expand_as(s)).sum()

    pool = ArgminNode(energy, (2,), [(9, 2), ()], options=NodeOptions(start=lambda x, alpha: x.mean(0)))
    optimizer = torch.optim.Adam([*embed.parameters(), alpha], lr=0.03)
    last: torch.Tensor | None = None
    losses = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the warm start is one of")
        for _ in range(15):
            total = 0.0
            for x, target in loader:
                optimizer.zero_grad()
                hidden = embed(x)
                u = pool(hidden, alpha, warm_start=last) if warm else pool(hidden, alpha)
                torch.testing.assert_close(u, robust_pool(hidden, penalty, alpha), rtol=1e-3, atol=1e-3)
                last = u.detach()
                loss = (u - target).square().mean()
                loss.backward()
                optimizer.step()
                total += loss.item()
            losses.append(total)
    assert losses[-1] < 0.1 * losses[0]


def test_public_names_suffice_to_define_nodes() -> None:
    assert issubclass(ArgminNode, AbstractNode)
    node = NODES["argmin"]
    assert isinstance(node, AbstractNode)
    assert [tuple(shape) for shape in node.shapes] == [(3,)]
