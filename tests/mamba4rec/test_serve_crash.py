"""What was acknowledged is there afterwards: killed in mid-load, a torn log, a full disk, other weights, Ctrl-C."""

from __future__ import annotations

import errno
import http.client
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")
sys.path.insert(0, str(Path(__file__).parent))
from service import ITEMS, Client, Process, make_model, save_run, serving

from seqgraph.errors import CheckpointError, ConfigError, DataError
from seqgraph.train import checkpoint
from seqgraph_mamba4rec.serve.app import Limits, make_app
from seqgraph_mamba4rec.serve.engine import Engine
from seqgraph_mamba4rec.serve.log import EventLog, LogError, read_log
from seqgraph_mamba4rec.serve.store import UserStore


def histories(store) -> dict[str, list[int]]:
    return {user: store.histories[row].tolist() for user, row in store.rows.items()}


def check_states(store) -> None:
    """Every state is that of its whole history, read at once by a model of one's own."""
    expected = make_model().user_states([[str(i) for i in h] for h in histories(store).values()])["out"]
    torch.testing.assert_close(store.users(list(store.rows))[0], expected, atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------------------------------------- kill -9
def load(url: str, worker: int, acknowledged: dict[str, list[int]], sent: dict[str, list[int]], stop) -> None:
    """Send events for users of one's own until the service is gone."""
    random_items, client = random.Random(worker), Client(url)
    for n in range(4000):
        if stop.is_set():
            return
        user, item = f"w{worker}-{n % 5}", random_items.randrange(ITEMS)
        sent.setdefault(user, []).append(item)
        try:
            status, answer = client("/event", {"user": user, "item": item})
        except (OSError, http.client.HTTPException):  # it was killed; the answer may have been cut off
            return
        assert status == 200, answer
        acknowledged.setdefault(user, []).append(item)
        assert answer["events"] == len(acknowledged[user])


def test_killed_in_mid_load_three_times_nothing_acknowledged_is_lost(tmp_path):
    run, folder = save_run(tmp_path / "run"), tmp_path / "users"
    acknowledged: dict[str, list[int]] = {}
    for life in range(3):
        with Process(run, folder, "--snapshot-every", "40") as service:
            before = service.client("/health")[1]
            assert before["events"] >= sum(map(len, acknowledged.values()))
            sent: dict[str, list[int]] = {}
            got: dict[str, list[int]] = {}
            stop = threading.Event()
            threads = [
                threading.Thread(target=load, args=(service.url, 10 * life + n, got, sent, stop)) for n in range(4)
            ]
            for thread in threads:
                thread.start()
            deadline = time.monotonic() + 30
            while sum(map(len, got.values())) < 250 and time.monotonic() < deadline:
                time.sleep(0.01)
            status, _ = service.end(signal.SIGKILL)
            stop.set()
            for thread in threads:
                thread.join()
            assert status == -signal.SIGKILL and sum(map(len, got.values())) >= 250
        store = UserStore(folder, make_model(), capacity=100)
        try:
            there = histories(store)
            acknowledged |= got  # each life has users of its own
            for user, items in acknowledged.items():
                assert there[user][: len(items)] == items
                # Beyond that, the one event that was on its way may be there.
                assert there[user] == sent.get(user, items)[: len(there[user])]
                assert len(there[user]) - len(items) <= 1
            assert store.saved > 0  # a snapshot was written in mid-load, and the log was cut
            assert len(list(folder.glob("events-*.log"))) <= 3
            check_states(store)
            acknowledged = {user: there[user] for user in acknowledged}
        finally:
            store.close()


def test_ctrl_c_stops_in_good_order(tmp_path):
    run, folder = save_run(tmp_path / "run"), tmp_path / "users"
    with Process(run, folder) as service:
        for item in (1, 2, 3):
            assert service.client("/event", {"user": "ann", "item": item})[0] == 200
        status, said = service.end(signal.SIGINT)
    assert status == 0 and "3 events of 1 users" in said.splitlines()[-1] and "Traceback" not in said
    assert (folder / "snapshot" / "index.json").exists()
    with Process(run, folder) as service:
        assert service.client("/recommend", {"user": "ann"})[1]["events"] == 3
        status, said = service.end(signal.SIGTERM)
    assert status == -signal.SIGTERM and "Traceback" not in said


def test_a_full_disk_under_the_process(tmp_path):
    """A limit on the size of files stands for the disk: the event that does not fit is refused, and only that."""
    run, folder = save_run(tmp_path / "run"), tmp_path / "users"
    taken = []
    with Process(run, folder, limit=2000) as service:
        for item in range(200):
            status, answer = service.client("/event", {"user": "ann", "item": item % ITEMS})
            if status != 200:
                break
            taken.append(item % ITEMS)
        assert (status, answer["error"]["code"]) == (503, "log_failed") and 20 < len(taken) < 200
        assert service.client("/recommend", {"user": "ann"})[1]["events"] == len(taken)
        health = service.client("/health")[1]
        assert (health["status"], health["problems"], health["events"]) == ("degraded", ["log_failed"], len(taken))
        service.end(signal.SIGKILL)
    store = UserStore(folder, make_model(), capacity=9)
    assert histories(store) == {"ann": taken}
    check_states(store)
    store.add([("ann", 1)])
    store.close()


# ---------------------------------------------------------------------------------------------- the log
def test_a_write_that_fails_halfway_leaves_no_trace(tmp_path, monkeypatch):
    log = EventLog(tmp_path, 0)
    log.append([("ann", "1"), ("bob", "2")])
    write, full = os.write, [True]

    def halfway(handle, data):
        if not full[0]:
            return write(handle, data)
        if len(data) > 10:
            return write(handle, data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("seqgraph_mamba4rec.serve.log.os.write", halfway)
    with pytest.raises(LogError, match="No space left"):
        log.append([("ann", "3")])
    assert log.last == 2 and not log.broken
    full[0] = False
    log.append([("ann", "4")])
    log.close()
    assert [tuple(e) for e in read_log(tmp_path, 0)] == [(1, "ann", "1"), (2, "bob", "2"), (3, "ann", "4")]


def test_after_a_failed_sync_nothing_more_is_taken(tmp_path, monkeypatch):
    log = EventLog(tmp_path, 0)
    log.append([("ann", "1")])

    def fail(_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("seqgraph_mamba4rec.serve.log.os.fsync", fail)
        with pytest.raises(LogError, match="could not be synced"):
            log.append([("ann", "2")])
    with pytest.raises(LogError, match="restart the service"):
        log.append([("ann", "3")])
    log.close()
    assert [e.item for e in read_log(tmp_path, 0)] == ["1"]


@pytest.mark.parametrize("cut", [1, 2, 13, 14, 22, 23, 24, 40])
def test_a_torn_last_line_is_taken_off(tmp_path, cut):
    log = EventLog(tmp_path, 0)
    log.append([("ann", "1"), ("bob", "2")])
    log.close()
    (path,) = tmp_path.glob("*.log")
    path.write_bytes(path.read_bytes()[:-cut])
    left = ["1"] if cut <= 23 else []  # a line has 23 bytes
    assert [e.item for e in read_log(tmp_path, 0)] == left
    log = EventLog(tmp_path, len(left))
    log.append([("eve", "9")])
    log.close()
    assert [e.item for e in read_log(tmp_path, 0)][-1] == "9"


def test_damage_and_gaps_are_named(tmp_path):
    log = EventLog(tmp_path, 0)
    log.append([("ann", "1"), ("bob", "2"), ("eve", "3")])
    log.rotate()
    log.rotate()  # an empty one is not left behind
    log.append([("ann", "4")])
    log.close()
    first, second = sorted(tmp_path.glob("*.log"))
    assert [e.number for e in read_log(tmp_path, 0)] == [1, 2, 3, 4] and [e.number for e in read_log(tmp_path, 3)] == [
        4
    ]
    good = first.read_bytes()
    first.write_bytes(good.replace(b"bob", b"bub"))
    with pytest.raises(DataError, match=rf"{first.name}, line 2: damaged"):
        list(read_log(tmp_path, 0))
    first.write_bytes(good[:-5])  # the last line of a segment that is not the last was acknowledged
    with pytest.raises(DataError, match=rf"{first.name}, line 3: damaged"):
        list(read_log(tmp_path, 0))
    first.unlink()
    with pytest.raises(DataError, match="the events before number 4 are missing"):
        list(read_log(tmp_path, 0))
    assert second.exists()


def test_names_of_all_kinds_come_back(tmp_path):
    names = ['"', "\n", "é", "日本", "\x00", "a b,c", "\u2028", "😀"]
    store = UserStore(tmp_path, make_model(), capacity=20)
    store.add([(name, i) for i, name in enumerate(names)])
    for snapshot in (False, True):
        if snapshot:
            store.snapshot()
        store.close()
        store = UserStore(tmp_path, make_model(), capacity=20)
        assert histories(store) == {name: [i] for i, name in enumerate(names)}
    store.close()


# ---------------------------------------------------------------------------------------------- snapshots
def filled(folder, n=60, users=7, **options):
    store = UserStore(folder, make_model(), capacity=20, **options)
    store.add([(f"u{i % users}", (i * i) % ITEMS) for i in range(n)])
    return store


@pytest.mark.parametrize("shard", [1, 3, 4096])
def test_events_during_a_snapshot_are_in_it_or_in_the_log(tmp_path, monkeypatch, shard):
    """While each shard is written events come for users of all shards, and for new ones."""
    monkeypatch.setattr("seqgraph_mamba4rec.serve.store._SHARD", shard)
    store = filled(tmp_path)
    save, calls = checkpoint.write_tensors, []

    def meanwhile(path, tensors):
        calls.append(path)
        store.add([(f"new {len(calls)}", 5)] + [(f"u{i}", len(calls)) for i in range(7)])
        return save(path, tensors)

    with monkeypatch.context() as patch:
        patch.setattr("seqgraph.train.checkpoint.write_tensors", meanwhile)
        store.snapshot()
    expected, events = histories(store), store.events
    assert len(calls) == -(-7 // shard) and store.saved == 60 and events == 60 + 8 * len(calls)
    store.close()
    again = UserStore(tmp_path, make_model(), capacity=20)
    assert histories(again) == expected and again.events == events
    check_states(again)
    again.add([("u1", 3)])
    again.close()


def test_a_snapshot_that_fails_leaves_the_old_one_and_the_log(tmp_path, monkeypatch):
    store = filled(tmp_path)
    store.snapshot()
    store.add([("u0", 1)] * 5)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("seqgraph.train.checkpoint.write_tensors", full)
        with pytest.raises(CheckpointError, match="the disk is full"):
            store.snapshot()
    expected = histories(store)
    store.add([("u1", 2)])
    expected["u1"].append(2)
    store.close()
    again = UserStore(tmp_path, make_model(), capacity=20)
    assert histories(again) == expected
    check_states(again)
    again.close()


@pytest.mark.parametrize("after", ["the old one stepped aside", "the new one is in place", "half of the log is gone"])
def test_killed_between_the_steps_of_a_snapshot(tmp_path, monkeypatch, after):
    class Killed(BaseException):
        pass

    store = filled(tmp_path)
    store.snapshot()
    store.add([("u0", 1)] * 5)
    store._log.rotate()
    store.add([("u2", 1)] * 5)
    expected, unlink, rename = histories(store), Path.unlink, Path.rename

    def killed_on(name, real, when):
        def call(self, *args, **kwargs):
            if when(self):
                raise Killed
            return real(self, *args, **kwargs)

        monkeypatch.setattr(Path, name, call)

    if after == "the old one stepped aside":
        killed_on("rename", rename, lambda path: path.name == ".snapshot.new")
        monkeypatch.setattr(checkpoint.shutil, "rmtree", lambda *_, **__: None)
        recover, calls = checkpoint.recover, []
        monkeypatch.setattr(
            checkpoint, "recover", lambda f: calls.append(f) or (recover(f) if len(calls) == 1 else None)
        )
    else:
        left = [0 if after == "the new one is in place" else 1]

        def next_one(path):
            left[0] -= path.name.startswith("events-")
            return left[0] < 0

        killed_on("unlink", unlink, next_one)
    with pytest.raises(Killed):
        store.snapshot()
    monkeypatch.undo()
    store.close()
    again = UserStore(tmp_path, make_model(), capacity=20)
    assert histories(again) == expected
    check_states(again)
    again.close()


def test_a_damaged_snapshot_is_named(tmp_path):
    store = filled(tmp_path)
    store.snapshot()
    store.close()
    (tensors,) = tmp_path.rglob("states.safetensors")
    tensors.write_bytes(tensors.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"shard-00000/states.safetensors is damaged"):
        UserStore(tmp_path, make_model(), capacity=20)
    with pytest.raises(ConfigError, match=r"holds 7 users, there is room for 3 \(raise --max-users\)"):
        UserStore(tmp_path, make_model(), capacity=3)


def test_new_weights_read_the_histories_again(tmp_path):
    """The items come in another order, and some are gone: events are told by raw id, not by row."""
    store = filled(tmp_path)
    store.snapshot()
    store.add([("late", 7), ("u0", 8), ("u1", 49)])
    old = histories(store)
    store.close()
    model = make_model(seed=5)
    model.assets["item_ids"] = [str(49 - i) if i else "new" for i in range(ITEMS)]
    with pytest.raises(CheckpointError, match=r"states are of other weights .*--rebuild"):
        UserStore(tmp_path, model, capacity=20)
    gone = sum(items.count(49) for items in old.values())
    for rebuild in (True, False):  # once is enough
        store = UserStore(tmp_path, model, capacity=20, rebuild=rebuild)
        assert store.dropped == (gone if rebuild else 0) and gone
        kept = {user: [49 - i for i in items if i != 49] for user, items in old.items()}
        assert histories(store) == kept
        expected = model.user_states([[str(49 - row) for row in items] for items in kept.values()])["out"]
        torch.testing.assert_close(store.users(list(kept))[0], expected, atol=1e-5, rtol=1e-5)
        store.close()
    with pytest.raises(CheckpointError, match="other weights"):
        UserStore(tmp_path, make_model(), capacity=20)


def test_a_failed_snapshot_shows_in_health_and_goes_away(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    engine = Engine(UserStore(tmp_path, make_model(), capacity=20), snapshot_every=3)
    with serving(make_app(engine, limits=Limits())) as url:
        call = Client(url)

        def add_until(problems):
            for _ in range(50):
                assert call("/event", {"user": "ann", "item": 1})[0] == 200
                if call("/health")[1]["problems"] == problems:
                    return True
                time.sleep(0.02)
            return False

        with monkeypatch.context() as patch:
            patch.setattr("seqgraph.train.checkpoint.write_tensors", full)
            assert add_until(["snapshot_failed"])
        assert add_until([])
