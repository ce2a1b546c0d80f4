"""Orthogonal Procrustes and simplex frames: known solutions, uniqueness and the proximal term."""

from __future__ import annotations

import math

import pytest
import torch

from convexlayer.errors import ProblemError, ShapeError
from convexlayer.nodes import (
    nearest_simplex_etf,
    orthogonal_procrustes,
    rotation_of,
    simplex_etf,
)

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, at the first jvp


def double(*values: float | list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def test_known_rotation_is_recovered() -> None:
    U = rotation_of(normal(3))
    B = normal(3, 10)
    torch.testing.assert_close(orthogonal_procrustes(U @ B, B), U)
    reflected = U * double(1.0, 1.0, -1.0)
    torch.testing.assert_close(orthogonal_procrustes(reflected @ B, B), reflected)
    nearest = orthogonal_procrustes(reflected @ B, B, rotation=True)
    torch.testing.assert_close(torch.linalg.det(nearest), double(1.0)[0])


def test_undetermined_rotation_is_rejected() -> None:
    line = normal(3, 1) @ normal(1, 6)
    with pytest.raises(ProblemError, match="not unique"):
        orthogonal_procrustes(line, line, rotation=True)
    plane = normal(3, 2) @ normal(2, 6)
    orthogonal_procrustes(plane, plane, rotation=True)  # points in a plane determine a rotation
    with pytest.raises(ProblemError, match="not unique"):
        orthogonal_procrustes(plane, plane)


def test_more_columns_than_rows_are_rejected() -> None:
    with pytest.raises(ShapeError, match="e <= d"):
        orthogonal_procrustes(normal(2, 5), normal(3, 5))


@pytest.mark.parametrize(("d", "K"), [(1, 2), (3, 4), (7, 4)])
def test_simplex_frame_has_equal_angles_and_is_its_own_nearest(d: int, K: int) -> None:
    frame = nearest_simplex_etf(normal(d, K), scale=2.0)
    gram = frame.T @ frame
    expected = 4.0 * ((1.0 + 1.0 / (K - 1)) * torch.eye(K).double() - 1.0 / (K - 1))
    torch.testing.assert_close(gram, expected)
    torch.testing.assert_close(nearest_simplex_etf(frame, scale=2.0), frame)


def guided(means: torch.Tensor, U: torch.Tensor, previous: torch.Tensor, delta: float) -> torch.Tensor:
    """Objective of guided neural collapse as stated on the slides."""
    K = means.shape[-1]
    M = math.sqrt(K / (K - 1)) * (torch.eye(K) - torch.ones(K, K) / K).double()
    return (means - U @ M).square().sum((-2, -1)) + delta / 2.0 * (U - previous).square().sum((-2, -1))


@pytest.mark.parametrize(("d", "K"), [(4, 4), (7, 4)])
def test_nearest_frame_has_the_lowest_objective(d: int, K: int) -> None:
    means, previous = normal(d, K), torch.linalg.qr(normal(d, K)).Q
    U = orthogonal_procrustes(means, simplex_etf(K).double(), previous=previous, proximal=0.8)
    torch.testing.assert_close(U.T @ U, torch.eye(K).double())
    found = guided(means, U, previous, 0.8)
    anywhere = torch.linalg.qr(normal(2000, d, K)).Q
    near = torch.linalg.qr(U + 0.01 * normal(2000, d, K))
    near_by = near.Q * near.R.diagonal(dim1=-2, dim2=-1).sign()[:, None, :]
    assert (guided(means, torch.cat([anywhere, near_by, previous[None]]), previous, 0.8) >= found).all()


def test_proximal_term_applies_to_the_whole_factor() -> None:
    """The component along the ones vector, invisible in the frame, counts: 15.52 without it, 15.41 with it."""
    torch.manual_seed(0)
    means, previous = normal(4, 4), torch.linalg.qr(normal(4, 4)).Q
    U = orthogonal_procrustes(means, simplex_etf(4).double(), previous=previous, proximal=0.8)
    assert float(guided(means, U, previous, 0.8)) == pytest.approx(15.413, abs=5e-4)


def test_proximal_weight_interpolates_between_nearest_and_previous_frame() -> None:
    means, previous = normal(5, 4), torch.linalg.qr(normal(5, 4)).Q
    M = 2.0 * simplex_etf(4).double()
    light, heavy = (orthogonal_procrustes(means, M, previous=previous, proximal=delta) for delta in (1e-9, 1e12))
    torch.testing.assert_close(light @ M, nearest_simplex_etf(means, scale=2.0), rtol=0, atol=1e-7)
    torch.testing.assert_close(heavy, previous, rtol=0, atol=1e-10)


def test_invalid_weights_and_scales_are_rejected() -> None:
    A, U = normal(3, 5), torch.linalg.qr(normal(3, 3)).Q
    with pytest.raises(ProblemError, match="proximal"):
        orthogonal_procrustes(A, A, previous=U, proximal=-1.0)
    with pytest.raises(ProblemError, match="scale"):
        nearest_simplex_etf(normal(4, 4), scale=0.0)
    with pytest.raises(ProblemError, match="at least 2"):
        simplex_etf(1)
    with pytest.raises(ShapeError, match="previous"):
        orthogonal_procrustes(A, A, previous=U[:, :2])
