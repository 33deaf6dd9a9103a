"""The folder that ``seqgraph embed`` writes: what is done of it survives a kill at any moment.

While it is worked on, ``.unfinished/`` holds ``job.json`` (the settings), half-written files, and for every part that
is whole a ``part-000000.json`` with its lines of the index. At the end ``index.tsv`` and ``manifest.json`` are made of
them, and ``.unfinished/`` goes. Every file comes to its place by a rename.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError

from seqgraph.errors import DataError

INDEX, MANIFEST = "index.tsv", "manifest.json"
_WORK, _GONE, _JOB = ".unfinished", ".unfinished-done", "job.json"
# settings that may differ between the runs of one job: they say where things are, not what they are
_PLACES = ("model", "fasta")
_SPACE = "free some space or choose another folder; the files that are there are whole, and --resume goes on"

State = Literal["new", "resumed", "complete"]


@dataclass(frozen=True)
class Done:
    """A part that is whole.

    Attributes:
        tokens: the token budget that it ended with.
        rows: its lines of the index, without line ends.
    """

    tokens: int
    rows: tuple[str, ...]


@dataclass(frozen=True)
class Folder:
    """An output folder.

    Attributes:
        path: the folder.
        settings: all that the files depend on, and the names of model and input; JSON can hold it.
        columns: of the index.
    """

    path: Path
    settings: Mapping[str, Any]
    columns: tuple[str, ...]

    def open(self, *, resume: bool = False, overwrite: bool = False, shards: bool = False) -> State:
        """Make the folder ready to be written into.

        Args:
            resume: go on with what an earlier run of the same settings left.
            overwrite: begin anew where there is an unfinished run, or shards.
            shards: whether parts of an earlier job would be in the way.

        Raises:
            DataError: for a folder that cannot be used, or holds another job's work that would be lost.
        """
        with reported(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(self.path / _GONE, ignore_errors=True)
        unfinished = self._read(self.path / _WORK / _JOB)
        finished = self._read(self.path / MANIFEST)
        earlier = unfinished or finished
        if resume and earlier is not None:
            self._compare(earlier)
            if unfinished is None:
                return "complete"
            self._sweep()
            return "resumed"
        if unfinished is not None and not overwrite:
            count = sum(1 for _ in (self.path / _WORK).glob("part-*.json"))
            raise DataError(
                f"{self.path} holds an unfinished run, {count} parts of it done",
                "--resume goes on with it, --overwrite begins anew",
            )
        if shards and any(self.path.glob("part-*")):
            if not overwrite:
                raise DataError(f"{self.path} holds embeddings already", "choose another folder, or --overwrite")
            for file in self.path.glob("part-*"):
                file.unlink()
        with reported(self.path):
            shutil.rmtree(self.path / _WORK, ignore_errors=True)
            (self.path / MANIFEST).unlink(missing_ok=True)
            (self.path / _WORK).mkdir()
            self._write_json(self.path / _WORK / _JOB, dict(self.settings))
        return "new"

    def done(self, part: int) -> Done | None:
        """A part, if it is whole."""
        found = self._read(self._marker(part))
        return None if found is None else Done(found["tokens"], tuple(found["rows"]))

    def commit(self, part: int, done: Done) -> None:
        """Say that all files of a part are in their places."""
        with reported(self.path):
            self._write_json(self._marker(part), {"tokens": done.tokens, "rows": done.rows})

    def finish(self, parts: int, facts: Mapping[str, Any]) -> None:
        """Write the index and the manifest, and remove what is only needed for resuming.

        Args:
            parts: how many parts there are; all must be done.
            facts: more entries for the manifest.
        """
        with self.staged(self.path / INDEX) as temporary, temporary.open("w", encoding="utf-8") as lines:
            lines.write("\t".join(self.columns) + "\n")
            for part in range(parts):
                done = self.done(part)
                if done is None:
                    raise DataError(f"{self.path}: part {part} is not there", "run once more with --resume")
                lines.writelines(f"{row}\n" for row in done.rows)
        with reported(self.path):
            self._write_json(self.path / MANIFEST, {"version": 1, **self.settings, **facts})
            (self.path / _WORK).rename(self.path / _GONE)
        shutil.rmtree(self.path / _GONE, ignore_errors=True)

    @contextmanager
    def staged(self, target: Path) -> Iterator[Path]:
        """A temporary path, renamed to the target at the end, or removed on an error.

        Raises:
            DataError: when it cannot be written.
        """
        temporary = self.path / _WORK / f"writing-{secrets.token_hex(8)}"
        try:
            with reported(target):
                yield temporary
                os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    def _marker(self, part: int) -> Path:
        return self.path / _WORK / f"part-{part:06d}.json"

    def _sweep(self) -> None:
        """Remove what was half written when the run was killed."""
        for file in (self.path / _WORK).glob("writing-*"):
            file.unlink()

    def _compare(self, earlier: Mapping[str, Any]) -> None:
        different = [
            f"{key} was {earlier.get(key)!r}, is {value!r}"
            for key, value in self.settings.items()
            if key not in _PLACES and earlier.get(key) != value
        ]
        if different:
            raise DataError(
                f"{self.path} holds the work of another job: {'; '.join(different)}",
                "resume with the same model, input and options, or choose another folder",
            )

    def _write_json(self, target: Path, value: Any) -> None:
        with self.staged(target) as temporary:
            temporary.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    @staticmethod
    def _read(path: Path) -> Any:
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {error}", "--overwrite begins anew") from None


@contextmanager
def reported(target: Path) -> Iterator[None]:
    """Turn what can go wrong in writing, a full disk above all, into one clear error."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have their own for a full disk
        # torch hides the cause behind words about its own file format.
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        reason = getattr(cause, "strerror", None) or (str(cause).splitlines() or ["unknown reason"])[0]
        raise DataError(f"cannot write {target}: {reason}", _SPACE) from error
