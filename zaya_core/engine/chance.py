"""The only source of randomness in decoding: draws from a law, and acceptance with a probability.

One per request, so that a request's tokens depend on its seed alone. The tests put an exhaustive enumeration in its place.
"""

from typing import Protocol

import torch
from torch import Tensor


class Chance(Protocol):
    """What decoding asks of chance."""

    def draw(self, laws: Tensor) -> list[int]:
        """One id from each law of [R, V]."""
        ...

    def accept(self, probability: float) -> bool:
        """True with this probability."""
        ...


class SeededChance:
    """A generator of its own, seeded."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, laws: Tensor) -> list[int]:
        """One id from each law of [R, V]."""
        if laws.shape[0] == 0:
            return []
        return torch.multinomial(laws.cpu(), 1, generator=self.generator).flatten().tolist()

    def accept(self, probability: float) -> bool:
        """True with this probability; certain outcomes still consume a number, so that they cannot shift the stream."""
        return float(torch.rand((), generator=self.generator, dtype=torch.float64)) < probability
