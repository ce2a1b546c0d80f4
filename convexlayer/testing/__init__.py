"""Checks for code outside this repository: contracts of solver adapters and cones, and gradients of layers.

The contracts are classes to subclass in a test module; neither they nor ``assert_gradients`` import a test framework.
"""

from typing import TYPE_CHECKING

from convexlayer.lazy import attach

if TYPE_CHECKING:
    from convexlayer.testing.cone_contract import ConeContract
    from convexlayer.testing.gradients import assert_gradients
    from convexlayer.testing.solver_contract import SolverContract
else:
    __getattr__, __dir__ = attach(
        __name__,
        {
            "cone_contract": ["ConeContract"],
            "gradients": ["assert_gradients"],
            "solver_contract": ["SolverContract"],
        },
    )

__all__ = ["ConeContract", "SolverContract", "assert_gradients"]
