"""The solver adapter of the documentation passes the contract that it is said to pass."""

from __future__ import annotations

from unittest import SkipTest

import pytest

from tests.docs.test_python_blocks import page_names


def test_the_adapter_of_the_guide_passes_the_contract() -> None:
    pytest.importorskip("piqp")
    contract = page_names("docs/extending.md", None)["TestPiqp"]()
    skipped = set()
    for test in (name for name in dir(contract) if name.startswith("test_")):
        try:
            getattr(contract, test)()
        except SkipTest:
            skipped.add(test)
    assert "test_quadratic_programs" not in skipped
    assert "test_infeasible_power_programs" in skipped
