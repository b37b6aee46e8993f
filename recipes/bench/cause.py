"""Why did a request decode otherwise in company than alone? Follows both, and measures how close the first difference was.

Company changes only how sums are rounded. That can turn a choice between near equals: an expert, one of two tokens at temperature
0, a token at the border of a nucleus, a draw whose number stands at a border of the law. The cause is the first choice of an expert
that differs or, where none does, the first token; its margin is how far from the border it was taken.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from zaya_core.engine.batch import Engine, Turn
from zaya_core.engine.chance import SeededChance
from zaya_core.model.serving import ServingModel, ServingRouter
from zaya_core.ops.sampling import Sampler, draw, forbid


@dataclass(frozen=True)
class Cause:
    """`kind` says what was decided otherwise, `margin` how close it was: a difference of logits or of probabilities."""

    kind: str
    margin: float


@dataclass(frozen=True)
class Event:
    """One number of a chance, what it decided, and by which probability (of an acceptance) or law (of a draw) [V]."""

    outcome: int
    number: float
    law: Tensor | float

    def distance(self, outcome: int) -> float:
        """How far the number is from where it would have decided so."""
        if isinstance(self.law, float):
            return abs(self.number - self.law)
        ends = self.law.double().cumsum(0) / float(self.law.double().sum())
        begin, end = float(ends[outcome - 1]) if outcome else 0.0, float(ends[outcome])
        return max(0.0, begin - self.number, self.number - end)


class WatchedChance(SeededChance):
    """Keeps the events."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.events: list[Event] = []
        self._last = 0.0

    def points(self, laws: Tensor) -> Sequence[float]:
        """Where each law of [R, V] is read."""
        points = super().points(laws)
        ids = draw(laws, torch.tensor(points, dtype=torch.float64, device=laws.device)).tolist()
        self.events += [Event(*each) for each in zip(ids, points, laws, strict=True)]
        return points

    def accept(self, probability: float) -> bool:
        """True with this probability."""
        outcome = super().accept(probability)
        self.events.append(Event(int(outcome), self._last, probability))
        return outcome

    def _number(self) -> float:
        self._last = super()._number()
        return self._last


class WatchedRouter:
    """A layer's router that also appends to `margins` how far each slot's best expert was above the second [T]."""

    def __init__(self, router: ServingRouter, margins: list[Tensor]) -> None:
        self.router, self.margins = router, margins

    def __call__(self, u: Tensor, carried: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """As ServingRouter."""
        choice, probability, state = self.router(u, carried)
        router = self.router
        logits = router.last(router.second.gelu(router.first.gelu(router.norm(state).to(router.dtype))))
        best = (logits.float().softmax(-1) + router.biases).topk(2, -1).values
        self.margins.append(best[:, 0] - best[:, 1])
        return choice, probability, state


@dataclass(frozen=True)
class Choice:
    """Tokens chosen in one go: those a forward made final, or the next draft. Row j of `rows` [R, V], penalised, chose token j."""

    number: int  # of the forward
    kind: str
    token_ids: tuple[int, ...]
    rows: Tensor
    sampler: Sampler
    events: list[Event]


@dataclass
class Story:
    """A request's way: what its forwards chose, and each slot's experts and margins [L] by what the slot was."""

    choices: list[Choice] = field(default_factory=list)
    experts: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict)  # by (forward, slot); prompts are forward 0
    number: int = 0


