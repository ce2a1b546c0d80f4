"""Benchmark of the nodes at small sizes: gradients, memory independent of iterations, and the report."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from benchmarks.node_cases import OURS, UNROLLED, growth, squares, transport
from benchmarks.node_memory import CASES, measure_growth
from benchmarks.node_peers import CASES as SMALL
from benchmarks.node_peers import LIBRARY, importable, small
from benchmarks.node_summary import WITHOUT, draw, markdown
from benchmarks.timing import Plan

pytestmark = pytest.mark.filterwarnings("ignore:torch.cholesky is deprecated", "ignore:Using torch.cholesky")

PLAN = Plan(rounds=1, budget_s=0.0, turn_s=0.0)


@pytest.fixture(scope="module", autouse=True)
def _doubles() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def results(_doubles: None) -> dict[str, Any]:
    return {
        "machine": {"cpu": "a machine", "cores": 2, "threads": 1, "commit": "abc", "load": 0.0},
        "times": [transport(12, 10.0, PLAN), squares(10, PLAN)],
        "small": [small("transport, 5 by 6", batch, PLAN) for batch in (1, 2)],
        "iterations": growth(12, quick=True),
        "memory": [measure_growth(CASES[1], 20)],
    }


def test_all_contestants_agree_on_the_gradient(results: dict[str, Any]) -> None:
    for case in results["times"]:
        for name, entry in case["contestants"].items():
            assert entry["gradient_error"] < (1e-8 if name == OURS else 1e-5), (case["name"], name)


@pytest.mark.parametrize("case", SMALL)
def test_small_nodes_match_finite_differences(case: str) -> None:
    for name, entry in small(case, 2, PLAN)["contestants"].items():
        assert entry["gradient_error"] < (1e-6 if name.startswith(OURS) else 1e-3), name


def test_missing_optional_library_is_reported(results: dict[str, Any]) -> None:
    assert all((LIBRARY in case["contestants"]) == importable() for case in results["small"])
    assert (WITHOUT in markdown(results)) != importable()


def test_unrolling_saves_more_bytes(results: dict[str, Any]) -> None:
    for case in results["times"]:
        entries = case["contestants"]
        unrolled = [entry["saved_bytes"] for name, entry in entries.items() if name.startswith(UNROLLED)]
        assert max(unrolled) > 3 * entries[OURS]["saved_bytes"], case["name"]


def test_saved_bytes_of_a_plan_are_independent_of_iterations(results: dict[str, Any]) -> None:
    found = results["iterations"]
    assert len(set(found["sinkhorn_iterations"])) > 1
    assert len(set(found["bytes"])) == 1
    assert found["unrolled_bytes"][-1] > 3 * found["unrolled_bytes"][0]


def test_measured_node_has_the_right_gradient(results: dict[str, Any]) -> None:
    assert all(entry["gradient_error"] < 1e-8 for entry in results["memory"])


def test_report_contains_all_results(results: dict[str, Any]) -> None:
    text = markdown(results)
    assert all(case["name"] in text for case in (*results["times"], *results["small"]))
    assert all(name in text for case in results["times"] for name in case["contestants"])
    figure = Figure()
    draw(results, figure)
    assert len(figure.axes) == 4
