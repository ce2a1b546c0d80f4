"""The code blocks of the documentation: README.md, the pages of docs/, CONTRIBUTING.md and ARCHITECTURE.md."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ROOT", "SERVER", "Block", "blocks", "pages"]

ROOT = Path(__file__).resolve().parents[2]

SERVER = "http://127.0.0.1:8000"
"""The address that the documentation uses for a server; the tests put the address of a running one in its place."""

_BLOCK = re.compile(
    r"(?:^[ ]*<!-- test: (?P<mark>[^\n]*?) -->\n)?"
    r"^(?P<indent>[ ]*)```(?P<language>\w+)[^\n]*\n(?P<text>.*?)^(?P=indent)```[ ]*$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """A fenced code block.

    Attributes:
        page: file that holds it, from the repository root.
        line: line of its first line of code, from 1.
        language: info string of the fence.
        text: code, without the indentation of the fence.
        mark: text of the comment ``<!-- test: ... -->`` above it: ``run`` for shell blocks that are run as they are,
            ``needs PACKAGE`` for Python blocks that need an optional package; empty where there is none.
    """

    page: str
    line: int
    language: str
    text: str
    mark: str

    @property
    def where(self) -> str:
        """File and line."""
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """Every page, from the repository root."""
    top = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"]
    return [*top, *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))]


def blocks(page: str, *languages: str) -> list[Block]:
    """The blocks of a page in these languages, in order."""
    source = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(source):
        if match["language"] in languages:
            line = source.count("\n", 0, match.start("text")) + 1
            found.append(Block(page, line, match["language"], textwrap.dedent(match["text"]), match["mark"] or ""))
    return found
