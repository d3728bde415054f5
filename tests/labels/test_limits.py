"""What a server, friendly or not, can do to a labelling run: at most cost one prompt."""

import asyncio
import gzip
import json
from http.server import BaseHTTPRequestHandler

import pytest

from eimf.core.errors import LabelError
from eimf.labels.backends.base import CallError, Reply
from eimf.labels.backends.openai import REPLY_BYTES, OpenAIBackend, adapt_params
from eimf.labels.label import LabelRequest, make_record
from eimf.labels.prompts import build_prompt
from tests.fault_server import GOOD, Answer, completion, listen, sequence, serve

PROMPT = build_prompt(["a soap", "a cream"])


def ask(url: str) -> Reply:
    backend = OpenAIBackend("m", url, timeout=5.0, attempts=1, backoff=0.01)

    async def talk() -> Reply:
        try:
            return await backend.complete(PROMPT)
        finally:
            await backend.close()

    return asyncio.run(talk())


def test_a_huge_reply_fails_its_prompt_alone() -> None:
    with (
        serve(sequence(completion("x" * REPLY_BYTES))) as server,
        pytest.raises(CallError, match="longer than 1,048,576"),
    ):
        ask(server.url)


def test_a_compressed_bomb_is_not_unpacked() -> None:
    bomb = gzip.compress(b'{"choices": "' + b" " * (200 * 2**20) + b'"}', 9)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            for name, value in (("Content-Type", "application/json"), ("Content-Encoding", "gzip")):
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(bomb)))
            self.end_headers()
            try:
                self.wfile.write(bomb)
            except OSError:  # the client has had enough
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    with listen(Handler) as address, pytest.raises(CallError, match="longer than 1,048,576 bytes"):
        ask(f"{address}/v1")


def test_no_redirect_takes_users_data_to_another_host() -> None:
    with serve(sequence(completion(GOOD))) as other:
        away = Answer(307, "", (("Location", f"{other.url}/chat/completions"),))
        with serve(sequence(away)) as server, pytest.raises(CallError, match="status 307"):
            ask(server.url)
        assert other.bodies == []


def test_a_reply_that_was_cut_names_the_setting() -> None:
    with serve(sequence(completion('{"interests": [{"na', finish_reason="length"))) as server:
        reply = ask(server.url)
    assert reply.cut
    record = make_record(LabelRequest("u", ("a", "b"), PROMPT), "m", {}, **reply._asdict())
    assert record.status == "invalid"
    assert record.reason.endswith("it was cut off at llm.max_tokens, which may be raised")


@pytest.mark.parametrize("count", [10**9, -5, "many", 1e300, None, [3]])
def test_token_counts_that_cannot_be_true_count_for_nothing(count: object) -> None:
    body = json.loads(completion(GOOD).body) | {"usage": {"prompt_tokens": count, "completion_tokens": 20}}
    with serve(sequence(Answer(body=json.dumps(body)))) as server:
        assert ask(server.url)[1:3] == (0, 20)


def test_batch_files_have_the_parameters_that_a_model_takes() -> None:
    params = {"temperature": 0.0, "max_tokens": 512}
    assert adapt_params("gpt-4.1-mini", params) == params
    assert adapt_params("local/qwen", params) == params
    for model in ("gpt-5-mini", "o3", "openai/o4-mini"):
        assert adapt_params(model, params) == {"max_completion_tokens": 512}


def test_an_address_without_sense_is_one_line() -> None:
    with pytest.raises(LabelError, match="base_url: must look like"):
        OpenAIBackend("m", "ftp://x")
