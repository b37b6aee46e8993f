"""A completion request's way from its body to its answer, whole or as a stream. The event loop reads, writes and waits here;
tokenising, templates and grammars are another thread's, and the model is the worker's.

A client that goes away, or a request that takes too long, lets go of its places before the engine's next step.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from zaya_core.server.metrics import Metrics
from zaya_core.server.orders import Assignment
from zaya_core.server.refusal import Refusal
from zaya_core.server.replies import ChatReply, Reply, TextReply, event
from zaya_core.server.schemas import ChatRequest, Shared, parse
from zaya_core.server.scoring import Score, Scoring
from zaya_core.server.served import Served
from zaya_core.server.worker import Worker
from zaya_core.server.writing import Piece, Writing

JSON_TYPE = b"application/json"
STREAM_TYPE = b"text/event-stream; charset=utf-8"


@dataclass(frozen=True)
class Service:
    """A loaded model at work. `tell` takes a line for the log; texts are in it only where `logs_requests`."""

    served: Served
    worker: Worker
    request_seconds: float
    started_at: int
    tell: Callable[[str], None]
    logs_requests: bool


class Desk:
    """Where requests find the service, once it has been loaded; until then they are told to come back."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self.service: Service | None = None

    def open(self) -> Service:
        """The service, or a 503."""
        if self.service is None:
            raise Refusal(503, "the model is being loaded", code="loading", retry_seconds=1)
        return self.service


class Sender:
    """One HTTP answer; it knows whether its head has gone out, after which no other status can be told."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.has_begun = False

    async def begin(self, content_type: bytes, *, length: int | None = None) -> None:
        """Status 200 and headers; `length` of the body where it is known."""
        self.has_begun = True
        headers = [(b"content-type", content_type), (b"cache-control", b"no-store")]
        if length is not None:
            headers.append((b"content-length", str(length).encode()))
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def write(self, data: bytes, *, is_last: bool = False) -> None:
        """More of the body."""
        await self._send({"type": "http.response.body", "body": data, "more_body": not is_last})


class Inbox:
    """Where the engine's thread puts what it has made, for one request's coroutine to take."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.pieces: asyncio.Queue[Piece] = asyncio.Queue()
        self.scores: asyncio.Queue[tuple[int, list[Score] | None]] = asyncio.Queue()

    def put_piece(self, piece: Piece) -> None:
        """From the engine's thread."""
        self._loop.call_soon_threadsafe(self.pieces.put_nowait, piece)

    def put_score(self, prompt: int, scores: list[Score] | None) -> None:
        """From the engine's thread."""
        self._loop.call_soon_threadsafe(self.scores.put_nowait, (prompt, scores))

    async def batches(self, num_open: int) -> AsyncIterator[list[Piece]]:
        """Pieces as they come, those that are there at once together, until `num_open` texts are over; a failure is raised."""
        while num_open:
            pieces = [await self.pieces.get()]
            while not self.pieces.empty():
                pieces.append(self.pieces.get_nowait())
            failed = [piece.failure for piece in pieces if piece.failure is not None]
            if failed:
                raise failed[0]
            num_open -= sum(piece.finish_reason is not None for piece in pieces)
            yield pieces


class Completions:
    """ASGI endpoint of one kind of completion: its `schema`, and what makes an assignment of it."""

    def __init__(self, desk: Desk, schema: type[Shared], assign: Callable[[Any, Served], Assignment]) -> None:
        self.desk, self.schema, self.assign = desk, schema, assign

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self.desk.open()
        body = await Request(scope, receive).body()
        assignment = await asyncio.to_thread(lambda: self.assign(parse(self.schema, body), service.served))
        await until_gone(receive, self._answer(service, assignment, Sender(send)))

    async def _answer(self, service: Service, assignment: Assignment, sender: Sender) -> None:
        """Once the head has gone out, an error is the stream's last event."""
        inbox, began = Inbox(), time.monotonic()
        served, drafts = service.served, assignment.shows_drafts
        writings = [Writing(order, served, inbox.put_piece, shows_drafts=drafts) for order in assignment.orders]
        scorings = _scorings(assignment, served, writings, inbox)
        kind = ChatReply if self.schema is ChatRequest else TextReply
        reply: Reply = kind(assignment, served, writings)
        try:
            async with asyncio.timeout(service.request_seconds):
                await _begin(service.worker, reply, scorings, inbox)
                await (_stream if assignment.is_streamed else _whole)(reply, inbox, sender)
        except TimeoutError:
            await _refuse(Refusal(503, f"the request took longer than {service.request_seconds:g} s", code="timeout"), sender)
        except Refusal as refusal:
            await _refuse(refusal, sender)
        finally:
            service.worker.withdraw([*writings, *scorings])
            self.desk.metrics.prompt_tokens.inc(sum(map(len, assignment.prompts)))
            service.tell(_line(service, reply, time.monotonic() - began))


