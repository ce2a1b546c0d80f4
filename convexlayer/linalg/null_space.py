"""Null spaces of singular symmetric quasi-definite systems, computed with their regularised factors.

E = S K S is equilibrated, and F = E + EPS J, J = diag(+-1), is factorised. The iteration x <- x - F^-1 E x preserves
the component of x in the null space of E, however inexact F^-1 is, and multiplies the component along an eigenvalue
lambda by about EPS / lambda per step. Applied to random vectors it yields random vectors of the null space. They span
it once they are linearly dependent, that is once there are more of them than its dimension.

If E is nearly singular, with eigenvalues of about EPS or less, vectors remain that are not null. Their products with E
distinguish them; they are stored as slow directions, because refinement does not converge along them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, final

import numpy as np

from convexlayer.program import Array, IndexArray
from convexlayer.rays import BoolArray

__all__ = ["IteratedFactor", "NullSpace", "NullSpaces", "find_null_spaces", "group_by_dimension"]

NULL_TOL = 1e-11
"""Largest norm(E x) / norm(x) of a null vector; norm(E) is about 1."""

SLOW_TOL = 1e-4
"""Largest norm(E x) / norm(x) of a slow direction, along which refinement converges slowly."""

INDEPENDENT = 1e-6
"""Rank tolerance: a combination of the iterated vectors counts as independent above this, relative to the longest one
or, if all are short, to the standard deviation of the initial random entries."""

CONSISTENT = 1e-10
"""Largest component of a right-hand side outside the range, relative to its norm, that counts as rounding."""

INITIAL_VECTORS = 4
"""Initial number of random vectors; enough for null spaces of dimension below 4."""

MAX_BASIS_FLOPS = 1e8
"""Multiply-adds up to which a complete basis is computed, some hundredths of a second; larger null spaces are handled
by iterating."""


class IteratedFactor(Protocol):
    """The operations of a batch of factors that ``find_null_spaces`` uses."""

    @property
    def scale(self) -> Array:
        """The diagonals of S, (elements, N)."""

    def null_iteration(self, x: Array) -> tuple[Array, Array]:
        """The limits of the iteration from x (B, count, N), and E times them."""

    def null_part(self, z: Array) -> Array:
        """The projections of z (B, N) onto the null spaces of E."""

    def select(self, index: IndexArray) -> IteratedFactor:
        """The factor of the elements at these positions."""


@final
@dataclass(frozen=True, eq=False)
class NullSpace:
    """The null space of one K, of dimension r, and s slow directions if K is nearly singular.

    If its dimension exceeds the requested one, a random subspace represents it.

    Attributes:
        vectors: a basis of the null space of E, largest entries 1, (r, N).
        gram: the Gram matrix of the vectors, (r, r).
        basis: an orthonormal basis of the null space of K, (r, N).
        change: lower triangular (r, r), with vectors S = change basis.
        slow: directions, in the unknowns of E, along which refinement is slow, (s, N).
        images: E times the slow directions, (s, N), mutually orthogonal.
        certain: whether null and slow directions were separated, so that a quantity orthogonal to all of them is
            orthogonal to directions that are missing too.
        complete: whether no further directions will be computed; otherwise more may exist that were not requested or
            would cost more than MAX_BASIS_FLOPS.
    """

    vectors: Array
    gram: Array
    basis: Array
    change: Array
    slow: Array
    images: Array
    certain: bool
    complete: bool = True

    def along_slow(self, remainder: Array) -> Array:
        """The combination z of slow directions that minimises norm(remainder - E z), (N,)."""
        z: Array = (self.images @ remainder / np.sum(self.images**2, axis=1)) @ self.slow
        return z


class NullSpaces(ABC):
    """Projections with respect to the null spaces of several K."""

    @abstractmethod
    def project_to_range(self, rhs: Array) -> Array:
        """S times the projection of rhs (elements, N) onto the range of K; rounding outside the range is removed."""

    @abstractmethod
    def minimum_norm(self, z: Array) -> Array:
        """The vectors z (elements, N) plus a null vector of E that minimise norm(S z)."""


@final
class _BasisProjections(NullSpaces):
    """Null spaces of equal dimension, represented by their bases."""

    def __init__(self, spaces: Sequence[NullSpace], scale: Array) -> None:
        """Stack the bases; scale is S, (elements, N)."""
        self._scale = scale
        self._vectors, self._gram, self._basis, self._change = (
            np.stack(parts) for parts in zip(*((s.vectors, s.gram, s.basis, s.change) for s in spaces), strict=True)
        )

    def project_to_range(self, rhs: Array) -> Array:
        target = self._scale * rhs
        outside = self._null_part(target)
        far = np.linalg.norm(outside, axis=1) > CONSISTENT * np.linalg.norm(target, axis=1)
        if np.any(far):
            nearest = self._scale * (rhs - _combine(self._basis, _inner(self._basis, rhs)))
            target = np.where(far[:, None], nearest, target)
            outside = self._null_part(target)
        return target - outside

    def minimum_norm(self, z: Array) -> Array:
        along = _inner(self._basis, self._scale * z)
        combination = np.linalg.solve(self._change.swapaxes(1, 2), along[..., None])[..., 0]
        return z - _combine(self._vectors, combination)

    def _null_part(self, z: Array) -> Array:
        """The projection of z (elements, N) onto the null space of E."""
        combination = np.linalg.solve(self._gram, _inner(self._vectors, z)[..., None])[..., 0]
        return _combine(self._vectors, combination)


@final
class _IteratedProjections(NullSpaces):
    """Null spaces without a basis, handled by iteration; norms are those of the unknowns of E."""

    def __init__(self, factor: IteratedFactor, scale: Array) -> None:
        """All elements of a factor; scale is S, (elements, N)."""
        self._factor, self._scale = factor, scale

    def project_to_range(self, rhs: Array) -> Array:
        target = self._scale * rhs
        return target - self._factor.null_part(target)

    def minimum_norm(self, z: Array) -> Array:
        return z - self._factor.null_part(z)


def group_by_dimension(
    spaces: Sequence[NullSpace], scale: Array, select: Callable[[IndexArray], IteratedFactor]
) -> Iterator[tuple[IndexArray, NullSpaces]]:
    """Group null spaces of equal dimension; yields the positions and the null spaces of each group.

    Args:
        spaces: null spaces of several elements.
        scale: S, (elements, N).
        select: positions -> the factor of those elements.
    """
    for r, index in _equal(np.array([len(s.basis) if s.complete else -1 for s in spaces], dtype=np.int64)):
        if r >= 0:
            yield index, _BasisProjections([spaces[i] for i in index.tolist()], scale[index])
        else:
            yield index, _IteratedProjections(select(index), scale[index])


def find_null_spaces(
    factor: IteratedFactor,
    batch: int,
    size: int,
    *,
    count: int = INITIAL_VECTORS,
    most: int | None = None,
    complete: bool = True,
) -> list[NullSpace]:
    """Compute the null spaces of the B matrices (N, N) of a factor.

    Args:
        factor: the factorised matrices.
        batch: B.
        size: N.
        count: initial number of random vectors.
        most: maximum number of random vectors; larger null spaces are represented by random members.
        complete: without ``most``, whether to use more random vectors than the initial ones if needed.
    """
    count = min(count, size)
    random = np.random.default_rng(0).standard_normal((count, size))
    left, image = factor.null_iteration(np.broadcast_to(random, (batch, count, size)))
    squares, turn = np.linalg.eigh(left @ left.swapaxes(1, 2))
    length = np.sqrt(np.maximum(squares, 0.0))
    kept = length > INDEPENDENT * np.maximum(length.max(axis=1, initial=0.0, keepdims=True), 1.0)
    arrived = np.linalg.norm(image, axis=(1, 2)) <= SLOW_TOL * np.maximum(np.linalg.norm(left, axis=(1, 2)), 1.0)
    dimension = np.where(arrived, np.count_nonzero(kept, axis=1), 0)
    # The expected squared norm of the projection of a standard normal vector is the dimension of the null space.
    expected = np.sum(left**2, axis=(1, 2)) / max(count, 1)
    enough = np.maximum(2 * count, expected + 3.0 * np.sqrt(expected) + 8.0).astype(np.int64)
    larger = (dimension == count) & (count < size)
    wanted = (enough**2 * size <= MAX_BASIS_FLOPS) & complete if most is None else enough <= most
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
            spanned = _null_spaces_in_span(factor.select(index), combine @ left[index], some=some)
            held = ~larger[index] | (most is not None)
            spaces = (replace(space, complete=bool(all_of_it)) for space, all_of_it in zip(spanned, held, strict=True))
            found.update(zip(index, spaces, strict=True))
    return [found[i] for i in range(batch)]


def _null_spaces_in_span(factor: IteratedFactor, vectors: Array, *, some: BoolArray) -> list[NullSpace]:
    """The null spaces within the spans of vectors (elements, r, N).

    Args:
        factor: the factorised matrices.
        vectors: the vectors left by the iteration.
        some: elements whose null space exceeds the span, (elements,); they are certain only if all vectors are null.
    """
    scale, r = factor.scale, vectors.shape[1]
    none = np.zeros((0, vectors.shape[2]))
    if r:
        vectors, images = factor.null_iteration(vectors / np.max(np.abs(vectors), axis=2, keepdims=True))
    else:
        images = vectors
    length, shrunk = np.linalg.norm(vectors, axis=2), np.linalg.norm(images, axis=2)
    if np.all(shrunk <= NULL_TOL * length):
        return _null_spaces(vectors, scale, none, none, certain=bool(r) | ~some)
    # Once separated from the slow directions, null vectors lose their remaining non-null components by iterating again.
    apart = np.stack([_orthogonal_images(*pair)[0] for pair in zip(vectors, images, strict=True)])
    vectors, images = factor.null_iteration(apart)
    found = []
    for row, (null, image) in enumerate(zip(vectors, images, strict=True)):
        null, slow, slow_images = _separated(null, image)
        certain = len(null) + (0 if some[row] else len(slow)) == r
        found += _null_spaces(null[None], scale[row, None], slow, slow_images, certain=np.array([certain]))
    return found


def _separated(vectors: Array, images: Array) -> tuple[Array, Array, Array]:
    """Null directions and slow directions in the span of vectors (r, N), and E times the slow ones.

    Args:
        vectors: linearly independent.
        images: E times the vectors.
    """
    turned, shrunk, directions = _orthogonal_images(vectors, images)
    slow = (shrunk > NULL_TOL) & (shrunk < SLOW_TOL)
    return turned[shrunk <= NULL_TOL], turned[slow], shrunk[slow, None] * directions[slow]


def _orthogonal_images(vectors: Array, images: Array) -> tuple[Array, Array, Array]:
    """An orthonormal basis of the span (r, N) with orthogonal images, their norms, and their unit directions."""
    orthonormal, change = np.linalg.qr(vectors.T)
    turn, shrunk, directions = np.linalg.svd(np.linalg.solve(change.T, images), full_matrices=False)
    return turn.T @ orthonormal.T, shrunk, directions


def _null_spaces(vectors: Array, scale: Array, slow: Array, images: Array, *, certain: BoolArray) -> list[NullSpace]:
    """Null spaces of K from bases (elements, r, N) of those of E; the slow directions are shared by all."""
    basis, change = (part.swapaxes(1, 2) for part in np.linalg.qr((vectors * scale[:, None]).swapaxes(1, 2)))
    gram = vectors @ vectors.swapaxes(1, 2)
    parts = zip(vectors, gram, basis, change, certain.tolist(), strict=True)
    return [NullSpace(v, g, b, c, slow, images, certain=sure) for v, g, b, c, sure in parts]


def _equal(values: IndexArray) -> Iterator[tuple[int, IndexArray]]:
    """Each distinct value and the positions where it occurs."""
    for value in np.unique(values).tolist():
        yield value, np.flatnonzero(values == value)


def _inner(vectors: Array, z: Array) -> Array:
    """Inner products (elements, r) of vectors (elements, r, N) with z (elements, N)."""
    return (vectors @ z[..., None])[..., 0]


def _combine(vectors: Array, weights: Array) -> Array:
    """Sums (elements, N) of vectors (elements, r, N) times weights (elements, r)."""
    return (weights[:, None, :] @ vectors)[:, 0]
