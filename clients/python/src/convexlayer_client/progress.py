"""A progress bar of a job or a batch."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, final

from convexlayer_client.call import Call

__all__ = ["ProgressBar"]


@final
class ProgressBar:
    """Shows the number of computed elements on standard error; a context manager.

    Args:
        shown: Whether to show a bar, which needs tqdm.
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
        """Show the progress of a job."""
        if self._bar is not None:
            self._bar.set_description(what, refresh=False)
            self._bar.total = total or None
            self._bar.n = done
            self._bar.refresh()

    def begin(self, calls: Sequence[Call[Any]]) -> None:
        """Show the start of a batch; calls without elements show nothing."""
        self._done = 0
        self._show(calls[0])

    def add(self, call: Call[Any]) -> None:
        """Show that another part is done."""
        self._done += len(call.batch_slice or ())
        self._show(call)

    def _show(self, call: Call[Any]) -> None:
        if call.operation is not None and call.batch_slice is not None:
            self.show(call.operation.name, self._done, call.batch_slice.batch)
