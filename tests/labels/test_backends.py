"""The backend's retries, fall-backs and refusals against a server that misbehaves; batch files."""

import asyncio
import contextlib
import json
import logging
import socket
import sys
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from eimf.config.load import load
from eimf.core.errors import ConfigError, LabelError
from eimf.labels.backends.base import CallError, EndpointError, Reply, decoding_params
from eimf.labels.backends.gguf import GGUFBackend, GGUFConfig, LocalServer
from eimf.labels.backends.openai import OpenAIBackend, OpenAIConfig, retry_after
from eimf.labels.backends.openai_batch import export_batch, import_batch
from eimf.labels.cache import LabelCache
from eimf.labels.label import LabelRequest
from eimf.labels.prompts import build_prompt
from tests.fault_server import GOOD, Answer, FaultServer, completion, failure, sequence, serve

pytest.importorskip("openai", reason="the extra llm is not installed")

PROMPT = build_prompt(["rose soap", "day cream"])
KEY = "sk-very-secret-0123456789"
TEXT = json.dumps(GOOD)


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def ask(server: FaultServer | str, times: int = 1, **options: object) -> list[Reply]:
    url = server if isinstance(server, str) else server.url
    settings = {"timeout": 5.0, "attempts": 3, "backoff": 0.01} | options
    backend = OpenAIBackend("m", url, **settings)  # pyright: ignore[reportArgumentType]

    async def talk() -> list[Reply]:
        try:
            return [await backend.complete(PROMPT) for _ in range(times)]
        finally:
            await backend.close()

    return asyncio.run(talk())


def test_a_reply_and_what_was_sent() -> None:
    with serve(sequence(completion(GOOD))) as server:
        assert ask(server) == [Reply(TEXT, 100, 20)]
    body = server.bodies[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0.0, 512)
    assert [message["content"] for message in body["messages"]] == list(PROMPT)
    assert body["response_format"]["type"] == "json_schema"
    assert server.keys == [f"Bearer {KEY}"]


def test_a_backend_of_a_configuration() -> None:
    with serve(sequence(completion(GOOD))) as server:
        settings = [f"llm.base_url={server.url}", "llm.model=small", "llm.temperature=0.5", "llm.max_tokens=99"]
        config = load(None, [*settings, "llm.key_variable=MY_KEY", "llm.timeout=7", "llm.attempts=2"]).llm
        assert isinstance(config, OpenAIConfig)
        with pytest.MonkeyPatch.context() as patch, OpenAIBackend.open(config) as backend:
            assert (backend.model, backend.timeout, backend.attempts) == ("small", 7.0, 2)
            assert backend.params == decoding_params(0.5, 99)
            patch.setenv("MY_KEY", "sk-mine")
            with OpenAIBackend.open(config) as with_key:
                asyncio.run(_one(backend))
                asyncio.run(_one(with_key))
    assert server.keys == ["Bearer none", "Bearer sk-mine"]
    assert (server.bodies[0]["model"], server.bodies[0]["temperature"], server.bodies[0]["max_tokens"]) == (
        *("small", 0.5, 99),
    )
    assert OpenAIBackend.model_of(config) == "small"


async def _one(backend: OpenAIBackend) -> None:
    await backend.complete(PROMPT)
    await backend.close()


def test_a_configuration_names_a_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"llm\.model: is empty"):
        OpenAIBackend.model_of(OpenAIConfig())
    with pytest.raises(ConfigError, match=r"llm\.model: is empty"), OpenAIBackend.open(OpenAIConfig()):
        pass
    with pytest.raises(ConfigError, match=r"llm\.gguf: is empty"):
        GGUFBackend.model_of(GGUFConfig(model="named"))
    with pytest.raises(ConfigError, match=r"llm\.gguf: is empty"), GGUFBackend.open(GGUFConfig()):
        pass
    assert GGUFBackend.model_of(GGUFConfig(gguf=str(tmp_path / "small-q8.gguf"))) == "small-q8"
    with (
        pytest.raises(LabelError, match=r"small-q8\.gguf: cannot be read"),
        GGUFBackend.open(GGUFConfig(gguf=str(tmp_path / "small-q8.gguf"))),
    ):
        pass


