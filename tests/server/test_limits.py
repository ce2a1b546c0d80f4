from __future__ import annotations

from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

import pytest

from convexlayer_server import Settings
from convexlayer_server.admission.keys import ANONYMOUS, Principal, new_key, new_token
from convexlayer_server.admission.limits import Limits
from convexlayer_server.admission.usage import UsageLedger
from convexlayer_server.errors import TooManyError
from convexlayer_server.store import Store, Usage


class Clock:
    """A manual clock."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return datetime(2026, 11, 25, 18, tzinfo=UTC) + timedelta(seconds=self.seconds)


class Setup:
    """Limits with a store, a ledger and a manual clock."""

    def __init__(self, **settings: float) -> None:
        self.clock = Clock()
        self.store = Store(Settings())
        self.ledger = UsageLedger(self.store, self.clock.now)
        self.ledger.load()
        self.limits = Limits(Settings(**settings), self.ledger, self.clock)  # type: ignore[arg-type]

    def send(self, principal: Principal = ANONYMOUS, *, computing: bool = True) -> None:
        with self.limits.admit(principal, computing=computing):
            pass

    def refused(self, principal: Principal = ANONYMOUS) -> float:
        with pytest.raises(TooManyError) as caught:
            self.send(principal)
        assert caught.value.retry_after_s is not None
        return caught.value.retry_after_s


def key(**limits: float) -> Principal:
    made = new_key("a", new_token(), **limits)  # type: ignore[arg-type]
    return Principal(made.id, made)


def test_concurrent_requests() -> None:
    setup = Setup(max_in_flight_per_key=2)
    one, other = key(), key()
    with ExitStack() as inside:
        for _ in range(2):
            inside.enter_context(setup.limits.admit(one, computing=False))
        assert setup.refused(one) > 0
        setup.send(other)
    setup.send(one)


def test_requests_a_minute() -> None:
    setup = Setup(requests_per_minute=6)
    for _ in range(6):
        setup.send()
    assert setup.refused() == pytest.approx(10)
    setup.clock.seconds += 9.9
    assert setup.refused() == pytest.approx(0.1)
    setup.clock.seconds += 0.1001
    setup.send()
    setup.refused()
    setup.clock.seconds += 1000
    for _ in range(6):
        setup.send()
    setup.refused()


def test_seconds_a_day() -> None:
    setup = Setup(seconds_per_day=10)
    setup.ledger.count("", seconds=9.9)
    setup.send()
    setup.ledger.count("", seconds=0.2)
    assert setup.refused() == 6 * 3600
    setup.send(computing=False)
    setup.clock.seconds += 6 * 3600
    setup.send()


def test_a_key_may_override_limits() -> None:
    setup = Setup(requests_per_minute=1, seconds_per_day=1)
    principal = key(requests_per_minute=3, seconds_per_day=5)
    for _ in range(3):
        setup.send(principal)
    setup.refused(principal)
    setup.clock.seconds += 60
    setup.ledger.count(principal.id, seconds=4.0)
    setup.send(principal)
    setup.ledger.count(principal.id, seconds=2.0)
    setup.refused(principal)


def test_usage_is_written_and_read() -> None:
    setup = Setup()
    setup.ledger.count("k", requests=2, elements=5, seconds=1.5)
    setup.ledger.write(setup.ledger.take_unwritten())
    setup.clock.seconds += 24 * 3600
    setup.ledger.count("k", requests=1)
    taken = setup.ledger.take_unwritten()
    setup.ledger.return_unwritten(taken)
    assert setup.ledger.take_unwritten() == taken
    setup.ledger.write(taken)
    assert setup.ledger.take_unwritten() == {}
    assert setup.ledger.since("k", 2) == {
        "2026-11-25": Usage(requests=2, elements=5, seconds=1.5),
        "2026-11-26": Usage(requests=1),
    }
    assert list(setup.ledger.since("k", 1)) == ["2026-11-26"]
    assert setup.ledger.since("other", 2) == {}


def test_usage_before_a_restart_counts() -> None:
    setup = Setup()
    setup.ledger.count("k", seconds=2.0)
    setup.ledger.write(setup.ledger.take_unwritten())
    again = UsageLedger(setup.store, setup.clock.now)
    again.load()
    assert again.seconds_today("k") == 2.0
