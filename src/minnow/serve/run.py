"""The server's life: bind, say where, serve, and end cleanly."""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from minnow.errors import UserError

_GREETING = 10.0  # seconds until a new connection has to have asked for something


class _Protocol(H11Protocol):
    """uvicorn waits forever for a client's first request to be complete; this one does not."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(_GREETING, lambda: self.cycle is None and transport.close())


def run(app: Starlette, host: str, port: int, name: str) -> None:
    """Serve ``app`` until Ctrl-C or SIGTERM; answers under way get five seconds to end.

    Raises:
        UserError: the port is taken, or the address is not of this machine.
    """
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        http=_Protocol,
        lifespan="on",
        timeout_graceful_shutdown=5,
        timeout_keep_alive=30,  # clients keep an idle connection for 5 s, and must be the first to close it
        server_header=False,
    )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError as error:
        raise UserError(
            f"{host}:{port} cannot be listened on ({error.strerror}); choose another with --port"
        ) from error
    shown = f"[{host}]" if ":" in host else host
    sys.stderr.write(f"minnow: {name} at http://{shown}:{bound.getsockname()[1]}/v1 (Ctrl-C ends it)\n")
    sys.stderr.flush()
    server: Any = uvicorn.Server(config)
    server.run(sockets=[bound])
