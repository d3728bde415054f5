"""The HTTP service: the same lists as in Python, clear errors, many clients at once, reload and stop without loss."""

import asyncio
import copy
import http.client
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from eimf.cli.main import main
from eimf.core.errors import ConfigError
from eimf.runs.folder import read_checkpoint
from eimf.serving import http as module
from eimf.serving.http import Service, build_app
from eimf.serving.openapi import describe_api
from eimf.serving.recommender import Recommendations, Recommender, load
from eimf.serving.server import Server
from eimf.serving.web import token_of_environment
from eimf.training.train import train
from tests.conftest import ROOT, tiny_config

HISTORY = ["P00003", "P00005", "P00008"]


@pytest.fixture(scope="module")
def client(model: Recommender) -> TestClient:
    return TestClient(build_app(Service(lambda: model)), "http://127.0.0.1", raise_server_exceptions=False)


def plain(items: Recommendations) -> list[dict[str, Any]]:
    return [one._asdict() | {"score": pytest.approx(one.score, abs=1e-5)} for one in items]


def test_lists_are_those_of_python(client: TestClient, model: Recommender) -> None:
    rules: dict[str, Any] = {"n": 4, "allow": {"stock": {"min": 2}}, "deny": ["P00001"]}
    for options in (
        {},
        rules,
        rules | {"merge": "proportional", "filter_seen": False},
        {"diversity": 0.5, "allow": HISTORY},
    ):
        wanted = model.recommend(HISTORY, **options)
        found = client.post("/recommend", json={"history": [*HISTORY, "nope"], **options})
        assert found.json() == {"items": plain(wanted), "skipped": 1, "fallback": False}
    lists = client.post("/recommend", json={"history": HISTORY, "by_interest": True, **rules}).json()["lists"]
    assert lists == [plain(items) for items in model.recommend_by_interest(HISTORY, **rules)]
    popular = client.post("/recommend", json={"history": [], **rules}).json()
    assert popular == {"items": plain(model.recommend([], **rules)), "skipped": 0, "fallback": True}
    similar = client.post("/similar", json={"item_id": "P00005", **rules}).json()
    assert similar == {"items": plain(model.similar_items("P00005", **rules))}


def test_missing_and_numeric_ids_are_unknown_items_here(client: TestClient, model: Recommender) -> None:
    history = [*HISTORY, None, "", 7, 7.0]
    wanted = model.recommend(history)
    assert wanted.skipped == 4
    found = client.post("/recommend", json={"history": history}).json()
    assert found == {"items": plain(wanted), "skipped": 4, "fallback": False}
    assert client.post("/recommend", json={"history": HISTORY, "allow": [7]}).json()["items"] == []


