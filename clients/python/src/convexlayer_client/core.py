"""What the two clients share: how a call is sent, in which form, and when it is sent again. No input, no output."""

from __future__ import annotations

import json
import logging
import os
import random
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, TypeVar, final

import httpx
from tenacity import RetryCallState, stop_before_delay, wait_random_exponential

from convexlayer_client import readers
from convexlayer_client.call import Call, Form, Reply, Request
from convexlayer_client.errors import (
    ApiError,
    GoneError,
    MediaTypeError,
    ProtocolError,
    TooManyRequestsError,
    TransportError,
    UnavailableError,
)
from convexlayer_client.results import Job, JobStatus

__all__ = ["API_KEY_VARIABLE", "PAUSE_S", "URL_VARIABLE", "Core", "progress_of"]

T = TypeVar("T")
C = TypeVar("C")

URL_VARIABLE = "CONVEXLAYER_URL"
API_KEY_VARIABLE = "CONVEXLAYER_API_KEY"

PAUSE_S = 0.5
"""Between a connection of events that broke and the next."""

_LOG = logging.getLogger("convexlayer_client")
_CONNECT_S = 10.0


@final
class Core:
    """A server, and the way to speak to it.

    Args:
        url: Where the server is; ``CONVEXLAYER_URL`` unless given.
        api_key: The bearer token; ``CONVEXLAYER_API_KEY`` unless given, and none without that.
        timeout_s: Seconds to wait for an answer.
        retry_s: Seconds for which a call may be sent again.

    Raises:
        ValueError: There is no URL.
    """

    def __init__(self, url: str | None, api_key: str | None, timeout_s: float, retry_s: float) -> None:
        self._times = {"timeout_s": timeout_s, "retry_s": retry_s}
        self.url = url or os.environ.get(URL_VARIABLE, "")
        if not self.url:
            raise ValueError(f"expected the URL of a server, as an argument or in {URL_VARIABLE}")
        key = api_key or os.environ.get(API_KEY_VARIABLE)
        self.settings: dict[str, Any] = {
            "base_url": self.url,
            "headers": {"Authorization": f"Bearer {key}"} if key else {},
            "timeout": httpx.Timeout(timeout_s, connect=min(timeout_s, _CONNECT_S)),
        }
        self.retries: dict[str, Any] = {
            "retry": _may_be_sent_again,
            "wait": _wait_s,
            "stop": stop_before_delay(retry_s),
            "before_sleep": _say,
            "reraise": True,
        }
        self._form: Form = "binary"

    def exchange(self, call: Call[T]) -> Generator[Request, Reply, T]:
        """Yields requests, is sent their replies, and returns the result.

        There is a second request where the server does not read the binary form, which then is not tried again, and
        where it no longer has the state that the call begins with.
        """
        while True:
            form = self._form
            reply = yield call.request(form)
            try:
                return call.result(reply)
            except MediaTypeError:
                if not call.arrays or form == "json":
                    raise
                self._form = "json"
            except GoneError:
                if call.otherwise is None:
                    raise
                call = call.otherwise

    def reconnected(self, client: Callable[..., C]) -> Callable[..., C]:
        """How to make another client like this one, but for its key."""
        return partial(client, self.url, **self._times)

    def lost(self, request: Request, error: httpx.HTTPError) -> TransportError:
        """The error of a request that got no answer."""
        return TransportError(
            f"no answer from {self.url} to {request.method} {request.path}: {error or type(error).__name__}"
        )

    def closed(self, call: Call[Any]) -> TransportError:
        """The error of a call to a client that is closed."""
        return TransportError(f"the client is closed; make another for {call.method} {call.path}")

    def broken(self, job: Job[Any], error: httpx.TransportError) -> None:
        """Say that the events of a job ended before it did."""
        _LOG.info("the events of job %s broke off: %r", job.id, error)


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
