"""Remote layers: with ``CONVEXLAYER_URL`` in the environment, ``ConvexLayer`` solves on that server.

Programs need no change to switch between local and remote layers. The client package is imported only if the variable
is set.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import cvxpy as cp

from convexlayer.errors import (
    DerivativeError,
    FailedElementsError,
    InvalidElementsError,
    NotInstalledError,
    ShapeError,
    UnsupportedError,
)
from convexlayer.solvers import Options

if TYPE_CHECKING:
    from convexlayer_client.layer import RemoteConvexLayer

__all__ = ["URL_VARIABLE", "remote_layer", "server_url"]

URL_VARIABLE = "CONVEXLAYER_URL"

_TRAVELS = ("tol", "max_iter", "time_limit_s")


def server_url() -> str | None:
    """URL of the server on which layers solve; None for local layers."""
    return os.environ.get(URL_VARIABLE) or None


def remote_layer(
    url: str,
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
) -> RemoteConvexLayer:
    """Create a layer that solves on a server and raises the errors of this package.

    Args:
        url: URL of the server.
        problem: as for ``ConvexLayer``, like the other arguments.
        parameters: in the order of the tensors.
        variables: the outputs.
        solver: a name that the server knows, or ``auto``.
        tune: ignored; the server decides.
        device: ignored; the server decides.
        gp: whether the problem is a geometric program.
        derivative: must be ``exact``.
        on_failure: ``raise`` or ``nan``.
        on_degenerate: ``warn``, ``report`` or ``raise``.
        options: ``tol``, ``max_iter`` and ``time_limit_s``.
        check_attributes: must be true; a server always checks attributes.
        presolve: ignored; the server decides.
        self_check: ignored; the server decides.

    Raises:
        UnsupportedError: an argument is supported by local layers only.
        NotInstalledError: the client is not installed.
        convexlayer_client.ClientError: the server cannot be reached, or rejects the problem.
    """
    local = {
        f"derivative={derivative!r}": derivative != "exact",
        f"on_failure={on_failure!r}": on_failure == "keep",
        f"check_attributes={check_attributes}": not check_attributes,
    }
    given = options if isinstance(options, Options) else Options.of(options, Options())
    default = asdict(Options())
    changed = {name: value for name, value in asdict(given).items() if value != default[name]}
    local |= {f"options {name}={value!r}": name not in _TRAVELS for name, value in changed.items()}
    refused = [name for name, is_local in local.items() if is_local]
    if refused:
        raise UnsupportedError(
            f"a server does not support {refused[0]}; unset {URL_VARIABLE}, which is {url!r}, to use a local layer"
        )
    try:
        from convexlayer_client.layer import LayerErrors, RemoteConvexLayer
    except ImportError as error:
        raise NotInstalledError(
            f"{URL_VARIABLE} is set, but the client is missing ({error}): "
            "pip install 'convexlayer-client[cvxpy,torch]', or unset it"
        ) from error
    return RemoteConvexLayer(
        problem,
        parameters,
        variables,
        url=url,
        gp=gp,
        on_failure=on_failure,
        on_degenerate=on_degenerate,
        solver=solver,
        options=changed,
        errors=LayerErrors(
            shape=ShapeError, failed=FailedElementsError, invalid=InvalidElementsError, derivative=DerivativeError
        ),
    )
