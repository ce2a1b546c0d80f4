"""What each status of a derivative report means."""

from __future__ import annotations

import numpy as np
import pytest

from convexlayer.diff import DerivativeReport


def judged(
    *,
    residual: float = 1e-14,
    margin: float = 1.0,
    condition: float = 10.0,
    singular: bool = False,
    w_scale: float = 1.0,
    solution_residual: float = 1e-14,
) -> str:
    numbers = (np.array([value]) for value in (residual, margin, condition))
    report = DerivativeReport.judge(*numbers, np.array([singular]), np.array([w_scale]), np.array([solution_residual]))
    assert report.trusted == (report.status == ("ok",))
    assert report.consistent[0] == (residual <= 1e-8)
    return report.status[0]


@pytest.mark.parametrize(
    ("expected", "numbers"),
    [
        ("ok", {}),
        ("ok", {"margin": np.inf}),
        ("ok", {"condition": 1e9}),  # singular, but nobody sees it
        ("inaccurate", {"residual": 1e-7}),
        ("inaccurate", {"solution_residual": 2e-6}),
        ("degenerate", {"margin": 0.0}),
        ("degenerate", {"margin": 1e-4, "w_scale": 1e3}),
        ("degenerate", {"margin": 1e-4, "solution_residual": 1e-4}),
        ("degenerate", {"singular": True}),
        ("degenerate", {"singular": True, "residual": 0.5}),  # inconsistent: the least-squares direction
        ("failed", {"residual": 0.5}),
        ("failed", {"residual": np.nan}),
        ("failed", {"margin": np.nan}),
        ("failed", {"condition": np.nan, "singular": True}),
    ],
)
def test_status(expected: str, numbers: dict[str, float]) -> None:
    assert judged(**numbers) == expected


def test_one_word_an_element() -> None:
    ones = np.ones(3)
    report = DerivativeReport.judge(
        np.array([0.0, 1e-7, 0.0]), np.array([1.0, 1.0, 0.0]), ones, np.zeros(3, dtype=bool), ones, 0.0 * ones
    )
    assert report.status == ("ok", "inaccurate", "degenerate")
    assert not report.trusted
