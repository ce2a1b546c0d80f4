"""Solution maps of servers: with ``CONVEXLAYER_URL`` in the environment, a ``ConvexLayer`` solves there.

Programs need no change to switch between local and remote layers. The map comes from the package that registers the
entry point ``server`` in the group ``convexlayer.solution_maps``, which is the client; this package does not import it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import entry_points
from typing import Any

import cvxpy as cp

from convexlayer.errors import NotInstalledError, UnsupportedError
from convexlayer.layers.protocol import AbstractSolutionMap
from convexlayer.solvers import Options

__all__ = ["ENTRY_POINTS", "URL_VARIABLE", "remote_solution_map", "server_url"]

URL_VARIABLE = "CONVEXLAYER_URL"
"""Environment variable with the URL of the server on which layers solve."""

ENTRY_POINTS = "convexlayer.solution_maps"
"""The group of entry points whose member ``server`` is a class with the arguments of ``RemoteSolutionMap``."""

_REMOTE_OPTIONS = ("tol", "max_iter", "time_limit_s")
"""The options that a request to a server can have; the others need a local layer."""


def server_url() -> str | None:
    """Return the URL of the server on which layers solve; None for local layers."""
    return os.environ.get(URL_VARIABLE) or None


def remote_solution_map(
    url: str,
    problem: cp.Problem,
    parameters: Sequence[cp.Parameter],
    variables: Sequence[cp.Variable],
    *,
    solver: str,
    gp: bool,
    options: Options | Mapping[str, Any] | None,
    derivative: str,
    check_attributes: bool,
) -> AbstractSolutionMap:
    """Create the solution map of a problem on a server, for arguments of ``ConvexLayer``; a server decides the rest.

    Raises:
        UnsupportedError: an argument is supported by local layers only.
        NotInstalledError: the client is not installed.
        convexlayer_client.ClientError: the server cannot be reached, or rejects the problem.
    """
    given = options if isinstance(options, Options) else Options.of(options, Options())
    default = asdict(Options())
    changed = {name: value for name, value in asdict(given).items() if value != default[name]}
    local = {f"options {name}={value!r}": name not in _REMOTE_OPTIONS for name, value in changed.items()} | {
        f"derivative={derivative!r}": derivative != "exact",
        f"check_attributes={check_attributes}": not check_attributes,
    }
    refused = [name for name, is_local in local.items() if is_local]
    if refused:
        raise UnsupportedError(
            f"a server does not support {refused[0]}; unset {URL_VARIABLE}, which is {url!r}, to use a local layer"
        )
    try:
        (entry,) = entry_points(group=ENTRY_POINTS, name="server")
        create = entry.load()
    except (ImportError, ValueError) as error:  # no such entry point, or one whose module is gone
        raise NotInstalledError(
            f"{URL_VARIABLE} is set, but the client is missing ({error}): pip install 'convexlayer-client[cvxpy]', or "
            "unset it"
        ) from error
    made: AbstractSolutionMap = create(problem, parameters, variables, url=url, solver=solver, gp=gp, options=changed)
    return made
