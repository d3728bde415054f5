"""A stand-in for W&B's server: the GraphQL operations that `wandb.sweep` and `wandb agent` use, and no more.

It keeps a sweep, hands out given runs one by one, and then tells the agent to exit. It has no file stream, so a run
itself can only log offline.
"""

import gzip
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.fault_server import listen


class WandbServer:
    """Answers on localhost.

    Args:
        runs: the parameters of each run, as a sweep's controller would choose them.
    """

    def __init__(self, runs: Sequence[dict[str, Any]]) -> None:
        self.left = list(enumerate(runs))
        self.config = ""
        """The sweep as it was created, YAML."""
        self.asked: list[str] = []
        """Names of the operations, in their order."""
        self.run_states: list[dict[str, bool]] = []
        """What the agent said of its runs at each heartbeat."""
        self.address = ""

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        name = next((word for word in OPERATIONS if f" {word}(" in query or f" {word} " in query), query.strip()[:80])
        self.asked.append(name)
        project = {"id": "p", "name": "eimf", "entity": {"id": "e", "name": "tester"}}
        if name == "UpsertSweep":
            self.config = variables["config"]
            return {"upsertSweep": {"sweep": {"name": "s1", "project": project}, "configValidationWarnings": []}}
        if name == "SweepWithRuns":
            sweep = {"id": "s", "name": "s1", "config": self.config, "state": "RUNNING", "runs": {"edges": []}}
            return {"project": {"sweep": sweep}}
        if name == "CreateAgent":
            return {"createAgent": {"agent": {"id": "a1"}}}
        if name == "Heartbeat":
            states = json.loads(variables["runState"])
            self.run_states.append(states)
            commands: list[dict[str, Any]] = []
            if self.left and not states:
                number, run = self.left.pop(0)
                args = {key: {"value": value} for key, value in run.items()}
                commands = [{"type": "run", "run_id": f"run{number}", "program": None, "args": args}]
            elif not states:
                commands = [{"type": "exit"}]
            return {"agentHeartbeat": {"agent": {"id": "a1"}, "commands": json.dumps(commands)}}
        user = {"id": "u", "username": "tester", "entity": "tester", "email": "", "flags": "{}", "admin": False}
        return {"viewer": user | {"teams": {"edges": []}}, "serverInfo": {"cliVersionInfo": {}, "features": []}}


OPERATIONS = ("UpsertSweep", "SweepWithRuns", "CreateAgent", "Heartbeat", "Viewer", "ServerInfo")


@contextmanager
def wandb_server(runs: Sequence[dict[str, Any]]) -> Iterator[WandbServer]:
    """Serve until the block ends."""
    state = WandbServer(runs)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            asked = json.loads(body)
            said = json.dumps({"data": state.answer(asked["query"], asked.get("variables") or {})}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with listen(Handler) as address:
        state.address = address
        yield state
