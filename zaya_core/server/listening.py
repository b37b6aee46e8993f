"""A socket and the thread that serves it: uvicorn in a thread of its own, so that the program's first thread keeps its signals.

Stopping is graceful: no new connections, every request in work is answered, then the worker ends.
"""

import asyncio
import socket
import threading

import uvicorn
from starlette.types import ASGIApp

from zaya_core.errors import ConfigError

BACKLOG = 1024


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 is any free one. A ConfigError names what is taken or unknown."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"--host {host} --port {port} cannot be used: {error.strerror}", hint="--port 0 takes a free one"
        ) from error


class Listener:
    """Serves `app` on a bound socket from `start` to `stop`."""

    def __init__(self, app: ASGIApp, listening: socket.socket, *, drain_seconds: int) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=drain_seconds,
            backlog=BACKLOG,
        )
        self._server, self._socket = uvicorn.Server(config), listening
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    @property
    def is_alive(self) -> bool:
        """Does the thread still serve?"""
        return self._thread.is_alive()

    def start(self) -> None:
        """Accept connections from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Accept no more; returns when the last answer has gone out, or the time to do so has passed."""
        self._server.should_exit = True
        self._thread.join()

    def _run(self) -> None:
        asyncio.run(self._server.serve(sockets=[self._socket]))
