"""What every web server of ours needs: where it listens, which host names it answers to, and its headers."""

import hmac
import os
import re
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette import datastructures
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eimf.core.errors import ConfigError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
SHORTEST_TOKEN = 16


class Headers:
    """Adds headers to every reply, errors too."""

    def __init__(self, app: ASGIApp, headers: dict[str, str]) -> None:
        self.app, self.headers = app, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                datastructures.MutableHeaders(scope=message).update(self.headers)
            await send(message)

        await self.app(scope, receive, send_with_headers)


class HostNames:
    """Refuses requests that address the server by another host name than its own."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self.app, self.hosts = app, frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and "*" not in self.hosts:
            given = datastructures.Headers(scope=scope).get("host", "")
            if _name(given) not in self.hosts:
                message = f"host: this server does not answer to the name {given[:80]!r}; start it with --name for it."
                await JSONResponse({"error": message}, status_code=400)(scope, receive, send)
                return
        await self.app(scope, receive, send)


class Token:
    """Refuses requests without the server's token, but for the paths that are open."""

    def __init__(self, app: ASGIApp, token: str, free: Sequence[str]) -> None:
        self.app, self.expected, self.free = app, f"Bearer {token}".encode(), frozenset(free)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self.free:
            given = datastructures.Headers(scope=scope).get("authorization", "")
            if not hmac.compare_digest(given.encode(), self.expected):
                message = "authorization: this server needs the header 'Authorization: Bearer TOKEN' with its token."
                reply = JSONResponse({"error": message}, status_code=401, headers={"WWW-Authenticate": "Bearer"})
                await reply(scope, receive, send)
                return
        await self.app(scope, receive, send)


def token_of_environment(variable: str) -> str | None:
    """The token that clients need, from the environment; None if the variable is not set.

    Raises:
        ConfigError: it is no token; the message does not repeat it.
    """
    token = os.environ.get(variable)
    if token is not None and not re.fullmatch(f"[!-~]{{{SHORTEST_TOKEN},}}", token):
        raise ConfigError(
            f"{variable}: must have at least {SHORTEST_TOKEN} characters, printable ASCII without spaces; make one, "
            "for example with: openssl rand -hex 24."
        )
    return token


def _name(host: str) -> str | None:
    """The name of a Host header, without the port and the brackets of IPv6; None if it is not well-formed."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port  # raises if it is no number
        return None if "@" in host or parts.netloc != host else parts.hostname
    except ValueError:
        return None


def guards(
    hosts: Sequence[str],
    policy: str = "default-src 'none'; frame-ancestors 'none'",
    token: str | None = None,
    free: Sequence[str] = (),
) -> list[Middleware]:
    """The middleware of a server: security headers, and checks of the host name and of the token.

    Args:
        hosts: names by which clients may address it. Others are refused, so that a web page from elsewhere cannot read
            this server by pointing its own host name at this machine (DNS rebinding). `*` allows all.
        policy: the content security policy.
        token: what clients have to send; None asks for nothing.
        free: paths that need no token.
    """
    headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"}
    return [
        Middleware(Headers, headers=headers),  # pyright: ignore[reportArgumentType]
        Middleware(HostNames, hosts=hosts),  # pyright: ignore[reportArgumentType]
        *([Middleware(Token, token=token, free=free)] if token else []),  # pyright: ignore[reportArgumentType]
    ]


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Args:
        host: loopback by default; another address opens the server to the network.
        port: 0 takes any free one.

    Raises:
        ConfigError: the server cannot listen on the address.
    """
    if not 0 <= port <= 65_535:
        raise ConfigError(f"--port: must be from 0 (any free one) to 65535, is {port}.")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, UnicodeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not an address"
        raise ConfigError(f"--host, --port: cannot listen on {host[:80]!r}:{port} ({reason}); choose others.") from None


def address_of(host: str, listener: socket.socket) -> str:
    """The address of a server, for people."""
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}/"


def check_names(names: Sequence[str]) -> None:
    """Refuse what no client can send as the name of a host.

    Raises:
        ConfigError: one of the names is not a host name.
    """
    for name in names:
        if name != "*" and (_name(name if ":" not in name else f"[{name}]") != name.lower() or "*" in name):
            raise ConfigError(f"--name: must be a host name without a port, or * for any, is {name[:80]!r}.")


def hosts_of(host: str, listener: socket.socket, names: Sequence[str] = ()) -> tuple[str, ...]:
    """The host names that a server on this address answers to; see `guards`.

    Args:
        names: further ones, such as this machine's in the network; `*` for any. See `check_names`.
    """
    own = (host, socket.gethostname(), listener.getsockname()[0]) if host not in LOOPBACK else ()
    return tuple(dict.fromkeys((*LOOPBACK, *own, *names)))
