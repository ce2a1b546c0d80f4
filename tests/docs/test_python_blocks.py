"""Every Python block of the documentation runs. The blocks of one page share their names, as a reader would expect."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import SERVER, Block, blocks, pages

PYTHON_PAGES = [page for page in pages() if blocks(page, "python") and page != "README.md"]
"""Pages with Python blocks; the README has a test of its own, which says more."""


def run(block: Block, names: dict[str, Any], url: str | None) -> None:
    """Execute a block in a namespace; tracebacks name the page and its lines."""
    text = block.text if url is None else block.text.replace(SERVER, url)
    code = compile("\n" * (block.line - 1) + text, block.page, "exec", dont_inherit=True)
    exec(code, names)


def available(block: Block) -> bool:
    """Whether the optional package that a block needs is installed."""
    words = block.mark.split()
    return words[:1] != ["needs"] or importlib.util.find_spec(words[1]) is not None


def page_names(page: str, url: str | None) -> dict[str, Any]:
    """The names that the blocks of a page define."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in filter(available, blocks(page, "python")):
        run(block, names, url)
    return names


@pytest.mark.parametrize("page", PYTHON_PAGES)
def test_python_blocks_run(
    page: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    needs_server = any(SERVER in block.text for block in blocks(page, "python"))
    page_names(page, request.getfixturevalue("server_url") if needs_server else None)


def test_blocks_of_the_readme_run_and_have_the_shapes_that_they_claim() -> None:
    names = page_names("README.md", None)
    assert tuple(names["x_batch"].shape) == (32, 3)
    assert tuple(names["A_batch"].grad.shape) == (32, 4, 3)
    assert tuple(names["b_one"].grad.shape) == (4,)
    assert tuple(names["y"].shape) == (32, 3)
    history = names["result"].history
    assert history.value[-1] < history.value[0]
