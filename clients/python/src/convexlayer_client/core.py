"""What the two clients share: how a call is sent, in which form, and when it is sent again. No input, no output."""

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
from convexlayer_client.plans import Known
from convexlayer_client.results import Job, JobStatus
from convexlayer_client.version import __version__

__all__ = ["API_KEY_VARIABLE", "PAUSE_S", "URL_VARIABLE", "Core", "progress_of"]

T = TypeVar("T")
C = TypeVar("C")

URL_VARIABLE = "CONVEXLAYER_URL"
API_KEY_VARIABLE = "CONVEXLAYER_API_KEY"

PAUSE_S = 0.5
"""Between a connection of events that broke and the next."""

_LOG = logging.getLogger("convexlayer_client")
_CONNECT_S = 10.0
_USER_AGENT = f"convexlayer-client/{__version__} python/{platform.python_version()}"


@final
class Core:
    """A server, and the way to speak to it.

    Args:
        url: Where the server is; ``CONVEXLAYER_URL`` unless given.
        api_key: The bearer token; ``CONVEXLAYER_API_KEY`` unless given, and none without that.
        timeout_s: Seconds to wait for an answer.
        retry_s: Seconds for which a call may be sent again.
        headers: Headers of every request.

    Attributes:
        url: Where the server is.
        known: What was learnt of it.

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
        self.known = Known()

    def with_options(self, timeout_s: float | None, retry_s: float | None, headers: Mapping[str, str] | None) -> Core:
        """The same server, spoken to in another way where something is given."""
        other = copy(self)
        other._timeout_s = self._timeout_s if timeout_s is None else timeout_s
        other._retry_s = self._retry_s if retry_s is None else retry_s
        other._headers = _merged(self._headers, headers)
        return other

    @property
    def retries(self) -> dict[str, Any]:
        """When a call is sent again, as tenacity takes it."""
        return {
            "retry": _may_be_sent_again,
            "wait": _wait_s,
            "stop": stop_before_delay(self._retry_s),
            "before_sleep": _say,
            "reraise": True,
        }

    @property
    def timeout(self) -> httpx.Timeout:
        """How long to wait for each step of a request."""
        return httpx.Timeout(self._timeout_s, connect=min(self._timeout_s, _CONNECT_S))

    def headers(self, own: Mapping[str, str], request_id: str | None = None) -> httpx.Headers:
        """All headers of a request: its own before those of the caller, and these before what else is sent."""
        named = {} if request_id is None else {"X-Request-Id": request_id}
        return _merged(_merged(named, self._headers), own)

    def exchange(self, call: Call[T]) -> Generator[Request, Reply, T]:
        """Yields requests, is sent their replies, and returns the result.

        There is a second request where the server does not read the binary form, which then is not tried again, and
        where it no longer has the state that the call begins with.
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
                if call.otherwise is None:
                    raise
                call = call.otherwise

    def reconnected(self, client: Callable[..., C]) -> Callable[..., C]:
        """How to make another client like this one, but for its key and headers, which may be secrets."""
        return partial(client, self.url, timeout_s=self._timeout_s, retry_s=self._retry_s)

    def lost(self, request: Request, error: httpx.HTTPError) -> TransportError:
        """The error of a request that got no answer."""
        what = f"from {self.url} to {request.method} {request.path}"
        match error:
            case httpx.ConnectTimeout():
                limit_s = self.timeout.connect or 0.0
                message = (
                    f"no connection in {limit_s:g} s, so no answer {what}: is a server there, and can it be reached?"
                )
                return RequestTimeoutError(message, timeout_s=limit_s)
            case httpx.TimeoutException():
                message = (
                    f"no answer {what} in {self._timeout_s:g} s; it may still be computed there. Allow more with "
                    "timeout_s, send fewer elements at a time, or submit a job, which needs no connection"
                )
                return RequestTimeoutError(message, timeout_s=self._timeout_s)
            case _:
                return TransportError(f"no answer {what}: {error or type(error).__name__}")

    def given_up(self, call: Call[Any]) -> TransportError:
        """The error of a call beside one that failed."""
        return TransportError(f"{call.method} {call.path} was given up, for another part of its batch failed")

    def closed(self, call: Call[Any]) -> TransportError:
        """The error of a call to a client that is closed."""
        return TransportError(f"the client is closed; make another for {call.method} {call.path}")

    def broken(self, job: Job[Any], error: httpx.TransportError) -> None:
        """Say that the events of a job ended before it did."""
        _LOG.info("the events of job %s broke off: %r", job.id, error)


def _merged(headers: Mapping[str, str], others: Mapping[str, str] | None) -> httpx.Headers:
    """Both, the others before the first; names differ in more than their case."""
    merged = httpx.Headers(headers)
    merged.update(others)
    return merged


def progress_of(data: str) -> JobStatus:
    """How far a job is, by the data of an event.

    Raises:
        ProtocolError: It is not that.
    """
    try:
        return readers.job_status(json.loads(data))
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"the server sent an event that says nothing of a job: {error!r}") from error


def _may_be_sent_again(state: RetryCallState) -> bool:
    error = None if state.outcome is None else state.outcome.exception()
    call: Call[Any] = state.args[0]
    match error:
        case TooManyRequestsError() | UnavailableError():  # nothing was done
            return True
        case TransportError(__cause__=httpx.ConnectError() | httpx.ConnectTimeout()):  # nothing was sent
            return True
        case TransportError(__cause__=httpx.NetworkError() | httpx.RemoteProtocolError()):
            return call.idempotent
        case ApiError(status=502):  # of a proxy that lost the server
            return call.idempotent
        case _:
            return False


_backoff = wait_random_exponential(multiplier=0.2, max=5.0)


def _wait_s(state: RetryCallState) -> float:
    """What the server asks for, else longer and longer; by chance, so that clients do not come back together."""
    error = None if state.outcome is None else state.outcome.exception()
    if isinstance(error, TooManyRequestsError | UnavailableError) and error.retry_after_s is not None:
        return error.retry_after_s * (1.0 + 0.25 * random.random())
    return _backoff(state)


def _say(state: RetryCallState) -> None:
    error = None if state.outcome is None else state.outcome.exception()
    call: Call[Any] = state.args[0]
    wait_s = 0.0 if state.next_action is None else state.next_action.sleep
    level = logging.WARNING if isinstance(error, TransportError) else logging.INFO
    _LOG.log(level, "%s %s is sent again in %.1f s: %s", call.method, call.path, wait_s, error)
