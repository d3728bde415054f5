"""A web server that stops without losing a request of the clients that it has."""

import asyncio
import time
from collections.abc import Sequence
from socket import socket
from typing import Any

import uvicorn
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

IDLE_S = 5
"""Seconds that a connection is kept open without a request, also while the server stops."""


class Closing:
    """Adds `Connection: close` to every reply from the moment that `on` is set, so that clients send no more requests
    over their connections."""

    def __init__(self, app: ASGIApp) -> None:
        self.app, self.on = app, False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_and_close(message: Message) -> None:
            if self.on and message["type"] == "http.response.start":
                MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        await self.app(scope, receive, send_and_close)


class Server(uvicorn.Server):
    """Uvicorn's server with another end.

    Uvicorn closes idle connections at once, and with them those whose next request is on its way. This server first
    refuses new connections, and answers what comes over those that it has with `Connection: close`. It waits until
    they have ended, at most `IDLE_S` seconds, which is what an idle connection has at any time. Requests in progress
    then have the rest of the time.

    Args:
        seconds: that stopping may take altogether, more than `IDLE_S`.
    """

    def __init__(self, app: ASGIApp, seconds: int, **options: Any) -> None:
        self._closing = Closing(app)
        more = {"timeout_keep_alive": IDLE_S, "timeout_graceful_shutdown": seconds - IDLE_S, "log_level": "warning"}
        super().__init__(uvicorn.Config(self._closing, **(more | options)))

    async def shutdown(self, sockets: Sequence[socket] | None = None) -> None:
        """See the class."""
        for server in self.servers:
            server.close()
        self._closing.on = True
        end = time.monotonic() + IDLE_S
        while self.server_state.connections and not self.force_exit and time.monotonic() < end:
            await asyncio.sleep(0.05)
        await super().shutdown(list(sockets) if sockets is not None else None)
