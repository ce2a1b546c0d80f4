"""Compute gradients of every family by the client's solution map, without the library and the server.

Run as `python without_library.py URL`; prints {family: [gradient, ...]} as JSON.
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

from families import FAMILIES  # noqa: E402

from convexlayer_client import RemoteSolutionMap  # noqa: E402 - after the finder


def main(url: str) -> None:
    result = {}
    for name, build in FAMILIES.items():
        family = build()
        solution_map = RemoteSolutionMap(family.problem, family.parameters, family.outputs, url=url, gp=family.gp)
        tensors = family.tensors(seed=11, batched=(True,) * len(family.parameters))
        solved = solution_map.solve([tensor.detach().numpy() for tensor in tensors])
        gradients, _ = solved.vjp([2.0 * output for output in solved.outputs])
        result[name] = [gradient.tolist() for gradient in gradients]
    json.dump(result, sys.stdout)


main(sys.argv[1])
