"""Labelling against a local server that misbehaves in every way that servers do."""

import asyncio
import http.server
import json
import multiprocessing
import os
import resource
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from eimf.config import SplitConfig
from eimf.data.sequences import Prepared
from eimf.data.splits import split
from eimf.errors import LabelError
from eimf.semantics.cache import LabelCache, Record, export_labels, import_labels, record_key
from eimf.semantics.labelling import Question, ask_about, ask_all, export_batch, import_batch, preview
from eimf.semantics.labels import Interest, Label, read_labels
from eimf.semantics.llm import OpenAIBackend
from eimf.semantics.prompts import build_prompt

pytest.importorskip("openai", reason="the extra eimf[llm] is not installed")
SECRET = "sk-very-secret-0123456789"
GOOD = json.dumps({"interests": [{"name": "things for the nails", "items": [1]}]})


def chat(text: str) -> bytes:
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    return json.dumps(
        {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
    ).encode()


Answer = tuple[int, dict[str, str], bytes]


class Server:
    """Answers request number n (from 0) with `answer(n, body)`; counts requests by user message."""

    def __init__(self, answer: Callable[[int, dict[str, Any]], Answer]) -> None:
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.times: list[float] = []
        lock = threading.Lock()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(outer.bodies)
                    outer.bodies.append(body)
                    outer.times.append(time.monotonic())
                    outer.asked[body["messages"][1]["content"]] += 1
                status, headers, content = answer(number, body)
                try:
                    self.send_response(status)
                    for name, value in {"Content-Type": "application/json", **headers}.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)
                except OSError:
                    pass  # the client has given up

            def log_message(self, *_: object) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    made: list[Server] = []

    def start(answer: Callable[[int, dict[str, Any]], Answer]) -> Server:
        made.append(Server(answer))
        return made[-1]

    yield start
    for server in made:
        server.close()


def questions(n: int) -> list[Question]:
    return [Question(f"u{i}", (f"i{i}", "i0"), build_prompt([f"Thing {i}", "Other"])) for i in range(n)]


def ask(url: str, path: Path, n: int = 3, concurrency: int = 2, retry: bool = False, **options: Any) -> Counter[str]:
    options = {"backoff": 0.001, "attempts": 3, "timeout": 5.0} | options

    async def run() -> Counter[str]:
        backend = OpenAIBackend("m", url, **options)
        try:
            with LabelCache(path) as cache:
                return (
                    await ask_all(questions(n), backend, cache, concurrency=concurrency, retry=retry, show=False)
                ).statuses
        finally:
            await backend.close()

    return asyncio.run(run())


def always(status: int = 200, body: bytes = b"", **headers: str) -> Callable[[int, dict[str, Any]], Answer]:
    return lambda number, request: (status, {name.replace("_", "-"): value for name, value in headers.items()}, body)


def test_replies_are_kept_and_never_asked_for_again(serve, tmp_path: Path) -> None:
    server = serve(always(body=chat(GOOD)))
    assert ask(server.url, tmp_path / "c.db") == {"ok": 3}
    assert ask(server.url, tmp_path / "c.db", n=5) == {"ok": 2, "known": 3}
    assert max(server.asked.values()) == 1
    with LabelCache(tmp_path / "c.db") as cache:
        record = next(cache.records())
        assert (record.status, record.tokens_in, record.tokens_out, record.reply) == ("ok", 10, 5, GOOD)
        assert record.interests == (Interest("things for the nails", (1,)),)
        assert len(cache.labels()) == 5


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (chat("I'm sorry, I cannot do that."), "refused"),
        (chat(GOOD[:20]), "invalid"),
        (chat('{"interests": []}'), "invalid"),
        (chat(json.dumps({"interests": [{"name": "x", "items": [1]}] * 40})), "invalid"),
        (chat(json.dumps({"interests": [{"name": "x" * 5000, "items": [1]}]})), "invalid"),
        (chat(json.dumps({"interests": [{"name": "x", "items": [99]}]})), "invalid"),
        (chat(json.dumps({"interests": [{"name": "уход за ногтями и волосами", "items": [1]}]})), "ok"),
        (chat(""), "invalid"),
        (b"<html>Bad Gateway</html>", "failed"),
        (chat(GOOD)[:50], "failed"),
        (b'{"answer": 42}', "failed"),
        (b"[]", "failed"),
    ],
)
def test_strange_replies_have_a_status_and_stop_nobody(serve, tmp_path: Path, body: bytes, status: str) -> None:
    server = serve(
        lambda number, request: (200, {}, body if "Thing 1" in request["messages"][1]["content"] else chat(GOOD))
    )
    assert ask(server.url, tmp_path / "c.db") == Counter({"ok": 2}) + Counter({status: 1})


