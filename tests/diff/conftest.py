"""The two forms of polish and the exact derivative."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from convexlayer.diff import KKTSystem


@pytest.fixture(scope="module", params=["lanes", "portable"])
def form(request: pytest.FixtureRequest) -> Iterator[str]:
    """The form that the tests of a module use: by kernels, or that which takes over elements in doubt."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "portable":
            patch.setattr(KKTSystem, "lanes", None)
        yield request.param