def test_a_local_server_needs_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with serve(sequence(completion(GOOD))) as server:
        ask(server)
    assert server.keys == ["Bearer none"]


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (failure(500), "status 500: asked to"),
        (failure(429), "status 429"),
        (Answer(503, "<html>busy</html>", kind="text/html"), "status 503"),
        (Answer(200, "<html>hello</html>", kind="text/html"), "not a chat completion"),
        (Answer(200, completion(GOOD).body[:70]), "not a chat completion"),
        (Answer(200, '{"answer": 42}'), "not a chat completion"),
        (Answer(200, "[]"), "not a chat completion"),
        (Answer(200, '{"choices": []}'), "not a chat completion"),
        (Answer(200, completion(None).body), "not a chat completion"),
        (Answer(200, completion(GOOD).body[:70], claimed_length=9999), "connection failed"),
        (Answer(200, completion(GOOD).body, delay=0.6), "no answer within 0.2 s"),
    ],
)
@pytest.mark.slow
def test_what_may_pass_is_tried_again(bad: Answer, named: str) -> None:
    with serve(sequence(bad, bad, completion(GOOD))) as server:
        assert ask(server, timeout=0.2 if bad.delay else 5.0)[0].text == TEXT
        assert len(server.bodies) == 3
    with serve(sequence(bad)) as server:
        with pytest.raises(CallError, match=named) as error:
            ask(server, timeout=0.2 if bad.delay else 5.0)
        assert not isinstance(error.value, EndpointError)
        assert len(server.bodies) == 3
        assert "\n" not in str(error.value)


def test_retry_after_is_obeyed() -> None:
    with serve(sequence(failure(429, headers=(("Retry-After", "0.4"),)), completion(GOOD))) as server:
        ask(server)
    assert server.times[1] - server.times[0] >= 0.4
    with serve(sequence(failure(503, headers=(("Retry-After", "3600"),)))) as server:
        with pytest.raises(LabelError, match=r"asks to wait 3600 s .*Stopped") as error:
            ask(server)
        assert not isinstance(error.value, CallError)  # it concerns all prompts
        assert len(server.bodies) == 1


