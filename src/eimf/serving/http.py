"""Serves a run over HTTP: `POST /recommend`, `/similar`, `/items`, `GET /health`, `/about`, `/openapi.json`.

Requests that wait at the same time with the same options are answered together: a search of many vectors costs little
more than a search of one. Nothing waits for others to come.
"""

import asyncio
import contextlib
import json
import logging
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from eimf.core.errors import ConfigError, EimfError
from eimf.core.options import nearest
from eimf.core.signals import noting
from eimf.core.version import VERSION
from eimf.serving.filters import Key, filter_key
from eimf.serving.ids import item_ids
from eimf.serving.new_items import load_with_tables
from eimf.serving.openapi import describe_api
from eimf.serving.recommender import ListOptions, Recommendation, Recommendations, Recommender
from eimf.serving.server import Server
from eimf.serving.web import LOOPBACK, address_of, check_names, guards, hosts_of, listen, token_of_environment

log = logging.getLogger(__name__)

BODY_BYTES = 4 * 2**20
REQUESTS, HISTORY, LIST, CONDITION = 256, 10_000, 1_000, 100_000
"""Most requests of one call, items of a history, items of a list, and values of all conditions of a request."""
ROWS = 100_000
"""Most rows that a call may ask for: n times the number of lists, over all its requests; about 10 MB of JSON."""
ITEMS, ADDED = 1_000, 100_000
"""Most new items of one call, and of all calls."""
TOGETHER = 64
"""Most requests that are answered together."""
STOP_S = 30
"""Seconds that requests in progress have to end when the server stops."""
PHRASES = 16
"""Most interests in words of one request."""
PHRASE = 1_000
"""Most characters of an interest in words."""
TOKEN = "EIMF_TOKEN"
"""Environment variable with the token that clients have to send."""
OPTIONS = tuple(one.name for one in fields(ListOptions))


class Wanted(NamedTuple):
    """A checked request for recommendations."""

    history: list[str | None]
    options: ListOptions
    key: Key
    """Equal for requests that can be answered together."""


@dataclass
class Service:
    """The run that is served, and the requests that wait for it.

    Attributes:
        open: loads the model, at the start and for each reload.
    """

    open: Callable[[], Recommender]

    def __post_init__(self) -> None:
        self.model = self.open()
        self._waiting: list[tuple[Wanted, asyncio.Future[list[Recommendations]]]] = []
        self._busy: asyncio.Task[None] | None = None
        self._loading = asyncio.Lock()
        self._added: dict[str, dict[str, Any]] = {}

    @property
    def added(self) -> int:
        """How many new items were added over HTTP."""
        return len(self._added)

    async def answer(self, wanted: Wanted) -> list[Recommendations]:
        """The lists for a request; waiting requests with the same options are answered with it.

        Raises:
            EimfError: the request cannot be answered.
        """
        future: asyncio.Future[list[Recommendations]] = asyncio.get_running_loop().create_future()
        self._waiting.append((wanted, future))
        if self._busy is None or self._busy.done():
            self._busy = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        while self._waiting:
            key, same, others = self._waiting[0][0].key, [], []
            for each in self._waiting:
                (same if each[0].key == key and len(same) < TOGETHER else others).append(each)
            self._waiting = others
            found = await self._answer([wanted.history for wanted, _ in same], same[0][0].options)
            for (_, future), lists in zip(same, found, strict=True):
                if future.done():  # the client has gone
                    continue
                if isinstance(lists, Exception):
                    future.set_exception(lists)
                else:
                    future.set_result(lists)

    async def _answer(self, histories: list[list[str | None]], options: ListOptions) -> list[Any]:
        """Lists, or an error, for each history. If they cannot be answered together, each is answered alone."""
        try:
            return await run_in_threadpool(self.model.answer, histories, options)
        except Exception as error:
            if len(histories) == 1:
                return [error]
            return [one for history in histories for one in await self._answer([history], options)]

    async def add_items(self, items: list[dict[str, Any]]) -> None:
        """Add new items, see `Recommender.add_items`. They are kept for the runs that are loaded later.

        Raises:
            EimfError: an item cannot be added; then none of them is.
        """
        async with self._loading:  # not to the model of before, while a new one is loaded
            if len(self._added) + len(items) > ADDED:
                raise ConfigError(
                    f"items: the service has {len(self._added):,} new ones and keeps at most {ADDED:,}; train again "
                    "with them."
                )
            await run_in_threadpool(self.model.add_items, items)
            self._added |= {str(item["item_id"]): item for item in items}

    def _open(self) -> Recommender:
        """The run, with the items that were added and that it does not have."""
        model = self.open()
        if new := [item for name, item in self._added.items() if not model.knows(name)]:
            try:
                model.add_items(new)
                log.info(f"new items that were added over HTTP, and are carried over: {len(new):,}")
            except EimfError as error:
                log.error(f"new items that were added over HTTP, and cannot be carried over: {len(new):,} ({error})")
        return model

    async def reload(self) -> None:
        """Load the run again, and serve it when it is ready. If it cannot be loaded, the one of before is served on."""
        async with self._loading:  # the last reload that was asked for is the last one that ends
            try:
                self.model = await run_in_threadpool(self._open)
                log.info(f"serves {self.model.about.get('run')} now ({len(self.model.items):,} items)")
            except Exception as error:
                reason = str(error) if isinstance(error, EimfError) else f"{type(error).__name__}: {error}"
                log.error(f"not reloaded, the earlier model is served on: {' '.join(reason.split())}")


