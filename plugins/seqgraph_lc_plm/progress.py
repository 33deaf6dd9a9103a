"""How far a long job is: a bar on a terminal, a line a minute in a log."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from seqgraph.cli.output import console

_EVERY = 60.0  # seconds between two lines of a log


class ResidueProgress:
    """Residues done, residues a second, and the time that is left.

    Args:
        what: "embedding", say.
        records: how many there are; None to count positions instead of proteins.
        residues: how many there are.
        quiet: show nothing.
        clock: seconds, rising.
    """

    def __init__(
        self, what: str, records: int | None, residues: int, *, quiet: bool = False, clock: Any = None
    ) -> None:
        self._what, self._records, self._residues = what, records, residues
        self._clock = clock or time.monotonic
        self._out = console(stderr=True)
        self._shows = not quiet
        columns = (TextColumn(what), BarColumn(), TextColumn("{task.fields[text]}"), TimeRemainingColumn())
        shown = self._shows and self._out.is_terminal
        self._bar = Progress(*columns, console=self._out, transient=True, disable=not shown)
        self._task = self._bar.add_task("", total=residues, text="")
        self._done = self._passed = self._new = 0
        self._began = self._told = self._clock()

    def __enter__(self) -> ResidueProgress:
        self._bar.start()
        self._began = self._told = self._clock()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()

    def __call__(self, records: int, residues: int, new: bool = True) -> None:
        """Count what was done since the last call; what was there before does not count as speed."""
        self._done += records
        self._passed += residues
        self._new += residues if new else 0
        if self._records is None:
            text = f"{self._passed:,}/{self._residues:,} positions"
        else:
            text = f"{self._done:,}/{self._records:,} proteins, {self.rate:,.0f} residues/s"
        self._bar.update(self._task, advance=residues, text=text)
        now = self._clock()
        if self._shows and not self._out.is_terminal and now - self._told >= _EVERY:
            self._told = now
            self._out.print(f"{self._what}: {text}, {_span(self.left)} left", soft_wrap=True)

    @property
    def rate(self) -> float:
        """Residues a second, of those that were computed now."""
        return self._new / max(self._clock() - self._began, 1e-9)

    @property
    def left(self) -> float:
        """Seconds, at this rate."""
        return (self._residues - self._passed) / max(self.rate, 1e-9)

    def note(self, text: str) -> None:
        """Say something without spoiling the bar."""
        self._bar.console.print(f"Note: {text}", style="yellow", soft_wrap=True, markup=False)


def _span(seconds: float) -> str:
    whole = int(min(seconds, 1e9))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
