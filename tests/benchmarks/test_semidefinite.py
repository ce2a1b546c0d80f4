"""The closed forms of the semidefinite benchmark, checked at small orders."""

from __future__ import annotations

import pytest

from benchmarks.semidefinite import PROBLEMS, main, measure_call
from convexlayer import ConvexLayer


@pytest.mark.parametrize("unit", [1.0, 1e3])
@pytest.mark.parametrize("name", PROBLEMS)
def test_closed_forms(name: str, unit: float) -> None:
    case = PROBLEMS[name][0](6)
    found = measure_call(ConvexLayer(case.problem, case.parameters, [case.variable]), case, unit)
    assert found.ok
    assert found.error < 1e-8


def test_the_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--problems", "projection", "--orders", "3"])
    *_, row = capsys.readouterr().out.splitlines()
    assert row.startswith("| projection | 3 | ")
    assert row.endswith(" 0 of 5 |")
