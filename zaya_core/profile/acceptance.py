"""Tokens per forward from how often drafts are accepted: the decode loop of tidar.md section 3 as a Markov chain.

The state is the shift s of the block that drafted: its masks s + 2.. are the draft's tokens after the first, so the draft has
B - s tokens. B - 1 is also the state of a step without a draft. A step accepts a tokens,
is served by the largest level l <= a, and leaves the shift a - l. Levels are those that promise the longest next acceptance.
"""

from dataclasses import dataclass
from functools import lru_cache

from zaya_core.engine.levels import best_levels
from zaya_core.errors import ConfigError


@dataclass(frozen=True)
class Acceptance:
    """`chances[i]`: the probability that the token of a block's mask i + 2 is accepted once those before it were."""

    chances: tuple[float, ...]

    def __post_init__(self) -> None:
        for chance in self.chances:
            if not 0 <= chance <= 1:
                raise ConfigError(f"an acceptance of {chance}, expected in [0, 1]")

    @classmethod
    def constant(cls, alpha: float, block_length: int, decay: float = 1.0) -> "Acceptance":
        """The same for every mask, or `decay` times that of the mask before it."""
        return cls(tuple(alpha * decay**offset for offset in range(block_length - 1)))

    @classmethod
    def from_histogram(cls, counts: list[int]) -> "Acceptance":
        """`counts[i]` forwards accepted i + 1 of a whole block's tokens, as `generate --proposals all` reports them.

        A mask that was never reached gets the chance of the last one that was.
        """
        if len(counts) < 2 or not sum(counts):
            raise ConfigError(f"an acceptance histogram of {counts}, expected counts for two lengths and more")
        chances: list[float] = []
        for reached in range(1, len(counts)):
            alive = sum(counts[reached - 1 :])
            chances.append(sum(counts[reached:]) / alive if alive else chances[-1])
        return cls(tuple(chances))

    @property
    def block_length(self) -> int:
        """Masks of a block."""
        return len(self.chances) + 1

    def cut(self, block_length: int) -> "Acceptance":
        """Of a shorter block: its masks are accepted like the first of a whole one (recipes/decoding.md)."""
        return Acceptance(self.chances[: block_length - 1])

    def odds(self, shift: int) -> list[float]:
        """P(acceptance length = a), a = 1..n, of a draft whose block began `shift` positions too early."""
        odds, alive = [], 1.0
        for chance in self.chances[shift:]:
            odds.append(alive * (1 - chance))
            alive *= chance
        return [*odds, alive]


@dataclass(frozen=True)
class Expected:
    """Long-run means per forward: tokens made final, draft tokens verified, blocks proposed."""

    tokens_per_forward: float
    clean: float
    proposals: float


@lru_cache(maxsize=4096)
def expected(acceptance: Acceptance, *, proposals: int) -> Expected:
    """Of the chain that starts with a whole draft, in the long run."""
    block_length = acceptance.block_length
    last = block_length - 1
    odds = {shift: acceptance.odds(shift) for shift in range(block_length)}
    worth = [sum(a * p for a, p in enumerate(odds[shift], 1)) for shift in range(block_length)]
    levels: dict[int, tuple[int, ...]] = {}
    moves: dict[int, dict[int, float]] = {}
    waiting = [0]
    while waiting:
        shift = waiting.pop()
        if shift in moves:
            continue
        levels[shift] = best_levels(odds[shift], proposals, worth)
        moves[shift] = next_shifts(odds[shift], levels[shift], last)
        waiting += moves[shift]
    share = _long_run(moves)
    return Expected(
        sum(weight * worth[shift] for shift, weight in share.items()),
        sum(weight * len(odds[shift]) for shift, weight in share.items()),
        sum(weight * len(levels[shift]) for shift, weight in share.items()),
    )


def next_shifts(odds: list[float], levels: tuple[int, ...], last: int) -> dict[int, float]:
    """Probability of each next shift; `last` where no level lies at or below the accepted length."""
    moves: dict[int, float] = {}
    for a, chance in enumerate(odds, 1):
        below = [level for level in levels if level <= a]
        shift = min(a - below[-1], last) if below else last
        if chance > 0:
            moves[shift] = moves.get(shift, 0.0) + chance
    return moves


def _long_run(moves: dict[int, dict[int, float]]) -> dict[int, float]:
    """Shares of the states in the long run, from state 0; a chain that alternates is averaged."""
    share = {0: 1.0}
    for _ in range(400):
        following = {shift: weight / 2 for shift, weight in share.items()}
        for shift, weight in share.items():
            for after, chance in moves[shift].items():
                following[after] = following.get(after, 0.0) + weight * chance / 2
        if max(abs(following[shift] - share.get(shift, 0.0)) for shift in following) < 1e-12:
            return following
        share = following
    return share
