"""The numbers of the deep declarative networks' entries, at small sizes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from convexlayer.gallery import Result, entry
from convexlayer.gallery.collapse import collapse
from convexlayer.nodes import nearest_simplex_etf

SIZES: dict[str, dict[str, Any]] = {
    "ddn_babylonian": {"points": 50},
    "ddn_blind_pnp": {"views": 8, "n": 8, "steps": 25, "twist": 0.4},
    "ddn_eigen": {},
    "ddn_least_squares": {},
    "ddn_pnp": {"steps": 60},
    "ddn_polynomial_fit": {},
    "ddn_pooling": {"positions": 40},
    "ddn_procrustes": {"K": 5, "d": 8, "each": 5, "steps": 100},
    "ddn_stackelberg": {"grid": 101},
    "ddn_transport": {"n": 8, "iterations": 200},
}


@pytest.fixture(scope="module")
def results() -> dict[str, Result]:
    return {name: entry(name).run(**sizes) for name, sizes in SIZES.items()}


@pytest.mark.parametrize("name", SIZES)
def test_every_claim_of_the_paper_is_met(results: dict[str, Result], name: str) -> None:
    for claim in results[name].claims:
        assert claim.holds, claim


def test_babylonian_derivatives_converge_one_iteration_behind_the_values(results: dict[str, Result]) -> None:
    numbers = results["ddn_babylonian"].numbers
    errors = numbers["unrolled_derivative_error"]
    assert all(later <= earlier for earlier, later in pairwise(errors[:9]))
    assert numbers["unrolled_saved_bytes"] == sorted(numbers["unrolled_saved_bytes"])


def test_the_eigen_entry_breaks_torch_where_eigenvalues_coincide(results: dict[str, Result]) -> None:
    worst = results["ddn_eigen"].numbers["projector_gradient_worst"]
    assert worst["ours"] < worst["torch.linalg.eigh"]
    assert results["ddn_eigen"].numbers["projector_gradient_error"]["ours"][0] < 1e-12


def test_unrolled_transport_approaches_the_gradient_by_hand(results: dict[str, Result]) -> None:
    numbers = results["ddn_transport"].numbers
    errors, memory = numbers["unrolled_gradient_error"], numbers["unrolled_saved_bytes"]
    assert errors[0] > 1e3 * errors[-1]
    assert memory == sorted(memory)
    assert memory[-1] > 5 * numbers["saved_bytes"]


def test_penalties_rank_by_how_they_bear_an_outlier(results: dict[str, Result]) -> None:
    far = results["ddn_pooling"].numbers["moved_by_the_farthest_outlier"]
    assert far["truncated quadratic"] <= far["Welsch"] < far["Huber"] < far["quadratic"]
    assert far["Welsch"] < far["pseudo-Huber"] < far["quadratic"]
    influence = results["ddn_pooling"].numbers["influence_of_the_farthest_outlier"]
    assert abs(influence["quadratic"] - 1 / 21) < 1e-12
    assert influence["truncated quadratic"] == 0.0


def test_the_leader_of_the_linear_game(results: dict[str, Result]) -> None:
    numbers = results["ddn_stackelberg"].numbers
    assert numbers["leader"] == pytest.approx(5.0, abs=1e-8)
    assert numbers["follower"] == pytest.approx(1.5, abs=1e-8)
    assert numbers["leader_profit"] > numbers["cournot_profit"]


def test_wrong_matches_lose_their_weight(results: dict[str, Result]) -> None:
    numbers = results["ddn_pnp"].numbers
    assert numbers["mean_weight_of_outliers"] < 0.5 * numbers["mean_weight_of_inliers"]
    assert min(numbers["angle_deg"]) < 0.05 * numbers["angle_deg"][0]


def test_the_unconstrained_features_become_a_simplex_frame(results: dict[str, Result]) -> None:
    course = results["ddn_procrustes"].numbers["courses"]["guided"]
    assert course["nc4"][0] > 0.1
    assert course["nc4"][-1] == 0.0
    assert course["nc2_norms"][-1] < 0.02 < course["nc2_norms"][0]
    assert course["nc2_angles"][-1] < 0.2 * course["nc2_angles"][0]


def test_a_network_collapses_fastest_towards_the_nearest_frame_as_a_constant() -> None:
    result = entry("ddn_neural_collapse").run(training=300, epochs=120, seeds=1)
    collapse, speed, derivative, agreement = result.claims
    assert collapse.holds, collapse
    assert speed.holds, speed
    assert not derivative.holds, derivative
    assert agreement.holds, agreement
    last = result.numbers["last"]
    assert last["nearest frame, as a constant"]["nc1"] < 0.95 * last["learnt"]["nc1"]
    assert min(result.numbers["test_accuracy"].values()) > 0.85


def test_measures_of_collapse_vanish_at_a_frame_and_see_what_is_off() -> None:
    """Features that are a simplex frame; then one class longer; then each spread; then a classifier that is turned."""
    labels = torch.arange(4).repeat(3)
    frame = nearest_simplex_etf(torch.eye(4, dtype=torch.float64))
    features = frame[:, labels]
    assert max(collapse(features, labels, frame).values()) < 1e-14
    longer = features * torch.where(labels == 0, 2.0, 1.0)
    found = collapse(longer, labels, frame)
    assert found["nc1"] < 1e-28
    assert found["nc2_norms"] > 0.1
    shift = torch.tensor([0.1, 0.0, -0.1], dtype=torch.float64).repeat_interleave(4)
    within = 4 * 0.02 / 3  # four coordinates, and means of norm 1
    assert collapse(features + shift, labels, frame)["nc1"] == pytest.approx(within, abs=1e-12)
    turned = collapse(features, labels, frame.roll(1, 1))
    assert turned["nc4"] == 1.0
    assert turned["nc3"] > 1.0


def test_profiling_counts_errors_and_bytes() -> None:
    """Its times are for the figure; what a clock does not disturb is asserted."""
    result = entry("ddn_profiling").run(sizes=1, repetitions=1)
    same_derivative, memory, _ = result.claims
    assert same_derivative.holds, same_derivative
    assert memory.holds, memory
    ratios = result.numbers["saved_bytes_unrolled_over_by_hand"]
    assert ratios["least squares"] > 5
