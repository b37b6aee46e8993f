"""Which acceptance lengths get a block: arithmetic alone, shared with the profile, which needs no torch."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

WORTH = 0.6  # about the acceptance rate of a good draft; only the choice of levels depends on it


def best_levels(odds: list[float], count: int, worth: Sequence[float]) -> tuple[int, ...]:
    """The `count` levels of 1..n that maximise the expected worth of what they serve, by dynamic programming over their number.

    `odds[a - 1]` is the chance that a tokens are accepted. `worth[s]` is that of a block begun s positions too early; its last
    entry also that of having none. Of equals fewer and later levels are taken.
    """
    n = len(odds)
    if count >= n:
        return tuple(range(1, n + 1))
    shifted, barred = _by_level(n, tuple(worth))
    # [i, j]: what serving acceptances i + 1 .. j + 1 from level i + 1 adds to leaving them without a block.
    gains = (shifted * odds).cumsum(1) + barred
    best, rounds = np.zeros(n + 1), []  # best[i]: of levels above i
    for _ in range(count):
        sums = gains + best[1:]
        better = np.maximum.accumulate(np.maximum(best, sums.max(1))[::-1])[::-1]
        rounds.append((best.tolist(), better.tolist(), sums.argmax(1)))
        best = better
    levels, at = list[int](), 0
    for before, after, ends in reversed(rounds):
        while at < n and after[at] == after[at + 1]:
            at += 1
        if after[at] > before[at]:
            levels.append(at + 1)
            at = int(ends[at]) + 1
    return tuple(levels)


@lru_cache
def draft_worth(block_length: int) -> tuple[float, ...]:
    """Of a block that began s positions too early: it drafts block_length - 1 - s tokens, each worth WORTH of the one before."""
    return tuple(sum(WORTH**m for m in range(1, block_length - shift)) for shift in range(block_length))


@lru_cache
def _by_level(n: int, worth: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """[n + 1, n]: what level i + 1 is worth to acceptance j + 1 above having no block, and -inf where it lies above it."""
    shift = np.arange(n) - np.arange(n + 1)[:, None]
    return np.where(shift < 0, 0.0, np.array(worth)[shift.clip(0)] - worth[-1]), np.where(shift < 0, -np.inf, 0.0)
