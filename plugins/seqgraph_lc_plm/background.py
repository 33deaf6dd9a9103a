"""Work that goes on beside the main thread: writing files while the next batch is computed."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from types import TracebackType

_DEPTH = 4  # batches that may wait to be written


class Background:
    """Runs calls in their order in one thread; the first error of a call is raised in the main thread.

    As a context it waits for what is left at its end, or on an error drops it.
    """

    def __init__(self) -> None:
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue(_DEPTH)
        self._error: BaseException | None = None
        self._dropped = False
        self._thread = threading.Thread(target=self._work, daemon=True)

    def put(self, call: Callable[[], None]) -> None:
        """Have something done; waits while too much is waiting already.

        Raises:
            BaseException: what an earlier call raised.
        """
        self._raise()
        self._calls.put(call)

    def __enter__(self) -> Background:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._dropped = kind is not None
        self._calls.put(None)
        self._thread.join()
        if kind is None:
            self._raise()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            if self._error is not None or self._dropped:
                continue
            try:
                call()
            except BaseException as error:
                self._error = error

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
