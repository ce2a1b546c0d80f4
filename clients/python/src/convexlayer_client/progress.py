"""A bar that shows how far a job is."""

from __future__ import annotations

from types import TracebackType
from typing import Any, final

from convexlayer_client.results import JobStatus

__all__ = ["ProgressBar"]


@final
class ProgressBar:
    """Shows the elements of a job that are done, on standard error, while it is entered.

    Args:
        shown: Whether there is a bar at all; only then tqdm is needed.
    """

    def __init__(self, *, shown: bool) -> None:
        self._bar: Any = None
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

    def show(self, status: JobStatus) -> None:
        """Move the bar to where the job is."""
        if self._bar is not None:
            self._bar.set_description(f"{status.operation} {status.status}", refresh=False)
            self._bar.total = status.total or None
            self._bar.n = status.done
            self._bar.refresh()
