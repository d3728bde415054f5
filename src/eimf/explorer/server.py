"""Serves the explorer: one page, its script and style, and three addresses that answer JSON."""

import logging
import webbrowser
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.resources import files
from typing import TypeVar

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from eimf.core.errors import ConfigError, EimfError
from eimf.explorer.view import Explorer
from eimf.serving.web import LOOPBACK, address_of, check_names, guards, hosts_of, listen

log = logging.getLogger(__name__)

Number = TypeVar("Number", int, float)


FILES = {
    "/": ("page.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}


# Titles and labels are untrusted text: the page makes text nodes only, and runs only its own script.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "frame-ancestors 'none'; form-action 'none'"
)


QUERY_CHARACTERS, SEARCH_CHARACTERS = 20_000, 200


def build_app(explorer: Explorer, hosts: tuple[str, ...] = LOOPBACK) -> Starlette:
    """The web application.

    Args:
        hosts: names by which browsers may address it, see `eimf.serving.web.guards`.
    """

    def asset(request: Request) -> Response:
        name, kind = FILES[request.url.path]
        return Response((files("eimf.explorer") / name).read_bytes(), media_type=kind)

    def answer(make: Callable[[Request], object]) -> Callable[[Request], Response]:
        def endpoint(request: Request) -> Response:
            try:
                return JSONResponse(make(request))
            except EimfError as error:
                return JSONResponse({"error": str(error)}, status_code=400)

        return endpoint

    def look(request: Request) -> object:
        query = request.query_params
        if len(request.url.query) > QUERY_CHARACTERS:
            raise ConfigError(f"the query has {len(request.url.query):,} characters, at most {QUERY_CHARACTERS:,} go.")
        n, diversity = _number(query.get("n", "10"), "n", int), _number(query.get("diversity", "0"), "diversity", float)
        asked = [one for one in query.getlist("words") if one.strip()]
        if user_id := query.get("user", ""):
            user = explorer.user(user_id)
            return explorer.look(user.history, user.later, user_id, n, diversity, asked) | {"part": user.part}
        return explorer.look(query.getlist("item"), n=n, diversity=diversity, asked=asked)

    def problem(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return JSONResponse({"error": error.detail}, status_code=error.status_code)

    return Starlette(
        routes=[
            *(Route(path, asset) for path in FILES),
            Route("/api/about", answer(lambda _: explorer.describe())),
            Route(
                "/api/suggest",
                answer(lambda request: explorer.suggest(request.query_params.get("q", "")[:SEARCH_CHARACTERS])),
            ),
            Route("/api/look", answer(look)),
        ],
        middleware=guards(hosts, POLICY),
        exception_handlers={HTTPException: problem},
    )


def _number(text: str, name: str, kind: Callable[[str], Number]) -> Number:
    try:
        return kind(text)
    except ValueError:
        raise ConfigError(f"{name}: must be a number, is {text[:40]!r}.") from None


def serve(explorer: Explorer, host: str, port: int, browser: bool = False, names: Sequence[str] = ()) -> None:
    """Serve until interrupted.

    Args:
        host: loopback by default; another address opens the model, and the users' histories, to the network.
        port: 0 takes any free one.
        names: further host names by which browsers may address it, such as this machine's.

    Raises:
        ConfigError: the server cannot listen on the address, or a name is no host name.
    """
    check_names(names)
    listener = listen(host, port)
    address = address_of(host, listener)
    log.info(f"explorer: {address} (Ctrl-C ends it)")
    if host not in LOOPBACK:
        log.warning("  this is not the loopback address: whoever reaches this machine can read the users' histories")
    if browser:
        webbrowser.open(address)
    app = build_app(explorer, hosts_of(host, listener, names))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    with suppress(KeyboardInterrupt):  # Ctrl-C ends the server, and uvicorn raises it again
        server.run([listener])
