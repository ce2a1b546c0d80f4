"""A bar that shows how far a job or a batch is."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, final

from convexlayer_client.call import Call

__all__ = ["ProgressBar"]


@final
class ProgressBar:
    """Shows the elements that are done, on standard error, while it is entered.

    Args:
        shown: Whether there is a bar at all; only then tqdm is needed.
    """

    def __init__(self, *, shown: bool) -> None:
        self._bar: Any = None
        self._done = 0
        if shown:
            from tqdm.auto import tqdm

            self._bar = tqdm(unit="element")

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, what: str, done: int, total: int) -> None:
        """Move the bar to where a job is."""
        if self._bar is not None:
            self._bar.set_description(what, refresh=False)
            self._bar.total = total or None
            self._bar.n = done
            self._bar.refresh()

    def begin(self, calls: Sequence[Call[Any]]) -> None:
        """Show that nothing is done of the parts of a batch; of other calls, which have no rows, nothing."""
        self._done = 0
        self._show(calls[0])

    def add(self, call: Call[Any]) -> None:
        """Show that one part more is done."""
        self._done += len(call.rows or ())
        self._show(call)

    def _show(self, call: Call[Any]) -> None:
        if call.operation is not None and call.rows is not None:
            self.show(call.operation.name, self._done, call.rows.batch)
