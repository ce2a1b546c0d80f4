"""Gallery entries on Gould et al. 2016: their numbers at small sizes."""

from __future__ import annotations

from typing import Any

import pytest

from convexlayer.gallery import Result, entry
from tests.gallery.figures import faults

SIZES: dict[str, dict[str, Any]] = {
    "gould_bilevel": {"fixed_iterations": 15},
    "gould_monotone": {"points": 21},
    "gould_positivity": {"points": 40},
    "gould_scalar_mean": {"points": 21},
    "gould_rank_pooling": {"frames": 10, "training": 60, "testing": 300, "steps": 30},
    "gould_softmax": {},
    "gould_svm": {"training": 60, "validation": 100, "grid": 5, "steps": 3, "starts": [(-2.0, 0.0)]},
    "gould_three_points": {"points": 21},
}


@pytest.fixture(scope="module")
def results() -> dict[str, Result]:
    return {name: entry(name).run(**sizes) for name, sizes in SIZES.items()}


@pytest.mark.parametrize("name", SIZES)
def test_claims_of_the_paper_hold(results: dict[str, Result], name: str) -> None:
    for claim in results[name].claims:
        assert claim.holds, claim


@pytest.mark.parametrize("name", SIZES)
def test_figures_have_no_layout_faults(results: dict[str, Result], name: str) -> None:
    assert not faults(results[name])


def test_scalar_mean_and_its_gradient_are_exact(results: dict[str, Result]) -> None:
    numbers = results["gould_scalar_mean"].numbers
    assert numbers["value_error"] < 1e-12
    assert numbers["gradient_error"] < 1e-12
    assert numbers["iterations"] <= 3


def test_three_branches_on_both_sides(results: dict[str, Result]) -> None:
    numbers = results["gould_three_points"].numbers
    assert numbers["kind"]["x > 0"] == {"y = 0": "maximum", "root with -": "minimum", "root with +": "minimum"}
    assert numbers["kind"]["x < 0"] == {"y = 0": "maximum", "root with -": "maximum", "root with +": "minimum"}
    for side in ("x > 0", "x < 0"):
        assert max(numbers["value_error"][side].values()) < 1e-11
        assert max(numbers["gradient_error"][side].values()) < 1e-10
    assert numbers["fold"] == pytest.approx(-2.2013, abs=1e-4)


def test_monotone_maps_change_neither_solution_nor_gradient(results: dict[str, Result]) -> None:
    numbers = results["gould_monotone"].numbers
    assert max(numbers["value_difference"].values()) < 1e-11
    assert max(numbers["gradient_difference"].values()) < 1e-10
    assert numbers["cubed_second_derivatives"] == (0.0, 0.0)  # where h' = 0 the lemma does not hold


def test_barrier_matches_its_closed_form_and_converges_to_the_active_set(results: dict[str, Result]) -> None:
    numbers = results["gould_positivity"].numbers
    assert max(numbers["exact"].values()) < 1e-11
    rows = numbers["barrier"]
    for row in rows.values():
        assert max(row["value_error"], row["gradient_error"], row["eq_71_error"]) < 1e-10
    # |g_t' - 1| = 1 / (2 t x^2) + ... at x >= 1/2: a tenth for ten times t.
    assert rows[1000.0]["distance_inside"] == pytest.approx(0.1 * rows[100.0]["distance_inside"], rel=0.05)
    assert numbers["largest_distance_from_one_half_at_the_kink"] < 1e-12


def test_soft_max_gradients_agree_with_the_corrected_formulas_only(results: dict[str, Result]) -> None:
    numbers = results["gould_softmax"].numbers
    assert max(numbers["formula_error"].values()) < 1e-10
    assert numbers["ball_norm"] == pytest.approx(1.0, abs=1e-12)
    assert numbers["free_norm"] > 1.0  # so that the ball's boundary is active
    rows = numbers["barrier"]
    for row in rows.values():
        assert row["corrected"] < 1e-8
        assert row["printed"] > 0.1
    assert rows[1e4]["to_exact"] == pytest.approx(0.1 * rows[1e3]["to_exact"], rel=0.1)


def test_bilevel_problem_is_solved_within_100_iterations(results: dict[str, Result]) -> None:
    numbers = results["gould_bilevel"].numbers
    assert numbers["final"] <= 1e-9
    assert numbers["steps"] == 11
    assert all(later < earlier for earlier, later in zip(numbers["objective"], numbers["objective"][1:], strict=False))
    assert numbers["largest_error_of_a_feature"] < 1e-4
    assert numbers["final_with_a_fixed_step"] < 1e-2  # slower by far


def test_rank_pooling_has_the_gradient_of_its_closed_form_and_learns_features(results: dict[str, Result]) -> None:
    numbers = results["gould_rank_pooling"].numbers
    assert numbers["gradient_error"]["closed_form"] < 1e-13
    assert numbers["gradient_error"]["finite_differences"] < 1e-8
    accuracy = {way: found["accuracy"]["test"] for way, found in numbers["trained"].items()}
    assert accuracy["rank pooling, learnt features"] > accuracy["rank pooling, fixed features"] + 0.05
    assert abs(accuracy["mean, learnt features"] - 0.5) < 0.06


def test_gradient_needs_fewer_solves_than_a_grid(results: dict[str, Result]) -> None:
    numbers = results["gould_svm"].numbers
    assert numbers["gradient_error"] < 1e-8
    grid, two, many = numbers["ways"].values()
    assert two["validation_loss"] < grid["validation_loss"]
    assert two["lower_solves"] < grid["lower_solves"] == 25
    assert many["validation_loss"] < 0.5 * two["validation_loss"]
