"""ConvexLayer: the solution map of a CVXPY problem as a torch module."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, final

import cvxpy as cp
import torch
from torch.autograd.forward_ad import unpack_dual

from convexlayer.arguments import MAX_LISTED, check_bool, check_kind, describe
from convexlayer.canon import ParametricProgram
from convexlayer.errors import (
    DerivativeError,
    FailedElementsError,
    InvalidElementsError,
    ProblemError,
    UnsupportedError,
)
from convexlayer.layers.canonicalize import canonicalize
from convexlayer.layers.function import Call, solve
from convexlayer.layers.protocol import AbstractDerivativeReport, AbstractReport, AbstractSolutionMap
from convexlayer.layers.remote import remote_solution_map, server_url
from convexlayer.layers.solution_map import SolutionMap
from convexlayer.layers.theta import batch_size
from convexlayer.layers.vmap_rules import is_transformed
from convexlayer.runtime.graph_breaks import outside_graphs
from convexlayer.solvers import Options
from convexlayer.status import Status

__all__ = ["ConvexLayer"]

ON_FAILURE = ("raise", "nan", "keep")
"""Choices of the argument ``on_failure``."""

ON_DEGENERATE = ("warn", "report", "raise")
"""Choices of the argument ``on_degenerate``."""

MAX_DETAILS = 3
"""Number of elements whose details the message of an error quotes."""


@final
class ConvexLayer(torch.nn.Module):
    """Differentiable map from parameters to the solution of a convex problem, in reverse and forward mode.

        layer = ConvexLayer(problem, parameters=[A, b], variables=[x])
        (solution,) = layer(A_tensor, b_tensor)
        loss(solution).backward()

    Each tensor has its parameter's shape, or one additional leading batch axis. Parameters without a batch axis are
    shared by all elements; their gradient is the sum over the batch. Computations use float64, on the CPU unless
    ``device`` is set; outputs have the dtype and device of the input tensors. Supports torch.no_grad, torch.func (vmap,
    jvp, vjp, jacrev, jacfwd) and torch.autograd.gradcheck; torch.compile breaks its graph at the layer. Thread-safe,
    picklable, deep-copyable.

    The layer adds torch to a solution map (``layers/protocol.py``), which computes in NumPy. If the environment
    variable ``CONVEXLAYER_URL`` names a server, that is the client's remote map; ``from_solution_map`` takes any.
    """

    def __init__(
        self,
        problem: cp.Problem,
        parameters: Sequence[cp.Parameter],
        variables: Sequence[cp.Variable],
        *,
        solver: str = "auto",
        tune: bool = False,
        device: str = "cpu",
        gp: bool = False,
        derivative: str = "exact",
        on_failure: str = "raise",
        on_degenerate: str = "warn",
        options: Options | Mapping[str, Any] | None = None,
        check_attributes: bool = True,
        presolve: bool = True,
        self_check: bool = True,
    ) -> None:
        """Canonicalise a problem and choose the solver.

        Args:
            problem: a DPP problem; its state is neither used nor changed.
            parameters: all parameters of the problem, in the order of the tensors.
            variables: the outputs: variables of the problem, and dual variables of its constraints
                (``constraint.dual_variables[i]``).
            solver: a name listed by ``convexlayer solvers``, or ``auto``.
            tune: with ``auto``, time the candidate solvers at the first call and use the fastest from then on.
            device: the torch device on which batches of small dense programs are solved and differentiated (see
                ``SolutionMap``); independent of the device of the tensors.
            gp: whether the problem is a geometric program.
            derivative: ``exact``, or ``diffcp`` for the reference implementation.
            on_failure: handling of elements that have no solution or invalid parameter values: ``raise`` a
                FailedElementsError that carries the outputs of the other elements, fill their outputs with ``nan``, or
                ``keep`` the solver's last iterate. Their gradients are zero; other elements are not affected.
            on_degenerate: handling of derivatives that may not exist or are inaccurate: ``warn`` (once per layer; also
                once of inaccurate solutions), ``report`` only, or ``raise`` a DerivativeError.
            options: ``Options``, or a mapping of changes to the default options.
            check_attributes: whether tensors that violate their parameter's attributes are invalid.
            presolve: whether to solve a reduced program; ``program.presolve`` records the reductions.
            self_check: whether to check the canonicalised problem at random parameter values (see ``canonicalize``).

        Raises:
            ProblemError: the problem cannot be canonicalised; the subclasses NotDPPError and UnsupportedError are more
                specific.
            SolverError: the solver is unknown, not installed, or does not support the problem.
            DerivativeError: the derivative mode is unknown.
        """
        super().__init__()
        check_kind("problem", problem, cp.Problem, "a cvxpy.Problem")
        _check_sequence("parameters", parameters, cp.Parameter, "cvxpy.Parameter")
        _check_sequence("variables", variables, cp.Variable, "cvxpy.Variable (or dual variables)")
        for name, value in (("gp", gp), ("presolve", presolve), ("self_check", self_check)):
            check_bool(name, value)
        self._set_policies(on_failure, on_degenerate)
        url = server_url()
        if url is None:
            program = canonicalize(problem, parameters, variables, gp=gp, presolve=presolve, self_check=self_check)
            solution_map: AbstractSolutionMap = SolutionMap(
                program,
                solver=solver,
                tune=tune,
                device=device,
                derivative=derivative,
                options=options,
                check_attributes=check_attributes,
            )
        else:
            solution_map = remote_solution_map(
                url,
                problem,
                parameters,
                variables,
                solver=solver,
                gp=gp,
                options=options,
                derivative=derivative,
                check_attributes=check_attributes,
            )
        self._set_solution_map(solution_map)

    @classmethod
    def from_solution_map(
        cls, solution_map: AbstractSolutionMap, *, on_failure: str = "raise", on_degenerate: str = "warn"
    ) -> ConvexLayer:
        """Create the layer of a solution map, such as ``SolutionMap`` or ``convexlayer_client.RemoteSolutionMap``.

        Args:
            solution_map: the solution map.
            on_failure: as for the constructor.
            on_degenerate: as for the constructor.

        Raises:
            ProblemError: an argument has an unknown value.
            UnsupportedError: ``on_failure="keep"``, but the solution map has no last iterates.
        """
        layer = cls.__new__(cls)
        torch.nn.Module.__init__(layer)
        layer._set_policies(on_failure, on_degenerate)
        layer._set_solution_map(solution_map)
        return layer

    def _set_policies(self, on_failure: str, on_degenerate: str) -> None:
        _check_choice("on_failure", on_failure, ON_FAILURE)
        self._on_failure = on_failure
        self._degeneracy_policy = _DegeneracyPolicy(on_degenerate)

    def _set_solution_map(self, solution_map: AbstractSolutionMap) -> None:
        if self._on_failure == "keep" and not solution_map.has_iterates:
            raise UnsupportedError(
                f"on_failure='keep' needs the solver's last iterates, which {solution_map.summary} does not return: "
                "use 'raise' or 'nan'"
            )
        self._map = solution_map

    @property
    def program(self) -> ParametricProgram:
        """The canonicalised problem.

        Raises:
            UnsupportedError: the layer's solution map is not a ``SolutionMap``.
        """
        if not isinstance(self._map, SolutionMap):
            raise UnsupportedError(f"there is no canonicalised problem in this process: {self._map.summary} has it")
        return self._map.program

    @property
    def solution_map(self) -> AbstractSolutionMap:
        """The same map with a NumPy interface."""
        return self._map

    def extra_repr(self) -> str:
        """Parameters, outputs, and the summary of the solution map, for torch's repr."""
        names, outputs = (", ".join(spec.name for spec in specs) for specs in (self._map.parameters, self._map.outputs))
        return f"({names}) -> ({outputs}), {self._map.summary}"

    @outside_graphs
    def forward(
        self,
        *tensors: torch.Tensor,
        options: Options | Mapping[str, Any] | None = None,
        warm_start: Any = None,
    ) -> tuple[torch.Tensor, ...]:
        """Solve the problem at parameter values.

        Args:
            tensors: one per parameter, of its shape or with one additional leading batch axis.
            options: complete options, or changes to the layer's options, for this call.
            warm_start: the report of an earlier ``solve`` with the same batch size.

        Returns:
            One tensor per variable, with the batch axis if any input had it.

        Raises:
            ShapeError: shapes or batch sizes do not match.
            ProblemError: an argument has the wrong type, or a tensor is not floating-point.
            FailedElementsError: elements have no solution, with ``on_failure="raise"``; an InvalidElementsError if a
                tensor is not finite or violates its parameter's attributes.
        """
        outputs, report = self._solve(tensors, options, warm_start)
        self._degeneracy_policy.of_solutions(report)
        return outputs

    @outside_graphs
    def solve(
        self,
        *tensors: torch.Tensor,
        options: Options | Mapping[str, Any] | None = None,
        warm_start: Any = None,
    ) -> tuple[tuple[torch.Tensor, ...], Any]:
        """Solve, and also return the report: a ``Report``, or that of the layer's solution map.

        The objective values in the report are a differentiable tensor; a backward pass fills ``report.derivative``.
        """
        return self._solve(tensors, options, warm_start)

    def _solve(
        self, tensors: tuple[torch.Tensor, ...], options: Any, warm_start: Any
    ) -> tuple[tuple[torch.Tensor, ...], Any]:
        """Check the tensors and solve; return the outputs and the caller's report. Raises as ``forward`` does."""
        specs = self._map.parameters
        for tensor in tensors:
            if not isinstance(tensor, torch.Tensor):
                raise ProblemError(f"expected torch tensors, got {type(tensor).__name__}: wrap it with torch.as_tensor")
            if not tensor.is_floating_point():
                hint = "take .real" if tensor.is_complex() else "convert it with .double()"
                raise ProblemError(f"expected floating-point tensors, got {tensor.dtype}: {hint}")
        devices = {tensor.device for tensor in tensors}
        if len(devices) > 1:
            raise ProblemError(f"expected tensors on one device, got {', '.join(sorted(map(str, devices)))}")
        for tensor in tensors:
            if tensor.layout != torch.strided or tensor.is_meta:
                raise ProblemError(f"expected dense tensors with values, got {tensor.layout} on {tensor.device}")
        batched = batch_size(specs, [tuple(tensor.shape) for tensor in tensors]) is not None
        call = Call(
            self._map,
            options,
            warm_start,
            keep_iterates=self._on_failure == "keep",
            differentiable=_is_differentiated(tensors),
            on_derivative=self._degeneracy_policy,
        )
        *outputs, objective = solve(call, tensors)
        if not batched:
            outputs, objective = [output.squeeze(0) for output in outputs], objective.squeeze(0)
        report = call.report(objective)
        if report.failed and self._on_failure == "raise":
            invalid = Status.INVALID in report.status
            raise (InvalidElementsError if invalid else FailedElementsError)(
                _failure_message(report, batched=batched),
                indices=report.failed,
                outputs=tuple(outputs),
                report=report,
            )
        return tuple(outputs), report


