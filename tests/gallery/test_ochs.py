"""The numbers of the entries from Ochs et al. (2016), at small sizes."""

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
from convexlayer.gallery.segmentation import differences, differences_adjoint


def agreed(result: Result) -> None:
    assert not [claim for claim in result.claims if not claim.holds]


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


def test_toy_iterations_agree_with_the_paper() -> None:
    result = ochs_toy_iterations.run(iterations=60, shown=30)
    agreed(result)
    energies = result.numbers["energy_gap"]["theta = 0.3"]
    for method in ("Proj.GD", "Bregman-FB"):
        assert energies[method][-1] <= 1e-14 < energies[method][0]
    assert energies["Smoothed-impl"][-1] > 1e-5


def test_segmentation_gains_from_the_global_model_and_from_inner_iterations() -> None:
    result = ochs_segmentation.run(size=16, training=6, testing=12, pretraining=150, steps=10, inner=(3, 30))
    agreed(result)
    assert result.numbers["scores"]["CNN"]["test"]["accuracy"] > 0.7


def test_denoisers_learn_without_their_hessian() -> None:
    result = ochs_denoising.run(size=16, training=2, testing=2, steps=4)
    agreed(result)
    numbers = result.numbers
    assert numbers["gradient_error"] < 1e-6
    assert numbers["largest_tensor"] < 10_000 < 16**4
    for way, after in numbers["psnr"]["after"].items():
        assert after > numbers["psnr"]["before"][way] + 1.0
        assert numbers["training_psnr"][way] == sorted(numbers["training_psnr"][way])


def test_inertia_needs_fewer_evaluations_to_a_fine_level_and_more_to_a_coarse_one() -> None:
    result = ochs_inertia.run(betas=(0.0, 0.4, 0.8), steps=300, side=4, short=150)
    agreed(result)
    needed = result.numbers["evaluations_to_level"]
    assert needed[0.8][1e-3] < 250 < 300 < needed[0.0][1e-3]
    assert needed[0.0][1e-1] < needed[0.8][1e-1]
    shares = result.numbers["share_of_starts_at_the_best"]
    assert shares[0.0] < 0.5 < 0.9 < shares[0.8]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, at the first jvp
def test_forward_and_reverse_mode_in_multiplications_bytes_and_gradients() -> None:
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
