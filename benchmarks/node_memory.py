"""Growth of resident memory in the backward pass of a node, each measured in a separate process.

python -m benchmarks.node_memory CASE N
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.memory import PEAK_RESET, status
from convexlayer.nodes import ArgminNode, ConjugateGradients, Dense, GivenBatch, NodeOptions

__all__ = ["CASES", "FORMED", "measure_growth"]

DENSE, GRADIENTS, FORMED = "dense", "conjugate gradients", "f_XY formed"

CASES = (DENSE, GRADIENTS, FORMED)


def measure_growth(case: str, size: int) -> dict[str, Any]:
    """Measure one case in a separate process."""
    command = [sys.executable, "-m", "benchmarks.node_memory", case, str(size)]
    root = Path(__file__).parents[1]
    process = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd=root, check=False)
    if process.returncode:
        raise RuntimeError(f"{case}, {size}: {process.stderr.strip()}")
    found: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return {"case": case, "n": size, **found}


def _measure_growth(case: str, n: int) -> dict[str, Any]:
    """Measure the backward pass of y = argmin |A y - b|^2 / 2n + |y|^2 / 2 with the parameters (A, b).

    f_XY has n (n^2 + n) entries. The solution is given, so the forward pass needs little memory.
    """

    def f(y: torch.Tensor, A: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (A @ y - b).square().sum() / (2 * n) + 0.5 * y.square().sum()

    def solution(A: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        gram = A.mT @ A / n + torch.eye(n)
        return torch.linalg.solve(gram, (A.mT @ b[..., None]) / n)[..., 0]

    generator = torch.Generator().manual_seed(0)
    A, b = (torch.randn(shape, generator=generator).requires_grad_() for shape in ((n, n), (n,)))
    v = torch.randn(n, generator=generator)
    options = NodeOptions(linear=ConjugateGradients() if case == GRADIENTS else Dense(), polish=0)
    node = ArgminNode(f, (n,), [(n, n), (n,)], solver=GivenBatch(solution), options=options)

    def formed() -> torch.Tensor:
        """Lemma 3.2 with the matrix f_XY formed."""
        y = solution(A.detach(), b.detach())
        H = torch.func.hessian(f)(y, A.detach(), b.detach())
        B = torch.func.jacrev(torch.func.grad(f), argnums=1)(y, A.detach(), b.detach())
        return -torch.tensordot(torch.linalg.solve(H, v), B, 1)

    if case == FORMED:
        gradient, mebibytes = _peak(formed)
    else:
        y = node(A, b)
        gradient, mebibytes = _peak(lambda: torch.autograd.grad(y, A, v)[0])
    (exact,) = torch.autograd.grad(solution(A, b), A, v)
    return {"mebibytes": mebibytes, "gradient_error": float((gradient - exact).norm() / exact.norm())}


def _peak(work: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, float]:
    """Run some work; returns its result and the peak growth of the process, MiB."""
    PEAK_RESET.write_text("5")
    before = status("VmRSS")
    result = work()
    return result, (status("VmHWM") - before) / 1024


def main() -> None:
    """Print one measurement as JSON."""
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    print(json.dumps(_measure_growth(sys.argv[1], int(sys.argv[2]))))


if __name__ == "__main__":
    main()
