"""assert_gradients: the derivatives of a torch function against finite differences."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, final

import numpy as np
import torch
from torch.autograd import forward_ad

from convexlayer.arguments import describe
from convexlayer.canon import ParameterSpec
from convexlayer.canon.parameters import specification
from convexlayer.errors import ConvexLayerError, ProblemError
from convexlayer.layers import ConvexLayer
from convexlayer.program import Array
from convexlayer.testing.comparison import Comparison
from convexlayer.testing.directions import Argument, Direction
from convexlayer.testing.finite_differences import Difference, differentiate
from convexlayer.testing.outputs import OutputVector, flat

__all__ = ["assert_gradients"]

MODES = ("reverse", "forward")

RESOLVED = 0.01
"""Fraction of the tolerance that the estimated error of differences should have."""


def assert_gradients(
    function: Callable[..., Any],
    *tensors: torch.Tensor,
    parameters: Sequence[Any] | None = None,
    modes: Sequence[str] = MODES,
    directions: int = 2,
    rtol: float = 1e-5,
    seed: int = 0,
) -> None:
    """Check the derivatives of a layer, a node or any function of tensors by finite differences.

        assert_gradients(layer, A, b)

    The function is differentiated along random directions of each tensor that requires a gradient. Steps are relative
    to the tensor's largest entry (that of each element, if the batch axis is known), so no unit matters. Central
    differences with decreasing steps are extrapolated, which also estimates their error: a derivative is wrong only if
    it differs by more than the tolerance and ten times that error. Forward mode is compared entry by entry, reverse
    mode by random cotangents of each output, which weigh all elements equally.

    Args:
        function: returns a float64 tensor, or a sequence of them; deterministic.
        tensors: its arguments, float64; those that require a gradient are checked.
        parameters: the CVXPY parameter of each tensor, or None. Directions then keep attributes (symmetric, PSD, signs,
            patterns), and an additional leading axis of a tensor is the batch axis: all outputs have it too, and their
            elements are compared each on its own scale. A ``ConvexLayer`` knows its parameters, but not the attributes
            of those on a server.
        modes: the modes to check, of ``reverse`` and ``forward``.
        directions: number of random directions of each tensor, and of random cotangents.
        rtol: tolerance relative to the largest derivative of the output (of the element) along directions of the
            tensor.
        seed: seed of the directions.

    Raises:
        AssertionError: a derivative is wrong, or cannot be compared because the differences do not converge: at a kink,
            or if the function is noisy. The message names mode, tensor, direction, output, element and values.
        ProblemError: arguments that cannot be checked, such as float32 tensors.
    """
    for mode in modes:
        if mode not in MODES:
            raise ProblemError(f"modes must be some of {', '.join(MODES)}, got {describe(mode)}")
    checked = _Checked(function, _arguments(function, tensors, parameters))
    arguments = checked.arguments
    generator = torch.Generator().manual_seed(seed)
    curves = [[each.direction(generator) for _ in range(directions)] for each in arguments]
    differences = [[checked.difference(i, curve, rtol) for curve in own] for i, own in enumerate(curves)]
    comparison = Comparison(checked.outputs, [each.name for each in arguments], differences, rtol)
    if "forward" in modes:
        for i, own in enumerate(curves):
            for j, curve in enumerate(own):
                comparison.jvp(i, j, checked.jvp(i, curve.velocity))
    if "reverse" in modes:
        for number, cotangent, gradients in checked.vjps(generator, directions, comparison.weight):
            for i, (own, gradient) in enumerate(zip(curves, gradients, strict=True)):
                for j, curve in enumerate(own):
                    product = 0.0 if gradient is None else float((gradient * curve.velocity).sum())
                    comparison.vjp(number, cotangent, i, j, product)
    comparison.conclude(checked.error)


def _arguments(
    function: Callable[..., Any], tensors: Sequence[torch.Tensor], parameters: Sequence[Any] | None
) -> list[Argument]:
    """The arguments of the function.

    Raises:
        ProblemError: none requires a gradient, or one cannot be checked.
    """
    specs: list[ParameterSpec | None] = [None] * len(tensors)
    if parameters is not None:
        specs = [None if each is None else specification(each) for each in parameters]
    elif isinstance(function, ConvexLayer):
        known = function.solution_map.parameters
        specs = [each if isinstance(each, ParameterSpec) else ParameterSpec(each.name, each.shape) for each in known]
    if len(specs) != len(tensors):
        raise ProblemError(f"expected one tensor per parameter, got {len(tensors)} and {len(specs)}")
    found = []
    for position, (tensor, spec) in enumerate(zip(tensors, specs, strict=True)):
        if not isinstance(tensor, torch.Tensor):
            raise ProblemError(f"argument {position}: expected a torch tensor, got {describe(tensor)}")
        if tensor.requires_grad and tensor.dtype != torch.float64:
            raise ProblemError(
                f"argument {position} is {tensor.dtype}, of whose digits finite differences lose most: pass it as "
                "float64, with .double()"
            )
        found.append(Argument(position, tensor.detach().clone(), spec, differentiated=tensor.requires_grad))
    if not any(each.differentiated for each in found):
        raise ProblemError("no tensor requires a gradient: there is nothing to check. Call .requires_grad_() on some")
    return found


@final
class _Checked:
    """A function at the point of the check.

    Attributes:
        arguments: its arguments that are differentiated with respect to, numbered from 0.
        outputs: its outputs there.
        error: the last exception of an evaluation near the point, such as that of an infeasible problem.
    """

    def __init__(self, function: Callable[..., Any], arguments: list[Argument]) -> None:
        """Evaluate the function.

        Raises:
            AssertionError: an output is not finite.
            ProblemError: the outputs are not float64 tensors.
        """
        self.arguments = [each for each in arguments if each.differentiated]
        self._function, self._tensors = function, [each.value for each in arguments]
        with torch.no_grad():
            self.outputs = OutputVector(self._call({}), batched=any(each.batched for each in arguments))
        self.error: ConvexLayerError | None = None
        finite = np.isfinite(self.outputs.value)
        if not finite.all():
            raise AssertionError(f"{self.outputs.name(int(np.argmin(finite)))} is not finite at the point of the check")

    def difference(self, i: int, curve: Direction, rtol: float) -> Difference:
        """The derivative along a curve of argument i by differences.

        Raises:
            ProblemError: the argument's attributes leave no direction.
        """
        if not curve.velocity.any():
            raise ProblemError(
                f"{self.arguments[i].name}: no direction keeps its attributes at this value; move it from the boundary"
            )

        def evaluate(t: float) -> Array | None:
            try:
                with torch.no_grad():
                    point = flat(self._call({i: curve.at(t)}))
            except ConvexLayerError as error:
                self.error = error
                return None
            return point if np.isfinite(point).all() else None

        return differentiate(evaluate, self.outputs.value, self.outputs.groups, RESOLVED * rtol)

    def jvp(self, i: int, velocity: torch.Tensor) -> Array:
        """The derivative along a tangent of argument i by forward mode, (K,).

        Raises:
            AssertionError: the function does not support forward mode.
        """
        with forward_ad.dual_level(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated")  # by torch's first jvp
            try:
                outputs = self._call({i: forward_ad.make_dual(self.arguments[i].value, velocity)})
            except (NotImplementedError, RuntimeError) as error:
                hint = "If the function does not support it, pass modes=['reverse']"
                raise AssertionError(f"forward mode failed: {error}. {hint}") from error
            tangents = [forward_ad.unpack_dual(output).tangent for output in outputs]
        return flat([torch.zeros_like(o) if t is None else t for o, t in zip(outputs, tangents, strict=True)])

    def vjps(
        self, generator: torch.Generator, count: int, weight: Array
    ) -> Iterator[tuple[int, Array, Sequence[torch.Tensor | None]]]:
        """Pull random cotangents of each output back by reverse mode.

        Args:
            generator: draws the cotangents.
            count: number of cotangents of each output.
            weight: their weights, (K,).

        Yields:
            Number of the output, its cotangent, and the gradient of each argument; None if it does not depend on it.
        """
        leaves = [each.value.clone().requires_grad_() for each in self.arguments]
        outputs = self._call(dict(enumerate(leaves)))
        for number, (output, part) in enumerate(zip(outputs, self.outputs.parts, strict=True)):
            for _ in range(count if output.numel() else 0):
                cotangent = weight[part] * torch.randn(output.numel(), generator=generator, dtype=output.dtype).numpy()
                seed = torch.from_numpy(cotangent).reshape(output.shape).to(output.device)
                gradients: Sequence[torch.Tensor | None] = [None] * len(leaves)
                if output.requires_grad:
                    gradients = torch.autograd.grad(output, leaves, seed, retain_graph=True, allow_unused=True)
                yield number, cotangent, gradients

    def _call(self, replaced: Mapping[int, torch.Tensor]) -> list[torch.Tensor]:
        """The outputs with other values of some arguments.

        Raises:
            ProblemError: they are not float64 tensors.
        """
        tensors = list(self._tensors)
        for i, value in replaced.items():
            tensors[self.arguments[i].position] = value
        returned = self._function(*tensors)
        outputs = [returned] if isinstance(returned, torch.Tensor) else list(returned)
        for number, output in enumerate(outputs):
            if not isinstance(output, torch.Tensor):
                raise ProblemError(f"output {number}: expected a tensor, got {describe(output)}; wrap the function")
            if output.dtype != torch.float64:
                raise ProblemError(f"output {number} is {output.dtype}; finite differences need float64 throughout")
        return outputs