class WatchedEngine(Engine):
    """Tells the stories of some requests, by ticket. Their chances are WatchedChance."""

    def __init__(self, model: ServingModel, *, num_slots: int, max_rows: int) -> None:
        super().__init__(model, num_slots=num_slots, max_rows=max_rows)
        self.stories: dict[int, Story] = {}
        self._margins: list[Tensor] = []
        for layer in model.layers:
            layer.router = WatchedRouter(layer.router, self._margins)

    def close(self) -> None:
        """Leave the model as it was."""
        for layer in self.model.layers:
            layer.router = layer.router.router

    def _forward(self, turns: list[Turn], routing: list[Tensor] | None) -> Tensor:
        routing = [] if routing is None else routing
        self._margins.clear()
        hidden = super()._forward(turns, routing)
        chosen, margins = torch.stack(routing, -1)[0], torch.stack(self._margins, -1)
        for turn in turns:
            story = self.stories.get(turn.ticket)
            if story is None:
                continue
            story.number += turn.run.draft is not None
            first, count = turn.run.row.length if turn.run.draft is None else 0, len(turn.share.token_ids)
            for slot in range(turn.begin, turn.begin + count + len(turn.share.levels) * turn.share.block_length):
                story.experts[story.number, first + slot - turn.begin] = (chosen[slot], margins[slot])
        return hidden

    def _decide(self, turns: list[Turn], hidden: Tensor) -> None:
        watched = [turn for turn in turns if turn.ticket in self.stories and turn.share.num_read]
        before = [self._before(turn, turn.run.how.sampler, turn.rows_to_judge, hidden) for turn in watched]
        super()._decide(turns, hidden)
        for turn, keep in zip(watched, before, strict=True):
            keep("token", [final.token_id for final in turn.finals])

    def _propose(self, turns: list[Turn], hidden: Tensor) -> None:
        going = [turn for turn in turns if turn.finals and turn.run.finish_reason() is None]
        watched = [turn for turn in going if turn.ticket in self.stories]
        before = [self._before(turn, turn.run.draft_sampler, turn.rows_to_draft(), hidden) for turn in watched]
        super()._propose(turns, hidden)
        for turn, keep in zip(watched, before, strict=True):
            assert turn.run.draft is not None
            keep("draft", turn.run.draft.token_ids[1:])

    def _before(self, turn: Turn, sampler: Sampler, place: range, hidden: Tensor) -> Callable[[str, list[int]], None]:
        """Keep the rows that are about to choose, as they are now; what is returned takes what they chose."""
        run = turn.run
        logits = forbid(self.model.logits(hidden[place.start : place.stop]), run.forbidden)
        judges = place == turn.rows_to_judge
        seen = run.seen_by_rows(len(logits)) if judges else run.seen_by_drafts(len(logits))
        plain = Sampler(1.0, repetition_penalty=sampler.repetition_penalty)
        rows = plain.law(run.allowed(logits) if judges else logits, seen).log()
        events, story = run.request.chance.events, self.stories[turn.ticket]
        told = len(events)

        def keep(kind: str, token_ids: list[int]) -> None:
            story.choices.append(Choice(story.number, kind, tuple(token_ids), rows, sampler, events[told:]))

        return keep


def cause_of(alone: Story, together: Story) -> Cause | None:
    """The first thing that was chosen otherwise; None where nothing was."""
    pairs = zip(alone.choices, together.choices, strict=False)
    parted = next((pair for pair in pairs if pair[0].token_ids != pair[1].token_ids), None)
    last = parted[0].number if parted else max(alone.number, together.number)
    for key, (chosen, margins) in alone.experts.items():
        other = together.experts.get(key)
        if key[0] <= last and other is not None and not torch.equal(chosen, other[0]):
            layer = int((chosen != other[0]).nonzero()[0])
            return Cause(f"an expert of layer {layer}", float(torch.maximum(margins, other[1])[layer]))
    return None if parted is None else _token_cause(*parted)


def _token_cause(left: Choice, right: Choice) -> Cause:
    """Of two choices from rows that rounding alone tells apart."""
    pairs = zip(left.token_ids, right.token_ids, strict=False)
    place = next((at for at, (one, other) in enumerate(pairs) if one != other), None)
    if place is None:  # an acceptance that one of them went on after, or drafts of another length
        place = min(len(left.token_ids), len(right.token_ids)) - 1
    elif left.sampler.temperature == 0:
        one, other = left.token_ids[place], right.token_ids[place]
        return Cause(
            f"{left.kind} by logits", max(abs(float(row[one] - row[other])) for row in (left.rows[place], right.rows[place]))
        )
    border = _border(left.rows[place], right.rows[place], left.sampler)
    if border is not None:
        return Cause(f"{left.kind} by the border of the law", border)
    events = zip(left.events, right.events, strict=False)
    turned = ((one.distance(other.outcome), other.distance(one.outcome)) for one, other in events if one.outcome != other.outcome)
    return Cause(f"{left.kind} by a draw", max(next(turned, (float("inf"),))))


def _border(left: Tensor, right: Tensor, sampler: Sampler) -> float | None:
    """How close the ids that only one of two laws has were to being cut; None where both have the same."""
    law = replace(sampler, repetition_penalty=1.0)
    kept, other = (law.law(row[None])[0] > 0 for row in (left, right))
    ids = (kept != other).nonzero().flatten()
    if not len(ids):
        return None
    scaled = (left / sampler.temperature).log_softmax(-1)
    margins = torch.full((len(ids),), float("inf"))
    if 0 < sampler.top_k < len(left):
        least = scaled.topk(sampler.top_k).values[-1]
        margins = (scaled[ids] - least).abs()
        scaled = scaled.masked_fill(scaled < least, float("-inf")).log_softmax(-1)
    chances = scaled.exp()
    if sampler.top_p < 1:
        before = torch.stack([chances[chances > chances[one]].sum() for one in ids])
        margins = torch.minimum(margins, (before - sampler.top_p).abs())
    if sampler.min_p > 0:
        margins = torch.minimum(margins, (chances[ids] / chances.max() - sampler.min_p).abs())
    return float(margins.max())
