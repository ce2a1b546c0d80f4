"""Gallery entries on Ochs et al. (2016): their numbers at small sizes."""

from __future__ import annotations

import pytest
import torch

from convexlayer.gallery import Result, ochs_toy
from convexlayer.gallery.entries import (
    ochs_denoising,
    ochs_inertia,
    ochs_modes,
    ochs_segmentation,
    ochs_toy_gradients,
    ochs_toy_iterations,
)
from convexlayer.gallery.segmentation import LABELS, differences, differences_adjoint, scenes
from tests.gallery.figures import faults


def agreed(result: Result) -> None:
    assert not [claim for claim in result.claims if not claim.holds]
    assert not faults(result)


@pytest.fixture(scope="module")
def gradients() -> Result:
    return ochs_toy_gradients.run(forward=(5, 25, 60), back=(5, 20, 60))


def test_toy_gradients_agree_with_the_paper(gradients: Result) -> None:
    agreed(gradients)


def test_toy_gradients_converge_to_the_analytic_one(gradients: Result) -> None:
    final = gradients.numbers["final_error_at_0.3"]
    assert all(final[60][method] < 1e-13 for method in ochs_toy.METHODS if method != "Smoothed-impl")
    for method in ("Proj.GD", "Proj.GD2", "Bregman-FB", "Bregman-FB2"):
        assert final[60][method] < 1e-4 * final[20][method] < 1e-4 * final[5][method]


def test_toy_iterations_compared_with_the_paper() -> None:
    result = ochs_toy_iterations.run(iterations=60, shown=26, thetas=(0.2, 0.4), differing=(10, 15))
    at_the_kink, order = (claim for claim in result.claims if not claim.holds)
    assert at_the_kink.paper.startswith("figure 4, theta = 0")
    assert "order 1e-4" in order.paper
    assert not faults(result)
    numbers = result.numbers
    assert numbers["largest_relative_distance_from_the_predicted_rate"] < 1e-6
    assert numbers["rate_at_the_kink"] > 0.9
    apart = numbers["difference_of_the_variants"]
    assert max(apart[pair][15] for pair in apart) == pytest.approx(1.1e-5, rel=0.05)
    assert max(apart[pair][10] for pair in apart) == pytest.approx(1.6e-4, rel=0.05)
    energies = numbers["energy_gap"]["0.3"]
    for method in ("Proj.GD", "Bregman-FB"):
        assert energies[method][-1] <= 1e-14 < energies[method][0]
    assert energies["Smoothed-impl"][-1] > 1e-5


@pytest.mark.parametrize("theta", [0.1, 0.3, 0.4])
def test_back_iterations_converge_at_the_predicted_rate(theta: float) -> None:
    """Proj.GD: 1 - 0.4 (1 + 2 theta^2); Bregman-FB: 1 - 1.6 theta."""
    assert ochs_toy.rate("Proj.GD", theta) == pytest.approx(1 - 0.4 * (1 + 2 * theta**2))
    assert ochs_toy.rate("Bregman-FB2", theta) == pytest.approx(1 - 1.6 * theta)


def test_segmentation_improves_with_the_global_model_and_inner_iterations() -> None:
    result = ochs_segmentation.run(size=32, training=8, testing=12, pretraining=150, steps=8, inner=(3, 30))
    agreed(result)
    assert result.numbers["table_1"]["CNN"]["test"]["accuracy"] > 0.8


def test_scenes_have_plausible_labels() -> None:
    batch = scenes(8, 32, torch.Generator().manual_seed(0))
    assert batch.images.shape == (8, 3, 32, 32)
    assert ((batch.images >= 0) & (batch.images <= 1)).all()
    assert (batch.labels[:, 0] == LABELS.index("sky")).float().mean() > 0.9
    assert (batch.labels[:, -1] == LABELS.index("horizontal")).float().mean() > 0.9
    assert (batch.labels == LABELS.index("vertical")).any(-1).any(-1).all()


def test_denoisers_learn_without_their_hessian() -> None:
    result = ochs_denoising.run(size=16, training=2, testing=2, steps=4)
    agreed(result)
    numbers = result.numbers
    assert numbers["gradient_error"] < 1e-6
    assert numbers["largest_tensor"] < 10_000 < 16**4
    for way, after in numbers["psnr"]["after"].items():
        assert after > numbers["psnr"]["before"][way] + 1.0
        assert numbers["training_psnr"][way] == sorted(numbers["training_psnr"][way])


def test_inertia_saves_evaluations_at_fine_levels_only() -> None:
    result = ochs_inertia.run(betas=(0.0, 0.4, 0.8), steps=300, side=4, short=150)
    agreed(result)
    needed = result.numbers["evaluations_to_level"]
    assert needed[0.8][1e-3] < 250 < 300 < needed[0.0][1e-3]
    assert needed[0.0][1e-1] < needed[0.8][1e-1]
    shares = result.numbers["share_of_starts_at_the_best"]
    assert shares[0.0] < 0.5 < 0.9 < shares[0.8]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, at the first jvp
def test_forward_and_reverse_mode_costs_and_gradients() -> None:
    result = ochs_modes.run(n=20, parameters=(1, 20), iterations=(10, 100), few=4, steps=20)
    agreed(result)
    numbers = result.numbers
    assert numbers["exact_gradient_error"] < 1e-8
    for P, modes in numbers["by_parameters"].items():
        assert modes["reverse (unrolled)"]["products"] == 39  # 20 steps and 19 back, for the start is constant
        assert modes["forward"]["products"] == pytest.approx(20 * (P + 2), rel=0.06)
        assert modes["implicit, series"]["products"] < 80
        assert modes["forward"]["saved_bytes"] == 8 * (20 * P + P)  # dx/dtheta and theta
    long = numbers["by_iterations"][100]
    assert max(long[mode]["error"] for mode in ("reverse (unrolled)", "forward", "implicit, series")) < 1e-3
    assert long["implicit, dense (factor not counted)"]["error"] < long["reverse (unrolled)"]["error"]


def test_differences_and_their_adjoint() -> None:
    u, p = torch.randn(3, 5, 5, dtype=torch.float64), torch.randn(2, 3, 5, 5, dtype=torch.float64)
    torch.testing.assert_close((differences(u) * p).sum(), (differences_adjoint(p) * u).sum())
