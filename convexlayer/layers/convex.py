"""ConvexLayer: the solution map of a CVXPY problem as a torch module."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, final

import cvxpy as cp
import torch

from convexlayer.arguments import check_kind, check_truth, described
from convexlayer.canon import ParametricProgram
from convexlayer.errors import DerivativeError, FailedElementsError, InvalidElementsError, ProblemError
from convexlayer.layers.canonicalize import canonicalize
from convexlayer.layers.function import Call, solve
from convexlayer.layers.remote import remote_layer, server_url
from convexlayer.layers.report import Report
from convexlayer.layers.solution_map import SolutionMap
from convexlayer.layers.theta import batch_size
from convexlayer.solvers import Options
from convexlayer.status import Status

__all__ = ["ConvexLayer"]

ON_FAILURE = ("raise", "nan", "keep")
ON_DEGENERATE = ("warn", "report", "raise")


@final
class ConvexLayer(torch.nn.Module):
    """theta -> solution of a convex problem, differentiable both ways.

        layer = ConvexLayer(problem, parameters=[A, b], variables=[x])
        (solution,) = layer(A_tensor, b_tensor)
        loss(solution).backward()

    Each tensor has its parameter's shape, or one leading batch axis; the two mix by broadcasting, and the gradient of a
    shared parameter is the sum over the batch. The work inside is float64, on the CPU unless ``device`` says otherwise;
    dtype and device of the tensors come back in the outputs. Works under torch.no_grad, torch.func (vmap, jvp, vjp,
    jacrev, jacfwd) and torch.autograd.gradcheck; torch.compile breaks its graph around it. Thread-safe, picklable,
    deep-copyable.

    Where the environment's ``CONVEXLAYER_URL`` names a server, what is made is a ``RemoteConvexLayer`` of the client
    package, which has the same call and does its work there (``layers/remote.py``).
    """

    def __new__(cls, *arguments: Any, **keywords: Any) -> Any:
        """A layer of this process, or one whose work is done on the server that the environment names."""
        url = server_url()
        if url is None or not (arguments or keywords):  # a copy of a local layer is made without arguments
            return super().__new__(cls)
        return remote_layer(url, *arguments, **keywords)

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
        """Compile a problem.

        Args:
            problem: a DPP problem; its own state is neither used nor changed.
            parameters: every parameter of the problem, in the order of the tensors.
            variables: what to return: variables of the problem, and dual variables of its constraints
                (``constraint.dual_variables[i]``).
            solver: a name that ``convexlayer solvers`` lists, or ``auto``.
            tune: with ``auto``, let the first call time the solvers that might be the fastest, and keep to the winner.
            device: the torch device that solves and differentiates batches of small dense programs (see
                ``SolutionMap``); the tensors of a call may be anywhere.
            gp: the problem is a geometric program.
            derivative: ``exact``, or ``diffcp`` for the reference implementation.
            on_failure: what to do when an element has no solution, or values that cannot be used: ``raise`` a
                FailedElementsError that carries the others, fill its outputs with ``nan``, or ``keep`` the solver's
                last iterate. Gradients of such elements are zero, and those of the others are untouched.
            on_degenerate: what to do when a derivative may not exist or is inaccurate: ``warn`` (once a layer; of
                solutions that are inaccurate themselves the call warns once, too), ``report`` only, or ``raise`` a
                DerivativeError.
            options: ``Options`` or a mapping of changes to the default ones.
            check_attributes: whether tensors that violate their parameter's attributes are invalid.
            presolve: solve a reduced program; ``program.presolve`` records what was reduced.
            self_check: check the compiled problem at random parameter values (see ``canonicalize``).

        Raises:
            ProblemError: the problem cannot be compiled; NotDPPError and UnsupportedError say more.
            SolverError: the solver is unknown, missing, or cannot take the problem.
            DerivativeError: the derivative mode is unknown.
        """
        super().__init__()
        check_kind("problem", problem, cp.Problem, "a cvxpy.Problem")
        _check_sequence("parameters", parameters, cp.Parameter, "cvxpy.Parameter")
        _check_sequence("variables", variables, cp.Variable, "cvxpy.Variable (or dual variables)")
        for name, value in (("gp", gp), ("presolve", presolve), ("self_check", self_check)):
            check_truth(name, value)
        _check_choice("on_failure", on_failure, ON_FAILURE)
        program = canonicalize(problem, parameters, variables, gp=gp, presolve=presolve, self_check=self_check)
        self._map = SolutionMap(
            program,
            solver=solver,
            tune=tune,
            device=device,
            derivative=derivative,
            options=options,
            check_attributes=check_attributes,
        )
        self._on_failure = on_failure
        self._judge = _Judge(on_degenerate)

    @property
    def program(self) -> ParametricProgram:
        """The compiled problem."""
        return self._map.program

    @property
    def solution_map(self) -> SolutionMap:
        """The same map in NumPy."""
        return self._map

    def extra_repr(self) -> str:
        """Sizes and solver, for torch's repr."""
        structure = self.program.structure
        names = ", ".join(spec.name for spec in self.program.parameters)
        outputs = ", ".join(spec.name for spec in self.program.outputs)
        record = self.program.presolve
        given = structure if record is None else record.source.structure
        presolve = "" if record is None else f" (n={given.n}, m={given.m} before presolve)"
        return f"({names}) -> ({outputs}), n={structure.n}, m={structure.m}{presolve}, solver={self._map.solver}"

    @torch.compiler.disable  # type: ignore[misc, untyped-decorator, unused-ignore]
    def forward(
        self,
        *tensors: torch.Tensor,
        options: Options | Mapping[str, Any] | None = None,
        warm_start: Report | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Solve.

        Args:
            tensors: one a parameter, of its shape or with one leading batch axis.
            options: complete options, or changes to the layer's, for this call.
            warm_start: the report of an earlier ``solve``; used where the batch is of the same size.

        Returns:
            One tensor a variable, with the batch axis if any input had it.

        Raises:
            ShapeError: shapes or batch sizes do not fit.
            ProblemError: an argument is of the wrong type, or a tensor is not floating.
            FailedElementsError: elements without a solution, under ``on_failure="raise"``; an InvalidElementsError
                where a tensor is not finite or violates its parameter's attributes.
        """
        outputs, _, report = self._solve(tensors, options, warm_start)
        self._judge.of_solutions(report)
        return outputs

    @torch.compiler.disable  # type: ignore[misc, untyped-decorator, unused-ignore]
    def solve(
        self,
        *tensors: torch.Tensor,
        options: Options | Mapping[str, Any] | None = None,
        warm_start: Report | None = None,
    ) -> tuple[tuple[torch.Tensor, ...], Report]:
        """Like the call, with the report, whose objective values are a differentiable tensor; backward completes it."""
        outputs, objective, report = self._solve(tensors, options, warm_start)
        return outputs, replace(report, objective=objective)  # a copy: the graph holds the other one

    def _solve(
        self, tensors: tuple[torch.Tensor, ...], options: Any, warm_start: Report | None
    ) -> tuple[tuple[torch.Tensor, ...], torch.Tensor, Report]:
        """Outputs, objective values, and the report that the graph holds."""
        specs = self.program.parameters
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
            Options.of(options, self._map.options),
            warm_start,
            keep=self._on_failure == "keep",
            judge=self._judge,
        )
        *outputs, objective = solve(call, tensors)
        if not batched:
            outputs, objective = [output.squeeze(0) for output in outputs], objective.squeeze(0)
        report = call.result().report
        if report.failed and self._on_failure == "raise":
            invalid = Status.INVALID in report.status
            raise (InvalidElementsError if invalid else FailedElementsError)(
                _failure_message(report, batched=batched),
                indices=report.failed,
                outputs=tuple(outputs),
                report=replace(report, objective=objective),
            )
        return tuple(outputs), objective, report


def _failure_message(report: Report, *, batched: bool) -> str:
    if not batched and report.status[0] is Status.INVALID:
        return report.details[0]
    named = ", ".join(f"{i} ({report.status[i]})" for i in report.failed[:8])
    more = f" and {len(report.failed) - 8} more" if len(report.failed) > 8 else ""
    known = "".join(f". Element {i}: {report.details[i]}" for i in sorted(report.details)[:3])
    return (
        f"{len(report.failed)} of {len(report.status)} elements have no solution: {named}{more}. The others are in "
        f"this error's outputs; on_failure='nan' returns them instead{known}"
    )


def _check_sequence(name: str, values: object, kind: type, expected: str) -> None:
    if isinstance(values, kind) or not isinstance(values, Iterable):
        raise ProblemError(f"{name} must be a list of {expected}, got {described(values)}")
    for i, value in enumerate(values):
        check_kind(f"{name}[{i}]", value, kind, f"a {expected}")


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ProblemError(f"{name} must be one of {', '.join(known)}, got {described(value)}")


@final
class _Judge:
    """What becomes of derivatives that cannot be trusted, and of inaccurate solutions; warns once of each."""

    def __init__(self, on_degenerate: str) -> None:
        _check_choice("on_degenerate", on_degenerate, ON_DEGENERATE)
        self._on_degenerate = on_degenerate
        self._lock = threading.Lock()
        self._said: set[str] = set()

    def __reduce__(self) -> tuple[Callable[[str], _Judge], tuple[str]]:
        return _Judge, (self._on_degenerate,)

    def of_solutions(self, report: Report) -> None:
        """Of a call that returns no report."""
        if self._on_degenerate == "report" or report.solution.all_optimal:
            return
        inaccurate = [str(i) for i, word in enumerate(report.status) if word is Status.OPTIMAL_INACCURATE]
        if inaccurate:
            self._warn(
                "solutions",
                f"the solutions of {len(inaccurate)} of {len(report.status)} elements are inaccurate: "
                f"{_first(inaccurate)}. The report of layer.solve(...) says how far: its status and residuals",
            )

    def __call__(self, report: Report) -> None:
        derivative = report.derivative
        if self._on_degenerate == "report" or derivative is None or derivative.trusted:
            return
        doubtful = [
            f"{i} ({word})"
            for i, (word, status) in enumerate(zip(derivative.status, report.status, strict=True))
            if word != "ok" and status.solved
        ]
        if not doubtful:
            return
        message = (
            f"the derivative of {len(doubtful)} of {len(report.status)} elements may not exist or is inaccurate: "
            f"{_first(doubtful)}. What is returned is a least-squares direction; report.derivative says how far to "
            "trust it"
        )
        if self._on_degenerate == "raise":
            raise DerivativeError(message)
        self._warn("derivatives", message)

    def _warn(self, about: str, message: str) -> None:
        with self._lock:
            first = about not in self._said
            self._said.add(about)
        if first:
            warnings.warn(message + " (said once a layer; on_degenerate='report' is silent)", UserWarning, stacklevel=2)


def _first(named: list[str]) -> str:
    return f"{', '.join(named[:8])}{' ...' if len(named) > 8 else ''}"
