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
from convexlayer.rays import BoolArray

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

    @property
    def scale(self) -> Array:
        """The diagonals of S, (elements, N)."""

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

    Where it has more dimensions than were asked for, a random subspace of it stands for it.

    Attributes:
        vectors: a basis of the null space of E, largest entries 1, (r, N).
        gram: its inner products, (r, r).
        basis: a basis of the null space of K, orthonormal in the unknowns of K, (r, N).
        change: lower triangular (r, r), with vectors S = change basis.
        slow: directions of E's unknowns along which refinement is slow, (s, N).
        images: E times those, (s, N), orthogonal to each other.
        certain: whether what the iteration left was told apart, so that nothing is seen of directions that are missing
            where nothing is seen of these.
        whole: whether this is all that is held of it; else there may be more, which was not asked for or would cost
            more than WORK.
    """

    vectors: Array
    gram: Array
    basis: Array
    change: Array
    slow: Array
    images: Array
    certain: bool
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
    factor: IteratedFactor, batch: int, size: int, *, count: int = FEW, most: int | None = None, whole: bool = True
) -> list[NullSpace]:
    """The null spaces of the B matrices (N, N) of a factor.

    Args:
        factor: of the matrices.
        batch: B.
        size: N.
        count: random vectors to begin with.
        most: random vectors to take at most; random members stand for a space that would need more of them.
        whole: whether to take more than those to begin with, where ``most`` is not given.
    """
    count = min(count, size)
    random = np.random.default_rng(0).standard_normal((count, size))
    left, image = factor.remains(np.broadcast_to(random, (batch, count, size)))
    squares, turn = np.linalg.eigh(left @ left.swapaxes(1, 2))
    length = np.sqrt(np.maximum(squares, 0.0))
    kept = length > INDEPENDENT * np.maximum(length.max(axis=1, initial=0.0, keepdims=True), 1.0)
    arrived = np.linalg.norm(image, axis=(1, 2)) <= SLOW * np.maximum(np.linalg.norm(left, axis=(1, 2)), 1.0)
    dimension = np.where(arrived, np.count_nonzero(kept, axis=1), 0)
    # The squared length of what remains of a random vector is about the dimension of the space.
    expected = np.sum(left**2, axis=(1, 2)) / max(count, 1)
    enough = np.maximum(2 * count, expected + 3.0 * np.sqrt(expected) + 8.0).astype(np.int64)
    larger = (dimension == count) & (count < size)
    wanted = (enough**2 * size <= WORK) & whole if most is None else enough <= most
    more = np.where(larger & wanted, enough, 0)
    found: dict[int, NullSpace] = {}
    for needed, index in _equal(more):
        if needed:
            part = factor.select(index)
            again = find_null_spaces(part, len(index), size, count=needed, most=most)
            found.update(zip(index, again, strict=True))
    for r, index in _equal(np.where(more > 0, -1, dimension)):
        if r >= 0:
            combine = (turn[index, :, count - r :] / length[index, None, count - r :]).swapaxes(1, 2)
            some = larger[index] | ~arrived[index]
            spanned = _spanned(factor.select(index), combine @ left[index], some=some)
            held = ~larger[index] | (most is not None)
            spaces = (replace(space, whole=bool(all_of_it)) for space, all_of_it in zip(spanned, held, strict=True))
            found.update(zip(index, spaces, strict=True))
    return [found[i] for i in range(batch)]


def _spanned(factor: IteratedFactor, vectors: Array, *, some: BoolArray) -> list[NullSpace]:
    """The null spaces within the spans of vectors (elements, r, N).

    Args:
        factor: of the matrices.
        vectors: what the iteration left.
        some: where there is more than they span, (elements,); then they must be null themselves to be certain.
    """
    scale, r = factor.scale, vectors.shape[1]
    none = np.zeros((0, vectors.shape[2]))
    if r:
        vectors, images = factor.remains(vectors / np.max(np.abs(vectors), axis=2, keepdims=True))
    else:
        images = vectors
    length, shrunk = np.linalg.norm(vectors, axis=2), np.linalg.norm(images, axis=2)
    if np.all(shrunk <= NULL * length):
        return _null_spaces(vectors, scale, none, none, certain=bool(r) | ~some)
    # Taken apart, the null ones lose what the others kept the iteration from taking off.
    apart = np.stack([_by_what_is_left(*pair)[0] for pair in zip(vectors, images, strict=True)])
    vectors, images = factor.remains(apart)
    found = []
    for row, (null, image) in enumerate(zip(vectors, images, strict=True)):
        null, slow, slow_images = _separated(null, image)
        certain = len(null) + (0 if some[row] else len(slow)) == r
        found += _null_spaces(null[None], scale[row, None], slow, slow_images, certain=np.array([certain]))
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


def _null_spaces(vectors: Array, scale: Array, slow: Array, images: Array, *, certain: BoolArray) -> list[NullSpace]:
    """Null spaces of K from bases (elements, r, N) of those of E; slow directions are the same for all."""
    basis, change = (part.swapaxes(1, 2) for part in np.linalg.qr((vectors * scale[:, None]).swapaxes(1, 2)))
    gram = vectors @ vectors.swapaxes(1, 2)
    parts = zip(vectors, gram, basis, change, certain.tolist(), strict=True)
    return [NullSpace(v, g, b, c, slow, images, certain=sure) for v, g, b, c, sure in parts]


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
