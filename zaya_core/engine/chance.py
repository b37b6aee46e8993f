"""The only source of randomness in decoding: points at which laws are read, and acceptance with a probability.

One per request, so that a request's tokens depend on its seed alone. The tests put an exhaustive enumeration in its place.
"""

from collections.abc import Sequence
from random import Random
from typing import Protocol

from torch import Tensor

from zaya_core.errors import ConfigError


class Chance(Protocol):
    """What decoding asks of chance."""

    def points(self, laws: Tensor) -> Sequence[float]:
        """Where `draw` shall read each law of [R, V]: R numbers in [0, 1), uniform whatever the laws are."""
        ...

    def accept(self, probability: float) -> bool:
        """True with this probability."""
        ...


class SeededChance:
    """A generator of its own, seeded. Each draw and each acceptance takes one number, certain ones too."""

    def __init__(self, seed: int) -> None:
        if seed < 0:
            raise ConfigError(f"the seed is {seed}, expected at least 0")  # Random would take -1 for 1
        self._generator = Random(seed)

    def points(self, laws: Tensor) -> Sequence[float]:
        """Where `draw` shall read each law of [R, V]."""
        return [self._number() for _ in range(laws.shape[0])]

    def accept(self, probability: float) -> bool:
        """True with this probability."""
        return self._number() < probability

    def _number(self) -> float:
        return self._generator.random()
