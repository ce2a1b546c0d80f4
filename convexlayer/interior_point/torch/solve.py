"""The interior-point method on dense torch tensors, on the homogeneous embedding, the whole batch in lock step.

    minimise  1/2 x'Px + q'x   subject to  Ax + s = b,  s in K,      K zero, nonnegative and second-order cones

    Px + A'y + tau q = 0      Ax + s = tau b      x'Px / tau + q'x + b'y + kappa = 0      s'y = tau kappa = 0

Mehrotra's predictor-corrector method with Nesterov-Todd scaling. tau > 0 gives the solution (x, y, s) / tau; if kappa
dominates, x or y is a certificate of unboundedness or infeasibility. A finished element is frozen while the others
iterate; once half of the batch is finished, the finished elements are removed from it.

Reference: Goulart and Chen, Clarabel: an interior-point solver for conic programs with quadratic objectives (2024,
arXiv 2405.12762), for the embedding, the step equations, the starting point and the infeasibility tests.
"""

from __future__ import annotations

import time
from typing import final

import numpy as np
import torch
from torch import Tensor

from convexlayer.interior_point.torch.cones import ConeRows
from convexlayer.interior_point.torch.iterate import residual, start, step
from convexlayer.interior_point.torch.kkt import KktData
from convexlayer.interior_point.torch.termination import Outcome, TerminationTest, Verdict
from convexlayer.linalg.dense.batched import set_single_thread_after_fork
from convexlayer.linalg.equilibration.tensors import DenseProgram, equilibrate
from convexlayer.program import ConeProgram, Structure
from convexlayer.solution import Solution
from convexlayer.status import Status

__all__ = ["TorchInteriorPoint"]

MAX_ITER = 100
"""Default maximum number of iterations; most programs take 8 to 20."""

MIN_STEP = 1e-7
"""Step length at or below which an element counts as stalled."""

CHECK_EVERY = {"cpu": 1}
"""Iterations between checks for finished elements, by device type; 4 on other devices, because each check synchronises
with the device."""

STATUS = {
    Outcome.SOLVED: Status.OPTIMAL,
    Outcome.INFEASIBLE: Status.INFEASIBLE,
    Outcome.UNBOUNDED: Status.UNBOUNDED,
    Outcome.STALLED: Status.NUMERICAL_ERROR,
}


@final
class TorchInteriorPoint:
    """Interior-point solver for batches of one structure on one torch device; index tensors are moved there once.

    Args:
        structure: zero, nonnegative and second-order cones only.
        device: a torch device, such as ``cpu`` or ``cuda``.
    """

    def __init__(self, structure: Structure, device: str) -> None:
        self.structure = structure
        self.device = torch.device(device)
        self.p = structure.cones.zero
        self.cone = ConeRows(structure.cones)
        place = np.concatenate([np.arange(self.p), self.p + np.asarray(self.cone.position, dtype=np.int64)])
        n, P, A = structure.n, structure.P, structure.A
        self._rows = place
        self._height = self.p + self.cone.rows
        self._check_every = CHECK_EVERY.get(self.device.type, 4)
        self._place = self._index(place)
        self._P_place = self._index(P.rows * n + P.cols)
        self._A_place = self._index(place[A.rows] * n + A.cols)

    def solve(self, program: ConeProgram, *, tol: float, max_iter: int | None, time_limit_s: float | None) -> Solution:
        """Solve every element.

        Args:
            program: finite data, (B, ...).
            tol: bound on the primal, dual and gap residuals of ``Residuals``; also on the natural residual, if a few
                further iterations reach it.
            max_iter: maximum number of iterations, MAX_ITER by default.
            time_limit_s: time limit of the whole batch, in seconds.

        Returns:
            Solutions. Infeasible elements have a ray y with b'y = -1, unbounded ones a ray x with q'x = -1. Elements
            on which the method stalls above tol have status NUMERICAL_ERROR and the best iterate.
        """
        set_single_thread_after_fork()
        begin = time.perf_counter()
        deadline = np.inf if time_limit_s is None else begin + time_limit_s
        with torch.no_grad():
            verdict = self._run(self._dense(program), tol, max_iter or MAX_ITER, deadline)
            x, y, s = (part.cpu().numpy() for part in (verdict.x, verdict.y, verdict.s))
            words, iterations = verdict.outcome.tolist(), verdict.iterations.cpu().numpy()
        end = time.perf_counter()
        unfinished = Status.TIME_LIMIT if end > deadline else Status.ITERATION_LIMIT
        return Solution(
            x=x,
            y=y[:, self._rows],
            s=s[:, self._rows],
            status=tuple(STATUS.get(Outcome(word), unfinished) for word in words),
            iterations=iterations,
            seconds=np.full(program.batch, (end - begin) / program.batch),
            stats={"solver": "dense", "version": torch.__version__, "device": str(self.device)},
        )

    def _run(self, program: DenseProgram, tol: float, max_iter: int, deadline: float) -> Verdict:
        """Iterate until every element is finished."""
        cone = self.cone
        scaled = equilibrate(program, self._block_max)
        data = KktData(scaled.program.P, scaled.program.A, self.p)
        test = TerminationTest(tol, scaled, cone)
        at = start(scaled.program, cone, quadratic=self.structure.P.nnz > 0)
        finished = verdict = Verdict.none(at.x, at.y)
        present = torch.arange(len(at.x), device=self.device)
        for iteration in range(max_iter + 1):
            residuals = residual(scaled.program, cone, at)
            verdict = test.check(at, residuals, verdict)
            if iteration % self._check_every == 0 or iteration == max_iter:
                running = verdict.running.nonzero().flatten()
                if len(running) == 0 or iteration == max_iter or time.perf_counter() > deadline:
                    break
                if 2 * len(running) <= len(present):
                    finished = finished.store(present, verdict)
                    present, verdict, at = present[running], verdict.select(running), at.select(running)
                    scaled, test, data = scaled.select(running), test.select(running), data.select(running)
                    residuals = residual(scaled.program, cone, at)
            direction, alpha = step(data, scaled.program, cone, at, residuals)
            verdict = verdict.stop(~(alpha.flatten() > MIN_STEP))
            at = at.advance(direction, alpha, verdict.running[:, None, None])
        return finished.store(present, verdict)

    def _block_max(self, rows: Tensor) -> Tensor:
        """Rows (B, p + rows, 1), each replaced by the largest of its block."""
        return torch.cat((rows[:, : self.p], self.cone.block_max(rows[:, self.p :])), 1)

    def _index(self, index: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(index, dtype=np.int64)).to(self.device)

    def _dense(self, program: ConeProgram) -> DenseProgram:
        """Scatter the values into dense tensors on the device, in the padded layout."""

        def scatter(values: np.ndarray, place: Tensor, rows: int, cols: int) -> Tensor:
            moved = torch.from_numpy(np.require(values, requirements=("C", "W"))).to(self.device)  # W: torch warns
            flat = moved.new_zeros(len(values), rows * cols).index_copy_(1, place, moved)
            return flat.view(len(values), rows, cols)

        n = self.structure.n
        q = torch.tensor(program.q, device=self.device)[..., None]
        return DenseProgram(
            P=scatter(program.P, self._P_place, n, n),
            q=q,
            A=scatter(program.A, self._A_place, self._height, n),
            b=scatter(program.b, self._place, self._height, 1),
        )
