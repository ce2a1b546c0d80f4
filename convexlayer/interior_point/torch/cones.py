"""Symmetric cones in torch, batched: Nesterov-Todd scaling, Jordan algebra, step lengths.

Rows are grouped in parts: the nonnegative rows, then the second-order blocks by size, each padded with zero rows to the
largest size of its part. Zero rows of A, b, s and z stay zero in every operation here, so that padding needs no masks.

Vectors are columns (B, rows, 1); scalings also apply to matrices (B, rows, columns).

Source: Vandenberghe, The CVXOPT linear and quadratic cone program solvers (2010), sections 4 and 5.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from convexlayer.program import Cones

__all__ = ["ConeRows", "Scaling"]


class AbstractScaling(ABC):
    """Nesterov-Todd scaling of a part: the symmetric W with W z = W^-1 s = lam."""

    lam: Tensor

    @abstractmethod
    def multiply(self, v: Tensor) -> Tensor:
        """W v."""

    @abstractmethod
    def divide(self, v: Tensor) -> Tensor:
        """W^-1 v."""


class AbstractPart(ABC):
    """Blocks of one cone type and one padded size.

    Attributes:
        degree: degree of the barrier, 1 per block.
        rows: number of blocks times padded size.
    """

    degree: int
    rows: int

    @abstractmethod
    def scaling(self, s: Tensor, z: Tensor) -> AbstractScaling:
        """The scaling at s and z, both in the interior of the cone."""

    @abstractmethod
    def min_eigenvalue(self, u: Tensor) -> Tensor:
        """The smallest eigenvalue of all blocks, (B, 1, 1)."""

    @abstractmethod
    def unit(self, like: Tensor) -> Tensor:
        """The identity element of the Jordan algebra, (1, rows, 1)."""

    @abstractmethod
    def product(self, u: Tensor, v: Tensor) -> Tensor:
        """The Jordan product."""

    @abstractmethod
    def jordan_divide(self, lam: Tensor, v: Tensor) -> Tensor:
        """The u with product(lam, u) = v."""

    @abstractmethod
    def inverse_step(self, lam: Tensor, direction: Tensor) -> Tensor:
        """1 / alpha for the largest alpha with lam + alpha direction in the cone, (B, 1, 1); <= 0 if unbounded."""

    @abstractmethod
    def project(self, w: Tensor) -> Tensor:
        """The projection onto the cone."""

    @abstractmethod
    def block_max(self, size: Tensor) -> Tensor:
        """Row norms made constant on each block, as their maximum, so that scaling by them maps the cone to itself."""


@final
class _NonnegativeScaling(AbstractScaling):
    def __init__(self, s: Tensor, z: Tensor) -> None:
        self.lam = torch.sqrt(s * z)
        self._w = torch.sqrt(s / z)

    def multiply(self, v: Tensor) -> Tensor:
        return self._w * v

    def divide(self, v: Tensor) -> Tensor:
        return v / self._w


@final
class _Nonnegative(AbstractPart):
    def __init__(self, rows: int) -> None:
        self.degree = self.rows = rows

    def scaling(self, s: Tensor, z: Tensor) -> AbstractScaling:
        return _NonnegativeScaling(s, z)

    def min_eigenvalue(self, u: Tensor) -> Tensor:
        return u.amin(1, keepdim=True)

    def unit(self, like: Tensor) -> Tensor:
        return like.new_ones(1, self.rows, 1)

    def product(self, u: Tensor, v: Tensor) -> Tensor:
        return u * v

    def jordan_divide(self, lam: Tensor, v: Tensor) -> Tensor:
        return v / lam

    def inverse_step(self, lam: Tensor, direction: Tensor) -> Tensor:
        return (-direction / lam).amax(1, keepdim=True)

    def project(self, w: Tensor) -> Tensor:
        return w.clamp(min=0.0)

    def block_max(self, size: Tensor) -> Tensor:
        return size


@final
class _SecondOrderScaling(AbstractScaling):
    """W = eta [w0 w1'; w1 I + w1 w1' / (1 + w0)], w0^2 - norm(w1)^2 = 1."""

    def __init__(self, part: _SecondOrder, s: Tensor, z: Tensor) -> None:
        self._part = part
        s, z = part.split(s), part.split(z)
        s_size, z_size = _determinant(s).sqrt(), _determinant(z).sqrt()
        s_unit, z_unit = s / s_size, z / z_size
        gamma = torch.sqrt(0.5 * (1.0 + (s_unit * z_unit).sum(2, keepdim=True)))
        w = 0.5 * (s_unit + _reflected(z_unit)) / gamma
        self._eta = torch.sqrt(s_size / z_size)
        self._tail = w[:, :, 1:]
        # Computed from the tail, so that w'Jw = 1 to rounding even if s and z are close to the boundary.
        self._head = torch.sqrt(1.0 + (self._tail * self._tail).sum(2, keepdim=True))
        self._row = self._tail.mT.contiguous()
        self.lam = self.multiply(part.join(z))

    def multiply(self, v: Tensor) -> Tensor:
        return self._rotate(v, self._tail, self._row, self._eta)

    def divide(self, v: Tensor) -> Tensor:
        return self._rotate(v, -self._tail, -self._row, 1.0 / self._eta)

    def _rotate(self, v: Tensor, tail: Tensor, row: Tensor, eta: Tensor) -> Tensor:
        blocks = self._part.split(v)
        first, rest = blocks[:, :, :1], blocks[:, :, 1:]
        inner = row @ rest
        top = self._head * first + inner
        bottom = rest + tail * (first + inner / (1.0 + self._head))
        return self._part.join(eta * torch.cat((top, bottom), 2))


@final
class _SecondOrder(AbstractPart):
    def __init__(self, blocks: int, size: int) -> None:
        self.degree = blocks
        self._size = size
        self.rows = blocks * size

    def split(self, v: Tensor) -> Tensor:
        """(B, rows, c) as (B, blocks, size, c)."""
        return v.reshape(v.shape[0], self.degree, self._size, v.shape[2])

    def join(self, v: Tensor) -> Tensor:
        """(B, blocks, size, c) as (B, rows, c)."""
        return v.reshape(v.shape[0], self.rows, v.shape[3])

    def scaling(self, s: Tensor, z: Tensor) -> AbstractScaling:
        return _SecondOrderScaling(self, s, z)

    def min_eigenvalue(self, u: Tensor) -> Tensor:
        blocks = self.split(u)
        return (blocks[:, :, :1] - _tail_norm(blocks)).amin((1, 2), keepdim=True).squeeze(3)

    def unit(self, like: Tensor) -> Tensor:
        unit = like.new_zeros(1, self.degree, self._size, 1)
        unit[:, :, 0] = 1.0
        return self.join(unit)

    def product(self, u: Tensor, v: Tensor) -> Tensor:
        u, v = self.split(u), self.split(v)
        top = (u * v).sum(2, keepdim=True)
        return self.join(torch.cat((top, u[:, :, :1] * v[:, :, 1:] + v[:, :, :1] * u[:, :, 1:]), 2))

    def jordan_divide(self, lam: Tensor, v: Tensor) -> Tensor:
        lam, v = self.split(lam), self.split(v)
        first, rest = lam[:, :, :1], lam[:, :, 1:]
        top = (first * v[:, :, :1] - (rest * v[:, :, 1:]).sum(2, keepdim=True)) / _determinant(lam)
        return self.join(torch.cat((top, (v[:, :, 1:] - top * rest) / first), 2))

    def inverse_step(self, lam: Tensor, direction: Tensor) -> Tensor:
        """After the hyperbolic rotation of lam to the identity, minus the smallest eigenvalue of the direction."""
        lam, direction = self.split(lam), self.split(direction)
        size = _determinant(lam).sqrt()
        unit = lam / size
        first, rest = unit[:, :, :1], unit[:, :, 1:]
        top = first * direction[:, :, :1] - (rest * direction[:, :, 1:]).sum(2, keepdim=True)
        bottom = direction[:, :, 1:] - rest * ((top + direction[:, :, :1]) / (1.0 + first))
        norm = torch.linalg.vector_norm(bottom, dim=2, keepdim=True)
        return ((norm - top) / size).amax((1, 2), keepdim=True).squeeze(3)

    def project(self, w: Tensor) -> Tensor:
        blocks = self.split(w)
        head, norm = blocks[:, :, :1], _tail_norm(blocks)
        top = (0.5 * (head + norm)).clamp(min=0.0)
        curved = torch.cat((top, blocks[:, :, 1:] * (top / torch.where(norm > 0.0, norm, 1.0))), 2)
        return self.join(torch.where(head >= norm, blocks, curved))

    def block_max(self, size: Tensor) -> Tensor:
        blocks = self.split(size)
        return self.join(blocks.amax(2, keepdim=True).expand_as(blocks))


def _tail_norm(blocks: Tensor) -> Tensor:
    return torch.linalg.vector_norm(blocks[:, :, 1:], dim=2, keepdim=True)


def _determinant(blocks: Tensor) -> Tensor:
    """u0^2 - norm(u1)^2, factored to avoid cancellation."""
    norm = _tail_norm(blocks)
    return (blocks[:, :, :1] - norm) * (blocks[:, :, :1] + norm)


def _reflected(blocks: Tensor) -> Tensor:
    return torch.cat((blocks[:, :, :1], -blocks[:, :, 1:]), 2)


@final
@dataclass(frozen=True, eq=False)
class Scaling:
    """The Nesterov-Todd scalings of all parts; lam (B, rows, 1)."""

    parts: tuple[AbstractScaling, ...]
    sizes: tuple[int, ...]
    lam: Tensor

    def multiply(self, v: Tensor) -> Tensor:
        """W v, (B, rows, c)."""
        return _cat(v, [part.multiply(u) for part, u in self._each(v)])

    def divide(self, v: Tensor) -> Tensor:
        """W^-1 v, (B, rows, c)."""
        return _cat(v, [part.divide(u) for part, u in self._each(v)])

    def _each(self, v: Tensor) -> Iterator[tuple[AbstractScaling, Tensor]]:
        return zip(self.parts, v.split(self.sizes, 1), strict=True) if self.parts else iter(())


@final
class ConeRows:
    """The product cone of a structure without the zero cone, in the padded layout.

    Attributes:
        degree: degree of the barrier.
        rows: number of rows of the padded layout.
        position: padded row of each row of the standard form, counted after those of the zero cone.
    """

    def __init__(self, cones: Cones) -> None:
        parts: list[AbstractPart] = [_Nonnegative(cones.nonnegative)] if cones.nonnegative else []
        place, start = list(range(cones.nonnegative)), cones.nonnegative
        first = {}
        for bucket in sorted({_bucket(size) for size in cones.second_order}):
            sizes = [size for size in cones.second_order if _bucket(size) == bucket]
            part = _SecondOrder(len(sizes), max(sizes))
            first[bucket] = iter(range(start, start + part.rows, max(sizes)))
            parts.append(part)
            start += part.rows
        for size in cones.second_order:
            row = next(first[_bucket(size)])
            place += range(row, row + size)
        self._parts = tuple(parts)
        self._sizes = tuple(part.rows for part in parts)
        self.degree = sum(part.degree for part in parts)
        self.rows = start
        self.position = place

    def scaling(self, s: Tensor, z: Tensor) -> Scaling:
        """The Nesterov-Todd scaling at s and z in the interior of the cone."""
        parts = tuple(part.scaling(u, v) for part, u, v in self._pairs(s, z))
        return Scaling(parts, self._sizes, _cat(s, [part.lam for part in parts]))

    def min_eigenvalue(self, u: Tensor) -> Tensor:
        """The smallest eigenvalue of u, (B, 1, 1); inf without rows."""
        return _largest(u, [-part.min_eigenvalue(v) for part, v in self._singles(u)]).neg()

    def unit(self, like: Tensor) -> Tensor:
        """The identity element, (1, rows, 1)."""
        return _cat(like[:1, :0, :1], [part.unit(like) for part in self._parts])

    def product(self, u: Tensor, v: Tensor) -> Tensor:
        """The Jordan product of u and v."""
        return _cat(u, [part.product(a, b) for part, a, b in self._pairs(u, v)])

    def jordan_divide(self, lam: Tensor, v: Tensor) -> Tensor:
        """The u whose product with lam is v."""
        return _cat(v, [part.jordan_divide(a, b) for part, a, b in self._pairs(lam, v)])

    def inverse_step(self, lam: Tensor, direction: Tensor) -> Tensor:
        """1 / alpha for the largest step from lam that stays in the cone, (B, 1, 1); <= 0 if unbounded."""
        return _largest(lam, [part.inverse_step(a, b) for part, a, b in self._pairs(lam, direction)])

    def project(self, w: Tensor) -> Tensor:
        """The projection onto the cone."""
        return _cat(w, [part.project(u) for part, u in self._singles(w)])

    def block_max(self, size: Tensor) -> Tensor:
        """The maximum of ``size`` over each second-order block, in all of its rows."""
        return _cat(size, [part.block_max(u) for part, u in self._singles(size)])

    def _singles(self, u: Tensor) -> Iterator[tuple[AbstractPart, Tensor]]:
        return zip(self._parts, u.split(self._sizes, 1), strict=True) if self._parts else iter(())

    def _pairs(self, u: Tensor, v: Tensor) -> Iterator[tuple[AbstractPart, Tensor, Tensor]]:
        return ((part, a, b) for (part, a), (_, b) in zip(self._singles(u), self._singles(v), strict=True))


def _bucket(size: int) -> int:
    """Bucket of a block size: sizes between two powers of two share one, and are padded to the largest of them."""
    return max(size - 1, 1).bit_length()


def _cat(like: Tensor, pieces: list[Tensor]) -> Tensor:
    """Concatenate the rows of all parts; without parts, return ``like``, which then has no rows."""
    if not pieces:
        return like
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)


def _largest(like: Tensor, pieces: list[Tensor]) -> Tensor:
    """The maximum over the parts of their values (B, 1, 1); -inf without parts."""
    largest = like.new_full((like.shape[0], 1, 1), -torch.inf)
    for piece in pieces:
        largest = torch.maximum(largest, piece)
    return largest
