"""The one thread that runs the model: takes orders in turn, steps all of them together, and lets go of those no longer wanted.

Invariant: nobody else touches the engine, and nothing here waits for a client. Load may decide whether completions without a seed
draft, never what law they have.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from zaya_core.engine.batch import Engine
from zaya_core.engine.chance import SeededChance
from zaya_core.engine.draft import Proposals
from zaya_core.engine.request import Committed, Decoding, Request
from zaya_core.engine.ways import Ways
from zaya_core.ops.sampling import Sampler
from zaya_core.server.metrics import Metrics
from zaya_core.server.orders import Order
from zaya_core.server.refusal import Refusal, too_busy
from zaya_core.server.scoring import Scoring
from zaya_core.server.writing import Writing

MEMORY = 0.9  # of the running mean of how long a completion takes


class Complaint(Protocol):
    """Takes a line about something that went wrong in the engine."""

    def __call__(self, text: str) -> None: ...


class Worker:
    """First come, first served: `max_waiting` completions may wait beyond those that the engine has room for.

    Beside `draft_up_to` others a completion that may adapt starts without drafts; otherwise its text chooses among `ways`.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_waiting: int,
        metrics: Metrics,
        complain: Complaint,
        draft_up_to: int | None = None,
        ways: Ways | None = None,
    ) -> None:
        self.engine, self.max_waiting, self.metrics, self.complain = engine, max_waiting, metrics, complain
        self.draft_up_to, self.ways = draft_up_to, ways
        self._waiting: deque[Writing] = deque()
        self._running: dict[int, Writing] = {}
        self._scorings: deque[Scoring] = deque()
        self._scoring: tuple[Scoring, Iterator[None]] | None = None
        self._changed = threading.Condition()
        self._is_closing = False
        self._mean_seconds = 1.0
        metrics.total_slots.set(engine.pool.num_slots)

    @property
    def capacity(self) -> int:
        """Completions in work or waiting that are taken at most."""
        return self.engine.max_rows + self.max_waiting

    def submit(self, writings: Sequence[Writing], scorings: Sequence[Scoring] = ()) -> None:
        """Take all of a request, or refuse it whole: 429 when the queue is full. Called from any thread."""
        count = len(writings) + len(scorings)
        if count > self.capacity:
            raise Refusal(400, f"the request asks for {count} completions at once, expected at most {self.capacity}", param="n")
        with self._changed:
            if self._num_open() + count > self.capacity:
                raise too_busy(self._retry_seconds())
            self._waiting += writings
            self._scorings += scorings
            self._changed.notify()

    def withdraw(self, works: Sequence[Writing | Scoring]) -> None:
        """Their places are free before the next step. Called from any thread."""
        with self._changed:
            for work in works:
                work.is_withdrawn = True
            self._changed.notify()

    def warm_up(self) -> None:
        """One completion before anyone waits for it: libraries prepare themselves at the first forwards."""
        how = Decoding(2, Sampler(temperature=0))
        ticket = self.engine.add(Request([0, 0], how, SeededChance(0)))
        while (part := self.engine.step().get(ticket)) is None or part.finish_reason is None:
            pass

    def close(self) -> None:
        """Stop after the current step."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()

    def run(self) -> None:
        """The thread's body."""
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work)
                if self._is_closing:
                    return
            self._guarded(self._drop)
            self._guarded(self._admit)
            self._guarded(self._score)
            self._guarded(self._step)
            self._show_load()

    def _show_load(self) -> None:
        slots, reused = self._num_slots(), self.engine.prefixes.num_reused
        self.metrics.show_load(running=len(self._running), waiting=len(self._waiting), num_slots=slots, num_reused=reused)

    def _has_work(self) -> bool:
        return bool(self._is_closing or self._running or self._waiting or self._scorings or self._scoring)

    def _num_open(self) -> int:
        works = [*self._waiting, *self._running.values(), *self._scorings]
        return sum(not work.is_withdrawn for work in works) + (self._scoring is not None)

    def _num_slots(self) -> int:
        return sum(writing.order.request.num_slots for writing in self._running.values())

    def _retry_seconds(self) -> int:
        return max(1, min(60, round(self._mean_seconds * self._num_open() / self.engine.max_rows)))

    def _guarded(self, action: Callable[[], None]) -> None:
        """A failure of the engine ends what is running, and nothing else."""
        try:
            action()
        except Exception as error:  # whatever it is, the others must go on
            self.complain(f"the engine failed: {type(error).__name__}: {error}")
            self._fail_all(f"the engine failed: {type(error).__name__}")

    def _fail_all(self, message: str) -> None:
        for ticket, writing in list(self._running.items()):
            writing.fail(message)
            self._let_go(ticket)
        self._fail_scoring(message)

    def _fail_scoring(self, message: str) -> None:
        if self._scoring is not None:
            for writing in self._scoring[0].firsts:
                writing.fail(message)
            self._scoring[0].outlet(None)
            self._scoring = None

    def _let_go(self, ticket: int) -> None:
        del self._running[ticket]
        self.engine.cancel(ticket)

    def _drop(self) -> None:
        """Let go of what was withdrawn."""
        for ticket, writing in list(self._running.items()):
            if writing.is_withdrawn:
                self._let_go(ticket)
        with self._changed:
            for queue in (self._waiting, self._scorings):
                for work in [work for work in queue if work.is_withdrawn]:
                    queue.remove(work)
        if self._scoring is not None and self._scoring[0].is_withdrawn:
            self._scoring = None

    def _admit(self) -> None:
        """In turn, as long as the engine has room: a large request is not overtaken for ever by small ones."""
        while self._waiting and self.engine.has_room(self._waiting[0].order.request):
            with self._changed:
                writing = self._waiting.popleft()
            try:
                self._running[self.engine.add(self._suited(writing.order))] = writing
            except Exception as error:  # it is in no list any more: it must hear of it here
                self.complain(f"a request could not begin: {type(error).__name__}: {error}")
                writing.fail(f"the request could not begin: {type(error).__name__}")
        if self._waiting and not self._running:
            with self._changed:
                self._waiting.popleft().fail("the engine has no room for it, though it is idle")

    def _suited(self, order: Order) -> Request:
        """Without drafts in a crowd, where a wide forward is no longer nearly free; the law is the same."""
        if not order.may_adapt:
            return order.request
        is_crowded = self.draft_up_to is not None and len(self._running) >= self.draft_up_to
        changes = {"proposals": Proposals(0), "block_length": 0} if is_crowded else {"ways": self.ways}
        return replace(order.request, how=replace(order.request.how, **changes))

    def _score(self) -> None:
        """One chunk of one prompt."""
        if self._scoring is None:
            if not self._scorings:
                return
            with self._changed:
                scoring = self._scorings.popleft()
            self._scoring = (scoring, scoring.steps(self.engine.model))
        try:
            is_over = next(self._scoring[1], self) is self
        except Exception as error:  # one prompt's, and no running text's
            self.complain(f"a scoring failed: {type(error).__name__}: {error}")
            self._fail_scoring(f"the scoring failed: {type(error).__name__}")
            return
        if is_over:
            self._scoring = None

    def _step(self) -> None:
        """One forward for all; each completion gets what it made final."""
        if not self._running:
            return
        began = time.monotonic()
        committed = self.engine.step()
        self.metrics.forward_seconds.observe(time.monotonic() - began)
        for ticket, part in committed.items():
            writing = self._running[ticket]
            self._deliver(writing, part)
            if part.finish_reason is not None:
                del self._running[ticket]  # the engine has let it go itself
            elif writing.is_over:
                self._let_go(ticket)

    def _deliver(self, writing: Writing, part: Committed) -> None:
        """What goes wrong with one text is that text's alone."""
        before, count = writing.last_at, len(writing.transcript.tokens)
        try:
            if part.error is not None:
                raise part.error
            writing.take(part)
        except Exception as error:
            self.complain(f"a text failed: {type(error).__name__}: {error}")
            writing.fail(f"the text failed: {type(error).__name__}")
            return
        self._measure(writing, before, len(writing.transcript.tokens) - count)
        if writing.is_over:
            self._mean_seconds += (1 - MEMORY) * (time.monotonic() - writing.submitted_at - self._mean_seconds)

    def _measure(self, writing: Writing, before: float | None, count: int) -> None:
        assert writing.last_at is not None
        self.metrics.generated_tokens.inc(max(0, count))
        if before is None:
            self.metrics.first_token_seconds.observe(writing.last_at - writing.submitted_at)
        elif count > 0:
            self.metrics.accepted_tokens.observe(count)
            self.metrics.token_seconds.observe((writing.last_at - before) / count)