def test_many_requests_of_one_call(client: TestClient, model: Recommender) -> None:
    requests = [{"history": HISTORY, "n": 3}, {"history": []}, {"history": HISTORY[:1], "n": 3, "deny": {"stock": 0}}]
    answers = client.post("/recommend", json={"requests": requests}).json()["answers"]
    assert answers == [client.post("/recommend", json=one).json() for one in requests]
    assert [len(one["items"]) for one in answers] == [3, 10, 3]


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/recommend", "{", "the body is not JSON"),
        ("/recommend", '{"history": [], "diversity": NaN}', "NaN is no JSON number"),
        ("/recommend", [], "the body: must be an object, is list"),
        ("/recommend", {}, "history: is missing"),
        ("/recommend", {"history": "P00003"}, "history: must be a list of item ids, oldest first"),
        ("/recommend", {"history": [["P00003"]]}, "history: ['P00003'] is no id; give a text or a whole number"),
        ("/recommend", {"history": [True]}, "history: True is no id"),
        ("/recommend", {"history": [7.5]}, "history: 7.5 is no id"),
        ("/recommend", {"history": [None], "unknown": "error"}, "history: '' not in the catalogue"),
        ("/recommend", {"history": ["P"] * 10_001}, "history: has 10,001 items, at most 10,000 go"),
        ("/recommend", {"history": HISTORY, "m": 3}, "'m': no such field"),
        ("/recommend", {"history": HISTORY, "n": 0}, "n: must be a whole number from 1"),
        ("/recommend", {"history": HISTORY, "n": True}, "n: must be a whole number from 1"),
        ("/recommend", {"history": HISTORY, "n": 1001}, "n: must be at most 1,000"),
        ("/recommend", {"history": HISTORY, "merge": ["best"]}, "merge: must be best or proportional"),
        ("/recommend", {"history": HISTORY, "filter_seen": 1}, "filter_seen: must be true or false"),
        ("/recommend", {"history": HISTORY, "allow": "P00001"}, "allow: must be a list of item ids, or conditions"),
        ("/recommend", {"history": HISTORY, "allow": [1.5]}, "allow.item_id: 1.5 is no id"),
        ("/recommend", {"history": HISTORY, "allow": {"stok": 1}}, "no column 'stok' (did you mean 'stock'?)"),
        ("/recommend", {"history": HISTORY, "allow": {"stock": 10**400}}, "allow.stock: "),
        ("/recommend", {"history": HISTORY, "allow": {"stock": [2**63]}}, "allow.stock: "),
        ("/recommend", {"history": HISTORY, "deny": ["\ud800"]}, "deny.item_id: "),
        ("/recommend", {"history": HISTORY, "diversity": 10**400}, "diversity: must be a number from 0 to 1,000,000"),
        ("/recommend", {"history": HISTORY, "diversity": 1e308}, "diversity: must be a number from 0 to 1,000,000"),
        ("/recommend", {"history": HISTORY, "deny": ["P"] * 100_001}, "deny: has 100,001 values, at most 100,000"),
        ("/recommend", {"history": ["nope"], "unknown": "error"}, "history: 'nope' not in the catalogue"),
        *[
            ("/recommend", {"history": [], "words": words}, "words: must be a list of phrases")
            for words in (None, 3, "oil", {"oil": 1}, [""], [["oil"]])
        ],
        ("/recommend", {"history": [], "words": ["oil"] * 17}, "words: at most 16 phrases"),
        ("/recommend", {"history": [], "words": ["o" * 1001]}, "words: at most 16 phrases of at most 1,000 characters"),
        ("/recommend", {"history": [], "words": ["oil"]}, "eimf map"),
        ("/recommend", {"requests": []}, "requests: must be a list of 1 to 256 requests"),
        ("/recommend", {"requests": [{"history": []}] * 257}, "requests: must be a list of 1 to 256 requests"),
        ("/recommend", {"requests": [3]}, "requests[0]: must be an object, is int"),
        ("/recommend", {"requests": [{"history": []}, {"history": [], "n": 0}]}, "requests[1]: n: must be a whole"),
        ("/recommend", {"requests": [{"history": []}, {}]}, "requests[1]: history: is missing"),
        (
            "/recommend",
            {"requests": [{"history": []}, {"history": HISTORY, "allow": {"stok": 1}}]},
            "requests[1]: allow: the items have no column 'stok'",
        ),
        ("/recommend", {"requests": [{"history": ["x"], "unknown": "error"}]}, "requests[0]: history: 'x' not in the"),
        ("/recommend", {"requests": [{"history": [], "n": 1000}] * 101}, "n: the call asks for 101,000 rows"),
        ("/recommend", {"history": [], "words": ["\ud800 oil"]}, "words: '\\ud800 oil' is no text"),
        ("/similar", {"item_id": "nope"}, "item_id: 'nope' not in the catalogue"),
        ("/items", {"items": []}, "items: must be a list of 1 to 1,000 new items"),
        ("/items", {"items": [{}] * 1001}, "items: must be a list of 1 to 1,000 new items"),
        ("/items", {"items": ["N1"]}, "items[0]: must be an object, is str"),
        ("/items", {"item": []}, "'item': no such field (did you mean 'items'?)"),
        ("/items", {"items": [{"item_id": "N1", "title": "Mat"}]}, "eimf map"),
        ("/similar", {"item_id": ["P00003"]}, "item_id: ['P00003'] is no id"),
        ("/similar", {"item_id": "P00003", "history": []}, "'history': no such field"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_bad_requests_are_named(path: str, body: Any, message: str, client: TestClient) -> None:
    found = client.post(path, content=body if isinstance(body, str) else json.dumps(body))
    assert found.status_code == 400
    assert message in found.json()["error"]
    assert "\n" not in found.json()["error"]


def test_other_addresses_methods_hosts_and_sizes(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/nowhere").json() == {"error": "Not Found"}
    assert client.get("/recommend").status_code == 405
    for host in ("evil.example", "127.0.0.1@evil.example", "evil.example/127.0.0.1", "127.0.0.1:x:y", "[::1", ""):
        refused = client.get("/health", headers={"host": host})
        assert refused.status_code == 400
        assert f"does not answer to the name {host!r}" in refused.json()["error"]
    for host in ("LOCALHOST:99", "[::1]:8412", "127.0.0.1"):
        assert client.get("/health", headers={"host": host}).status_code == 200
    for reply in (client.get("/health"), client.get("/nowhere"), client.post("/recommend", content="{")):
        assert reply.headers["x-content-type-options"] == "nosniff"
    large = client.post("/recommend", content=b" " * (module.BODY_BYTES + 1))
    assert (large.status_code, "more than 4,194,304 bytes" in large.json()["error"]) == (413, True)

    def broken(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(Recommender, "answer", broken)
    reply = client.post("/recommend", json={"history": HISTORY})
    assert (reply.status_code, reply.json()) == (500, {"error": "a fault of the server; its log has more"})


def test_a_token_is_asked_for_where_one_is_set(model: Recommender) -> None:
    token = "0123456789abcdef"
    client = TestClient(build_app(Service(lambda: model), token=token), "http://127.0.0.1")
    body = {"history": [model.items["item_id"][0]], "n": 2}
    for headers in ({}, {"Authorization": f"Bearer {token}x"}, {"Authorization": token}, {"Authorization": "Bearer é"}):
        encoded = {name.encode(): value.encode() for name, value in headers.items()}
        for path in ("/recommend", "/items"):
            reply = client.post(path, json=body, headers=encoded)
            assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer")
            assert "Authorization: Bearer TOKEN" in reply.json()["error"]
            assert token not in reply.text
        assert client.get("/about", headers=encoded).status_code == 401
        assert client.get("/health", headers=encoded).status_code == 200
    with_token = {"Authorization": f"Bearer {token}"}
    assert client.post("/recommend", json=body, headers=with_token).status_code == 200
    assert client.get("/about", headers=with_token).status_code == 200


@pytest.mark.parametrize("token", ["", "short", "0123456789 abcdef", "0123456789abcdé", "0123456789abcdef\n"])
def test_a_token_that_protects_nothing_is_refused(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EIMF_TOKEN", token)
    with pytest.raises(ConfigError, match="EIMF_TOKEN: must have at least 16 characters") as error:
        token_of_environment("EIMF_TOKEN")
    assert token == "" or token not in str(error.value)
    monkeypatch.delenv("EIMF_TOKEN")
    assert token_of_environment("EIMF_TOKEN") is None


def test_about_and_the_description(client: TestClient, model: Recommender) -> None:
    about = client.get("/about").json()
    assert about["items"] == len(model.items)
    assert len(about["checkpoint_sha256"]) == len(about["data_digest"]) == 64
    assert "stock" in about["columns"]
    api = client.get("/openapi.json").json()
    assert api == json.loads(json.dumps(describe_api()))
    routes = {route.path for route in build_app(Service(lambda: model)).routes}  # pyright: ignore[reportAttributeAccessIssue]
    assert set(api["paths"]) == routes
    schemas = api["components"]["schemas"]
    assert set(schemas["Request"]["properties"]) == {"history", *module.OPTIONS}
    assert schemas["Request"]["properties"]["n"]["maximum"] == module.LIST
    words = schemas["Request"]["properties"]["words"]
    assert (words["maxItems"], words["items"]["maxLength"]) == (module.PHRASES, module.PHRASE)
    assert schemas["Requests"]["properties"]["requests"]["maxItems"] == module.REQUESTS
    assert schemas["Request"]["properties"]["history"]["maxItems"] == module.HISTORY
    assert schemas["NewItems"]["properties"]["items"]["maxItems"] == module.ITEMS
    assert f"{module.ROWS:,} rows" in api["paths"]["/recommend"]["post"]["summary"]


def test_a_call_has_at_most_so_many_rows(
    client: TestClient, model: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROWS", 4 * model.n_interests)
    one = {"history": HISTORY, "n": 2, "by_interest": True}
    reply = client.post("/recommend", json={"requests": [one, one]})
    assert [len(answer["lists"]) for answer in reply.json()["answers"]] == [model.n_interests] * 2
    more = client.post("/recommend", json={"requests": [one, one, {"history": HISTORY, "n": 1}]})
    rows = 4 * model.n_interests
    assert more.status_code == 400
    assert f"n: the call asks for {rows + 1} rows (n times the lists of all requests), at most {rows} go" in more.text
    alone = client.post("/recommend", json=one | {"n": 5})
    assert f"n: the call asks for {5 * model.n_interests} rows" in alone.json()["error"]
    texts = [{"history": HISTORY, "n": rows}, {"history": HISTORY, "n": rows + 1}]
    assert [client.post("/recommend", json=one).status_code for one in texts] == [200, 400]


def test_json_is_made_in_another_thread(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    render, threads = module._render, []

    def render_here(*arguments: Any) -> Any:
        threads.append((threading.current_thread(), asyncio._get_running_loop()))
        return render(*arguments)

    monkeypatch.setattr(module, "_render", render_here)
    assert client.post("/recommend", json={"history": HISTORY}).status_code == 200
    assert [loop for _, loop in threads] == [None]  # not in the thread of the event loop, which answers /health


def ask(port: int, body: dict[str, Any] | None, path: str = "/recommend") -> tuple[int, Any]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("POST" if body is not None else "GET", path, json.dumps(body) if body is not None else None)
        with connection.getresponse() as reply:
            return reply.status, json.loads(reply.read())


@contextmanager
def running(model: Recommender) -> Iterator[tuple[Server, int]]:
    """A server in another thread, and its port."""
    server = Server(build_app(Service(lambda: model)), 30, port=0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield server, server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def port(model: Recommender) -> Iterator[int]:
    with running(model) as (_, port):
        yield port


def keep_asking(port: int, stop: float) -> list[int]:
    """Ask over one connection until the server closes it: the statuses of all requests.

    Args:
        stop: by `time.monotonic()`, when to give up.
    """
    statuses = []
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        while time.monotonic() < stop:
            connection.request("POST", "/recommend", json.dumps({"history": HISTORY}))
            with connection.getresponse() as reply:
                statuses.append(reply.status)
                json.loads(reply.read())
                if reply.will_close:
                    return statuses
    raise AssertionError("the server kept the connection open")


def test_64_clients_with_open_connections_lose_no_request_when_the_server_stops(
    model: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, stopping = Recommender.answer, threading.Event()

    def answer_slowly(self: Recommender, *arguments: Any) -> Any:
        if stopping.is_set():
            time.sleep(0.5)  # the requests are in progress while the server stops
        return answer(self, *arguments)

    monkeypatch.setattr(Recommender, "answer", answer_slowly)
    with running(model) as (server, port), ThreadPoolExecutor(64) as clients:
        found = [clients.submit(keep_asking, port, time.monotonic() + 30) for _ in range(64)]
        idle = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        idle.connect()
        time.sleep(0.5)
        stopping.set()
        server.should_exit = True
        statuses = [one.result() for one in found]
        with pytest.raises(ConnectionError):
            ask(port, {"history": HISTORY})
        idle.request("GET", "/health")  # the connection was made before, its first request comes late
        with idle.getresponse() as reply:
            assert (reply.status, reply.will_close) == (200, True)
        idle.close()
    assert set(map(len, statuses)) != {1}
    assert {status for each in statuses for status in each} == {200}


def test_64_clients_at_once_get_what_each_would_get_alone(port: int, model: Recommender) -> None:
    ids = model.items["item_id"].to_list()
    bodies: list[dict[str, Any]] = [
        {"history": ids[place % 100 : place % 100 + 1 + place % 5], "n": 3 + place % 2} for place in range(256)
    ]
    bodies[7] = {"history": ["nope"], "unknown": "error"}  # the others of its batch are answered
    with ThreadPoolExecutor(64) as clients:
        found = list(clients.map(lambda body: ask(port, body), bodies))
    for place, (body, (status, reply)) in enumerate(zip(bodies, found, strict=True)):
        if place == 7:
            assert status == 400
        else:
            assert status == 200
            assert [one["item_id"] for one in reply["items"]] == [one.item_id for one in model.recommend(**body)]


def test_many_reloads_end_in_order_and_a_fault_keeps_the_model(
    model: Recommender, caplog: pytest.LogCaptureFixture
) -> None:
    others = [copy.copy(model) for _ in range(2)]
    waits = [0.2, 0.0]

    def open_next() -> Recommender:
        if not opened:
            opened.append(model)
            return model
        place = len(opened) - 1
        opened.append(model)
        if place == 2:
            raise MemoryError("no room")
        time.sleep(waits[place])
        return others[place]

    opened: list[Recommender] = []
    service = Service(open_next)

    async def twice() -> None:
        await asyncio.gather(service.reload(), service.reload())

    asyncio.run(twice())
    assert service.model is others[1]
    asyncio.run(service.reload())
    assert service.model is others[1]
    assert "not reloaded, the earlier model is served on: MemoryError: no room" in caplog.text


@pytest.mark.slow
def test_reload_and_stop_lose_no_request(run_folder: Path, data_root: Path, tmp_path: Path) -> None:
    other = train(tiny_config(data_root, tmp_path, "trainer.max_epochs=1", "seed=1")).folder
    current = tmp_path / "current"
    current.symlink_to(run_folder)
    command = [sys.executable, "-m", "eimf", "serve", str(current), "--port", "0"]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    port = int(server.stdout.readline().split("127.0.0.1:")[1].split("/")[0])

    def checkpoint() -> str:
        return ask(port, None, "/about")[1]["checkpoint_sha256"]

    clients = ThreadPoolExecutor(4)
    statuses = [clients.submit(keep_asking, port, time.monotonic() + 90) for _ in range(4)]
    try:
        before, deadline = checkpoint(), time.monotonic() + 60
        (tmp_path / "next").symlink_to(tmp_path / "nowhere")  # what cannot be loaded is not served
        (tmp_path / "next").replace(current)
        server.send_signal(signal.SIGHUP)
        assert "not reloaded, the earlier model is served on" in server.stdout.readline()
        assert checkpoint() == before
        (tmp_path / "next").symlink_to(other)
        (tmp_path / "next").replace(current)
        server.send_signal(signal.SIGHUP)
        while checkpoint() == before:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        server.send_signal(signal.SIGTERM)
        clients.shutdown()
        assert server.wait(60) in (0, -signal.SIGTERM)
        server.stdout.close()
    found = [status for each in statuses for status in each.result()]
    assert len(found) > 8
    assert set(found) == {200}


@pytest.mark.slow
def test_a_hangup_while_the_run_is_loaded_loads_it_again(run_folder: Path) -> None:
    code = f"""
import os, signal, pathlib
from eimf.cli.main import show_log_lines
from eimf.serving import http, new_items

def load(*arguments):
    global load
    new_items.load = real
    os.kill(os.getpid(), signal.SIGHUP)
    return real(*arguments)

real, new_items.load = new_items.load, load
show_log_lines()
http.serve(pathlib.Path({str(run_folder)!r}), "127.0.0.1", 0)
"""
    server = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        assert server.stdout.readline().startswith(f"serving {run_folder.resolve()} (")
        assert server.stdout.readline().startswith(f"serves {run_folder.resolve()} now")
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) in (0, -signal.SIGTERM)
        server.stdout.close()


def test_a_reload_takes_the_newest_version_and_the_run_that_a_link_is_set_to(run_folder: Path, tmp_path: Path) -> None:
    runs = [tmp_path / "shop" / f"version_{number}" for number in (0, 1)]
    shutil.copytree(run_folder, runs[0])
    (tmp_path / "current").symlink_to(tmp_path / "shop")
    service = Service(lambda: module.load_with_tables(tmp_path / "current", None, None))
    client = TestClient(build_app(service), "http://127.0.0.1")
    assert client.get("/about").json()["run"] == str(runs[0].resolve())
    shutil.copytree(run_folder, runs[1])
    asyncio.run(service.reload())
    assert client.get("/about").json()["run"] == str(runs[1].resolve())
    (tmp_path / "current").unlink()
    (tmp_path / "current").symlink_to(runs[0])
    asyncio.run(service.reload())
    assert client.get("/about").json()["run"] == str(runs[0].resolve())


def test_a_link_that_is_set_during_a_load_mixes_no_runs(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "current").symlink_to(run_folder)

    def read_and_switch(folder: Path) -> Any:
        (tmp_path / "current").unlink()
        (tmp_path / "current").symlink_to(tmp_path / "nowhere")
        return read_checkpoint(folder)

    monkeypatch.setattr("eimf.serving.recommender.read_checkpoint", read_and_switch)
    assert load(tmp_path / "current").about["run"] == str(run_folder.resolve())


def test_bad_commands(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        ([str(tmp_path)], "no such checkpoint"),
        ([str(run_folder), "--port", "70000"], "must be from 0 (any free one) to 65535, is 70000"),
        ([str(run_folder), "--name", "*.example"], "--name: must be a host name without a port, or * for any"),
        ([str(run_folder), "--name", "shop.example:80"], "is 'shop.example:80'"),
        ([str(run_folder), "--columns", str(tmp_path / "none.csv")], "none.csv: cannot be read"),
    ):
        assert main(["serve", *arguments]) == 2
        assert message in capsys.readouterr().err
