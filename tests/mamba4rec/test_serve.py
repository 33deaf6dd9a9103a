"""The service over HTTP: lists, events, limits, and every kind of no."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")
sys.path.insert(0, str(Path(__file__).parent))
from service import ITEMS, Client, make_model, save_run, serving

from seqgraph.cli.main import main
from seqgraph_mamba4rec.serve.app import Limits, make_app
from seqgraph_mamba4rec.serve.engine import Engine
from seqgraph_mamba4rec.serve.store import UserStore

TOKEN = "0123456789abcdef"
LIMITS = Limits(body=4096, history=30, k=40)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    engine = Engine(UserStore(tmp_path_factory.mktemp("users"), make_model(), capacity=40))
    with serving(make_app(engine, limits=LIMITS, hosts={"127.0.0.1", "localhost"})) as url:
        yield url


@pytest.fixture
def call(url):
    return Client(url)


def code(answer):
    status, body = answer
    assert body.keys() == {"error"} and body["error"].keys() == {"code", "message", "hint"}
    return status, body["error"]["code"]


def test_a_new_user_clicks_and_the_list_follows(call):
    model = make_model()
    history = []
    for n, item in enumerate([3, "17", "film 9: <b>it's & more</b>", 3], start=1):
        status, taken = call("/event", {"user": "ann", "item": item})
        history.append(taken["item"])
        assert (status, taken["events"]) == (200, n)
        status, lists = call("/recommend", {"user": "ann", "k": 5})
        (expected,) = model.recommend([history], k=5)
        assert status == 200 and lists["events"] == n
        assert [(i["rank"], i["item"], i["title"]) for i in lists["items"]] == [
            (rank, r.item, r.title) for rank, r in enumerate(expected, start=1)
        ]
        assert [i["score"] for i in lists["items"]] == pytest.approx([r.score for r in expected], abs=1e-4)
    assert history == ["3", "17", "9", "3"]
    assert call("/recommend", {"history": history, "k": 5})[1]["items"][0]["item"] == expected[0].item
    status, known = call("/history?user=ann")
    assert status == 200 and known["events"] == 4 and [i["item"] for i in known["last"]] == history[::-1]


def test_seen_items_can_stay_and_lists_run_out(call):
    for item in range(30):
        call("/event", {"user": "bob", "item": item})
    items = {}
    for hidden in (True, False):
        items[hidden] = call("/recommend", {"user": "bob", "k": 40, "filter_seen": hidden})[1]["items"]
    assert {int(i["item"]) for i in items[True]} == set(range(30, ITEMS)) and len(items[False]) == 40
    assert call("/recommend", {"history": list(range(30)), "k": 40})[1]["items"][0]["rank"] == 1


def test_items_are_found_by_name_and_id(call):
    status, found = call("/items?search=FILM+4&limit=3")
    assert status == 200 and [i["item"] for i in found["items"]] == ["4", "40", "41"]
    assert len(call("/items")[1]["items"]) == 20 and call("/items?search=nothing")[1]["items"] == []


def test_requests_together_get_their_own_answers(url):
    """What is batched comes back to whoever asked, also where one of the batch is refused."""
    got, model = {}, make_model()

    def work(n):
        client = Client(url)
        history = [n, (3 * n + 1) % ITEMS]
        bad = client("/recommend", {"user": f"nobody {n}"})
        for item in history:
            client("/event", {"user": f"user {n}", "item": item})
        got[n] = (bad[0], client("/recommend", {"user": f"user {n}", "k": n + 1}), history)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in range(24):
        bad, (status, lists), history = got[n]
        (expected,) = model.recommend([history], k=n + 1)
        assert bad == 404 and status == 200
        assert [i["item"] for i in lists["items"]] == [r.item for r in expected]


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/event", {"user": "eve", "item": "nope"}, (422, "unknown_item")),
        ("/event", {"user": "eve", "item": ITEMS}, (422, "unknown_item")),
        ("/event", {"user": "", "item": 1}, (422, "invalid_request")),
        ("/event", {"user": "e" * 129, "item": 1}, (422, "invalid_request")),
        ("/event", {"user": "eve", "item": True}, (422, "invalid_request")),
        ("/event", {"user": "eve", "item": 1.5}, (422, "invalid_request")),
        ("/event", {"user": "eve\ud800", "item": 1}, (422, "invalid_request")),
        ("/event", {"user": "eve", "item": 1, "extra": 2}, (422, "invalid_request")),
        ("/event", {"user": "eve"}, (422, "invalid_request")),
        ("/event", [1], (422, "invalid_request")),
        ("/recommend", {"user": "eve"}, (404, "unknown_user")),
        ("/recommend", {}, (422, "invalid_request")),
        ("/recommend", {"user": "eve", "history": [1]}, (422, "invalid_request")),
        ("/recommend", {"history": []}, (422, "empty_history")),
        ("/recommend", {"history": ["nope"]}, (422, "unknown_item")),
        ("/recommend", {"history": [1] * 31}, (422, "history_too_long")),
        ("/recommend", {"history": [1], "k": 41}, (422, "k_too_large")),
        ("/recommend", {"history": [1], "k": 0}, (422, "invalid_request")),
        ("/recommend", {"history": [1], "k": "9"}, (422, "invalid_request")),
        ("/history?user=eve", None, (404, "unknown_user")),
        ("/items?limit=0", None, (422, "invalid_request")),
        ("/nowhere", None, (404, "not_found")),
        ("/event", None, (405, "method_not_allowed")),
    ],
)  # fmt: skip
def test_bad_requests(call, path, body, expected):
    assert code(call(path, body)) == expected
    assert "eve" not in json.dumps(call("/history?user=eve")[1].get("last", ""))


@pytest.mark.parametrize("raw", [b'{"user": "eve"', b"", b"\xff\xfe", b"[" * 4000, b"null null"])
def test_malformed_json(call, raw):
    status, said = code(call("/event", raw=raw))
    assert (status, said) in {(400, "malformed_json"), (422, "invalid_request")} and (raw == b"") == (status == 422)


def test_large_bodies_are_not_read(url, call):
    assert code(call("/recommend", {"history": ["1" * 400] * 12})) == (413, "body_too_large")
    # A stated length is believed without waiting for the rest; an unstated one is counted.
    host, port = call.address.split(":")
    for head, body in (
        (b"Content-Length: 1000000000", b""),
        (b"Transfer-Encoding: chunked", b"1000\r\n" + b" " * 4096 + b"\r\n" + b"1000\r\n" + b" " * 4096 + b"\r\n"),
    ):
        with socket.create_connection((host, int(port)), timeout=10) as raw:
            raw.sendall(b"POST /event HTTP/1.1\r\nHost: localhost\r\n" + head + b"\r\n\r\n" + body)
            assert raw.recv(4096).startswith(b"HTTP/1.1 413")
    assert call("/health")[0] == 200


def test_pages_elsewhere_cannot_read_from_it(call):
    for host, expected in (("127.0.0.1:1", 200), ("LOCALHOST", 200), ("evil.example", 400), ("127.0.0.1.evil:80", 400)):
        assert call("/health", headers={"Host": host})[0] == expected
    assert code(call("/items", headers={"Host": "evil.example"})) == (400, "wrong_host")
    # A form of another page can send text, but no JSON without being asked first.
    answer = call("/event", raw=b'{"user": "eve", "item": 1}', headers={"Content-Type": "text/plain"})
    assert code(answer) == (422, "invalid_request")


def test_the_schema_says_all_this(call):
    status, schema = call("/openapi.json")
    assert status == 200 and set(schema["paths"]) == {"/event", "/recommend", "/items", "/history", "/health"}
    errors = schema["components"]["schemas"]["ErrorDetail"]["properties"]["code"]["enum"]
    assert {"unknown_item", "wrong_token", "log_failed", "k_too_large"} <= set(errors)
    for path in schema["paths"].values():
        for method in path.values():
            assert {"200", "4XX", "5XX"} <= set(method["responses"]) and method["summary"]
            assert "security" not in method  # there is no token


def test_a_token(tmp_path):
    engine = Engine(UserStore(tmp_path, make_model(), capacity=4))
    with serving(make_app(engine, limits=LIMITS, token=TOKEN)) as url:
        for path in ("/health", "/", "/openapi.json"):
            assert Client(url)(path)[0] == 200
        for given in (None, "wrong", TOKEN + "x", TOKEN[:-1]):
            assert code(Client(url, given)("/items")) == (401, "wrong_token")
            assert code(Client(url, given)("/event", {"user": "eve", "item": 1})) == (401, "wrong_token")
        assert code(Client(url)("/items", headers={"Authorization": f"Basic {TOKEN}"})) == (401, "wrong_token")
        assert Client(url, TOKEN)("/event", {"user": "ann", "item": 1})[0] == 200
        assert Client(url)("/health")[1]["users"] == 1
        schema = Client(url)("/openapi.json")[1]
        asked = {path for path, methods in schema["paths"].items() for m in methods.values() if m.get("security")}
        assert asked == {"/event", "/recommend", "/items", "/history"}
        assert [s["scheme"] for s in schema["components"]["securitySchemes"].values()] == ["bearer"]


def test_a_full_house_still_serves_its_users(tmp_path):
    engine = Engine(UserStore(tmp_path, make_model(), capacity=2))
    with serving(make_app(engine, limits=LIMITS)) as url:
        call = Client(url)
        answers = {user: call("/event", {"user": user, "item": 1}) for user in ("ann", "bob", "eve", "ann")}
        assert code(answers["eve"]) == (507, "users_full") and answers["ann"][1]["events"] == 2
        status, health = call("/health")
        assert status == 200 and (health["users"], health["events"], health["status"]) == (2, 3, "ok")


def test_too_many_waiting_are_turned_away(tmp_path, monkeypatch):
    monkeypatch.setattr("seqgraph_mamba4rec.serve.engine._WAITING", 2)
    engine = Engine(UserStore(tmp_path, make_model(), capacity=20))
    ask = engine._ask

    def slow(jobs):
        time.sleep(0.5)
        return ask(jobs)

    engine._ask = slow
    got = []
    with serving(make_app(engine, limits=LIMITS)) as url:

        def one():
            got.append(Client(url)("/recommend", {"history": [1]}))

        threads = [threading.Thread(target=one) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    statuses = [status for status, _ in got]
    assert set(statuses) == {200, 503} and statuses.count(200) >= 2
    assert {code(answer) for answer in got if answer[0] == 503} == {(503, "overloaded")}


# ---------------------------------------------------------------------------------------------- the command
def said_by(capsys, *arguments) -> str:
    assert main(["serve", *map(str, arguments)]) == 2
    text = " ".join(capsys.readouterr().err.split())
    assert "Traceback" not in text
    return text


def test_the_command_refuses_what_cannot_work(tmp_path, capsys, monkeypatch):
    run = save_run(tmp_path / "run")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = said_by(capsys, run, "--port", port)
    assert f"port {port} of 127.0.0.1 is taken" in said and "--port 0" in said
    assert "there is no token" in said_by(capsys, run, "--host", "0.0.0.0")
    monkeypatch.setenv("SEQGRAPH_TOKEN", "short")
    assert "$SEQGRAPH_TOKEN: a token is 16" in said_by(capsys, run, "--port", "0")
    monkeypatch.setenv("SEQGRAPH_TOKEN", TOKEN)
    assert "'no host' is no address" in said_by(capsys, run, "--host", "no host")
    assert "cannot listen on 192.0.2.1" in said_by(capsys, run, "--host", "192.0.2.1")
    monkeypatch.delenv("SEQGRAPH_TOKEN")
    assert "no such folder" in said_by(capsys, tmp_path / "none", "--port", "0")
    (tmp_path / "file").touch()
    assert "cannot be used" in said_by(capsys, run, "--port", "0", "--state", tmp_path / "file")


def test_states_of_other_weights_are_refused_by_the_command(tmp_path, capsys):
    store = UserStore(tmp_path / "users", make_model(), capacity=9)
    store.add([("ann", 1), ("ann", 2)])
    store.close()
    said = said_by(capsys, save_run(tmp_path / "run", seed=1), "--port", "0", "--state", tmp_path / "users")
    assert "states are of other weights" in said and "--rebuild" in said


def test_two_processes_do_not_share_a_folder(tmp_path, capsys):
    store = UserStore(tmp_path / "users", make_model(), capacity=9)
    said = said_by(capsys, save_run(tmp_path / "run"), "--port", "0", "--state", tmp_path / "users")
    assert "is in use by another process" in said
    store.close()


def test_help_imports_no_server():
    code = "import sys; from seqgraph.cli.main import main; main([*sys.argv[1:], '--help']); print(*sys.modules)"
    for arguments in ([], ["serve"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        loaded = done.stdout.rsplit("\n", 2)[-2].split()
        assert "serve" in done.stdout and not {"torch", "fastapi", "uvicorn", "starlette", "numpy"} & set(loaded)


def test_states_can_be_kept_in_half_precision(tmp_path):
    store = UserStore(tmp_path, make_model(), capacity=3, dtype=torch.float16)
    store.add([("ann", i) for i in range(9)])
    whole = make_model().user_states([[str(i) for i in range(9)]])["out"]
    torch.testing.assert_close(store.users(["ann"])[0], whole, atol=2e-2, rtol=2e-2)
    store.close()
