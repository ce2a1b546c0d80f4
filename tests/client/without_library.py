"""Compute gradients of problem families by the client's solution map, without the library and the server.

Run as `python without_library.py URL NAME ...`; prints {family: [gradient, ...]} as JSON.
"""

from __future__ import annotations

import json
import sys
from importlib.abc import MetaPathFinder
from typing import Any


class Hidden(MetaPathFinder):
    """Hides the library and the server from the import system."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        if fullname.partition(".")[0] in ("convexlayer", "convexlayer_server"):
            raise ModuleNotFoundError(f"{fullname} is hidden from this process", name=fullname)


sys.meta_path.insert(0, Hidden())

from convexlayer_client import RemoteSolutionMap  # noqa: E402 - after the finder
from tests.families import family  # noqa: E402


def main(url: str, *names: str) -> None:
    result = {}
    for name in names:
        case = family(name)
        solution_map = RemoteSolutionMap(case.problem, case.parameters, case.outputs, url=url, gp=case.gp)
        solved = solution_map.solve(case.values(3, seed=11))
        gradients, _ = solved.vjp([2.0 * output for output in solved.outputs])
        result[name] = [gradient.tolist() for gradient in gradients if gradient is not None]
    json.dump(result, sys.stdout)


main(*sys.argv[1:])
