"""TiDAR's step as pure values: what was drafted, how it is verified, which blocks to propose (tidar.md section 3)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zaya_core.engine.chance import Chance
from zaya_core.engine.levels import best_levels, draft_worth
from zaya_core.errors import ConfigError, RunError


@dataclass(frozen=True)
class Verifier:
    """Judges drafts by `mix_weight * ar_logits + (1 - mix_weight) * draft_logits`; 1 is lossless, exactly the AR law."""

    mix_weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.mix_weight <= 1:
            raise ConfigError(f"mix_weight is {self.mix_weight}, expected in [0, 1]")

    def judge(self, ar_logits: Tensor, draft_logits: Tensor) -> Tensor:
        """Raw rows [R, V] of both halves for the same positions -> the raw rows that judge."""
        return self.mix_weight * ar_logits + (1 - self.mix_weight) * draft_logits


NOTHING = torch.empty(0, 0)


@dataclass(frozen=True)
class Draft:
    """d_1..d_n: the first is final; the others were drawn from `laws` [n - 1, V], the laws of `logits` [n - 1, V].

    `odds` [n - 1] are the probabilities of the others in those laws; `trust` [n - 1] the drafter's own, from its logits, meant for
    proposals that look.
    """

    token_ids: list[int]
    laws: Tensor = NOTHING
    logits: Tensor = NOTHING
    odds: tuple[float, ...] = ()
    trust: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.token_ids)


def walk(draft: Draft, odds: Sequence[float], chance: Chance) -> int:
    """Speculative acceptance of `draft`: how many of its tokens (d_1 included) are accepted.

    d_{j+1} is with probability min(1, P / Q), where `odds[j - 1]` is P, by the law that judges, and the draft's own odds are Q. At
    the first rejection the next token comes from the `residual` of the two laws; after the last draft from the last row's law.
    """
    for accepted, (p, q) in enumerate(zip(odds, draft.odds, strict=False), 1):
        demand_numbers(p >= 0 and q > 0)
        if not chance.accept(min(1.0, p / q)):
            return accepted
    return len(draft)


def demand_numbers(are_probabilities: bool) -> None:
    """RunError where what the model's logits gave are none."""
    if not are_probabilities:
        raise RunError("the model's logits are not numbers", hint="is the checkpoint whole, and are its weights finite?")


def residual(p: Tensor, q: Tensor) -> Tensor:
    """max(P - Q, 0) of laws [R, V], not normalised; P itself where rounding has left nothing."""
    rest = (p - q).clamp_min_(0)
    return torch.where(rest.amax(-1, keepdim=True) > 0, rest, p)


def serving_block(levels: tuple[int, ...], accepted: int) -> int | None:
    """Index of the block that drafts after `accepted` tokens: the largest level not above it, or None."""
    usable = [index for index, level in enumerate(levels) if level <= accepted]
    return usable[-1] if usable else None


@dataclass(frozen=True)
class Proposals:
    """Which acceptance lengths get a block: all of them (`count` None), or the `count` that promise most.

    Looking at the current draft is allowed; looking at drafts sampled from the new blocks would break exactness (tidar.md).
    """

    count: int | None

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 0:
            raise ConfigError(f"proposals is {self.count}, expected at least 0")

    @property
    def looks(self) -> bool:
        """Does the choice depend on how likely the draft's tokens are?"""
        return bool(self.count)

    def levels(self, draft: Draft, block_length: int) -> tuple[int, ...]:
        """Ascending levels within 1..n."""
        n = len(draft)
        if self.count == 0 or block_length == 0:
            return ()
        if self.count is None or self.count >= n:
            return tuple(range(1, n + 1))
        return best_levels(acceptance_odds(draft), self.count, draft_worth(block_length))


def trust_of(ids: Tensor, logits: Tensor) -> Tensor:
    """The drafter's probability of ids [R] by its logits [R, V]: at temperature 0 the law is a one-hot and says nothing."""
    return logits.softmax(-1).gather(-1, ids[:, None])[:, 0]


def acceptance_odds(draft: Draft) -> list[float]:
    """Estimated P(acceptance length = a) for a = 1..n: the drafter's own probability of a token as its chance to be accepted."""
    assert len(draft.trust) == len(draft) - 1, draft.trust
    odds, alive = [], 1.0
    for chance in draft.trust:
        odds.append(alive * (1 - chance))
        alive *= chance
    return [*odds, alive]
