"""Gallery entries on deep declarative networks: their numbers at small sizes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from convexlayer.gallery import Result, entry
from convexlayer.gallery.entries.ddn_profiling import ITERATIONS
from convexlayer.gallery.measure import saved_bytes
from convexlayer.gallery.neural_collapse import collapse_measures
from convexlayer.gallery.node_variants import NODE_VARIANTS
from convexlayer.nodes import nearest_simplex_etf
from tests.gallery.figures import faults

SIZES: dict[str, dict[str, Any]] = {
    "ddn_babylonian": {"points": 20},
    "ddn_blind_pnp": {"views": 8, "n": 8, "steps": 25, "twist": 0.4},
    "ddn_eigen": {"draws": 8},
    "ddn_least_squares": {},
    "ddn_pnp": {"steps": 60},
    "ddn_polynomial_fit": {},
    "ddn_pooling": {"positions": 40},
    "ddn_procrustes": {"K": 5, "d": 8, "each": 5, "steps": 100},
    "ddn_stackelberg": {"grid": 41},
    "ddn_transport": {"n": 8, "iterations": 200, "sizes": (8, 16), "repetitions": 1},
}


@pytest.fixture(scope="module")
def results() -> dict[str, Result]:
    return {name: entry(name).run(**sizes) for name, sizes in SIZES.items()}


@pytest.mark.parametrize("name", SIZES)
def test_claims_of_the_paper_hold(results: dict[str, Result], name: str) -> None:
    for claim in results[name].claims:
        assert claim.holds or "running time" in claim.paper, claim  # times are for the figure


@pytest.mark.parametrize("name", SIZES)
def test_figures_have_no_layout_faults(results: dict[str, Result], name: str) -> None:
    assert not faults(results[name])


def test_babylonian_derivatives_converge_one_iteration_behind_the_values(results: dict[str, Result]) -> None:
    numbers = results["ddn_babylonian"].numbers
    errors = numbers["unrolled_derivative_error"]
    assert all(later <= earlier for earlier, later in pairwise(errors[:9]))
    assert numbers["unrolled_saved_bytes"] == sorted(numbers["unrolled_saved_bytes"])


def test_projector_gradient_at_coincident_eigenvalues(results: dict[str, Result]) -> None:
    numbers = results["ddn_eigen"].numbers
    assert numbers["projector_gradient_largest_error"]["ours"][0] < 1e-14
    assert numbers["projector_gradient_worst"]["ours"] < 1e-2
    assert numbers["largest_error_times_gap_over_eps"] < 10.0
    assert numbers["projector_gradient_worst"]["torch.linalg.eigh"] > 1e-2  # or infinite


def test_least_squares_by_qr_does_not_square_the_condition_number(results: dict[str, Result]) -> None:
    errors = results["ddn_least_squares"].numbers["float32_gradient_error_by_condition"]
    assert errors[1e4]["QR, by hand"] < 1e-3
    assert errors[1e4]["normal equations"] > 0.1


def test_unrolled_transport_gradient_converges_to_the_closed_form(results: dict[str, Result]) -> None:
    numbers = results["ddn_transport"].numbers
    errors, memory = numbers["unrolled_gradient_error"], numbers["unrolled_saved_bytes"]
    assert errors[0] > 1e3 * errors[-1]
    assert memory == sorted(memory)
    assert memory[-1] > 5 * numbers["saved_bytes"]
    saved = {way: {size: row["saved_bytes"] for size, row in by.items()} for way, by in numbers["cost_by_size"].items()}
    assert saved["by hand"][16] < 0.2 * saved["20 iterations"][16] < saved["100 iterations"][16]
    assert numbers["relative_distance_of_the_plan"] < 0.05


def test_penalties_rank_by_influence_of_an_outlier(results: dict[str, Result]) -> None:
    far = results["ddn_pooling"].numbers["moved_by_the_farthest_outlier"]
    assert far["truncated quadratic"] <= far["Welsch"] < far["Huber"] < far["quadratic"]
    assert far["Welsch"] < far["pseudo-Huber"] < far["quadratic"]
    influence = results["ddn_pooling"].numbers["influence_of_the_farthest_outlier"]
    assert abs(influence["quadratic"] - 1 / 21) < 1e-12
    assert influence["truncated quadratic"] == 0.0
    assert max(results["ddn_pooling"].numbers["largest_influence_error"].values()) < 1e-7


def test_leader_of_the_linear_game(results: dict[str, Result]) -> None:
    numbers = results["ddn_stackelberg"].numbers
    assert numbers["leader"] == pytest.approx(5.0, abs=1e-8)
    assert numbers["follower"] == pytest.approx(1.5, abs=1e-8)
    assert numbers["cournot"]["linear"] == pytest.approx((10 / 3, 7 / 3), abs=1e-9)
    assert numbers["leader_profits"]["linear"] == pytest.approx(12.5)
    assert numbers["cournot_profits"]["linear"] == pytest.approx(100 / 9)
    assert numbers["leader_profits"]["curved"] > numbers["cournot_profits"]["curved"]


def test_wrong_matches_get_low_weights(results: dict[str, Result]) -> None:
    numbers = results["ddn_pnp"].numbers
    assert numbers["mean_weight_of_outliers"] < 0.5 * numbers["mean_weight_of_inliers"]
    assert numbers["angle_deg"][-1] < 0.05 * numbers["angle_deg"][0]


def test_unconstrained_features_converge_to_a_simplex_frame(results: dict[str, Result]) -> None:
    curve = results["ddn_procrustes"].numbers["curves"]["guided"]
    assert curve["nc4"][0] > 0.1
    assert curve["nc4"][-1] == 0.0
    assert curve["nc2_norms"][-1] < 0.02 < curve["nc2_norms"][0]
    assert curve["nc2_angles"][-1] < 0.2 * curve["nc2_angles"][0]


def test_network_collapses_fastest_with_the_nearest_frame_as_a_constant() -> None:
    result = entry("ddn_neural_collapse").run(training=300, epochs=120, seeds=1)
    collapse, speed, derivative, agreement = result.claims
    assert collapse.holds, collapse
    assert speed.holds, speed
    assert not derivative.holds, derivative
    assert agreement.holds, agreement
    last = result.numbers["last"]
    assert last["nearest frame, as a constant"]["nc1"] < 0.95 * last["learnt"]["nc1"]
    assert min(result.numbers["test_accuracy"].values()) > 0.85
    assert not faults(result)


def test_collapse_measures_vanish_at_a_frame_only() -> None:
    """Measures of a simplex frame, and of features with one longer class mean, spread, and a rotated classifier."""
    labels = torch.arange(4).repeat(3)
    frame = nearest_simplex_etf(torch.eye(4, dtype=torch.float64))
    features = frame[:, labels]
    assert max(collapse_measures(features, labels, frame).values()) < 1e-14
    longer = features * torch.where(labels == 0, 2.0, 1.0)
    found = collapse_measures(longer, labels, frame)
    assert found["nc1"] < 1e-28
    assert found["nc2_norms"] > 0.1
    shift = torch.tensor([0.1, 0.0, -0.1], dtype=torch.float64).repeat_interleave(4)
    within = 4 * 0.02 / 3  # four coordinates, and means of norm 1
    assert collapse_measures(features + shift, labels, frame)["nc1"] == pytest.approx(within, abs=1e-12)
    turned = collapse_measures(features, labels, frame.roll(1, 1))
    assert turned["nc4"] == 1.0
    assert turned["nc3"] > 1.0


def test_profiling_reports_errors_and_bytes() -> None:
    """Assert what does not depend on time."""
    result = entry("ddn_profiling").run(sizes=1, repetitions=1)
    same_derivative, memory, _ = result.claims
    assert same_derivative.holds, same_derivative
    assert memory.holds, memory
    assert not faults(result)
    ratios = result.numbers["saved_bytes_unrolled_over_implicit"]
    assert min(min(by.values()) for by in ratios.values()) > 5
    assert max(result.numbers["gradient_error"].values()) < 1e-8


@pytest.mark.parametrize(("name", "size", "ratio"), [("eigenvector", 256, 1.5), ("pnp", 512, 114.0)])
def test_memory_of_unrolling_relative_to_implicit_differentiation(name: str, size: int, ratio: float) -> None:
    """Smallest and largest ratio over all nodes; the largest is that of many points."""
    variants = NODE_VARIANTS[name]
    inputs = tuple(tensor.requires_grad_() for tensor in variants.inputs(size))
    node = variants.implicit(*inputs)
    unrolled = saved_bytes(lambda: variants.unrolled(ITERATIONS[name], *inputs))
    assert unrolled / saved_bytes(lambda: node(*inputs)) == pytest.approx(ratio, rel=0.05)
