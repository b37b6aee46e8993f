"""What the head's rows decide, for all requests of a forward at once: how much of each draft holds, what follows, the next draft.

All rows go through one pass, and what the host must know is read together: a GPU is waited for once a round, not once a request.
Each row's outcome depends on that row and its request alone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import TypeVar

import torch
from torch import Tensor

from zaya_core.engine.chance import Chance
from zaya_core.engine.draft import Draft, demand_numbers, residual, trust_of, walk
from zaya_core.engine.request import Final
from zaya_core.engine.run import Run, Share
from zaya_core.ops.sampling import PLAIN, Sampler, draw

Value = TypeVar("Value")


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

    @property
    def held(self) -> tuple[int, ...]:
        """Accepted draft tokens that were not final yet."""
        return self.drafted[1 : self.accepted]

    @property
    def is_rejected(self) -> bool:
        """Did a draft token fail?"""
        return self.accepted < len(self.drafted)

    def points(self, laws: Tensor) -> Sequence[float]:
        """Where its chance reads each law of [R, V]; anywhere, once it has failed."""
        drawn = None if self.error else self.attempt(partial(self.run.request.chance.points, laws))
        return [0.0] * len(laws) if drawn is None else drawn


def judge(turns: Sequence[Turn], parts: Sequence[slice], logits: Tensor) -> None:
    """Verify drafts and draw what follows them: each turn's `accepted` and `finals`.

    A turn's AR rows are its part of `logits` [R, V], forbidden ids at NEVER; row j judges the token after d_j.
    """
    samplers = [turn.run.how.sampler for turn in turns]
    seen = [turn.run.seen_by_rows(part.stop - part.start) for turn, part in zip(turns, parts, strict=True)]
    laws = _laws(samplers, parts, _allowed(turns, parts, logits), seen)
    ids, odds = _verify(turns, parts, laws)
    rows = [part.start + len(turn.held) for turn, part in zip(turns, parts, strict=True)]
    own = picked(laws, rows)
    following = _following(turns, own)
    drawn = draw(following, _points(turns, [slice(place, place + 1) for place in range(len(turns))], following))
    chances = _at(own, drawn)
    for row, index, chance in zip(rows, drawn.tolist(), chances.tolist(), strict=True):
        ids[row], odds[row] = index, chance
    log_p, logprobs = None, list[float]()
    if not all(turn.run.is_plain for turn in turns):
        log_p = logits.log_softmax(-1)
        logprobs = _at(log_p, on_device(ids, laws.device)).tolist()
    for turn, part, row in zip(turns, parts, rows, strict=True):
        if turn.error is None:
            told = slice(part.start, row + 1)
            turn.attempt(partial(_conclude, turn, ids[told], odds[told], logprobs[told], None if log_p is None else log_p[told]))


def propose(turns: Sequence[Turn], parts: Sequence[slice], logits: Tensor) -> None:
    """Draw the next drafts. A turn's mask rows, one and more, are its part of `logits` [R, V], forbidden ids at NEVER."""
    samplers = [turn.run.draft_sampler for turn in turns]
    seen = [turn.run.seen_by_drafts(part.stop - part.start) for turn, part in zip(turns, parts, strict=True)]
    laws = _laws(samplers, parts, logits, seen)
    drawn = draw(laws, _points(turns, parts, laws))
    chances = _at(laws, drawn)
    own = trust_of(drawn, logits) if any(_asks_trust(turn.run) for turn in turns) else chances
    ids, odds, own_odds = drawn.tolist(), chances.tolist(), own.tolist()
    for turn, part in zip(turns, parts, strict=True):
        trust = own_odds if _asks_trust(turn.run) else odds
        token_ids = [turn.run.new_ids[-1], *ids[part]]
        turn.run.draft = Draft(token_ids, laws[part], logits[part], tuple(odds[part]), tuple(trust[part]))


def _asks_trust(run: Run) -> bool:
    """Do proposals look at what the drafter itself says, and is that another law?"""
    return run.proposals.looks and run.draft_sampler != PLAIN


def on_device(ids: Sequence[int], device: torch.device) -> Tensor:
    """Ids as int64, without waiting for what the device does."""
    return torch.tensor(ids, dtype=torch.int64).to(device, non_blocking=True)


