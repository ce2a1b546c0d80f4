"""Bregman distances: gradients, mirror maps and proximal steps match the potential."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from convexlayer import ProblemError, ShapeError
from convexlayer.nodes import (
    AbstractBregman,
    BoxEntropy,
    Euclidean,
    OrthantEntropy,
    PolyhedronEntropy,
    SimplexEntropy,
)

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, at the first jvp

D = torch.float64


@dataclass(frozen=True)
class Case:
    distance: AbstractBregman
    x: torch.Tensor  # inside the domain
    center: torch.Tensor
    tangent: torch.Tensor  # a direction that stays in the domain's affine hull


def cases() -> dict[str, Case]:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(4, generator=generator, dtype=D)
    A = torch.cat([torch.randn(5, 4, generator=generator, dtype=D), torch.eye(4, dtype=D), -torch.eye(4, dtype=D)])
    simplex, other = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]], dtype=D)
    box = torch.tensor([0.5, -0.2, 0.9, 0.1], dtype=D)
    return {
        "euclidean": Case(Euclidean(), normal, box, normal.flip(0)),
        "box": Case(BoxEntropy(), box, -box / 2, normal),
        "other box": Case(BoxEntropy(torch.tensor([-1.0, -1, 0, 0], dtype=D), 3.0), box, box + 1, normal),
        "orthant": Case(OrthantEntropy(2.0), simplex * 5, other, normal),
        "simplex": Case(SimplexEntropy(), simplex, other, normal - normal.mean()),
        "polyhedron": Case(PolyhedronEntropy(A, 1.0 + A.norm(dim=1)), box / 2, -box / 3, normal),
    }


@pytest.fixture(params=list(cases()))
def case(request: pytest.FixtureRequest) -> Case:
    return cases()[request.param]


def test_gradient_matches_the_potential(case: Case) -> None:
    gradient = torch.func.grad(case.distance.potential)(case.x)
    torch.testing.assert_close(case.distance.gradient(case.x), gradient, rtol=1e-12, atol=1e-12)


def test_mirror_map_inverts_the_gradient(case: Case) -> None:
    torch.testing.assert_close(case.distance.mirror(case.distance.gradient(case.x)), case.x, rtol=1e-10, atol=1e-12)


def test_move_is_the_mirror_step_and_minimises_the_proximal_objective(case: Case) -> None:
    slope = torch.tensor([0.3, -0.2, 0.1, 0.5], dtype=D)
    moved = case.distance.move(case.x, slope)
    expected = case.distance.mirror(case.distance.gradient(case.x) - slope)
    torch.testing.assert_close(moved, expected, rtol=1e-10, atol=1e-12)

    def objective(t: torch.Tensor) -> torch.Tensor:
        point = moved + t * case.tangent
        return slope @ point + case.distance.distance(point, case.x)

    zero = torch.zeros((), dtype=D)
    assert abs(float(torch.func.grad(objective)(zero))) < 1e-9
    assert float(torch.func.hessian(objective)(zero)) > 0


@pytest.mark.parametrize("name", ["euclidean", "box", "other box", "simplex"])
def test_distance_is_at_least_half_the_squared_norm(name: str) -> None:
    case = cases()[name]
    assert (
        float(case.distance.distance(case.x, case.center)) >= 0.5 * float((case.x - case.center).square().sum()) - 1e-15
    )


def test_orthant_entropy_is_strongly_convex_up_to_a_only() -> None:
    distance = OrthantEntropy(2.0)
    curvature = torch.func.vmap(torch.func.grad(torch.func.grad(distance.potential)))
    below, beyond = curvature(torch.tensor([1.999, 2.001], dtype=D))
    assert below > 1 > beyond


def test_moves_are_twice_differentiable_and_vmappable(case: Case) -> None:
    slope = torch.tensor([0.3, -0.2, 0.1, 0.5], dtype=D, requires_grad=True)
    x = case.x.clone().requires_grad_()
    assert gradcheck(case.distance.move, (x, slope))
    assert gradgradcheck(case.distance.move, (x, slope))
    slopes = torch.stack([slope, -slope, 2 * slope]).detach()
    together = torch.func.vmap(case.distance.move, in_dims=(None, 0))(case.x, slopes)
    torch.testing.assert_close(together, torch.stack([case.distance.move(case.x, each) for each in slopes]))


@pytest.mark.parametrize(
    ("distance", "x"),
    [
        (BoxEntropy(), [-1.0, 1.0, 0.0]),
        (OrthantEntropy(), [0.0, 1.0, 2.0]),
        (SimplexEntropy(), [0.0, 1.0, 0.0]),
    ],
    ids=["box", "orthant", "simplex"],
)
@pytest.mark.parametrize("size", [1.0, 300.0, -300.0])
def test_boundary_points_do_not_move_and_have_finite_derivatives(
    distance: AbstractBregman, x: list[float], size: float
) -> None:
    start = torch.tensor(x, dtype=D, requires_grad=True)
    slope = torch.full((3,), size, dtype=D, requires_grad=True)
    moved = distance.move(start, slope)
    stays = start.detach() == 0 if isinstance(distance, OrthantEntropy) else start.detach().abs() == 1
    assert torch.equal(moved[stays], start[stays])
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(moved.sum(), (start, slope)))


def test_several_simplices_along_any_axis() -> None:
    x = torch.rand(3, 5, dtype=D)
    x = x / x.sum(0)
    moved = SimplexEntropy(dim=0).move(x, torch.randn(3, 5, dtype=D))
    torch.testing.assert_close(moved.sum(0), torch.ones(5, dtype=D))
    assert float(moved.min()) > 0


def test_invalid_domains_are_rejected() -> None:
    A, b = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, -1.0]]), torch.ones(3)
    with pytest.raises(ProblemError, match="below the upper"):
        BoxEntropy(1.0, -1.0)
    for lower, upper in ((0.0, float("inf")), (float("-inf"), torch.ones(2))):
        with pytest.raises(ProblemError, match="expected finite lower bounds below the upper"):
            BoxEntropy(lower, upper)
    with pytest.raises(ProblemError, match="positive"):
        OrthantEntropy(0.0)
    for normals, offsets in ((torch.ones(3), torch.ones(3)), (A, torch.ones(2))):
        with pytest.raises(ShapeError, match=r"expected A \(m, n\) and b \(m,\)"):
            PolyhedronEntropy(normals, offsets)
    with pytest.raises(ProblemError, match="ray"):
        PolyhedronEntropy(A, b)
    with pytest.raises(ProblemError, match="interior"):
        PolyhedronEntropy(torch.cat([A, torch.tensor([[0.0, 1.0]])]), torch.tensor([1.0, 1.0, 1.0, -2.0]))
