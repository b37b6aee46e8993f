"""pass@k, and how far a figure can be trusted: bootstrap intervals over problems, within tasks where several are pooled.

Problems are the chance here, tasks are given. It knows no models and no samplers, only scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

RESAMPLES = 10_000
CHUNK = 2**22  # resampled values held at a time
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over problems with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Of the interval."""
        return (self.high - self.low) / 2


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """The chance that at least one of k of the samples, drawn without replacement, is right: the unbiased estimator.

    1 - C(n - c, k) / C(n, k), as a product (arXiv 2107.03374, section 2.1).
    """
    assert 1 <= k <= num_samples, (k, num_samples)
    if num_samples - num_right < k:
        return 1.0
    return 1.0 - prod(1.0 - k / n for n in range(num_samples - num_right + 1, num_samples + 1))


def estimate(tasks: Sequence[Sequence[float]], *, is_difference: bool = False, seed: int = 0) -> Estimate:
    """The mean over all problems of all tasks, each of which is resampled within itself.

    Where all problems agree a resample says nothing: then the interval reaches as far as a share of problems that is not seen in so
    many may (the exact binomial bound), to both sides for a difference.
    """
    values = [np.asarray(task, dtype=np.float64) for task in tasks]
    joined = np.concatenate(values)
    mean, edge = float(joined.mean()), (1 - CONFIDENCE) / 2
    if (joined == joined[0]).all():
        unseen = 1 - edge ** (1 / len(joined))
        lowest = -1.0 if is_difference else 0.0
        return Estimate(mean, max(lowest, mean - unseen), min(1.0, mean + unseen))
    sums = sum(_resampled_sums(task, np.random.default_rng([seed, number])) for number, task in enumerate(values))
    low, high = np.quantile(sums / len(joined), [edge, 1 - edge])
    return Estimate(mean, float(low), float(high))


def _resampled_sums(values: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """Sums of RESAMPLES draws with replacement."""
    at_once = max(1, CHUNK // len(values))
    parts = [
        values[chance.integers(len(values), size=(min(at_once, RESAMPLES - begin), len(values)))].sum(1)
        for begin in range(0, RESAMPLES, at_once)
    ]
    return np.concatenate(parts)