def _is_differentiated(tensors: tuple[torch.Tensor, ...]) -> bool:
    """Whether a derivative with respect to one of the tensors can follow, in reverse or forward mode."""
    reverse = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    return reverse or is_transformed(tensors) or any(unpack_dual(tensor).tangent is not None for tensor in tensors)


def _failure_message(report: AbstractReport, *, batched: bool) -> str:
    if not batched and report.status[0] == Status.INVALID:
        return report.details[0]
    named = ", ".join(f"{i} ({report.status[i]})" for i in report.failed[:MAX_LISTED])
    more = f" and {len(report.failed) - MAX_LISTED} more" if len(report.failed) > MAX_LISTED else ""
    known = "".join(f". Element {i}: {report.details[i]}" for i in sorted(report.details)[:MAX_DETAILS])
    return (
        f"{len(report.failed)} of {len(report.status)} elements have no solution: {named}{more}. The outputs of the "
        f"others are in this error's outputs; on_failure='nan' returns them instead{known}"
    )


def _check_sequence(name: str, values: object, kind: type, expected: str) -> None:
    if isinstance(values, kind) or not isinstance(values, Iterable):
        raise ProblemError(f"{name} must be a list of {expected}, got {describe(values)}")
    for i, value in enumerate(values):
        check_kind(f"{name}[{i}]", value, kind, f"a {expected}")


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ProblemError(f"{name} must be one of {', '.join(known)}, got {describe(value)}")


