"""What stands before every endpoint: who may come in, and how much they may bring. It reads headers and sizes, never meanings.

A page that a browser loaded from elsewhere must not reach a server on loopback: the Host header must be ours (DNS rebinding),
and a body must be declared JSON, which browsers do not send across origins without asking.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zaya_core.server.metrics import Metrics
from zaya_core.server.refusal import Refusal

OPEN_PATHS = frozenset({"/", "/health"})  # they tell nothing that a stranger may not know
BODY_SECONDS = 30.0  # to receive a body


@dataclass(frozen=True)
class Rules:
    """`hosts` are the names that the server answers to besides addresses; `keys` empty lets everyone in."""

    hosts: frozenset[str]
    keys: tuple[str, ...]
    max_body_bytes: int
    is_everywhere: bool = False  # bound to all addresses: any address may be the one that was meant

    def knows_host(self, header: str) -> bool:
        """Is this Host header one of ours? The port is the client's business: a proxy or tunnel may have another."""
        name = header.rsplit(":", 1)[0] if not header.endswith("]") and ":" in header else header
        name = name.strip("[]").lower().rstrip(".")
        return name in self.hosts or (self.is_everywhere and is_address(name))

    def knows_key(self, header: str) -> bool:
        """Is this Authorization header's key one of ours? Takes the same time whatever is wrong with it."""
        scheme, _, given = header.partition(" ")
        digest = hashlib.sha256(given.strip().encode()).digest()
        matches = [hmac.compare_digest(digest, hashlib.sha256(key.encode()).digest()) for key in self.keys]
        return scheme.lower() == "bearer" and any(matches)


def is_address(name: str) -> bool:
    """127.0.0.1 and ::1 are, localhost is not."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(name: str) -> bool:
    """Does this host name only this machine?"""
    return name == "localhost" or (is_address(name) and ipaddress.ip_address(name).is_loopback)


def is_everywhere(name: str) -> bool:
    """Does listening on this address mean listening on all of the machine's?"""
    return is_address(name) and ipaddress.ip_address(name).is_unspecified


class Gate:
    """ASGI: checks a request, keeps its body for the endpoint, counts its answer, and turns whatever was raised into one."""

    def __init__(
        self, app: ASGIApp, *, rules: Rules, metrics: Metrics, paths: Sequence[str], complain: Callable[[str], None]
    ) -> None:
        self.app, self.rules, self.metrics, self.paths, self.complain = app, rules, metrics, frozenset(paths), complain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 0

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._pass(scope, receive, counted)
        except Refusal as refusal:
            if not status:
                await refusal.response()(scope, receive, counted)
        except asyncio.CancelledError:  # the time to drain has passed
            if not status:
                await Refusal(503, "the server stops").response()(scope, receive, counted)
        except Exception as error:  # our fault; its words may hold the client's, so they stay here
            self.complain(f"{scope['path'] if scope['path'] in self.paths else 'a request'} failed: {_described(error)}")
            if not status:
                await Refusal(500, "the server failed; this is a bug in zaya").response()(scope, receive, counted)
        finally:
            path = scope["path"] if scope["path"] in self.paths else "other"
            self.metrics.requests.labels(path, str(status or "gone")).inc()
            self.metrics.request_seconds.observe(time.monotonic() - began)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        if not self.rules.knows_host(headers.get("host", "")):
            raise Refusal(400, "the Host header is not this server's (--allowed-host NAME adds one)", code="unknown_host")
        if self.rules.keys and scope["path"] not in OPEN_PATHS and not self.rules.knows_key(headers.get("authorization", "")):
            raise Refusal(401, "expected the header Authorization: Bearer KEY with a valid key", code="invalid_api_key")
        if scope["method"] == "POST":
            if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
                raise Refusal(400, "expected the header Content-Type: application/json", code="invalid_content_type")
            receive = await self._with_body(headers, receive)
        await self.app(scope, receive, send)

    async def _with_body(self, headers: Headers, receive: Receive) -> Receive:
        """Read the whole body within its limits; the endpoint gets it as one message."""
        most, body = self.rules.max_body_bytes, bytearray()
        too_large = Refusal(413, f"the body is too large, expected at most {most} bytes", code="body_too_large")
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > most:
            raise too_large
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refusal(400, "the client left before its body was whole")
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise too_large
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            raise Refusal(400, f"the body was not whole after {BODY_SECONDS:.0f} s", code="body_too_slow") from None
        whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replayed() -> Message:
            return whole.pop() if whole else await receive()

        return replayed


def _described(error: Exception) -> str:
    """The kind of error and the place it comes from, without its words."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f" at {trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}" if trace else ""
    return f"{type(error).__name__}{place}"
