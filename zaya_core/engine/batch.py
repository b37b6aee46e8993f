"""Many requests over one model: each step is one forward for all of them, and rows come and go between steps.

Invariant: a request's tokens depend on its prompt, its settings and its chance, never on what else runs; only those that are
decoded by `ways` share what their drafts have taught, and of them the law alone is certain.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor

from zaya_core.config import ModelConfig
from zaya_core.engine.draft import Draft
from zaya_core.engine.judging import Turn, judge, picked, propose
from zaya_core.engine.prefix import Prefixes
from zaya_core.engine.request import Committed, Request
from zaya_core.engine.run import Run
from zaya_core.engine.ways import Watch, Ways
from zaya_core.errors import ConfigError
from zaya_core.layout import Layout, template
from zaya_core.model.pool import Pool
from zaya_core.ops.sampling import Sampler, forbid

PREFILL_CHUNK = 4096  # prompt tokens in one forward, of all requests together
BESIDE_DECODING = 512  # the same while others wait for their next token
LOGITS_AT_ONCE = 2**26  # elements of rows x V that are held at a time


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


class Engine:
    """Decodes up to `max_rows` requests together, whose histories share a pool of `num_slots` tokens of K and V.

    What another request has read already, or `keep_prefixes` requests that have left, is not read again.
    """

    def __init__(self, model: Network, *, num_slots: int, max_rows: int, keep_prefixes: int = 0) -> None:
        self.model, self.max_rows = model, max_rows
        self.pool = model.new_pool(num_slots, max_rows=max_rows + keep_prefixes, marks=max_rows > 1 or keep_prefixes > 0)
        self.prefixes = Prefixes(self.pool, keep_prefixes)
        self._runs: dict[int, Run] = {}
        self._watches: dict[Ways, Watch] = {}
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
        ways = request.how.ways
        watch = None if ways is None else self._watches.setdefault(ways, Watch(ways))
        self._runs[ticket] = Run(request, row, forbidden, self.model.config.vocab_size, watch)
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
        for watch in self._watches.values():
            watch.choose()
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
        reading = _in_groups([turn for turn in turns if turn.share.num_read], lambda turn: turn.run.how.sampler)
        for turn in reading:
            turn.drafted = tuple(turn.run.draft.token_ids) if turn.run.draft else ()
        for some, parts, logits in self._logits(reading, [turn.rows_to_judge for turn in reading], hidden):
            judge(some, parts, logits)

    def _propose(self, turns: list[Turn], hidden: Tensor) -> None:
        """Draw the next drafts of those that go on."""
        going = [turn for turn in turns if turn.finals and turn.run.finish_reason() is None]
        drafting = []
        for turn in going:
            turn.run.draft = Draft([turn.run.new_ids[-1]])
            if turn.rows_to_draft():
                drafting.append(turn)
        free = _in_groups([turn for turn in drafting if turn.run.how.constraint is None], lambda turn: turn.run.draft_sampler)
        for some, parts, logits in self._logits(free, [turn.rows_to_draft() for turn in free], hidden):
            propose(some, parts, logits)
        bound = [turn for turn in drafting if turn.run.how.constraint is not None]
        for some, parts, logits in self._logits(bound, [turn.rows_to_draft() for turn in bound], hidden):
            for turn, part in zip(some, parts, strict=True):
                turn.attempt(partial(turn.run.propose_bound, logits[part]))

    def _logits(self, turns: list[Turn], places: list[range], hidden: Tensor) -> Iterator[tuple[list[Turn], list[slice], Tensor]]:
        """The head's rows [R, V] of all turns' places, forbidden ids at NEVER, for as many turns at a time as `LOGITS_AT_ONCE`
        allows; and which of the rows are each turn's.
        """
        most = max(1, LOGITS_AT_ONCE // self.model.config.vocab_size)
        begin = 0
        while begin < len(turns):
            end, parts = begin, list[slice]()
            while end < len(turns) and (not parts or parts[-1].stop + len(places[end]) <= most):
                first = parts[-1].stop if parts else 0
                parts.append(slice(first, first + len(places[end])))
                end += 1
            some = turns[begin:end]
            logits = self.model.logits(picked(hidden, [slot for place in places[begin:end] for slot in place]))
            for _, group in groupby(range(len(some)), key=lambda place: id(some[place].run.forbidden)):
                rows = list(group)
                forbid(logits[parts[rows[0]].start : parts[rows[-1]].stop], some[rows[0]].run.forbidden)
            yield some, parts, logits
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


def _in_groups(turns: list[Turn], sampler_of: Callable[[Turn], Sampler]) -> list[Turn]:
    """Those that want the same beside one another."""
    groups: dict[tuple[Sampler, int], list[Turn]] = {}
    for turn in turns:
        groups.setdefault((sampler_of(turn), id(turn.run.forbidden)), []).append(turn)
    return [turn for group in groups.values() for turn in group]
