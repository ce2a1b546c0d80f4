"""Null spaces of singular symmetric quasi-definite systems, found by their regularised factors.

E = S K S is equilibrated, and F = E + EPS J is what was factorised, J = diag(+-1). The iteration x <- x - F^-1 E x
leaves the part of x in the null space of E as it is, however inexact F^-1 may be, and shrinks the part along an
eigenvalue lambda by about EPS / lambda a step. So of random x it leaves random vectors of the null space, which span it
as soon as one more of them than it has dimensions is taken: as soon as they are dependent.

Where E is nearly singular, with eigenvalues of about EPS or less, directions remain that are not null. E itself tells
them apart; they are kept, because refinement does not converge along them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, final

import numpy as np

from convexlayer.program import Array, IndexArray

__all__ = ["IteratedFactor", "NullSpace", "NullSpaces", "alike", "find_null_spaces"]

NULL = 1e-11
"""Vectors that E, whose norm is about 1, shrinks below this count as null."""

SLOW = 1e-4
"""Vectors that E shrinks below this are those along which refinement is slow."""

INDEPENDENT = 1e-6
"""Share of the longest, or of a random number, from which combinations of what remains count as independent."""

CONSISTENT = 1e-10
"""Share of a right-hand side outside the range that counts as rounding."""

FEW = 4
"""Random vectors to begin with."""

WORK = 1e8
"""Multiply-adds up to which a basis is worth its costs: some hundredths of a second."""


class IteratedFactor(Protocol):
    """What is needed of the factors of a batch of systems."""

    def equilibrated(self, index: IndexArray) -> tuple[Array, Array]:
        """Scales S (elements, N), and upper triangles of E."""

    def remains(self, x: Array) -> tuple[Array, Array]:
        """What the iteration leaves of x (B, count, N), and E times that."""

    def null_part(self, z: Array) -> Array:
        """The parts of z (B, N) in the null spaces of E."""

    def select(self, index: IndexArray) -> IteratedFactor:
        """The same of some elements."""


@final
@dataclass(frozen=True, eq=False)
class NullSpace:
    """The null space of one K, of dimension r, and s directions where it is nearly singular.

    Attributes:
        vectors: a basis of the null space of E, largest entries 1, (r, N).
        gram: its inner products, (r, r).
        basis: a basis of the null space of K, orthonormal in the unknowns of K, (r, N).
        change: lower triangular (r, r), with vectors S = change basis.
        slow: directions of E's unknowns along which refinement is slow, (s, N).
        images: E times those, (s, N), orthogonal to each other.
        whole: whether this is all of it. Where that is not asked for, or would cost more than WORK, these are a few
            random directions of it.
    """

    vectors: Array
    gram: Array
    basis: Array
    change: Array
    slow: Array
    images: Array
    whole: bool = True

    def along_slow(self, remainder: Array) -> Array:
        """The combination z of slow directions for which norm(remainder - E z) is least, (N,)."""
        z: Array = (self.images @ remainder / np.sum(self.images**2, axis=1)) @ self.slow
        return z


class NullSpaces(ABC):
    """The null spaces of several K, and projections along them."""

    @abstractmethod
    def in_range(self, rhs: Array) -> Array:
        """S times the part of rhs (elements, N) in the range of K: all of it, where it is there but for rounding."""

    @abstractmethod
    def shortest(self, z: Array) -> Array:
        """Of the vectors z (elements, N) plus null space of E, those for which S z is shortest."""


@final
class _Held(NullSpaces):
    """Of equal dimension, by their bases."""

    def __init__(self, spaces: Sequence[NullSpace], scale: Array) -> None:
        """Stack them; scale is S, (elements, N)."""
        self._scale = scale
        self._vectors, self._gram, self._basis, self._change = (
            np.stack(parts) for parts in zip(*((s.vectors, s.gram, s.basis, s.change) for s in spaces), strict=True)
        )

    def in_range(self, rhs: Array) -> Array:
        target = self._scale * rhs
        outside = self._null_part(target)
        far = np.linalg.norm(outside, axis=1) > CONSISTENT * np.linalg.norm(target, axis=1)
        if np.any(far):
            nearest = self._scale * (rhs - _combine(self._basis, _inner(self._basis, rhs)))
            target = np.where(far[:, None], nearest, target)
            outside = self._null_part(target)
        return target - outside

    def shortest(self, z: Array) -> Array:
        along = _inner(self._basis, self._scale * z)
        combination = np.linalg.solve(self._change.swapaxes(1, 2), along[..., None])[..., 0]
        return z - _combine(self._vectors, combination)

    def _null_part(self, z: Array) -> Array:
        """The part of z (elements, N) in the null space of E."""
        combination = np.linalg.solve(self._gram, _inner(self._vectors, z)[..., None])[..., 0]
        return _combine(self._vectors, combination)


@final
class _Iterated(NullSpaces):
    """By the iteration; lengths are those of E."""

    def __init__(self, factor: IteratedFactor, scale: Array) -> None:
        """Of all elements of a factor; scale is S, (elements, N)."""
        self._factor, self._scale = factor, scale

    def in_range(self, rhs: Array) -> Array:
        target = self._scale * rhs
        return target - self._factor.null_part(target)

    def shortest(self, z: Array) -> Array:
        return z - self._factor.null_part(z)


def alike(
    spaces: Sequence[NullSpace], scale: Array, select: Callable[[IndexArray], IteratedFactor]
) -> Iterator[tuple[IndexArray, NullSpaces]]:
    """Null spaces in groups that are handled together, and where their members stand.

    Args:
        spaces: of several elements.
        scale: S, (elements, N).
        select: the factor of some of them.
    """
    for r, index in _equal(np.array([len(s.basis) if s.whole else -1 for s in spaces], dtype=np.int64)):
        if r >= 0:
            yield index, _Held([spaces[i] for i in index.tolist()], scale[index])
        else:
            yield index, _Iterated(select(index), scale[index])


def find_null_spaces(
    factor: IteratedFactor, batch: int, size: int, count: int = FEW, *, whole: bool = True
) -> list[NullSpace]:
    """The null spaces of the B matrices (N, N) of a factor, with so many random vectors to begin with.

    Unless they are wanted whole, there are no more directions of each than that.
    """
    count = min(count, size)
    random = np.random.default_rng(0).standard_normal((count, size))
    left, _ = factor.remains(np.broadcast_to(random, (batch, count, size)))
    squares, turn = np.linalg.eigh(left @ left.swapaxes(1, 2))
    length = np.sqrt(np.maximum(squares, 0.0))
    kept = length > INDEPENDENT * np.maximum(length.max(axis=1, initial=0.0, keepdims=True), 1.0)
    dimension = np.count_nonzero(kept, axis=1)
    # The squared length of what remains of a random vector is about the dimension of the space.
    expected = np.sum(left**2, axis=(1, 2)) / max(count, 1)
    enough = np.maximum(2 * count, expected + 3.0 * np.sqrt(expected) + 8.0).astype(np.int64)
    more = (dimension == count) & (count < size)
    found: dict[int, NullSpace] = {}
    for needed, index in _equal(np.where(more & (enough**2 * size <= WORK) & whole, enough, 0)):
        if needed:
            found.update(zip(index, find_null_spaces(factor.select(index), len(index), size, needed), strict=True))
    for r, index in _equal(np.array([-1 if i in found else r for i, r in enumerate(dimension)], dtype=np.int64)):
        if r >= 0:
            combine = (turn[index, :, count - r :] / length[index, None, count - r :]).swapaxes(1, 2)
            spaces = _spanned(factor.select(index), combine @ left[index])
            found.update((i, replace(space, whole=not more[i])) for i, space in zip(index, spaces, strict=True))
    return [found[i] for i in range(batch)]


def _spanned(factor: IteratedFactor, vectors: Array) -> list[NullSpace]:
    """The null spaces within the spans of vectors (elements, r, N)."""
    scale, _ = factor.equilibrated(np.arange(len(vectors)))
    none = np.zeros((0, vectors.shape[2]))
    if vectors.shape[1] == 0:
        return _null_spaces(vectors, scale, none, none)
    vectors, images = factor.remains(vectors / np.max(np.abs(vectors), axis=2, keepdims=True))
    length, shrunk = np.linalg.norm(vectors, axis=2), np.linalg.norm(images, axis=2)
    if np.all(shrunk <= NULL * length):
        return _null_spaces(vectors, scale, none, none)
    # Taken apart, the null ones lose what the others kept the iteration from taking off.
    apart = np.stack([_by_what_is_left(*pair)[0] for pair in zip(vectors, images, strict=True)])
    vectors, images = factor.remains(apart)
    found = []
    for row, (null, image) in enumerate(zip(vectors, images, strict=True)):
        null, slow, slow_images = _separated(null, image)
        found += _null_spaces(null[None], scale[row, None], slow, slow_images)
    return found


def _separated(vectors: Array, images: Array) -> tuple[Array, Array, Array]:
    """Directions in the span of vectors (r, N) that E shrinks to nothing, those that it almost does, and E times these.

    Args:
        vectors: linearly independent.
        images: E times the vectors.
    """
    turned, shrunk, directions = _by_what_is_left(vectors, images)
    slow = (shrunk > NULL) & (shrunk < SLOW)
    return turned[shrunk <= NULL], turned[slow], shrunk[slow, None] * directions[slow]


def _by_what_is_left(vectors: Array, images: Array) -> tuple[Array, Array, Array]:
    """Orthonormal vectors of a span (r, N) whose images are orthogonal, the lengths of these, and their directions."""
    orthonormal, change = np.linalg.qr(vectors.T)
    turn, shrunk, directions = np.linalg.svd(np.linalg.solve(change.T, images), full_matrices=False)
    return turn.T @ orthonormal.T, shrunk, directions


def _null_spaces(vectors: Array, scale: Array, slow: Array, images: Array) -> list[NullSpace]:
    """Null spaces of K from bases (elements, r, N) of those of E; slow directions are the same for all."""
    basis, change = (part.swapaxes(1, 2) for part in np.linalg.qr((vectors * scale[:, None]).swapaxes(1, 2)))
    gram = vectors @ vectors.swapaxes(1, 2)
    return [NullSpace(*parts, slow, images) for parts in zip(vectors, gram, basis, change, strict=True)]


def _equal(values: IndexArray) -> Iterator[tuple[int, IndexArray]]:
    """The values that occur, and where."""
    for value in np.unique(values).tolist():
        yield value, np.flatnonzero(values == value)


def _inner(vectors: Array, z: Array) -> Array:
    """Inner products (elements, r) of vectors (elements, r, N) with z (elements, N)."""
    return (vectors @ z[..., None])[..., 0]


def _combine(vectors: Array, weights: Array) -> Array:
    """Sums (elements, N) of vectors (elements, r, N) times weights (elements, r)."""
    return (weights[:, None, :] @ vectors)[:, 0]
