"""Which acceptance lengths get a block: arithmetic alone, shared with the profile, which needs no torch."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from operator import add, mul

WORTH = 0.6  # about the acceptance rate of a good draft; only the choice of levels depends on it


def best_levels(odds: list[float], count: int, worth: Sequence[float]) -> tuple[int, ...]:
    """The `count` levels of 1..n that maximise the expected worth of what they serve, by dynamic programming over their number.

    `odds[a - 1]` is the chance that a tokens are accepted. `worth[s]` is that of a block begun s positions too early; its last
    entry also that of having none. Of equals fewer and later levels are taken.
    """
    n = len(odds)
    if count >= n:
        return tuple(range(1, n + 1))
    above_none = [each - worth[-1] for each in worth]
    # [i][j]: what serving acceptances i + 1 .. i + 1 + j from level i + 1 adds to leaving them without a block.
    gains = [list(accumulate(map(mul, odds[i:], above_none))) for i in range(n)]
    best, rounds = [0.0] * (n + 1), []  # best[i]: of levels above i
    for _ in range(count):
        better = [0.0] * (n + 1)
        for i in range(n - 1, -1, -1):
            better[i] = max(better[i + 1], best[i], *map(add, gains[i], best[i + 1 :]))
        rounds.append((best, better))
        best = better
    levels, i = list[int](), 0
    for before, after in reversed(rounds):
        while i < n and after[i] == after[i + 1]:
            i += 1
        if after[i] > before[i]:
            levels.append(i + 1)
            i += 1 + list(map(add, gains[i], before[i + 1 :])).index(after[i])
    return tuple(levels)


@lru_cache
def draft_worth(block_length: int) -> tuple[float, ...]:
    """Of a block that began s positions too early: it drafts block_length - 1 - s tokens, each worth WORTH of the one before."""
    return tuple(sum(WORTH**m for m in range(1, block_length - shift)) for shift in range(block_length))
