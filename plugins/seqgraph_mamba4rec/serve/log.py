"""The write-ahead log: an event is on the disk before anyone is told that it was taken.

Segments ``events-{first number}.log`` of lines ``{crc32} [number, user, item]``; numbers rise by one. A line that a
crash cut off is the last of the last segment, and was never acknowledged: it is dropped. Any other bad line is damage.
"""

from __future__ import annotations

import itertools
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from seqgraph.errors import DataError


class Event(NamedTuple):
    """Number, user and the item's raw id."""

    number: int
    user: str
    item: str


class LogError(Exception):
    """Events could not be written; none of them counts."""


class EventLog:
    """Appends events, several with one sync.

    Args:
        folder: of the segments; it is there.
        last: number of the last event there is.
    """

    def __init__(self, folder: Path, last: int) -> None:
        self.folder, self.last = folder, last
        self.broken: str | None = None
        self._first = last + 1
        self._file = self._open()

    def append(self, events: Sequence[tuple[str, str]]) -> None:
        """Write (user, item) pairs, numbered from ``last + 1``, and wait until the disk has them.

        Raises:
            LogError: when they could not be written: the file is as it was. After a failed sync nobody knows what
                the disk has, and the log takes nothing more until it is read again.
        """
        if self.broken:
            raise LogError(self.broken)
        text = b"".join(_line(Event(n, *event)) for n, event in enumerate(events, start=self.last + 1))
        before = os.lseek(self._file, 0, os.SEEK_END)
        try:
            written = 0
            while written < len(text):
                written += os.write(self._file, text[written:])
        except OSError as error:
            self._undo(before)
            raise LogError(f"the log cannot be written: {error.strerror}") from error
        try:
            os.fsync(self._file)
        except OSError as error:
            self.broken = f"the log could not be synced: {error.strerror}; restart the service"
            self._undo(before)
            raise LogError(self.broken) from error
        self.last += len(events)

    def _undo(self, size: int) -> None:
        try:
            os.ftruncate(self._file, size)
        except OSError as error:
            self.broken = f"the log could not be put back: {error.strerror}; restart the service"

    def rotate(self) -> None:
        """Go on in a new segment, if this one holds any event.

        Raises:
            OSError: when it cannot be made; the old one is still in use.
        """
        if self.last + 1 == self._first:
            return
        old, first, self._first = self._file, self._first, self.last + 1
        try:
            self._file = self._open()
        except OSError:
            self._first = first
            raise
        os.close(old)

    def drop(self, last: int) -> None:
        """Delete the segments whose events all have numbers up to ``last``."""
        for (_, path), (following, _) in itertools.pairwise(_segments(self.folder)):
            if following <= last + 1:
                path.unlink()

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)

    def _open(self) -> int:
        path = self.folder / f"events-{self._first:015d}.log"
        handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o600)
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return handle


def read_log(folder: Path, after: int) -> Iterator[Event]:
    """The events with numbers above ``after``, in order; a line that was cut off at the end is taken off the file.

    Raises:
        DataError: for a damaged line or a gap, naming the file and the line.
    """
    segments = _segments(folder)
    expected: int | None = None
    for place, (first, path) in enumerate(segments):
        if place + 1 < len(segments) and segments[place + 1][0] <= after + 1:
            continue
        if first > after + 1 if expected is None else first != expected:
            raise DataError(f"{path}: the events before number {first} are missing", "put the earlier segment back")
        lines = path.read_bytes().splitlines(keepends=True)
        expected, size = first, 0
        for number, line in enumerate(lines, start=1):
            event = _parse(line)
            if event is None or event.number != expected:
                if place + 1 == len(segments) and number == len(lines) and event is None:
                    os.truncate(path, size)
                    break
                raise DataError(
                    f"{path}, line {number}: damaged", "put back a good copy; cutting here gives up all that follows"
                )
            expected, size = expected + 1, size + len(line)
            if event.number > after:
                yield event


def _line(event: Event) -> bytes:
    body = json.dumps(event, separators=(",", ":")).encode("ascii")
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _parse(line: bytes) -> Event | None:
    """The event of a line, or None where it is cut off or damaged."""
    check, _, body = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or check != b"%08x" % zlib.crc32(body):
        return None
    return Event(*json.loads(body))


def _segments(folder: Path) -> list[tuple[int, Path]]:
    return sorted((int(path.stem.removeprefix("events-")), path) for path in folder.glob("events-*.log"))
