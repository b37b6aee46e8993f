"""The only source of randomness in decoding: draws from a law, and acceptance with a probability.

One per request, so that a request's tokens depend on its seed alone. The tests put an exhaustive enumeration in its place.
"""

from typing import Protocol

import torch
from torch import Tensor

from zaya_core.ops.sampling import draw


class Chance(Protocol):
    """What decoding asks of chance."""

    def draw(self, laws: Tensor) -> Tensor:
        """One id from each law of [R, V]: [R] int64, where the laws are."""
        ...

    def accept(self, probability: float) -> bool:
        """True with this probability."""
        ...


class SeededChance:
    """A generator of its own, seeded. Each draw and each acceptance takes one number, certain ones too."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, laws: Tensor) -> Tensor:
        """One id from each law of [R, V]: [R] int64, where the laws are."""
        return draw(laws, self._uniform(laws.shape[0]).to(laws.device, non_blocking=True))

    def accept(self, probability: float) -> bool:
        """True with this probability."""
        return float(self._uniform(1)) < probability

    def _uniform(self, count: int) -> Tensor:
        return torch.rand(count, generator=self.generator, dtype=torch.float64)
