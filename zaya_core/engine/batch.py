"""Many requests over one model: each step is one forward for all of them, and rows come and go between steps.

Invariant: a request's tokens depend on its prompt, its settings and its chance, never on what else runs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from zaya_core.config import ModelConfig
from zaya_core.engine.prefix import Prefixes
from zaya_core.engine.reading import on_device, read_together
from zaya_core.engine.request import Committed, Final, Request
from zaya_core.engine.run import Run, Share
from zaya_core.errors import ConfigError
from zaya_core.layout import Layout, template
from zaya_core.model.pool import Pool
from zaya_core.ops.sampling import Sampler

PREFILL_CHUNK = 4096  # prompt tokens in one forward, of all requests together
BESIDE_DECODING = 512  # the same while others wait for their next token
LOGITS_AT_ONCE = 2**26  # elements of rows x V that are held at a time

Value = TypeVar("Value")


class Network(Protocol):
    """What the engine asks of a model: `Zaya`, or its form for serving."""

    config: ModelConfig
    device: torch.device

    def __call__(self, token_ids: Tensor, layout: Layout, past: Pool, routing: list[Tensor] | None) -> Tensor:
        """Token ids [1, T], on the host, -> hidden [1, T, D], which may hold until the next forward only."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """[R, D] -> [R, V]."""
        ...

    def new_pool(self, num_slots: int, *, max_rows: int, marks: bool) -> Pool:
        """An empty pool."""
        ...


@dataclass
class Turn:
    """A run's part of a forward, filled in as the step goes on."""

    ticket: int
    run: Run
    share: Share
    begin: int = 0  # its first slot in the forward
    accepted: int = 0
    finals: list[Final] = field(default_factory=list)
    drafted: tuple[int, ...] = ()
    error: Exception | None = None

    def attempt(self, action: Callable[[], Value]) -> Value | None:
        """What a request's own constraint or chance does wrong ends that request, and no other of the forward."""
        try:
            return action()
        except Exception as error:  # theirs, whatever it is
            self.error = error
            return None

    @property
    def rows_to_judge(self) -> range:
        """Slots whose AR rows are read."""
        end = self.begin + len(self.share.token_ids)
        return range(end - self.share.num_read, end)

    def rows_to_draft(self) -> range:
        """Slots whose mask rows are read."""
        part = self.run.next_masks(self.share, self.accepted)
        return range(self.begin + part.start, self.begin + part.stop)


