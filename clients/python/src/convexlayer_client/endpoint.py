"""The server as both clients see it: URL, headers, timeouts, retries and encodings. This module does no I/O."""

from __future__ import annotations

import json
import logging
import os
import platform
import random
from collections.abc import Callable, Generator, Mapping
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar, final

import httpx
from tenacity import RetryCallState, stop_before_delay, wait_random_exponential

from convexlayer_client import readers
from convexlayer_client.call import Call, Reply, Request
from convexlayer_client.errors import (
    ApiError,
    GoneError,
    MediaTypeError,
    ProtocolError,
    RequestTimeoutError,
    TooManyRequestsError,
    TransportError,
    UnavailableError,
)
from convexlayer_client.plans import ServerInfo
from convexlayer_client.results import Job, JobStatus
from convexlayer_client.version import __version__

__all__ = ["API_KEY_VARIABLE", "RECONNECT_S", "URL_VARIABLE", "Endpoint", "parse_event"]

T = TypeVar("T")
C = TypeVar("C")

URL_VARIABLE = "CONVEXLAYER_URL"
API_KEY_VARIABLE = "CONVEXLAYER_API_KEY"

RECONNECT_S = 0.5
"""Pause in seconds before the client reconnects to a stream of events."""

_LOG = logging.getLogger("convexlayer_client")
_CONNECT_S = 10.0
"""Seconds to wait for a connection at most: far more than a round trip, far less than a solve."""
_USER_AGENT = f"convexlayer-client/{__version__} python/{platform.python_version()}"


@final
class Endpoint:
    """A server, and the options of requests to it.

    Args:
        url: URL of the server; by default the variable ``CONVEXLAYER_URL``.
        api_key: Bearer token; by default the variable ``CONVEXLAYER_API_KEY``, or none.
        timeout_s: Seconds to wait for a response.
        retry_s: Seconds for which a request may be retried.
        headers: Headers of every request.

    Attributes:
        url: URL of the server.
        known: What responses have revealed about the server.

    Raises:
        ValueError: There is no URL.
    """

    def __init__(
        self,
        url: str | None,
        api_key: str | None,
        timeout_s: float,
        retry_s: float,
        headers: Mapping[str, str] | None,
    ) -> None:
        self._timeout_s, self._retry_s = timeout_s, retry_s
        self.url = url or os.environ.get(URL_VARIABLE, "")
        if not self.url:
            raise ValueError(f"expected the URL of a server, as an argument or in {URL_VARIABLE}")
        key = api_key or os.environ.get(API_KEY_VARIABLE)
        own = {"User-Agent": _USER_AGENT} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._headers = _merged(own, headers)
        self.known = ServerInfo()

    def with_options(
        self, timeout_s: float | None, retry_s: float | None, headers: Mapping[str, str] | None
    ) -> Endpoint:
        """Return the same server with other options."""
        other = copy(self)
        other._timeout_s = self._timeout_s if timeout_s is None else timeout_s
        other._retry_s = self._retry_s if retry_s is None else retry_s
        other._headers = _merged(self._headers, headers)
        return other

    @property
    def retries(self) -> dict[str, Any]:
        """Arguments of tenacity: when to retry a call."""
        return {
            "retry": _is_retryable,
            "wait": _retry_wait_s,
            "stop": stop_before_delay(self._retry_s),
            "before_sleep": _log_retry,
            "reraise": True,
        }

    @property
    def timeout(self) -> httpx.Timeout:
        """Timeouts of httpx."""
        return httpx.Timeout(self._timeout_s, connect=min(self._timeout_s, _CONNECT_S))

    def headers(self, own: Mapping[str, str], request_id: str | None = None) -> httpx.Headers:
        """Return all headers of a request; its own override those of the options."""
        named = {} if request_id is None else {"X-Request-Id": request_id}
        return _merged(_merged(named, self._headers), own)

    def exchange(self, call: Call[T]) -> Generator[Request, Reply, T]:
        """Yield requests, receive their responses, and return the result.

        A second request follows if the server does not support safetensors (then later calls use JSON), or if the state
        of the call has expired.
        """
        while True:
            form = self.known.form
            request = call.request(form)
            reply = yield replace(request, headers=self.headers(request.headers, call.request_id))
            try:
                return call.result(reply)
            except MediaTypeError:
                if not call.arrays or form == "json":
                    raise
                self.known.form = "json"
            except GoneError:
                if call.fallback is None:
                    raise
                call = call.fallback

    def factory(self, client: Callable[..., C]) -> Callable[..., C]:
        """Return a factory of such a client, without the key and the headers, which may be secret."""
        return partial(client, self.url, timeout_s=self._timeout_s, retry_s=self._retry_s)

    def transport_error(self, request: Request, error: httpx.HTTPError) -> TransportError:
        """Return the error of a request without a response."""
        what = f"from {self.url} to {request.method} {request.path}"
        match error:
            case httpx.ConnectTimeout():
                limit_s = self.timeout.connect or 0.0
                message = (
                    f"no connection within {limit_s:g} s, so no response {what}: is the server running and reachable?"
                )
                return RequestTimeoutError(message, timeout_s=limit_s)
            case httpx.TimeoutException():
                message = (
                    f"no response {what} within {self._timeout_s:g} s; the server may still be computing. "
                    "Increase timeout_s, send fewer elements at a time, or submit a job, which needs no open connection"
                )
                return RequestTimeoutError(message, timeout_s=self._timeout_s)
            case _:
                return TransportError(f"no response {what}: {error or type(error).__name__}")

    def cancelled(self, call: Call[Any]) -> TransportError:
        """Return the error of a call that was cancelled because another one failed."""
        return TransportError(f"{call.method} {call.path} was cancelled because another part of its batch failed")

    def closed(self, call: Call[Any]) -> TransportError:
        """Return the error of a call on a closed client."""
        return TransportError(f"the client is closed; {call.method} {call.path} needs a new one")

    def log_interrupted_stream(self, job: Job[Any], error: httpx.TransportError) -> None:
        """Log that the events of a job ended before the job."""
        _LOG.info("the events of job %s were interrupted: %r", job.id, error)


