"""Random directions of arguments, relative to their scale and within the attributes of their parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch

from convexlayer.canon import ParameterSpec

__all__ = ["Argument", "Direction"]

SIGNS = frozenset({"nonneg", "pos", "nonpos", "neg"})


@final
@dataclass(frozen=True, eq=False)
class Direction:
    """A curve through an argument's value.

    Attributes:
        at: t -> the point of the curve, of the argument's shape; the value at t = 0.
        velocity: its derivative at t = 0.
    """

    at: Callable[[float], torch.Tensor]
    velocity: torch.Tensor


@final
@dataclass(frozen=True, eq=False)
class Argument:
    """An argument of a function.

    Attributes:
        position: position among the function's arguments.
        value: the tensor, detached.
        spec: its parameter; None if it is not known.
        differentiated: whether it requires a gradient.
    """

    position: int
    value: torch.Tensor
    spec: ParameterSpec | None
    differentiated: bool

    @property
    def name(self) -> str:
        """How messages call it."""
        described = f"argument {self.position}" if self.spec is None else f"parameter {self.spec.name!r}"
        return f"{described} of shape {tuple(self.value.shape)}"

    @property
    def batched(self) -> bool:
        """Whether it has the batch axis."""
        return self.spec is not None and self.value.ndim > len(self.spec.shape)

    @property
    def scale(self) -> torch.Tensor:
        """Largest entry of each element, in a shape that broadcasts; of all elements where it is 0, and else 1."""
        size = self.value.abs()
        whole = size.amax() if size.numel() else size.new_ones(())
        whole = torch.where(whole > 0, whole, 1.0)
        if not self.batched or not size.numel():
            return whole
        elements = size.flatten(1).amax(1).reshape(-1, *(1,) * (size.ndim - 1))
        return torch.where(elements > 0, elements, whole)

    def direction(self, generator: torch.Generator) -> Direction:
        """Draw a direction.

        Entries whose sign is declared are multiplied by 1 + t xi with abs(xi) <= 1; positive and negative semidefinite
        matrices become (I + t M) theta (I + t M)', so that their rank and definiteness stay. All others are moved along
        normal vectors times ``scale``, symmetric or with a pattern if that is declared.
        """
        theta = self.value
        attributes = frozenset() if self.spec is None else self.spec.attributes
        noise = torch.randn(theta.shape, generator=generator, dtype=theta.dtype).to(theta.device)
        if "symmetric" in attributes:
            noise = 0.5 * (noise + noise.mT)
        if attributes & SIGNS:
            velocity = theta * torch.tanh(noise)
        elif attributes & {"PSD", "NSD"}:
            M, identity = noise * theta.shape[-1] ** -0.5, torch.eye(theta.shape[-1]).to(theta)
            return Direction(lambda t: (identity + t * M) @ theta @ (identity + t * M).mT, M @ theta + theta @ M.mT)
        else:
            velocity = self.scale * noise * self._pattern()
        return Direction(lambda t: theta + t * velocity, velocity)

    def _pattern(self) -> torch.Tensor:
        """1 where an entry may be nonzero, else 0, in a shape that broadcasts."""
        entries = None if self.spec is None else self.spec.entries
        if self.spec is None or entries is None:
            return self.value.new_ones(())
        mask = self.value.new_zeros(self.spec.size)
        mask[torch.from_numpy(entries)] = 1.0
        return mask.reshape(self.spec.shape)