@pytest.mark.parametrize("status", [429, 500, 503])
def test_busy_servers_are_asked_again(serve, tmp_path: Path, status: int) -> None:
    server = serve(lambda number, request: (status, {}, b"{}") if number % 2 == 0 else (200, {}, chat(GOOD)))
    assert ask(server.url, tmp_path / "c.db", concurrency=1) == {"ok": 3}
    assert len(server.bodies) == 6


@pytest.mark.parametrize("header", ["1", lambda: formatdate(time.time() + 2, usegmt=True)])
def test_retry_after_is_obeyed(serve, tmp_path: Path, header) -> None:
    value = header if isinstance(header, str) else header()
    server = serve(
        lambda number, request: (429, {"Retry-After": value}, b"{}") if number == 0 else (200, {}, chat(GOOD))
    )
    assert ask(server.url, tmp_path / "c.db", n=1) == {"ok": 1}
    assert server.times[1] - server.times[0] > 0.8


def test_a_server_that_stays_down_fails_the_user_and_is_asked_again_next_time(serve, tmp_path: Path) -> None:
    server = serve(always(500, b"{}"))
    assert ask(server.url, tmp_path / "c.db", n=1) == {"failed": 1}
    assert len(server.bodies) == 3
    good = serve(always(body=chat(GOOD)))
    assert ask(good.url, tmp_path / "c.db", n=1) == {"ok": 1}


def test_a_server_that_never_answers(serve, tmp_path: Path) -> None:
    def hang(number: int, request: dict[str, Any]) -> Answer:
        time.sleep(0.6)
        return 200, {}, chat(GOOD)

    assert ask(serve(hang).url, tmp_path / "c.db", n=1, timeout=0.15, attempts=2) == {"failed": 1}


@pytest.mark.parametrize("status", [401, 403])
def test_a_wrong_key_stops_the_run_and_is_not_shown(serve, tmp_path: Path, status: int) -> None:
    body = json.dumps({"error": {"message": f"Incorrect API key provided: {SECRET}"}}).encode()
    with pytest.raises(LabelError, match="refuses the key in OPENAI_API_KEY") as error:
        ask(serve(always(status, body)).url, tmp_path / "c.db")
    assert SECRET not in str(error.value)
    assert "\n" not in str(error.value)
    assert all(SECRET.encode() not in path.read_bytes() for path in tmp_path.iterdir())


def test_nobody_at_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with pytest.raises(LabelError, match=r"nothing answers at http://127.0.0.1:9/v1; 5 questions in a row. Start the"):
        ask("http://127.0.0.1:9/v1", tmp_path / "c.db", n=30, attempts=2)


def test_unknown_model(serve, tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="knows no model 'm'"):
        ask(serve(always(404, b"{}")).url, tmp_path / "c.db")


def test_missing_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(LabelError, match="OPENAI_API_KEY: is not set"):
        OpenAIBackend("m")
    OpenAIBackend("m", "http://127.0.0.1:1/v1")  # a server of one's own needs none


def test_falls_back_to_what_the_server_understands(serve, tmp_path: Path) -> None:
    def picky(number: int, request: dict[str, Any]) -> Answer:
        return (400, {}, b"{}") if "response_format" in request else (200, {}, chat(GOOD))

    server = serve(picky)
    assert ask(server.url, tmp_path / "c.db", concurrency=1) == {"ok": 3}
    assert [body.get("response_format", {}).get("type") for body in server.bodies] == ["json_schema", "json_object"] + [
        None
    ] * 3


def test_rate_limit(serve, tmp_path: Path) -> None:
    server = serve(always(body=chat(GOOD)))

    async def run() -> None:
        backend = OpenAIBackend("m", server.url)
        with LabelCache(tmp_path / "c.db") as cache:
            await ask_all(questions(5), backend, cache, per_minute=600, show=False)
        await backend.close()

    asyncio.run(run())
    assert server.times[-1] - server.times[0] > 0.35  # five questions, one each 0.1 s


def _label(url: str, path: str, n: int) -> None:
    ask(url, Path(path), n=n, concurrency=4)


def slow(number: int, request: dict[str, Any]) -> Answer:
    time.sleep(0.03)
    return 200, {}, chat(GOOD)


def test_two_processes_at_once_never_ask_twice(serve, tmp_path: Path) -> None:
    server = serve(slow)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_label, args=(server.url, str(tmp_path / "c.db"), 40)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert len(server.asked) == 40
    assert max(server.asked.values()) == 1
    with LabelCache(tmp_path / "c.db") as cache:
        assert cache.counts() == {"ok": 40}


def test_sigkill_loses_no_finished_reply_and_repeats_none(serve, tmp_path: Path) -> None:
    server, path = serve(slow), tmp_path / "c.db"
    worker = multiprocessing.get_context("spawn").Process(target=_label, args=(server.url, str(path), 60))
    worker.start()
    while len(server.bodies) < 20:
        time.sleep(0.01)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    with LabelCache(path) as cache:
        kept = {record.user_id for record in cache.records()}
    assert len(kept) >= 20 - 2 * 4
    before = Counter(server.asked)
    assert ask(server.url, path, n=60)["ok"] == 60 - len(kept)
    for one in questions(60):
        if one.user_id in kept:
            assert server.asked[one.prompt.user] == before[one.prompt.user] == 1


