"""MkDocs hook: convert formulas to MathML when the site is built, so that the browser needs no script to show them."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

__all__ = ["on_page_content"]

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
"""What `pymdownx.arithmatex` writes with ``generic: true``: inline formulas in a span, displayed ones in a div."""


def on_page_content(content: str, **_: Any) -> str:
    """Replace every formula of a rendered page by MathML."""
    return _FORMULA.sub(_mathml, content)


def _mathml(found: re.Match[str]) -> str:
    display = "block" if found[1] == "div" else "inline"
    return convert(html.unescape(found[2]).strip(), display=display)
