"""An OpenAI-compatible endpoint on a free local port that fails as a test asks it to."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

GOOD = {"interests": [{"name": "soaps and creams for dry skin", "items": [1, 2]}]}


class Answer(NamedTuple):
    """What the server sends for one request."""

    status: int = 200
    body: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    kind: str = "application/json"
    delay: float = 0.0
    claimed_length: int | None = None
    """Content-Length, if it is not that of the body."""


def completion(content: Any, **message: Any) -> Answer:
    """A chat completion with this content."""
    text = content if isinstance(content, str) or content is None else json.dumps(content, ensure_ascii=False)
    choice = {
        "index": 0,
        "finish_reason": message.pop("finish_reason", "stop"),
        "message": {"role": "assistant", "content": text, **message},
    }
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    head = {"id": "x", "object": "chat.completion", "created": 1, "model": "m"}
    return Answer(body=json.dumps(head | {"choices": [choice], "usage": usage}))


def failure(status: int, message: str = "asked to", headers: tuple[tuple[str, str], ...] = (), **error: Any) -> Answer:
    """An error in OpenAI's form."""
    return Answer(status, json.dumps({"error": {"message": message} | error}), headers)


class FaultServer:
    """Counts and answers requests; `behave(number, body)` gives the answer to the request of that number."""

    def __init__(self, behave: Callable[[int, dict[str, Any]], Answer]) -> None:
        self.behave = behave
        self.bodies: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.keys: list[str] = []
        self.running = 0
        self.most_at_once = 0
        self.lock = threading.Lock()
        self.url = ""

    @property
    def prompts(self) -> list[str]:
        """The user prompts in the order of their coming."""
        with self.lock:
            return [body["messages"][1]["content"] for body in self.bodies]


def _handler(server: FaultServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                number = len(server.bodies)
                server.bodies.append(body)
                server.times.append(time.monotonic())
                server.keys.append(self.headers["Authorization"])
                server.running += 1
                server.most_at_once = max(server.most_at_once, server.running)
            answer = server.behave(number, body)
            time.sleep(answer.delay)
            with server.lock:
                server.running -= 1
            sent = answer.body.encode()
            try:
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.kind)
                self.send_header("Content-Length", str(answer.claimed_length or len(sent)))
                for name, value in answer.headers:
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(sent)
            except OSError:  # the client was killed, or did not want to wait
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


@contextmanager
def serve(behave: Callable[[int, dict[str, Any]], Answer]) -> Iterator[FaultServer]:
    """Run a fault server while the block runs."""
    state = FaultServer(behave)
    with listen(_handler(state)) as address:
        state.url = f"{address}/v1"
        yield state


@contextmanager
def listen(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Serve on a free port of this machine while the block runs; gives the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def sequence(*answers: Answer) -> Callable[[int, dict[str, Any]], Answer]:
    """Answers in their order, the last one for ever."""
    return lambda number, _: answers[min(number, len(answers) - 1)]
