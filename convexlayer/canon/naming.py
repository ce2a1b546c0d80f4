"""Texts of expressions, constraints and values in messages."""

from __future__ import annotations

__all__ = ["shortened"]

LONGEST_TEXT = 200
"""Maximum length of a text that a message repeats, in characters; trades detail for legibility."""


def shortened(value: object) -> str:
    """The text of a value, cut to LONGEST_TEXT characters."""
    text = str(value)
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 3]}..."