def _merged(headers: Mapping[str, str], others: Mapping[str, str] | None) -> httpx.Headers:
    """Merge headers, ignoring the case of their names; ``others`` override."""
    merged = httpx.Headers(headers)
    merged.update(others)
    return merged


def parse_event(data: str) -> JobStatus:
    """Parse the data of an event.

    Raises:
        ProtocolError: The data is not the status of a job.
    """
    try:
        return readers.job_status(json.loads(data))
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"the server sent an event that is not the status of a job: {error!r}") from error


def _is_retryable(state: RetryCallState) -> bool:
    error = None if state.outcome is None else state.outcome.exception()
    call: Call[Any] = state.args[0]
    match error:
        case TooManyRequestsError() | UnavailableError():  # nothing was computed
            return True
        case TransportError(__cause__=httpx.ConnectError() | httpx.ConnectTimeout()):  # nothing was sent
            return True
        case TransportError(__cause__=httpx.NetworkError() | httpx.RemoteProtocolError()):
            return call.idempotent
        case ApiError(status=502):  # from a proxy
            return call.idempotent
        case _:
            return False


_FIRST_RETRY_S = 0.2
_MAX_RETRY_S = 5.0
"""Pause in seconds before a retry without Retry-After: the first one, which doubles, and the longest."""

_JITTER = 0.25
"""Fraction by which Retry-After is randomly extended, so that clients do not return together."""

_backoff = wait_random_exponential(multiplier=_FIRST_RETRY_S, max=_MAX_RETRY_S)


def _retry_wait_s(state: RetryCallState) -> float:
    """Return the pause before a retry: Retry-After, or exponential backoff, with jitter."""
    error = None if state.outcome is None else state.outcome.exception()
    if isinstance(error, TooManyRequestsError | UnavailableError) and error.retry_after_s is not None:
        return error.retry_after_s * (1.0 + _JITTER * random.random())
    return _backoff(state)


def _log_retry(state: RetryCallState) -> None:
    error = None if state.outcome is None else state.outcome.exception()
    call: Call[Any] = state.args[0]
    wait_s = 0.0 if state.next_action is None else state.next_action.sleep
    level = logging.WARNING if isinstance(error, TransportError) else logging.INFO
    _LOG.log(level, "%s %s is retried in %.1f s: %s", call.method, call.path, wait_s, error)