@final
class _DegeneracyPolicy:
    """Handling of untrusted derivatives and inaccurate solutions by ``on_degenerate``; warns once of each."""

    def __init__(self, on_degenerate: str) -> None:
        _check_choice("on_degenerate", on_degenerate, ON_DEGENERATE)
        self._on_degenerate = on_degenerate
        self._lock = threading.Lock()
        self._warned: set[str] = set()

    def __reduce__(self) -> tuple[Callable[[str], _DegeneracyPolicy], tuple[str]]:
        return _DegeneracyPolicy, (self._on_degenerate,)

    def of_solutions(self, report: AbstractReport) -> None:
        """Warn of inaccurate solutions, after a call that returns no report."""
        if self._on_degenerate == "report" or Status.OPTIMAL_INACCURATE not in report.status:
            return
        inaccurate = [str(i) for i, word in enumerate(report.status) if word == Status.OPTIMAL_INACCURATE]
        self._warn(
            "solutions",
            f"the solutions of {len(inaccurate)} of {len(report.status)} elements are inaccurate: "
            f"{_first(inaccurate)}. See status and residuals in the report of layer.solve(...)",
        )

    def __call__(self, report: AbstractReport, derivative: AbstractDerivativeReport) -> None:
        if self._on_degenerate == "report" or derivative.status.count("ok") == len(derivative.status):
            return
        failed = set(report.failed)
        doubtful = [f"{i} ({word})" for i, word in enumerate(derivative.status) if word != "ok" and i not in failed]
        if not doubtful:
            return
        message = (
            f"the derivative of {len(doubtful)} of {len(report.status)} elements may not exist or is inaccurate: "
            f"{_first(doubtful)}. The returned derivative is a least-squares direction; see report.derivative for its "
            "accuracy"
        )
        if self._on_degenerate == "raise":
            raise DerivativeError(message)
        self._warn("derivatives", message)

    def _warn(self, about: str, message: str) -> None:
        with self._lock:
            first = about not in self._warned
            self._warned.add(about)
        if first:
            note = " (shown once per layer; on_degenerate='report' turns it off)"
            warnings.warn(message + note, UserWarning, stacklevel=2)


def _first(named: list[str]) -> str:
    return f"{', '.join(named[:MAX_LISTED])}{' ...' if len(named) > MAX_LISTED else ''}"