async def until_gone(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do `work`, and drop it when the client goes away."""
    task, watcher = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
    finally:
        for one in (task, watcher):
            one.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _scorings(assignment: Assignment, served: Served, writings: list[Writing], inbox: Inbox) -> list[Scoring]:
    """A scoring a prompt where its tokens' log-probabilities are wanted; it writes one-token completions along the way."""
    if assignment.scored is None:
        return []
    scorings = [
        Scoring(prompt_ids, num_top=assignment.scored, forbidden=served.forbidden, outlet=partial(inbox.put_score, number))
        for number, prompt_ids in enumerate(assignment.prompts)
    ]
    for writing in writings:
        if writing.order.request.how.max_new_tokens == 1:
            scorings[writing.order.prompt].firsts.append(writing)
    return scorings


async def _begin(worker: Worker, reply: Reply, scorings: list[Scoring], inbox: Inbox) -> None:
    """Put everything into the queue: the scorings, and once they are done the texts that they have not written."""
    if scorings:
        worker.submit([], scorings)
    for _ in scorings:
        prompt, scores = await inbox.scores.get()
        if scores is None:
            raise Refusal(500, "the engine failed")
        reply.take_scores(prompt, scores)
    taken = {id(writing) for scoring in scorings for writing in scoring.firsts}
    worker.submit([writing for writing in reply.writings if id(writing) not in taken])


async def _whole(reply: Reply, inbox: Inbox, sender: Sender) -> None:
    pieces = reply.first_pieces()
    async for batch in inbox.batches(len(reply.writings)):
        pieces += batch
    body = json.dumps(reply.whole(pieces), ensure_ascii=False, separators=(",", ":")).encode()
    await sender.begin(JSON_TYPE, length=len(body))
    await sender.write(body, is_last=True)


async def _stream(reply: Reply, inbox: Inbox, sender: Sender) -> None:
    await sender.begin(STREAM_TYPE)
    for piece in reply.first_pieces():
        await sender.write(b"".join(reply.chunks(piece)))
    async for batch in inbox.batches(len(reply.writings)):
        await sender.write(b"".join(chunk for piece in batch for chunk in reply.chunks(piece)))
    await sender.write(b"".join(reply.last_chunks()), is_last=True)


async def _refuse(refusal: Refusal, sender: Sender) -> None:
    if not sender.has_begun:
        raise refusal
    await sender.write(event(refusal.body()), is_last=True)


def _line(service: Service, reply: Reply, seconds: float) -> str:
    """What the log says of a request: counts, and texts only where that was asked for."""
    usage = reply.usage()
    per_forward = usage["zaya"]["tokens_per_forward"]
    reasons = ",".join(writing.transcript.finish_reason or "unfinished" for writing in reply.writings) or "scored"
    line = f"{reply.kind}: {usage['prompt_tokens']} + {usage['completion_tokens']} tokens, {seconds:.2f} s, {reasons}"
    if per_forward is not None:
        line += f", {per_forward:.2f} tokens/forward"
    if not service.logs_requests:
        return line
    prompts = [service.served.decoded(prompt) for prompt in reply.assignment.prompts]
    texts = [writing.transcript.text for writing in reply.writings]
    return f"{line} {json.dumps({'prompts': prompts, 'texts': texts}, ensure_ascii=False)}"