class Engine:
    """Decodes up to `max_rows` requests together, whose histories share a pool of `num_slots` tokens of K and V.

    What another request has read already, or `keep_prefixes` requests that have left, is not read again.
    """

    def __init__(self, model: Network, *, num_slots: int, max_rows: int, keep_prefixes: int = 0) -> None:
        self.model, self.max_rows = model, max_rows
        self.pool = model.new_pool(num_slots, max_rows=max_rows + keep_prefixes, marks=max_rows > 1 or keep_prefixes > 0)
        self.prefixes = Prefixes(self.pool, keep_prefixes)
        self._runs: dict[int, Run] = {}
        self._known_forbidden: dict[tuple[int, ...], Tensor] = {}
        self._next_ticket = 0

    @property
    def num_rows(self) -> int:
        """Requests in work."""
        return len(self._runs)

    def has_room(self, request: Request) -> bool:
        """May it be added now? Prefixes that are only kept make room."""
        return self.num_rows < self.max_rows and self.prefixes.can_make_room(request.num_slots)

    def add(self, request: Request) -> int:
        """Take a request in, which `has_room` allowed; returns the ticket under which its tokens come.

        A prompt with ids that the model does not have is a ConfigError.
        """
        vocab_size = self.model.config.vocab_size
        if not 0 <= min(request.prompt_ids) <= max(request.prompt_ids) < vocab_size:
            wrong = next(index for index in request.prompt_ids if not 0 <= index < vocab_size)
            raise ConfigError(f"the prompt has the id {wrong}, expected ids below the vocabulary's {vocab_size}")
        if not self.prefixes.make_room(request.num_slots):
            raise ConfigError(f"no room for {request.num_slots} slots", hint="ask has_room first")
        ticket, self._next_ticket = self._next_ticket, self._next_ticket + 1
        row, forbidden = self.pool.open(request.num_slots), self._forbidden(request.how.forbidden)
        self._runs[ticket] = Run(request, row, forbidden, self.model.config.vocab_size)
        return ticket

    def cancel(self, ticket: int) -> None:
        """Let a request go, finished or not; its places are free for others."""
        run = self._runs.pop(ticket)
        self.prefixes.keep(run.row, run.history())

    @torch.inference_mode()
    def step(self) -> dict[int, Committed]:
        """One forward; what it made final, by ticket. A request whose prompt is still being read is not among them.

        A request whose Committed has a finish_reason has left.
        """
        turns = self._turns()
        if not turns:
            return {}
        wants_experts = any(turn.run.how.return_experts for turn in turns)
        routing: list[Tensor] | None = [] if wants_experts else None
        hidden = self._forward(turns, routing)
        self._decide(turns, hidden)
        self.pool.commit([turn.accepted for turn in turns])
        if routing:
            choices = torch.stack(routing, -1)[0]
            for turn in turns:
                turn.run.keep_experts(choices[turn.begin : turn.begin + turn.accepted])
        self._propose(turns, hidden)
        done = {turn.ticket: turn.run.committed(turn.accepted, turn.finals, turn.drafted) for turn in turns if turn.finals}
        done |= {turn.ticket: Committed([], "error", error=turn.error) for turn in turns if turn.error is not None}
        for ticket, committed in done.items():
            if committed.finish_reason is not None:
                self.cancel(ticket)
        return done

    def _turns(self) -> list[Turn]:
        """Every request that decodes, then chunks of unread prompts."""
        turns = [Turn(ticket, run, run.share(0)) for ticket, run in self._runs.items() if run.draft is not None]
        reading = [run for run in self._runs.values() if run.draft is None]
        waiting = [run for run in reading if run.waits_for(reading)]
        for run in reading:
            if run.row.length == 0 and run not in waiting and not run.how.return_experts:
                self.prefixes.find(run, [other for other in self._runs.values() if other is not run])
        unread = {ticket: run.num_unread for ticket, run in self._runs.items() if run.draft is None and run not in waiting}
        shares = chunks(unread, BESIDE_DECODING if turns else PREFILL_CHUNK)
        return turns + [Turn(ticket, self._runs[ticket], self._runs[ticket].share(count)) for ticket, count in shares.items()]

    def _forward(self, turns: list[Turn], routing: list[Tensor] | None) -> Tensor:
        """All turns' slots end to end -> hidden [T, D]."""
        mask_id = self.model.config.tidar.mask_token_id if self.model.config.tidar else 0
        token_ids: list[int] = []
        steps = []
        for turn in turns:
            share = turn.share
            turn.begin = len(token_ids)
            token_ids += share.token_ids + [mask_id] * (len(share.levels) * share.block_length)
            steps.append((turn.run.row, template(len(share.token_ids), share.levels, share.block_length)))
        layout = self.pool.layout(steps)
        return self.model(torch.tensor([token_ids]), layout, self.pool, routing)[0]

    def _decide(self, turns: list[Turn], hidden: Tensor) -> None:
        """Verify drafts and draw first tokens; a turn in the middle of its prompt only becomes history."""
        for turn in turns:
            turn.accepted = len(turn.share.token_ids)
        reading = [turn for turn in turns if turn.share.num_read]
        for asked, parts in self._logits(reading, [turn.rows_to_judge for turn in reading], hidden):
            allowed = [turn.attempt(partial(turn.run.allowed, part)) for turn, part in zip(asked, parts, strict=True)]
            sound = [place for place, rows in enumerate(allowed) if rows is not None]
            some, logits, rows = ([given[place] for place in sound] for given in (asked, parts, allowed))
            seen = [turn.run.seen_by_rows(len(part)) for turn, part in zip(some, rows, strict=True)]
            laws = _laws([turn.run.how.sampler for turn in some], [turn.run.forbidden for turn in some], rows, seen)
            for turn in some:
                turn.drafted = tuple(turn.run.draft.token_ids) if turn.run.draft else ()
            readings = [turn.run.decide(turn.share, part, law) for turn, part, law in zip(some, logits, laws, strict=True)]
            for turn, decided in zip(some, read_together(readings), strict=True):
                if isinstance(decided, Exception):
                    turn.error = decided
                else:
                    turn.accepted, turn.finals = decided

    def _propose(self, turns: list[Turn], hidden: Tensor) -> None:
        """Draw the next drafts of those that go on."""
        going = [turn for turn in turns if turn.finals and turn.run.finish_reason() is None]
        places = [turn.rows_to_draft() for turn in going]
        for some, logits in self._logits(going, places, hidden):
            seen = [turn.run.seen_by_drafts(len(part)) for turn, part in zip(some, logits, strict=True)]
            laws = _laws([turn.run.draft_sampler for turn in some], [turn.run.forbidden for turn in some], logits, seen)
            readings = [turn.run.propose(part, law) for turn, part, law in zip(some, logits, laws, strict=True)]
            for turn, done in zip(some, read_together(readings), strict=True):
                turn.error = done if isinstance(done, Exception) else turn.error

    def _logits(self, turns: list[Turn], places: list[range], hidden: Tensor) -> Iterator[tuple[list[Turn], list[Tensor]]]:
        """The head's rows of each turn's places, for as many turns at a time as `LOGITS_AT_ONCE` allows."""
        most = max(1, LOGITS_AT_ONCE // self.model.config.vocab_size)
        begin = 0
        while begin < len(turns):
            end, count = begin + 1, len(places[begin])
            while end < len(turns) and count + len(places[end]) <= most:
                count += len(places[end])
                end += 1
            index = on_device([slot for place in places[begin:end] for slot in place], hidden.device)
            yield (
                turns[begin:end],
                list(self.model.logits(hidden.index_select(0, index)).split([len(place) for place in places[begin:end]])),
            )
            begin = end

    def _forbidden(self, ids: tuple[int, ...]) -> Tensor:
        """One tensor for equal ids, so that requests with the same can be served together."""
        if ids not in self._known_forbidden:
            self._known_forbidden[ids] = torch.tensor(ids, dtype=torch.int64, device=self.model.device)
        return self._known_forbidden[ids]


def chunks(unread: dict[int, int], most: int) -> dict[int, int]:
    """How many tokens of each unread prompt go into a forward, together at most `most`.

    The shortest rest first, so that a long prompt holds up no short ones; but half belongs to the oldest, so that it gets on.
    """
    if not unread:
        return {}
    oldest = min(unread)
    others = sum(count for ticket, count in unread.items() if ticket != oldest)
    taken = {oldest: min(unread[oldest], max(most // 2, most - others))}
    for ticket in sorted(unread, key=lambda ticket: unread[ticket]):
        room = most - sum(taken.values())
        if ticket != oldest and room:
            taken[ticket] = min(unread[ticket], room)
    return taken


def _laws(samplers: list[Sampler], forbidden: list[Tensor], rows: list[Tensor], seen: list[Tensor | None]) -> list[Tensor]:
    """Each turn's laws; turns that want the same are served together."""
    groups: dict[tuple[Sampler, int], list[int]] = {}
    for place, sampler in enumerate(samplers):
        groups.setdefault((sampler, id(forbidden[place])), []).append(place)
    laws: list[Tensor] = list(rows)
    for (sampler, _), places in groups.items():
        marks = [seen[place] for place in places]
        given = torch.cat([mark for mark in marks if mark is not None]) if marks[0] is not None else None
        joined = sampler.law(torch.cat([rows[place] for place in places]), forbidden[places[0]], given)
        for place, law in zip(places, joined.split([len(rows[place]) for place in places]), strict=True):
            laws[place] = law
    return laws
