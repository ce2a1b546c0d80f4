"""Statuses of derivative reports."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from convexlayer.diff import DerivativeReport


def measured(
    *,
    residual: float = 1e-14,
    margin: float = 1.0,
    condition: float = 10.0,
    singular: bool = False,
    error: float = 1e-14,
) -> str:
    report = DerivativeReport.from_measures(*map(np.atleast_1d, (residual, margin, condition, singular, error)))
    assert report.trusted == (report.status == ("ok",))
    assert report.consistent[0] == (residual <= 1e-8)
    return report.status[0]


@pytest.mark.parametrize(
    ("expected", "numbers"),
    [
        ("ok", {}),
        ("ok", {"margin": np.inf}),
        ("ok", {"condition": 1e9}),  # singular, but not visibly
        ("inaccurate", {"residual": 1e-7}),
        ("inaccurate", {"error": 2e-7}),
        ("degenerate", {"error": np.nan}),
        ("degenerate", {"margin": 0.0}),
        ("degenerate", {"margin": 1e-4, "error": 1e-4}),
        ("degenerate", {"singular": True}),
        ("degenerate", {"singular": True, "residual": 0.5}),  # inconsistent: the least-squares direction
        ("failed", {"residual": 0.5}),
        ("failed", {"residual": np.nan}),
        ("failed", {"margin": np.nan}),
        ("failed", {"condition": np.nan, "singular": True}),
    ],
)
def test_status(expected: str, numbers: dict[str, Any]) -> None:
    assert measured(**numbers) == expected


def test_one_status_per_element() -> None:
    ones = np.ones(3)
    report = DerivativeReport.from_measures(
        np.array([0.0, 1e-7, 0.0]), np.array([1.0, 1.0, 0.0]), ones, np.zeros(3, dtype=bool), 0.0 * ones
    )
    assert report.status == ("ok", "inaccurate", "degenerate")
    assert not report.trusted


def test_all_ok_agrees_with_from_measures() -> None:
    """If ``all_ok`` holds, ``from_measures`` reports ok for all elements; NaN is never ok."""
    rng = np.random.default_rng(0)
    certain = 0
    for _ in range(500):
        residual, margin, condition = (10.0 ** rng.uniform(*range_, 3) for range_ in ((-16, -6), (-8, 2), (0, 8)))
        error = 10.0 ** rng.uniform(-14, -6, 3)
        measured = DerivativeReport.from_measures(residual, margin, condition, np.zeros(3, bool), error)
        if DerivativeReport.all_ok(residual, margin, error):
            certain += 1
            report = DerivativeReport.ok(residual, margin, condition)
            assert report.status == measured.status == ("ok",) * 3
            np.testing.assert_array_equal(report.consistent, measured.consistent)
        for numbers in (residual, margin, error):
            kept, numbers[1] = numbers[1], np.nan
            assert not DerivativeReport.all_ok(residual, margin, error)
            numbers[1] = kept
    assert 20 < certain < 480
