"""Requests that come at the same time share one sync of the log, one step of the model and one search."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from array import array
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from seqgraph.errors import CheckpointError
from seqgraph.stream import TokenStream
from seqgraph_mamba4rec.lists import Recommendation, batches
from seqgraph_mamba4rec.serve.log import LogError
from seqgraph_mamba4rec.serve.schema import ServiceError
from seqgraph_mamba4rec.serve.store import Full, UserStore, seen_items
from seqgraph_mamba4rec.topk import ItemIndex

# Requests taken together, items of histories read for them, and requests that may wait.
_JOBS, _TOKENS, _WAITING = 1024, 1 << 16, 8192

_NOTHING = ServiceError("empty_history", "there is no event to go by", "send an event first: /event")


@dataclass
class _Event:
    user: str
    item: int
    done: asyncio.Future[int]


@dataclass
class _Ask:
    user: str | None
    history: Sequence[int]
    k: int
    filter_seen: bool
    done: asyncio.Future[tuple[list[Recommendation], int]]


@dataclass
class Engine:
    """Takes events and gives lists; all work on the model is done by one thread.

    Args:
        store: the users.
        snapshot_every: events after which a snapshot is written, by another thread.
    """

    store: UserStore
    snapshot_every: int = 10_000
    problems: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._model: Any = self.store.model
        self._index: ItemIndex = self._model.index()
        with torch.no_grad():  # compiled code is loaded before anyone waits for it
            first = torch.zeros(1, dtype=torch.int64, device=self._index.items.device)
            had = TokenStream.from_ragged([first])
            self._index.search(self._model.step(self._model.initial_state(1), first)["out"], 1, had=had)
        self._waiting: deque[_Event | _Ask] = deque()
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "seqgraph-model")
        self._snapshots: threading.Thread | None = None
        self._task: asyncio.Task | None = None

    def start(self) -> None:
        """Begin to work, in the running event loop."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Finish what was taken, write a last snapshot and let go of the store.

        Raises:
            CheckpointError: when the snapshot cannot be written; the log has all of it.
        """
        if self._task is not None:
            while self._waiting:
                await asyncio.sleep(0.01)
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._thread.shutdown()
        if self._snapshots is not None:
            self._snapshots.join()
        try:
            if self.store.events > self.store.saved:
                self.store.snapshot()
        finally:
            self.store.close()

    async def add(self, user: str, item: int) -> int:
        """Take an event; returns when it is safe, with the number of events that the user has.

        Raises:
            ServiceError: "overloaded", "users_full" or "log_failed".
        """
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._enqueue(_Event(user, item, done))
        return await done

    async def ask(
        self, user: str | None, history: Sequence[int], k: int, filter_seen: bool
    ) -> tuple[list[Recommendation], int]:
        """A list for a user of the store or for a history of rows, and the number of events that it rests on.

        Raises:
            ServiceError: "overloaded" or "unknown_user".
        """
        done: asyncio.Future[tuple[list[Recommendation], int]] = asyncio.get_running_loop().create_future()
        self._enqueue(_Ask(user, history, k, filter_seen, done))
        return await done

    def _enqueue(self, job: _Event | _Ask) -> None:
        if len(self._waiting) >= _WAITING:
            raise ServiceError("overloaded", "too many requests are waiting", "try again in a second")
        self._waiting.append(job)
        self._wake.set()

    # ------------------------------------------------------------------ the loop
    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            jobs = self._take()
            if not self._waiting:
                self._wake.clear()
            answers = await loop.run_in_executor(self._thread, self._work, jobs)
            for job, answer in zip(jobs, answers, strict=True):
                if job.done.cancelled():  # its client has gone
                    continue
                if isinstance(answer, Exception):
                    job.done.set_exception(answer)
                else:
                    job.done.set_result(answer)

    def _take(self) -> list[_Event | _Ask]:
        jobs: list[_Event | _Ask] = []
        tokens = 0
        while self._waiting and len(jobs) < _JOBS and tokens < _TOKENS:
            job = self._waiting.popleft()
            tokens += len(job.history) if isinstance(job, _Ask) else 0
            jobs.append(job)
        return jobs

    def _work(self, jobs: list[_Event | _Ask]) -> list[Any]:
        """Answers or errors, one a job: events first, so that no list is older than an event beside it."""
        answers: dict[int, Any] = {}
        for kind, work in ((_Event, self._add), (_Ask, self._ask)):
            chosen: list[Any] = [job for job in jobs if isinstance(job, kind)]
            if not chosen:
                continue
            try:
                found: Sequence[Any] = work(chosen)
            except (LogError, Full) as error:
                found = [_refusal(error)] * len(chosen)
            except Exception as error:  # one job's trouble must not stop the loop
                found = [error] * len(chosen)
            answers |= {id(job): answer for job, answer in zip(chosen, found, strict=True)}
        return [answers[id(job)] for job in jobs]

    def _add(self, jobs: list[_Event]) -> list[int | ServiceError]:
        try:
            counts: list[Any] = list(self.store.add([(job.user, job.item) for job in jobs]))
        except Full as error:
            # Those of the users that are there still go.
            old = [job for job in jobs if job.user in self.store.rows]
            taken = iter(self.store.add([(job.user, job.item) for job in old]))
            counts = [next(taken) if job.user in self.store.rows else _refusal(error) for job in jobs]
        except LogError:
            self.problems.add("log_failed")
            raise
        self.problems.discard("log_failed")
        if self.store.events - self.store.saved >= self.snapshot_every:
            self._begin_snapshot()
        return counts

    def _begin_snapshot(self) -> None:
        if self._snapshots is None or not self._snapshots.is_alive():
            self._snapshots = threading.Thread(target=self._write_snapshot, name="seqgraph-snapshot")
            self._snapshots.start()

    def _write_snapshot(self) -> None:
        try:
            self.store.snapshot()
        except CheckpointError:
            self.problems.add("snapshot_failed")
        else:
            self.problems.discard("snapshot_failed")

    @torch.inference_mode()
    def _ask(self, jobs: list[_Ask]) -> list[Any]:
        answers: list[Any] = [
            ServiceError("unknown_user", f"nothing is known of the user {job.user!r}", "send an event first: /event")
            if job.user is not None and job.user not in self.store.rows
            else None
            for job in jobs
        ]
        users = [i for i, job in enumerate(jobs) if job.user is not None and answers[i] is None]
        lone = [i for i, job in enumerate(jobs) if job.user is None]
        vectors, histories = self.store.users([str(jobs[i].user) for i in users])
        read = [torch.tensor(jobs[i].history, dtype=torch.int64) for i in lone]
        vectors = torch.cat([vectors, *self._encode(read)])
        histories += [array("i", jobs[i].history) for i in lone]
        order = users + lone
        if not order:
            return answers
        had = None if self._index.term is None else seen_items(histories).to(vectors.device)
        hidden = [h if jobs[i].filter_seen else array("i") for i, h in zip(order, histories, strict=True)]
        seen = seen_items(hidden).to(vectors.device)
        k = max(jobs[i].k for i in order)
        lists = self.store.catalogue.describe(*self._index.search(vectors, k, seen=seen, had=had))
        for i, row, history in zip(order, lists, histories, strict=True):
            answers[i] = (row[: jobs[i].k], len(history)) if history else _NOTHING
        return answers

    def _encode(self, histories: list[Tensor]) -> list[Tensor]:
        window = self._model.assets.get("max_history") or 0
        device = self._model.item_vectors().device
        return [self._model.encode_users(s.to(device)) for s in batches([h[-window:] for h in histories])]


def _refusal(error: LogError | Full) -> ServiceError:
    if isinstance(error, Full):
        return ServiceError("users_full", error.message, error.hint)
    return ServiceError("log_failed", str(error), "the event was not taken; lists are still given")