def test_retry_after_holds_seconds_or_a_date() -> None:
    assert retry_after("2") == 2.0
    assert retry_after("-3") == 0.0
    assert retry_after("nan") is None
    assert retry_after("") is None
    assert retry_after("Fri, 01 Jan 99999999999 00:00:00 GMT") is None
    later = retry_after(format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True))
    assert later is not None
    assert 85 < later <= 90


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (failure(401, f"Incorrect key {KEY}"), r"status 401, the key in OPENAI_API_KEY is not accepted"),
        (failure(403), "status 403"),
        (failure(404, "no such model"), r"status 404 for the model 'm' \(no such model\)"),
        (failure(402, "pay"), "quota is used up"),
        (failure(429, "You exceeded your quota", code="insufficient_quota"), "quota is used up"),
    ],
)
def test_what_will_not_pass_stops_at_once_without_the_key(
    answer: Answer, named: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    with serve(sequence(answer)) as server:
        with pytest.raises(LabelError, match=named) as error:
            ask(server)
        assert not isinstance(error.value, CallError)
        assert len(server.bodies) == 1
    said = capfd.readouterr()
    assert KEY not in f"{error.value!r} {caplog.text} {said.out} {said.err}"


def test_the_key_is_cut_out_of_replies() -> None:
    with serve(sequence(completion(f"your key is {KEY}"))) as server:
        assert ask(server)[0].text == "your key is ***"
    assert KEY not in repr(vars(OpenAIBackend("m", "http://x/v1"))["base_url"])
    assert KEY not in repr(OpenAIBackend("m", "http://x/v1"))


def test_a_server_that_is_not_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://user:pass@127.0.0.1:{free.getsockname()[1]}/v1"
        with pytest.raises(EndpointError, match=r"http://127.0.0.1:\d+/v1: cannot be reached .* is the server running"):
            ask(address)


@pytest.mark.parametrize(
    ("refused", "form"), [(("json_schema",), "json_object"), (("json_schema", "json_object"), None)]
)
def test_the_shape_is_asked_for_in_the_way_the_server_knows(refused: tuple[str, ...], form: str | None) -> None:
    def behave(_: int, body: dict[str, dict[str, str]]) -> Answer:
        kind = body.get("response_format", {}).get("type")
        return failure(400, f"{kind} unknown") if kind in refused else completion(GOOD)

    with serve(behave) as server:
        assert [reply.text for reply in ask(server, times=2)] == [TEXT, TEXT]
    kinds = [body.get("response_format", {}).get("type") for body in server.bodies]
    assert kinds == [*refused, form, form]  # the second call knows


def test_a_prompt_that_no_form_saves_costs_one_user() -> None:
    with serve(sequence(failure(400, "prompt too long"))) as server:
        with pytest.raises(CallError, match="status 400: prompt too long"):
            ask(server)
        assert len(server.bodies) == 3


def test_parameters_that_a_server_names_otherwise() -> None:
    def behave(_: int, body: dict[str, object]) -> Answer:
        for name in ("max_tokens", "temperature"):
            if name in body:
                return failure(400, "unsupported", param=name, code="unsupported_parameter")
        return completion(GOOD)

    with serve(behave) as server:
        ask(server, times=2)
    assert len(server.bodies) == 4
    assert server.bodies[-1]["max_completion_tokens"] == 512
    assert server.bodies[-1]["response_format"]["type"] == "json_schema"


def test_calls_under_way_learn_a_parameter_together() -> None:
    def behave(_: int, body: dict[str, object]) -> Answer:
        bad = "max_tokens" in body
        return (failure(400, "unsupported", param="max_tokens") if bad else completion(GOOD))._replace(delay=0.1)

    async def talk(url: str) -> None:
        backend = OpenAIBackend("m", url, attempts=1)
        await asyncio.gather(*(backend.complete(PROMPT) for _ in range(4)))
        await backend.close()

    with serve(behave) as server:
        asyncio.run(talk(server.url))
    assert {body["response_format"]["type"] for body in server.bodies} == {"json_schema"}


@pytest.mark.slow
def test_a_host_that_swallows_connections_is_not_there() -> None:
    with socket.socket() as deaf, contextlib.ExitStack() as stack:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        for _ in range(4):  # fill the queue of connections, which nobody accepts
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(deaf.getsockname())
        with pytest.raises(EndpointError, match="no answer within 2 s"):
            ask(f"http://127.0.0.1:{deaf.getsockname()[1]}/v1", timeout=2.0, attempts=2)


@pytest.mark.parametrize(
    "answer",
    [
        completion(None, refusal="I will not."),
        completion("", finish_reason="content_filter"),
        failure(400, "filtered", code="content_filter"),
    ],
)
def test_the_endpoint_refuses(answer: Answer) -> None:
    with serve(sequence(answer)) as server:
        assert ask(server)[0].refused


def test_no_key_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(LabelError, match="OPENAI_API_KEY: not set"):
        OpenAIBackend("m")
    monkeypatch.setenv("MY_KEY", "sk-ключ")
    with pytest.raises(LabelError, match="MY_KEY: holds characters") as error:
        OpenAIBackend("m", api_key_env="MY_KEY")
    assert "ключ" not in str(error.value)
    monkeypatch.setenv("MY_KEY", "sk-two\nlines")
    with pytest.raises(LabelError, match="MY_KEY: holds characters"):
        OpenAIBackend("m", api_key_env="MY_KEY")
    for address in ("localhost:8000", "ftp://x/v1", "http://", "http://x:port/v1"):
        with pytest.raises(LabelError, match="base_url"):
            OpenAIBackend("m", address)


REQUESTS = [LabelRequest(f"u{n}", (f"a{n}", "b"), build_prompt([f"soap {n}", "cream"])) for n in range(6)] + [
    LabelRequest("twin", ("x", "b"), build_prompt(["soap 0", "cream"]))
]
PARAMS = decoding_params()


@pytest.mark.parametrize("name", ["sk-proj-0123456789", "gsk_abc", "", "A B"])
def test_a_key_in_the_wrong_place_is_not_repeated(name: str) -> None:
    with pytest.raises(LabelError, match="must name an environment variable") as error:
        OpenAIBackend("m", "http://127.0.0.1:1/v1", name)
    assert name == "" or name not in str(error.value)


def test_batch_files(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    assert export_batch(path, REQUESTS, model="m", params=PARAMS) == 6
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert {(line["method"], line["url"]) for line in lines} == {("POST", "/v1/chat/completions")}
    keys = [line["custom_id"] for line in lines]

    def output(key: str, content: object, status: int = 200) -> str:
        body = json.loads(completion(content).body) if status == 200 else {"error": {"message": "overloaded"}}
        return json.dumps({"custom_id": key, "response": {"status_code": status, "body": body}, "error": None})

    result = tmp_path / "out.jsonl"
    result.write_text(
        "\n".join(
            [
                *(output(keys[3], GOOD), output(keys[0], GOOD), output(keys[3], GOOD), output("other", GOOD), "{", "3"),
                *(output(keys[1], "I cannot."), output(keys[2], None, 500), '{"custom_id": "' + keys[4] + '"}'),
                json.dumps({"custom_id": keys[4], "response": None, "error": {"code": "batch_expired"}}),
                json.dumps({"custom_id": ["x"], "response": None, "error": {"code": "batch_expired"}}),
            ]
        )
    )
    with LabelCache(tmp_path / "c.db") as cache:
        report = import_batch(result, cache, REQUESTS, model="m", params=PARAMS)
        assert report.counts == {"ok": 2, "refused": 1, "failed": 2}
        assert (report.repeated, report.unknown, report.broken_lines, report.missing) == (1, 1, 4, 3)
        assert {label.user_id for label in cache.labels()} == {"u3", "u0", "twin"}
        assert {one.reason for one in cache.records("failed")} == {"overloaded", "batch_expired"}
        # Raw line separators inside a string end no line of JSON.
        odd = {"interests": [GOOD["interests"][0] | {"name": "soaps\u2028and\u0085creams"}]}
        raw = (json.dumps(json.loads(output(key, odd)), ensure_ascii=False) for key in keys)
        result.write_text("\r\n".join(raw))
        assert "\u2028" in result.read_text()
        report = import_batch(result, cache, REQUESTS, model="m", params=PARAMS)
        assert (report.counts, report.repeated, report.missing) == ({"ok": 3}, 3, 0)
        with pytest.raises(LabelError, match="no line belongs to these requests"):
            import_batch(result, cache, REQUESTS, model="another", params=PARAMS)
        with pytest.raises(LabelError, match="cannot be read"):
            import_batch(tmp_path / "none", cache, REQUESTS, model="m", params=PARAMS)


def test_model_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("hello")
    for path, named in ((tmp_path / "none.gguf", "cannot be read"), (tmp_path / "model.gguf", "is not a GGUF file")):
        with pytest.raises(LabelError, match=named):
            LocalServer(path).__enter__()


def test_extras_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(LabelError, match=r"openai is missing; install it with: pip install 'eimf\[llm\]'"):
        OpenAIBackend("m", "http://127.0.0.1:1/v1")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(LabelError, match=r"pip install 'eimf\[local\]'"):
        LocalServer(tmp_path / "model.gguf").__enter__()


def test_a_damaged_model(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="the extra local is not installed")
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(LabelError, match="llama.cpp cannot load it"):
        LocalServer(tmp_path / "model.gguf").__enter__()
