"""Names of expressions and constraints in messages."""

from __future__ import annotations

__all__ = ["shortened"]


def shortened(named: object, longest: int) -> str:
    """The text of an expression or constraint, cut to ``longest`` characters."""
    text = str(named)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
