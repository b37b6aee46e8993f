"""From a few timed steps to the pace of an engine on a machine: three numbers for at most three cells, all others predicted.

The roofline's form stays; what is fitted is the FLOP/s, the bytes/s and the seconds a launch that the engine really gets.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from zaya_core.profile.forward import Step
from zaya_core.profile.roofline import Pace, seconds_of
from zaya_core.profile.sweep import Scene

MOST_CELLS = 3
DISTURBED = 1.5
SPANS = (1.6, 1.25, 1.1, 1.04, 1.01)  # factors tried up and down, ever smaller


@dataclass(frozen=True)
class Timing:
    """A step as it was run: `seconds` of every round after the warm-up, and the distinct experts that it hit.

    A neighbour on the machine only ever slows a round down, and then by a lot: rounds far above the fastest are counted, not used.
    """

    step: Step
    seconds: tuple[float, ...]
    distinct: float

    @property
    def undisturbed(self) -> list[float]:
        """Rounds that took at most `DISTURBED` times the fastest, in order of length."""
        return sorted(taken for taken in self.seconds if taken <= DISTURBED * min(self.seconds))

    @property
    def median(self) -> float:
        """Of the undisturbed rounds."""
        return median(self.undisturbed)

    @property
    def spread(self) -> float:
        """The middle half of the undisturbed rounds, over the median."""
        rounds = self.undisturbed
        quarter = len(rounds) // 4
        return (rounds[-1 - quarter] - rounds[quarter]) / self.median


def calibrated(scene: Scene, timings: list[Timing]) -> Pace:
    """The pace under which the scene predicts at most three timings best, by the squares of log ratios."""
    assert 0 < len(timings) <= MOST_CELLS, "more would be a fit, not a calibration"
    parts = [scene.parts(one.step) for one in timings]

    def miss(pace: Pace) -> float:
        return sum(math.log(seconds_of(part, pace) / one.median) ** 2 for part, one in zip(parts, timings, strict=True))

    best = scene.pace
    for span in SPANS:
        best = _descended(best, span, miss)
    return best


def _descended(pace: Pace, span: float, miss: Callable[[Pace], float]) -> Pace:
    """Steps of one factor along each of the three numbers, and pairs of them, while they help."""
    factors = (1 / span, 1.0, span)
    lowest = miss(pace)
    while True:
        tries = [
            Pace(pace.flops * f, pace.bandwidth * b, pace.launch_seconds * launch)
            for f in factors
            for b in factors
            for launch in factors
        ]
        found = min(tries, key=miss)
        if miss(found) >= lowest * (1 - 1e-6):
            return pace
        pace, lowest = found, miss(found)


def chosen_cells(timings: list[Timing]) -> list[int]:
    """Which three to calibrate on, one for each number: the lightest step, which launches bind; the drafting one with the fewest
    slots, which weights bind; the one with most slots over the longest history, which arithmetic binds.
    """

    def slots(index: int) -> float:
        return timings[index].step.rows * timings[index].step.slots

    def context(index: int) -> int:
        return timings[index].step.context

    order = range(len(timings))
    drafting = [index for index in order if timings[index].step.masks] or list(order)
    light = min(order, key=lambda index: (slots(index), context(index)))
    narrow = min(drafting, key=lambda index: (slots(index), context(index)))
    wide = max(order, key=lambda index: (slots(index), context(index)))
    return sorted({light, narrow, wide})
