"""Which acceptance lengths get a block: arithmetic alone, shared with the profile, which needs no torch."""

from collections.abc import Sequence
from functools import lru_cache

WORTH = 0.6  # about the acceptance rate of a good draft; only the choice of levels depends on it


def best_levels(odds: list[float], count: int, worth: Sequence[float]) -> tuple[int, ...]:
    """The `count` levels of 1..n that maximise the expected worth of what they serve, by dynamic programming from the end.

    `odds[a - 1]` is the chance that a tokens are accepted. `worth[s]` is that of a block begun s positions too early; its last
    entry also that of having none.
    """
    n, nothing = len(odds), worth[-1]
    if count >= n:
        return tuple(range(1, n + 1))
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())] * (n + 2)
    for _ in range(count):
        better = list(best)
        for level in range(n, 0, -1):
            gain, choices = 0.0, [better[level + 1], best[level]]
            for a in range(level, n + 1):
                # What serving level..a from this level adds to leaving them without a block.
                gain += odds[a - 1] * (worth[a - level] - nothing)
                following, rest = best[a + 1]
                choices.append((gain + following, (level, *rest)))
            better[level] = max(choices, key=lambda choice: choice[0])
        best = better
    return best[1][1]


@lru_cache
def draft_worth(block_length: int) -> tuple[float, ...]:
    """Of a block that began s positions too early: it drafts block_length - 1 - s tokens, each worth WORTH of the one before."""
    return tuple(sum(WORTH**m for m in range(1, block_length - shift)) for shift in range(block_length))