def test_full_disk(serve, tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    long = json.dumps({"interests": [{"name": "nails", "items": [1]}], "why": "x" * 20_000})
    server = serve(always(body=chat(long)))
    assert ask(server.url, path, n=2) == {"ok": 2}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        with pytest.raises((LabelError, ExceptionGroup)) as error:
            ask(server.url, path, n=40)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    found = error.value
    while isinstance(found, ExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, LabelError)
    assert "disk is not full" in str(found)
    with LabelCache(path) as cache:
        assert cache.counts()["ok"] >= 2
    assert ask(server.url, path, n=4)["known"] >= 2


def test_files_that_are_no_cache(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database, but long enough to look at " * 50)
    with pytest.raises(LabelError, match="cannot be used as a label cache"):
        LabelCache(tmp_path / "text")
    with sqlite3.connect(tmp_path / "new.db") as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(LabelError, match="of schema 99"):
        LabelCache(tmp_path / "new.db")


def test_exchange_is_lossless_and_idempotent(tmp_path: Path) -> None:
    labels = [Label(f"u{n}", (Interest(f"interest {n}", (1, 2)),), ("a", "b"), "m", "v1") for n in range(3)]
    assert export_labels(labels, tmp_path / "out.jsonl") == 3
    read = read_labels(tmp_path / "out.jsonl").labels
    assert read == labels
    with LabelCache(tmp_path / "c.db") as cache:
        assert import_labels(cache, read) == 3
        assert import_labels(cache, read) == 0
        assert cache.labels() == labels


def test_good_replies_are_never_replaced(tmp_path: Path) -> None:
    record = Record("k", "u", ("a",), "m", "v1", "", "", "ok", "", "", (Interest("x", (1,)),), 0, 0, 0.0, 1.0)
    with LabelCache(tmp_path / "c.db") as cache:
        cache.put(record)
        cache.put(record._replace(status="failed", interests=()))
        assert [one.status for one in cache.records()] == ["ok"]
        assert not cache.claim("k", retry=True)


def test_batch_files_in_any_order_partial_and_repeated(tmp_path: Path) -> None:
    asked, parameters = questions(4), {"temperature": 0.0, "max_tokens": 512}
    assert export_batch(asked, "m", parameters, tmp_path / "in.jsonl") == 4
    rows = [json.loads(line) for line in (tmp_path / "in.jsonl").read_text().splitlines()]
    assert rows[0]["custom_id"] == record_key(asked[0].prompt, "m", parameters)
    assert rows[0]["body"]["response_format"]["type"] == "json_schema"
    done = [
        {"custom_id": row["custom_id"], "response": {"status_code": 200, "body": json.loads(chat(GOOD))}}
        for row in rows
    ]
    done[1] = {"custom_id": rows[1]["custom_id"], "response": None, "error": {"code": "batch_expired"}}
    lines = [json.dumps(row) for row in (done[2], done[0], done[0], done[1])] + ['{"custom_id": "other"}', "{broken"]
    (tmp_path / "out.jsonl").write_text("\n".join(lines))
    with LabelCache(tmp_path / "c.db") as cache:
        counts = import_batch(asked, "m", parameters, tmp_path / "out.jsonl", cache)
        assert counts == {"ok": 3, "failed": 1, "unknown": 1, "broken": 1}
        assert cache.counts() == {"ok": 2, "failed": 1}
        (tmp_path / "bad.jsonl").write_text('{"custom_id": "other"}\n')
        with pytest.raises(LabelError, match="none of its 1 lines belongs to these 4 questions"):
            import_batch(asked, "m", parameters, tmp_path / "bad.jsonl", cache)


def test_questions_show_training_items_only(tiny: Prepared) -> None:
    parts = split(tiny.sequences, SplitConfig(kind="loo"))
    users = parts.train.user_idx[:20].tolist()
    for one, user in zip(ask_about(tiny, parts.train, users, 6), users, strict=True):
        row = parts.train.user_idx.tolist().index(user)
        items = tiny.sequences.items[parts.train.start[row] : parts.train.end[row]][-6:]
        assert one.history == tuple(tiny.items["item_id"][int(item) - 1] for item in items)
        assert one.user_id == tiny.user_ids[user]
        assert tiny.items["title"][int(items[-1]) - 1] in one.prompt.user


def test_preview_says_what_a_run_costs() -> None:
    text = preview(questions(100), price_in=1.0, price_out=4.0, seconds_each=2.0, concurrency=8)
    assert text.count("<<<HISTORY") >= 3
    assert "calls: 100" in text
    assert "cost: about 0.0" in text