def build_app(
    service: Service, hosts: Sequence[str] = LOOPBACK, asked: Sequence[int] = (), token: str | None = None
) -> Starlette:
    """The web application.

    Args:
        hosts: names by which clients may address it, see `eimf.serving.web.guards`.
        asked: signals that came while the model was loaded; if there are any, it is loaded again.
        token: what clients have to send for everything but `/health`; None asks for nothing.
    """

    async def recommend(request: Request) -> Response:
        body = await _body(request)
        many = body.get("requests")
        if many is None:
            wanted = [_wanted(body)]
        elif set(body) != {"requests"} or not isinstance(many, list) or not 1 <= len(many) <= REQUESTS:
            raise ConfigError(f"requests: must be a list of 1 to {REQUESTS} requests, and the only field.")
        else:
            wanted = []
            for place, one in enumerate(many):
                with _naming(f"requests[{place}]"):
                    wanted.append(_wanted(_object(one)))
        _check_rows(wanted, service.model)
        answers = await asyncio.gather(*map(service.answer, wanted), return_exceptions=True)
        lists = []
        for place, found in enumerate(answers):
            with _naming(f"requests[{place}]" if many is not None else ""):
                lists.append(_unless_error(found))
        return await run_in_threadpool(_render, lists, wanted, many is not None)

    async def similar(request: Request) -> Response:
        body = await _body(request)
        _check_fields(body, ("item_id", "n", "allow", "deny"), {"item_id"})
        options = _options({name: body[name] for name in ("n", "allow", "deny") if name in body})
        rules = {"allow": options.allow, "deny": options.deny}
        found = await run_in_threadpool(service.model.similar_items, body["item_id"], options.n, **rules)
        return JSONResponse({"items": [_item(one) for one in found]})

    async def items(request: Request) -> Response:
        body = await _body(request)
        _check_fields(body, ("items",), {"items"})
        if not isinstance(body["items"], list) or not 1 <= len(body["items"]) <= ITEMS:
            raise ConfigError(f"items: must be a list of 1 to {ITEMS:,} new items.")
        await service.add_items([_object(one, f"items[{place}]") for place, one in enumerate(body["items"])])
        return JSONResponse({"added": len(body["items"]), "items": len(service.model.items)})

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def about(_: Request) -> Response:
        model = service.model
        config = model.config
        values: dict[str, Any] = {"items": len(model.items), "added": service.added, "interests": model.n_interests}
        values |= {"filter_seen": model.filters_seen, "backbone": config.backbone.name, "dataset": config.dataset.name}
        values["columns"] = model.items.columns
        return JSONResponse(model.about | values | {"version": VERSION})

    async def openapi(_: Request) -> Response:
        return JSONResponse(describe_api())

    def refused(_: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error)}, status_code=400)

    def problem(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return JSONResponse({"error": error.detail}, status_code=error.status_code, headers=error.headers)

    def fault(_: Request, error: Exception) -> Response:
        return JSONResponse({"error": "a fault of the server; its log has more"}, status_code=500)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        reloads: set[asyncio.Task[None]] = set()

        def reload() -> None:
            task = asyncio.create_task(service.reload())
            reloads.add(task)  # the loop keeps only weak references
            task.add_done_callback(reloads.discard)

        # Signals reach the main thread only, where tests do not run the server; Windows has no SIGHUP.
        with contextlib.suppress(AttributeError, NotImplementedError, RuntimeError, ValueError):
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
        if asked:
            reload()
        yield

    return Starlette(
        routes=[
            Route("/recommend", recommend, methods=["POST"]),
            Route("/similar", similar, methods=["POST"]),
            Route("/items", items, methods=["POST"]),
            Route("/health", health),
            Route("/about", about),
            Route("/openapi.json", openapi),
        ],
        middleware=guards(hosts, token=token, free=["/health"]),
        exception_handlers={EimfError: refused, HTTPException: problem, Exception: fault},
        lifespan=lifespan,
    )


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object of a request."""
    content = b""
    async for part in request.stream():
        content += part
        if len(content) > BODY_BYTES:
            raise HTTPException(413, f"the body has more than {BODY_BYTES:,} bytes; send several requests.")
    try:
        return _object(json.loads(content, parse_constant=_no_constant), "the body")
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the body is not JSON ({str(error)[:100]}).") from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _object(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{name}{': ' if name else ''}must be an object, is {type(value).__name__}.")
    return value


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """Put a name before the errors of a part of a call; an empty one changes nothing."""
    try:
        yield
    except EimfError as error:
        raise type(error)(f"{name}: {error}" if name else str(error)) from None


def _unless_error(found: list[Recommendations] | BaseException) -> list[Recommendations]:
    if isinstance(found, BaseException):
        raise found
    return found


def _check_fields(body: dict[str, Any], known: Sequence[str], needed: set[str]) -> None:
    for name in body:
        if name not in known:
            raise ConfigError(
                f"{name[:80]!r}: no such field{nearest(name, list(known))}; known are {', '.join(known)}."
            )
    if missing := needed - set(body):
        raise ConfigError(f"{min(missing)}: is missing; give it.")


def _wanted(body: dict[str, Any]) -> Wanted:
    """A checked request of a body."""
    _check_fields(body, ("history", *OPTIONS), {"history"})
    history = body["history"]
    if not isinstance(history, list):
        raise ConfigError(f"history: must be a list of item ids, oldest first, is {str(history)[:80]!r}.")
    if len(history) > HISTORY:
        raise ConfigError(f"history: has {len(history):,} items, at most {HISTORY:,} go; send the most recent ones.")
    given = {name: value for name, value in body.items() if name != "history"}
    options = _options(given)
    others = tuple((name, getattr(options, name)) for name in OPTIONS if name not in ("allow", "deny"))
    return Wanted(item_ids(history), options, (filter_key(options.allow, options.deny), others))


def _options(given: dict[str, Any]) -> ListOptions:
    for name in ("allow", "deny"):
        conditions = given.get(name)
        if conditions is not None and not isinstance(conditions, list | Mapping):
            raise ConfigError(f"{name}: must be a list of item ids, or conditions by column.")
        parts = conditions.values() if isinstance(conditions, Mapping) else [conditions or []]
        if (size := sum(len(part) if isinstance(part, list | Mapping) else 1 for part in parts)) > CONDITION:
            raise ConfigError(f"{name}: has {size:,} values, at most {CONDITION:,} go; put them into a column.")
    for name in ("filter_seen", "by_interest"):
        if not isinstance(given.get(name, False), bool | None):
            raise ConfigError(f"{name}: must be true or false, is {str(given[name])[:80]!r}.")
    options = ListOptions(**given)
    if len(options.words) > PHRASES or any(len(one) > PHRASE for one in options.words):
        raise ConfigError(f"words: at most {PHRASES} phrases of at most {PHRASE:,} characters go.")
    if options.n > LIST:
        raise ConfigError(f"n: must be at most {LIST:,}, is {options.n:,}.")
    return options


def _check_rows(wanted: Sequence[Wanted], model: Recommender) -> None:
    """Refuse a call that asks for more than `ROWS` rows."""
    interests = model.n_interests if any(one.options.by_interest for one in wanted) else 0
    lists = [interests + len(one.options.words) if one.options.by_interest else 1 for one in wanted]
    rows = sum(count * one.options.n for count, one in zip(lists, wanted, strict=True))
    if rows > ROWS:
        raise ConfigError(
            f"n: the call asks for {rows:,} rows (n times the lists of all requests), at most {ROWS:,} go; send "
            "several calls, or ask for shorter lists."
        )


def _render(answers: Sequence[list[Recommendations]], wanted: Sequence[Wanted], many: bool) -> Response:
    """The reply to a call.

    Runs in a worker thread, one answer after the other: the encoder of JSON lets no other thread run meanwhile.

    Args:
        many: whether the call has a list of requests.
    """
    texts = [
        json.dumps(_plain(lists, one.options.by_interest), ensure_ascii=False, separators=(",", ":"))
        for lists, one in zip(answers, wanted, strict=True)
    ]
    text = f'{{"answers":[{",".join(texts)}]}}' if many else texts[0]
    return Response(text.encode(), media_type="application/json")


def _plain(lists: list[Recommendations], by_interest: bool) -> dict[str, Any]:
    """An answer as plain values."""
    about = {"skipped": lists[0].skipped, "fallback": lists[0].fallback}
    if by_interest:
        named = {"names": [items.name for items in lists]} if any(items.name for items in lists) else {}
        return {"lists": [[_item(one) for one in items] for items in lists]} | named | about
    return {"items": [_item(one) for one in lists[0]]} | about


def _item(one: Recommendation) -> dict[str, Any]:
    return one._asdict()


def serve(
    run: Path,
    host: str,
    port: int,
    *,
    columns: Path | None = None,
    items: Path | None = None,
    names: Sequence[str] = (),
) -> None:
    """Serve a run until interrupted. SIGHUP loads the run folder again, without losing a request.

    If the environment variable EIMF_TOKEN is set, clients have to send it.

    Args:
        run: the run folder. It may be a link, or the folder of several versions: each reload takes the run that the
            link is set to then, or the newest version.
        host: loopback by default; another address opens the model to the network.
        port: 0 takes any free one.
        columns: see `eimf.serving.recommender.load`; read again at each reload.
        items: a table of new items, see `eimf.serving.new_items`; read again at each reload.
        names: further host names by which clients may address it.

    Raises:
        ArtifactError, DataError: the run cannot be loaded.
        ConfigError: the server cannot listen on the address, a name is no host name, or the token is too short.
    """
    check_names(names)
    token = token_of_environment(TOKEN)
    with noting("SIGHUP") as asked:  # until the event loop takes over
        service = Service(partial(load_with_tables, run, columns, items))
        listener, model = listen(host, port), service.model
        address = address_of(host, listener)
        log.info(f"serving {model.about.get('run')} ({len(model.items):,} items): {address} (Ctrl-C ends it)")
        if token:
            log.info(f"  clients have to send the token of {TOKEN}")
        elif host not in LOOPBACK:
            log.warning(
                "  this is not the loopback address: whoever reaches this machine can use the service; set the "
                f"environment variable {TOKEN} to ask for a token"
            )
        app = build_app(service, hosts_of(host, listener, names), asked, token)
        with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C ends the server, and uvicorn raises it again
            Server(app, STOP_S).run([listener])
