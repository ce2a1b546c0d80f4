"""Division of huge batches into chunks that are computed one after another, so that intermediate memory is bounded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from tqdm import tqdm

from convexlayer.canon import ParametricProgram
from convexlayer.layers.theta import as_values, batch_size
from convexlayer.program import ROWS_OF_BLOCK, Array
from convexlayer.solvers import Options

__all__ = ["Chunks", "element_bytes", "progress_bar"]

WHOLE_BYTES = 2**30
"""Estimated memory (1 GiB) up to which a batch is computed whole: it keeps factors between solve and derivatives."""

CHUNK_BYTES = 2**27
"""Estimated memory of a chunk (128 MiB) of a larger batch. Smaller chunks save little memory beside inputs and results,
and larger ones no time: a chunk still has many more elements than lanes and threads unless its elements are large."""

DOUBLE_BYTES = 8
"""Bytes of a number."""

LANE_MULTIPLE = 64
"""Chunk sizes are multiples of this number, if they are not smaller, so that no lane of the kernels is idle."""

VECTORS = 8
"""Number of arrays with one entry per entry of the program data, of x, of y and of the parameters at the peak of a
solve or derivative. With FACTORS it is 1.5 to 3.1 times what tracemalloc measured for six problems with 300 to 9,000
such entries, and 0.7 times for a semidefinite one."""

FACTORS = 4
"""Number of arrays of the size of a factor: the system, its equilibrated form, the factor and a temporary."""

FILL_IN = 10
"""Entries of a sparse factor per entry of the program data: an upper bound of what is typical."""


class Chunks(NamedTuple):
    """Parameter values of a batch, and the number of elements that are computed at a time.

    Attributes:
        theta: one array per parameter, of its shape or (B, *shape).
        batched: mask of the parameters with a batch axis.
        batch: number of elements B.
        size: number of elements of a chunk; the last one may be smaller.
    """

    theta: list[Array]
    batched: tuple[bool, ...]
    batch: int
    size: int

    @staticmethod
    def of(program: ParametricProgram, theta: Sequence[Any], options: Options, bytes_each: int) -> Chunks | None:
        """Divide a batch as the options ask for, or by the memory budgets; None if it is to be computed whole.

        Args:
            program: the parametric program.
            theta: as for ``SolutionMap.solve``.
            options: options of the call.
            bytes_each: estimated memory of an element, from ``element_bytes``.

        Raises:
            ShapeError: shapes or batch sizes do not match.
            ProblemError: a value is not an array of real numbers.
        """
        limit = options.chunk_size or WHOLE_BYTES // bytes_each
        if not isinstance(theta, Sequence):  # refused, or read once, by who computes it whole
            return None
        if not options.progress and all(_leading(value) <= limit for value in theta):  # without a conversion
            return None
        values = as_values(program.parameters, theta)
        batch = batch_size(program.parameters, [value.shape for value in values])
        if not batch or (batch <= limit and not options.progress):
            return None
        size = options.chunk_size or _aligned(CHUNK_BYTES // bytes_each)
        batched = tuple(value.ndim > len(spec.shape) for spec, value in zip(program.parameters, values, strict=True))
        return Chunks(values, batched, batch, size)

    def ranges(self) -> Iterator[slice]:
        """The positions of each chunk."""
        for start in range(0, self.batch, self.size):
            yield slice(start, min(start + self.size, self.batch))

    def part(self, rows: slice) -> list[Array]:
        """The parameter values of a chunk."""
        return [value[rows] if batched else value for value, batched in zip(self.theta, self.batched, strict=True)]

    def owned(self) -> Chunks:
        """The same chunks with copies of the values, which the caller cannot change."""
        return self._replace(theta=[value.copy() for value in self.theta])


def element_bytes(program: ParametricProgram) -> int:
    """Estimate the peak memory of an element in a solve or a derivative.

    The factor counts as dense, or as sparse with fill-in, whichever is smaller.
    """
    structure = program.structure
    order = structure.n + structure.m
    entries = order + structure.P.nnz + structure.A.nnz
    features = 1 + sum(spec.size for spec in program.parameters)
    blocks = sum(ROWS_OF_BLOCK["psd"](size) ** 2 for size in structure.cones.psd)  # dense where D is not diagonal
    factor = min(order * order, FILL_IN * entries + blocks)
    return DOUBLE_BYTES * (VECTORS * (entries + features) + FACTORS * factor)


def progress_bar(label: str, batch: int, *, shown: bool) -> Any:
    """A progress bar over the elements of a batch, on standard error."""
    return tqdm(total=batch, desc=label, unit="element", disable=not shown)


def _leading(value: Any) -> int:
    """Length of the first axis of a value, an upper bound of its batch size; 0 for a number."""
    shape = getattr(value, "shape", None)
    if shape is None:
        return len(value) if isinstance(value, Sequence) else 0
    return shape[0] if isinstance(shape, tuple) and shape else 0


def _aligned(size: int) -> int:
    return size - size % LANE_MULTIPLE if size >= LANE_MULTIPLE else max(size, 1)
