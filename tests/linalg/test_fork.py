"""Factorisation in a child forked from a process that has factorised."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os
import numpy as np
from convexlayer.linalg.dense.batched import DenseBackend
from convexlayer.program import Pattern

size = 40
rows, cols = np.triu_indices(size)
order = np.lexsort((rows, cols))
pattern = Pattern((size, size), rows[order], cols[order])
values = np.random.default_rng(0).normal(size=(64, pattern.nnz))
backend = DenseBackend()
expected = backend.factor(backend.init(pattern), values).solve(np.ones((64, size)))
child = os.fork()
found = backend.factor(backend.init(pattern), values).solve(np.ones((64, size)))
assert np.allclose(found, expected)
if child:
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not fork")
def test_a_forked_child_can_factorise() -> None:
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM]
    threads = {"OMP_NUM_THREADS": "2"}  # torch has threads, which the child lacks
    subprocess.run(command, env=os.environ | threads, check=True, timeout=600, capture_output=True, text=True)
