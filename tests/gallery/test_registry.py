"""Gallery entries are complete, and the command runs them."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from convexlayer import ProblemError
from convexlayer.cli import main
from convexlayer.gallery import Claim, Entry, Result, available, entry, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENTRIES = Path(__file__).resolve().parents[2] / "convexlayer" / "gallery" / "entries"


def test_every_file_is_an_entry() -> None:
    assert [entry.name for entry in available()] == sorted(
        path.stem for path in ENTRIES.glob("*.py") if path.stem != "__init__"
    )


@pytest.mark.parametrize("found", available(), ids=lambda found: found.name)
def test_entries_have_title_source_and_default_sizes(found: Entry) -> None:
    assert 0 < len(found.title) <= 120
    assert found.source
    for parameter in inspect.signature(found.run).parameters.values():
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY, parameter
        assert parameter.default is not inspect.Parameter.empty, parameter


@pytest.mark.parametrize("found", available(), ids=lambda found: found.name)
def test_every_entry_is_tested(found: Entry) -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    assert re.search(rf"\b{found.name}\b", tests), f"tests/gallery never names {found.name}"


def test_unknown_name_is_rejected_with_the_known_ones() -> None:
    with pytest.raises(ProblemError, match="there are"):
        entry("no_such_entry")


def parabola(*, points: int = 5) -> Result:
    x = torch.linspace(-1, 1, points)

    def draw(figure: Figure) -> None:
        figure.subplots().plot(x, x.square())

    numbers = {"x": x, "worst": float("inf"), "nested": {"pair": (1, 2.0)}}
    return Result(numbers, [Claim("it is | convex", f"{points} points", holds=True)], draw)


def test_write_creates_figure_numbers_and_page(tmp_path: Path) -> None:
    write(Entry("parabola", "A parabola", "Folklore", parabola), tmp_path / "new", points=3)
    assert (tmp_path / "new" / "parabola.png").read_bytes().startswith(b"\x89PNG")
    document = json.loads((tmp_path / "new" / "parabola.json").read_text())
    assert document["numbers"] == {"x": [-1.0, 0.0, 1.0], "worst": "inf", "nested": {"pair": [1, 2.0]}}
    assert document["claims"] == [{"paper": "it is | convex", "ours": "3 points", "holds": True}]
    assert "| it is \\| convex | 3 points | yes |" in (tmp_path / "new" / "README.md").read_text()


def test_command_lists_entries(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gallery", "list"]) == 0
    listed = capsys.readouterr().out
    assert all(found.name in listed and found.title in listed for found in available())


def test_command_rejects_unknown_and_missing_names(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["gallery", "run", "no_such_entry", "--output", str(tmp_path)]) == 2
    assert main(["gallery", "run", "--output", str(tmp_path)]) == 2
    assert "--all" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
