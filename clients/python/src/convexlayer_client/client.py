"""The synchronous client: the calls of ``wire``, sent by httpx."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar, final

import httpx
from numpy.typing import ArrayLike

from convexlayer_client import wire
from convexlayer_client.errors import TransportError
from convexlayer_client.results import JvpResult, Options, Problem, SolveResult, VjpResult

__all__ = ["Client"]

T = TypeVar("T")


@final
class Client:
    """A connection to a Convexlayer server.

        with Client("http://127.0.0.1:8000") as client:
            problem = client.register(document)
            result = client.solve(problem.id, {"b": b})

    Threads may share a client. Every method raises ``ApiError`` (one class a status), ``TransportError`` where no
    answer comes, ``ProtocolError`` where the answer is not this API's, and ``EncodingError`` where what is given cannot
    be sent.

    Args:
        url: Where the server is.
        api_key: Sent as a bearer token; None for a server without keys.
        timeout_s: Seconds to wait for an answer; solves of large batches take their time.
        transport: httpx transport in place of the network, for tests and proxies.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        timeout_s: float = 600.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._http = httpx.Client(
            base_url=url,
            headers={} if api_key is None else {"Authorization": f"Bearer {api_key}"},
            timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, 10.0)),
            transport=transport,
        )
        weakref.finalize(self, self._http.close)

    def __deepcopy__(self, memo: dict[int, Any]) -> Client:
        """The client itself: a connection is shared, not copied."""
        return self

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; the client cannot be used afterwards."""
        self._http.close()

    def health(self) -> Mapping[str, Any]:
        """What the server says of itself."""
        return self._run(wire.health())

    def register(self, document: Mapping[str, Any]) -> Problem:
        """Register a problem document. The same document always has the same id, and is compiled once.

        Args:
            document: An expression document or a cone program document, plain JSON.
        """
        return self._run(wire.register(document))

    def problems(self) -> tuple[Problem, ...]:
        """The registered problems."""
        return self._run(wire.problems())

    def get(self, problem_id: str) -> Problem:
        """A registered problem."""
        return self._run(wire.get(problem_id))

    def delete(self, problem_id: str) -> None:
        """Remove a registration."""
        self._run(wire.delete(problem_id))

    def solve(
        self,
        problem_id: str,
        parameters: Mapping[str, ArrayLike],
        *,
        solver: str = "auto",
        options: Options | None = None,
        duals: bool = False,
    ) -> SolveResult:
        """Solve a problem for a batch of parameters.

        Args:
            problem_id: The problem.
            parameters: Array of each parameter, of its registered shape or with one leading batch axis.
            solver: Name of a solver, or "auto".
            options: Tolerance and limits.
            duals: Return the dual variables of the constraints, too.
        """
        return self._run(wire.solve(problem_id, parameters, solver=solver, options=options, duals=duals))

    def vjp(
        self,
        problem_id: str,
        cotangents: Mapping[str, ArrayLike],
        parameters: Mapping[str, ArrayLike],
        *,
        wrt: Sequence[str] | None = None,
        solver: str = "auto",
        options: Options | None = None,
    ) -> VjpResult:
        """Gradients of <cotangents, outputs> with respect to parameters.

        Args:
            problem_id: The problem.
            cotangents: Array by variable or dual variable, shaped as the output, or "objective", shape (batch,).
            parameters: As for ``solve``.
            wrt: Parameters to differentiate in; all by default.
            solver: Name of a solver, or "auto".
            options: Tolerance and limits.
        """
        return self._run(wire.vjp(problem_id, cotangents, parameters, wrt=wrt, solver=solver, options=options))

    def jvp(
        self,
        problem_id: str,
        tangents: Mapping[str, ArrayLike],
        parameters: Mapping[str, ArrayLike],
        *,
        solver: str = "auto",
        options: Options | None = None,
        duals: bool = False,
    ) -> JvpResult:
        """Tangents of the outputs along tangents of the parameters.

        Args:
            problem_id: The problem.
            tangents: Array by parameter, of its shape or with a batch axis; parameters left out do not move.
            parameters: As for ``solve``.
            solver: Name of a solver, or "auto".
            options: Tolerance and limits.
            duals: Return the tangents of the dual variables, too.
        """
        return self._run(wire.jvp(problem_id, tangents, parameters, solver=solver, options=options, duals=duals))

    def _run(self, call: wire.Call[T]) -> T:
        content = call.content
        if self._http.is_closed:
            raise TransportError(f"the client is closed; make another for {call.method} {call.path}")
        try:
            response = self._http.request(call.method, call.path, content=content, headers=call.headers)
        except httpx.RequestError as error:
            raise TransportError(
                f"no answer from {self._http.base_url} to {call.method} {call.path}: {error or type(error).__name__}"
            ) from error
        return call.result(wire.Reply(response.status_code, response.headers, response.content))
