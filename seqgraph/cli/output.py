"""How commands print: tables for people, JSON for programs, one red line for what went wrong."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

STYLES = {"ok": "green", "needs extra": "yellow", "disabled": "dim", "conflict": "red", "broken": "red"}
# Rich would fold everything at 80 columns when nobody looks, which breaks grep.
_WIDE = 500


def console(*, stderr: bool = False) -> Console:
    """A console on the current stdout or stderr; colour only on a terminal, and never under NO_COLOR."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else _WIDE, highlight=False, emoji=False)


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under headings; a cell of the column "status" gets its colour."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        styled = [Text(cell, STYLES.get(cell, "") if name == "status" else "") for name, cell in zip(columns, row)]
        table.add_row(*styled)
    console().print(table)


def print_note(label: str, text: str, *, style: str = "yellow") -> None:
    """Print one line "label: text" on stderr."""
    line = Text.assemble((f"{label}: ", f"bold {style}"), " ".join(text.split()))
    console(stderr=True).print(line, soft_wrap=True)


def print_error(message: str, hint: str | None = None) -> None:
    """Print one red line on stderr, and the hint below it."""
    out = console(stderr=True)
    out.print(Text(f"Error: {' '.join(message.split())}", "bold red"), soft_wrap=True)
    if hint:
        out.print(Text(f"Hint: {' '.join(hint.split())}"), soft_wrap=True)


def show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    """Stands in for ``warnings.showwarning``: one line, without the place in the code."""
    from seqgraph.plugin.manager import PluginWarning

    if file is None and issubclass(category, PluginWarning):
        print_note("Warning", str(message))
    else:
        stream = file or sys.stderr
        stream.write(warnings.formatwarning(message, category, filename, lineno, line))
