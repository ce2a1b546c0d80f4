"""The protocol of solution maps, of which ``ConvexLayer`` is the torch module.

``SolutionMap`` computes in this process; ``convexlayer_client.RemoteSolutionMap`` on a server. The protocol is
structural: an implementation need not import this package.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from convexlayer.program import Array

__all__ = ["AbstractDerivativeReport", "AbstractReport", "AbstractSolutionMap", "AbstractSolvedBatch", "ArraySpec"]


class ArraySpec(Protocol):
    """Name and shape of a parameter or an output, without the batch axis."""

    @property
    def name(self) -> str:
        """Name in messages."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one element."""


class AbstractDerivativeReport(Protocol):
    """Accuracy report of a derivative."""

    @property
    def status(self) -> tuple[str, ...]:
        """``ok``, ``inaccurate``, ``degenerate`` or ``failed``, for each element."""

    def worse(self, other: Any) -> Any:
        """Combine two reports at the same solutions: the worse of each entry."""


class AbstractReport(Protocol):
    """Report of a solve. A layer fills a copy of it: the objective values as a tensor, and the derivative's report."""

    objective: Any
    derivative: Any
    seconds: dict[str, float]
    """Wall time by phase."""

    @property
    def status(self) -> Sequence[str]:
        """Status of each element, a word of ``Status``."""

    @property
    def failed(self) -> tuple[int, ...]:
        """Positions of the elements without a solution."""

    @property
    def details(self) -> Mapping[int, str]:
        """Messages about single elements, by position."""


class AbstractSolvedBatch(Protocol):
    """A batch of B solutions, with the derivatives of the solution map at them.

    vjp and jvp take one entry for each of their inputs (None is zero) and return one for each of their results (None if
    it was not asked for), with the accuracy report of the derivative. For outputs these are the outputs and, last, the
    objective value.
    """

    @property
    def batch(self) -> int:
        """Number of elements."""

    @property
    def outputs(self) -> tuple[Array, ...]:
        """The outputs, each (B, *shape); NaN for elements without a solution."""

    @property
    def iterates(self) -> tuple[Array, ...]:
        """The outputs, with the solver's last iterate for elements without a solution."""

    @property
    def objective(self) -> Array:
        """Objective values of the problem, (B,); NaN without a solution."""

    @property
    def report(self) -> Any:
        """The report of the solve, an ``AbstractReport``."""

    def vjp(
        self, cotangents: Sequence[Array | None], *, wrt: Sequence[bool] | None = None, per_element: bool = True
    ) -> tuple[tuple[Array | None, ...], Any]:
        """Pull cotangents (B, *shape) of outputs and objective value back to gradients of the parameters.

        Args:
            cotangents: that of the objective value may be left out; rows of elements without a solution are ignored.
            wrt: mask of the parameters; default all.
            per_element: whether gradients of parameters without a batch axis have one too, (B, *shape), or are the sum
                over the elements, of the parameter's shape.
        """

    def jvp(
        self, tangents: Sequence[Array | None], *, of: Sequence[bool] | None = None
    ) -> tuple[tuple[Array | None, ...], Any]:
        """Push tangents of the parameters, (B, *shape) or of the parameter's shape, forward to tangents (B, *shape).

        Args:
            tangents: one per parameter.
            of: mask of the outputs and of the objective value; default all.
        """


class AbstractSolutionMap(Protocol):
    """The map from parameters to solutions of a problem, in NumPy."""

    @property
    def parameters(self) -> Sequence[ArraySpec]:
        """The parameters, in order."""

    @property
    def outputs(self) -> Sequence[ArraySpec]:
        """The outputs, in order."""

    @property
    def has_iterates(self) -> bool:
        """Whether solved batches have the last iterates of elements without a solution."""

    @property
    def summary(self) -> str:
        """What and where is solved, in a few words, for torch's repr."""

    def solve(
        self, theta: Sequence[Array], *, options: Any = None, warm_start: Any = None, differentiable: bool = True
    ) -> AbstractSolvedBatch:
        """Solve for a batch of parameters.

        Args:
            theta: one array per parameter, of its shape or with one additional leading batch axis.
            options: complete options, or changes to the defaults.
            warm_start: the report of an earlier call.
            differentiable: whether derivatives will be asked for, so that what they need is kept; they are possible
                without it, too.
        """