def picked(rows: Tensor, places: Sequence[int]) -> Tensor:
    """These rows; a view where they follow one another."""
    first, count = places[0], len(places)
    if list(places) == list(range(first, first + count)):
        return rows[first : first + count]
    return rows.index_select(0, on_device(places, rows.device))


def _allowed(turns: Sequence[Turn], parts: Sequence[slice], logits: Tensor) -> Tensor:
    """The rows that judge [R, V]: mixed where a verifier mixes, without what constraints forbid."""
    if all(turn.run.is_judged_raw for turn in turns):
        return logits
    allowed = [turn.attempt(partial(turn.run.allowed, logits[part])) for turn, part in zip(turns, parts, strict=True)]
    return torch.cat([logits[part] if rows is None else rows for rows, part in zip(allowed, parts, strict=True)])


def _laws(samplers: Sequence[Sampler], parts: Sequence[slice], rows: Tensor, seen: Sequence[Tensor | None]) -> Tensor:
    """Laws [R, V] of rows [R, V]; neighbours that want the same are served together."""
    laws = []
    for sampler, group in groupby(range(len(samplers)), key=samplers.__getitem__):
        places = list(group)
        marks = [mark for mark in (seen[place] for place in places) if mark is not None]
        some = rows[parts[places[0]].start : parts[places[-1]].stop]
        laws.append(sampler.law(some, torch.cat(marks) if marks else None))
    return laws[0] if len(laws) == 1 else torch.cat(laws)


def _at(rows: Tensor, ids: Tensor) -> Tensor:
    """What rows [R, V] hold for ids [R]."""
    return rows.gather(1, ids[:, None])[:, 0]


def _accept(turn: Turn, draft: Draft, odds: Sequence[float], chance: Chance) -> None:
    turn.accepted = walk(draft, odds, chance)


def _verify(turns: Sequence[Turn], parts: Sequence[slice], laws: Tensor) -> tuple[list[int], list[float]]:
    """Accept what holds of the drafts, by laws [R, V]; the token that each row judges and its probability, 0 where none is."""
    ids = [index for turn in turns for index in (*turn.drafted[1:], 0)]
    if all(len(turn.drafted) < 2 for turn in turns):
        return ids, [0.0] * len(ids)
    odds = _at(laws, on_device(ids, laws.device)).tolist()
    for turn, part in zip(turns, parts, strict=True):
        if turn.run.draft is not None and turn.error is None:
            turn.attempt(partial(_accept, turn, turn.run.draft, odds[part], turn.run.request.chance))
    return ids, odds


def _following(turns: Sequence[Turn], own: Tensor) -> Tensor:
    """What each turn's next token is drawn from [T, V]: its row's law, of `own` [T, V], or what a rejection leaves of that."""
    rejected = [place for place, turn in enumerate(turns) if turn.is_rejected]
    if not rejected:
        return own
    drafts = [(turns[place].run.draft, turns[place].accepted - 1) for place in rejected]
    left = residual(picked(own, rejected), torch.stack([draft.laws[row] for draft, row in drafts if draft is not None]))
    return left if len(rejected) == len(turns) else own.index_copy(0, on_device(rejected, own.device), left)


def _points(turns: Sequence[Turn], parts: Sequence[slice], laws: Tensor) -> Tensor:
    """Of all turns' chances, where laws [R, V] are: [R]."""
    points = [point for turn, part in zip(turns, parts, strict=True) for point in turn.points(laws[part])]
    return torch.tensor(points, dtype=torch.float64).to(laws.device, non_blocking=True)


def _conclude(turn: Turn, ids: list[int], odds: list[float], logprobs: list[float], log_p: Tensor | None) -> None:
    """New tokens with their probabilities under the laws that decided, their raw log-probabilities and those rows [R, V].

    A plain turn's laws are the raw probabilities: whatever its company had computed, it is told the same.
    """
    demand_numbers(all(chance > 0 for chance in odds) and not any(map(math.isnan, logprobs)))
    sampled = [math.log(chance) for chance in odds]
    turn.finals = turn.run.conclude(ids, sampled if turn.run.is_plain else logprobs, sampled, log_p)
    if turn.run.watch is not None and turn.drafted:
        # Drafts past the end of the text were for nothing: as good as rejected.
        turn.run.watch.saw(len(turn.drafted), len(turn.finals))
