"""Many requests over one model: each step is one forward for all of them, and rows come and go between steps.

Invariant: a request's tokens depend on its prompt, its settings and its chance, never on what else runs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from zaya_core.engine.chance import Chance
from zaya_core.engine.decode import Committed, Decoding, decode
from zaya_core.model.decoder import Zaya


@dataclass(frozen=True)
class Request:
    """A prompt, how to continue it, and its own source of chance."""

    prompt_ids: list[int]
    how: Decoding
    chance: Chance

    @property
    def num_slots(self) -> int:
        """Places in the K/V pool that it may come to need: its prompt, its new tokens, and a step's slots past them."""
        return len(self.prompt_ids) + self.how.max_new_tokens + self.how.max_step_slots


class Engine:
    """Decodes up to `max_rows` requests together, whose histories share a pool of `num_slots` tokens of K and V."""

    def __init__(self, model: Zaya, *, num_slots: int, max_rows: int) -> None:
        self.model, self.num_slots, self.max_rows = model, num_slots, max_rows
        self._runs: dict[int, tuple[Request, Iterator[Committed]]] = {}
        self._next_ticket = 0

    @property
    def num_rows(self) -> int:
        """Requests in work."""
        return len(self._runs)

    def has_room(self, request: Request) -> bool:
        """May it be added now?"""
        taken = sum(running.num_slots for running, _ in self._runs.values())
        return self.num_rows < self.max_rows and taken + request.num_slots <= self.num_slots

    def add(self, request: Request) -> int:
        """Take a request in, which `has_room` allowed; returns the ticket under which its tokens come."""
        ticket, self._next_ticket = self._next_ticket, self._next_ticket + 1
        self._runs[ticket] = (request, decode(self.model, request.prompt_ids, request.how, request.chance))
        return ticket

    def step(self) -> dict[int, Committed]:
        """One forward; what it made final, by ticket. A request whose prompt is still being read is not among them.

        A request whose Committed has a finish_reason has left.
        """
        committed = {ticket: next(run) for ticket, (_, run) in self._runs.items()}
        for ticket, part in committed.items():
            if part.finish_reason is not None:
                self.cancel(ticket)
        return committed

    def cancel(self, ticket: int) -> None:
        """Let a request go, finished or not; its places are free for others."""
        del self._runs[ticket]
