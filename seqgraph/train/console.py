"""What a person sees of a training: a bar on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

_REFRESH = 0.25
"""Seconds between two looks at the loss, each of which waits for the GPU."""


class Console:
    """Prints for the first process.

    Args:
        quiet: print nothing.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.rich = RichConsole(quiet=quiet, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._last = 0.0

    def line(self, text: str) -> None:
        """One line as it is."""
        if not self.quiet:
            self.rich.print(text, markup=False)

    def begin_epoch(self, epoch: int, epochs: int, batches: int, done: int) -> None:
        """Start the epoch's bar (on a terminal)."""
        self.stop()
        if self.quiet or not self.rich.is_terminal:
            return
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self._bar = Progress(*columns, TextColumn("{task.fields[loss]}"), console=self.rich, transient=True)
        self._bar.add_task(f"epoch {epoch}/{epochs}", total=batches, completed=done, loss="")
        self._bar.start()

    def batch(self, done: int, sums: Any) -> None:
        """Move the bar; ``sums`` (2,) are a batch's loss over its items, and their number."""
        if self._bar is not None and time.monotonic() - self._last > _REFRESH:
            self._last = time.monotonic()
            total, size = sums.tolist()
            self._bar.update(self._bar.task_ids[0], completed=done, loss=f"loss {total / max(size, 1):.4g}")

    def end_epoch(self, row: Mapping[str, Any], epochs: int, best: bool) -> None:
        """One line with the epoch's numbers."""
        self.stop()
        hidden = ("epoch", "step", "tokens_per_second", "seconds", "lr", "tflop", "tflop_per_second", "utilisation")
        shown = [f"{k} {v:.4g}" for k, v in row.items() if k not in hidden and isinstance(v, int | float)]
        speed = f"{row['tokens_per_second']:,.0f} tokens/s"
        if "tflop_per_second" in row:
            speed += f"  {row['tflop_per_second']:.3g} TFLOP/s"
        if "utilisation" in row:
            speed += f" ({row['utilisation']:.1%})"
        self.line(f"epoch {row['epoch']}/{epochs}  {'  '.join(shown)}  {speed}{'  *' if best else ''}")

    def stop(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A small table; the first column is on the left."""
        if self.quiet:
            return
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for i, column in enumerate(columns):
            table.add_column(column, justify="left" if i == 0 else "right")
        for row in rows:
            table.add_row(*row)
        self.rich.print(table)
