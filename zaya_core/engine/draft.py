"""TiDAR's step as pure values: what was drafted, how it is verified, which blocks to propose (tidar.md section 3)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from zaya_core.engine.chance import Chance
from zaya_core.engine.levels import best_levels, draft_worth
from zaya_core.engine.reading import Reading, on_device
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


@dataclass(frozen=True)
class Draft:
    """d_1..d_n: the first is final; the others were drawn from `laws` [n - 1, V], the laws of raw `logits` [n - 1, V].

    `trust` [n - 1] is the drafter's own probability of each, from its raw logits; empty where nobody asks.
    """

    token_ids: list[int]
    laws: Tensor
    logits: Tensor
    trust: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.token_ids)


def walk(draft: Draft, laws: Tensor, chance: Chance) -> Reading[tuple[int, Tensor]]:
    """Speculative acceptance of `draft` by the laws [n, V] that judge it; row j is the law of the token after d_j.

    Accept d_{a+1} with probability min(1, P / Q); at the first rejection v comes from max(P - Q, 0), normalised; after the last
    draft from the last row. Returns how many draft tokens (d_1 included) are accepted, and the law [1, V] of v.
    """
    ids = on_device(draft.token_ids[1:], laws.device)[:, None]
    ratios = yield laws[: len(ids)].gather(1, ids) / draft.laws.gather(1, ids)
    if not all(ratio >= 0 for ratio in ratios):
        raise RunError("the model's logits are not numbers", hint="is the checkpoint whole, and are its weights finite?")
    for row, ratio in enumerate(ratios):
        if not chance.accept(min(1.0, ratio)):
            return row + 1, residual(laws[row], draft.laws[row])[None]
    return len(draft), laws[-1:]


def residual(p: Tensor, q: Tensor) -> Tensor:
    """max(P - Q, 0) normalised, [V]; P itself where rounding has left nothing."""
    rest = (p - q).clamp_min(0)
    total = rest.sum()
    return torch.where(total > 0, rest / total, p)


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
    """The drafter's probability of ids [R] by its raw logits [R, V]: at temperature 0 the law is a one-hot and says nothing."""
    return (logits.gather(-1, ids[:, None])[:, 0] - logits.logsumexp(-1)).exp()


def acceptance_odds(draft: Draft) -> list[float]:
    """Estimated P(acceptance length = a) for a = 1..n: the drafter's own probability of a token as its chance to be accepted."""
    assert len(draft.trust) == len(draft) - 1, draft.trust
    odds, alive = [], 1.0
    for chance in draft.trust:
        odds.append(alive * (1 - chance))
        alive *= chance
    return [*odds, alive]
