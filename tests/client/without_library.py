"""Compute gradients of problem families by the client, without the library and the server.

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

from convexlayer_client.layer import RemoteConvexLayer  # noqa: E402 - after the finder
from tests.families import family  # noqa: E402


def main(url: str, *names: str) -> None:
    result = {}
    for name in names:
        case = family(name)
        layer = RemoteConvexLayer(case.problem, case.parameters, case.outputs, url=url, gp=case.gp)
        tensors = case.tensors(3, seed=11)
        sum((output**2).sum() for output in layer(*tensors)).backward()
        result[name] = [tensor.grad.tolist() for tensor in tensors]
    json.dump(result, sys.stdout)


main(*sys.argv[1:])
