"""What ``solver="auto"`` chooses."""

from __future__ import annotations

from convexlayer.program import Structure

__all__ = ["choose_solver"]


def choose_solver(structure: Structure) -> tuple[str, str]:
    """The name of a solver for a structure, and why."""
    kinds = ", ".join(sorted(structure.cones.kinds)) or "no constraints"
    return "clarabel", f"the interior-point solver of every cone; here: {kinds}"
