"""The users of a service: their states and histories in memory, kept safe by a log and snapshots on disk."""

from __future__ import annotations

import fcntl
import os
import threading
from array import array
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seqgraph.encode.state import State
from seqgraph.errors import CheckpointError, ConfigError, UserError
from seqgraph.stream import TokenStream
from seqgraph.train import checkpoint
from seqgraph_mamba4rec.lists import batches
from seqgraph_mamba4rec.serve.log import EventLog, read_log
from seqgraph_mamba4rec.states import fingerprint, load_states, save_states

FORMAT = 1
_ABOUT, _SNAPSHOT, _ITEMS, _INDEX = "store.json", "snapshot", "items.json", "index.json"
# Users whose rows are copied at once while events wait, and events that are replayed at once.
_SHARD, _REPLAY = 4096, 1 << 16


class Full(UserError):
    """There is no row left for a new user."""


class UserStore:
    """States and histories by user.

    Every event is in the log before it counts. A snapshot is written shard by shard while events go on: each shard
    says up to which event it goes, and what came later is replayed from the log.

    Args:
        folder: of the log and the snapshot; made if it is not there. One process at a time may use it.
        model: whose states they are; in ``eval`` mode.
        capacity: most users. Their memory is taken as they come.
        dtype: that states are kept in: float32, bfloat16 or float16.
        rebuild: read all histories again where they were left by other weights; items that the model does not know
            are left out, and counted in ``dropped``.

    Raises:
        ConfigError: when another process uses the folder, or it holds more users than the capacity.
        CheckpointError: when it belongs to other weights, or a file is damaged or cannot be written.
        DataError: when the log is damaged.
    """

    def __init__(
        self,
        folder: Path,
        model: Any,
        *,
        capacity: int = 100_000,
        dtype: torch.dtype = torch.float32,
        rebuild: bool = False,
    ) -> None:
        self.folder, self.model, self.capacity = folder, model, capacity
        self.catalogue, self.weights = model.catalogue(), fingerprint(model)
        self.rows: dict[str, int] = {}
        self.histories: list[array[int]] = []
        self.dropped = 0
        self.saved = 0  # number of the last event that the snapshot holds
        self._device = model.item_vectors().device
        one = model.initial_state(1)
        # Pages of memory that no user has touched yet cost nothing.
        self._state: State = {n: t.new_empty((capacity, *t.shape[1:]), dtype=dtype) for n, t in one.items()}
        self._change, self._snapshot = threading.Lock(), threading.Lock()
        self._lock = _lock(folder)
        try:
            self._recover(rebuild)
        except BaseException:
            os.close(self._lock)
            raise

    @property
    def events(self) -> int:
        """Number of the last event."""
        return self._log.last

    # ------------------------------------------------------------------ using it
    def add(self, events: Sequence[tuple[str, int]]) -> list[int]:
        """Take in events, (user, row of the item), in this order; those of one user may be among them many times.

        Returns:
            How many events each of these users then has, one number an event.

        Raises:
            Full: for more users than there is room for; no event counts then.
            LogError: when the log cannot be written; no event counts then.
        """
        with self._change:
            new = len({user for user, _ in events if user not in self.rows})
            if len(self.rows) + new > self.capacity:
                raise Full(f"there is room for {self.capacity:,} users", "start with a larger --max-users")
            self._log.append([(user, self.catalogue.ids[row]) for user, row in events])
            return self._apply(events)

    def users(self, names: Sequence[str]) -> tuple[Tensor, list[array[int]]]:
        """Read-outs (B, D) and histories of users that are there, as they are now.

        Raises:
            KeyError: for a user without events.
        """
        with self._change:
            rows = [self.rows[name] for name in names]
            read_out = self._state["out"][torch.tensor(rows, dtype=torch.int64, device=self._device)]
            return read_out.to(self.model.item_vectors().dtype), [self.histories[row][:] for row in rows]

    def close(self) -> None:
        """Let go of the folder."""
        self._log.close()
        os.close(self._lock)

    def _apply(self, events: Iterable[tuple[str, int]]) -> list[int]:
        """Move the states on: first each user's first event, all in one step, then the second ones."""
        rounds: list[tuple[list[int], list[int]]] = []
        depth: dict[int, int] = {}
        counts, before = [], len(self.histories)
        for user, item in events:
            row = self.rows.get(user)
            if row is None:
                row = self._new(user)
            turn = depth.get(row, 0)
            depth[row] = turn + 1
            if turn == len(rounds):
                rounds.append(([], []))
            rounds[turn][0].append(row)
            rounds[turn][1].append(item)
            self.histories[row].append(item)
            counts.append(len(self.histories[row]))
        with torch.no_grad():
            for t in self._state.values():  # of the new users
                t[before : len(self.histories)] = 0
            for users, items in rounds:
                at = torch.tensor(users, device=self._device)
                state = {name: t[at] for name, t in self._state.items()}
                state = self.model.step(state, torch.tensor(items, device=self._device), inplace=True)
                for name, t in self._state.items():
                    t[at] = state[name]
        return counts

    def _new(self, user: str) -> int:
        row = len(self.histories)
        if row == self.capacity:
            raise Full(f"there is room for {self.capacity:,} users", "start with a larger --max-users")
        self.rows[user] = row
        self.histories.append(array("i"))
        return row

    # ------------------------------------------------------------------ snapshots
    def snapshot(self) -> None:
        """Write all states and histories, and delete the log up to there. Events go on meanwhile.

        Raises:
            CheckpointError: when it cannot be written; the old one and the log stay.
        """
        with self._snapshot:
            with self._change:
                begin, users = self._log.last, list(self.rows)
                try:
                    self._log.rotate()
                except OSError as error:
                    raise CheckpointError(f"{self.folder}: a new log cannot be opened: {error.strerror}") from error
            starts = range(0, len(users), _SHARD)

            def fill(target: Path) -> None:
                for number, start in enumerate(starts):
                    self._save_shard(target / f"shard-{number:05d}", users, start, min(start + _SHARD, len(users)))
                checkpoint.write_json(target / _ITEMS, self.catalogue.ids)
                index = {"format": FORMAT, "events": begin, "users": len(users), "shards": len(starts)}
                checkpoint.write_json(target / _INDEX, index)

            checkpoint.write_folder(self.folder / _SNAPSHOT, fill)
            self.saved = begin
            self._log.drop(begin)

    def _save_shard(self, folder: Path, users: list[str], start: int, stop: int) -> None:
        with self._change:
            events = self._log.last
            state = {name: t[start:stop].clone() for name, t in self._state.items()}
            items = array("i", chain.from_iterable(self.histories[start:stop]))
            lengths = [len(history) for history in self.histories[start:stop]]
        history = {"items": torch.tensor(items, dtype=torch.int32), "lengths": torch.tensor(lengths)}
        save_states(
            folder, self.model, users[start:stop], state, weights=self.weights, beside=history, notes={"events": events}
        )

    # ------------------------------------------------------------------ recovery
    def _recover(self, rebuild: bool) -> None:
        about = self.folder / _ABOUT
        foreign = False
        if about.exists():
            found = checkpoint.read_json(about)
            if found.get("format", 0) > FORMAT:
                raise CheckpointError(f"{self.folder} has format {found['format']}, not {FORMAT}", "update seqgraph")
            foreign = found.get("weights") != self.weights
            if foreign and not rebuild:
                raise CheckpointError(
                    f"{self.folder}: these states are of other weights "
                    f"({str(found.get('weights'))[:12]}, the model's are {self.weights[:12]})",
                    "serve the model that made them, or read the histories again with this one: --rebuild",
                )
        begin, known_up_to = self._load_snapshot(foreign)
        last = self._replay(begin, known_up_to)
        self._log = EventLog(self.folder, last)
        self.saved = begin
        if foreign:
            self.snapshot()
        if foreign or not about.exists():
            checkpoint.write_file(about, f'{{"format": {FORMAT}, "weights": "{self.weights}"}}\n')

    def _load_snapshot(self, foreign: bool) -> tuple[int, list[int]]:
        """Fill the rows; the event at which the snapshot began, and up to which event each row goes."""
        folder = self.folder / _SNAPSHOT
        checkpoint.recover(folder)
        if not folder.exists():
            return 0, []
        index, ids = checkpoint.read_json(folder / _INDEX), checkpoint.read_json(folder / _ITEMS)
        if index["users"] > self.capacity:
            raise ConfigError(
                f"{folder} holds {index['users']:,} users, there is room for {self.capacity:,}", "raise --max-users"
            )
        up_to: list[int] = []
        for number in range(index["shards"]):
            shard = load_states(folder / f"shard-{number:05d}", self.model, weights=self.weights, any_weights=foreign)
            own = list(shard.beside["items"].split(shard.beside["lengths"].tolist()))
            if foreign:
                own = [self._translated(history.tolist(), ids) for history in own]
                shard.state = self._encode(own)
            start = len(self.histories)
            for name, t in self._state.items():
                t[start : start + len(shard.users)] = shard.state[name].to(t.dtype)
            for user, history in zip(shard.users, own, strict=True):
                self.rows[user] = len(self.histories)
                self.histories.append(array("i", history.tolist()))
            up_to += [shard.notes["events"]] * len(shard.users)
        return index["events"], up_to

    def _translated(self, history: list[int], ids: list[str]) -> Tensor:
        """Rows of the old items as rows of the model's, without those that it does not know."""
        rows = [self.catalogue.row(ids[item]) for item in history]
        known = [row for row in rows if row is not None]
        self.dropped += len(rows) - len(known)
        return torch.tensor(known, dtype=torch.int64)

    @torch.no_grad()
    def _encode(self, histories: list[Tensor]) -> State:
        parts = [self.model.prefill(stream.to(self._device)) for stream in batches(histories)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}

    def _replay(self, begin: int, up_to: list[int]) -> int:
        """Take in what the log holds beyond the rows; the number of the last event."""
        last, waiting = begin, []
        for last, user, raw in read_log(self.folder, begin):
            row = self.rows.get(user)
            if row is not None and row < len(up_to) and last <= up_to[row]:
                continue
            item = self.catalogue.row(raw)
            if item is None:
                self.dropped += 1
                continue
            waiting.append((user, item))
            if len(waiting) == _REPLAY:
                self._apply(waiting)
                waiting = []
        self._apply(waiting)
        return last


def seen_items(histories: Iterable[array[int]]) -> TokenStream:
    """Histories as a stream."""
    return TokenStream.from_ragged([torch.tensor(history, dtype=torch.int64) for history in histories])


def _lock(folder: Path) -> int:
    """A lock that lasts as long as the process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be used: {error.strerror}", "name another folder: --state") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise ConfigError(
            f"{folder} is in use by another process", "stop it, or name another folder: --state"
        ) from None
    return handle
