"""`--proposals auto`: how the next step drafts, chosen before each by how the drafts before it fared.

That is past when the choice is made, so no law changes (tidar.md section 3). The requests of an engine that are decoded this way
learn and choose together: a step costs what all of them put into it. Those with settings of their own never look here.
"""

from dataclasses import dataclass
from typing import NamedTuple

MEMORY = 512  # tokens after which half of what was seen is forgotten: texts change, and after AR steps drafts are tried again
QUIET, TRIAL = 256, 8  # after so many tokens without a judged draft so many are judged, whatever is thought of them
TRUST = 4.0  # judged drafts that the first guess counts for


class Way(NamedTuple):
    """`proposals` blocks of `block` masks; 0 and 0 is an AR step."""

    proposals: int
    block: int


@dataclass(frozen=True)
class Ways:
    """The fastest way by the chance of a draft token to be accepted: `fastest[i]` at i / (len - 1). `guess` is it at first."""

    fastest: tuple[Way, ...]
    guess: float

    def at(self, chance: float) -> Way:
        """The fastest at the nearest chance that the table has."""
        return self.fastest[round(chance * (len(self.fastest) - 1))]

    @property
    def first_drafting(self) -> Way:
        """The one that pays from the lowest chance on; an AR step where none does."""
        return next((way for way in self.fastest if way.proposals), self.fastest[-1])


class Watch:
    """The chance of a draft token: what was judged, older steps counting less, and the guess."""

    def __init__(self, ways: Ways) -> None:
        self._ways, self._judged, self._accepted = ways, 0.0, 0.0
        self._quiet = self._to_try = 0

    @property
    def chance(self) -> float:
        """Near the guess as long as little was judged, and long after."""
        return (TRUST * self._ways.guess + self._accepted) / (TRUST + self._judged)

    @property
    def way(self) -> Way:
        """Of the next forward."""
        return self._ways.first_drafting if self._to_try else self._ways.at(self.chance)

    def saw(self, num_drafted: int, num_accepted: int) -> None:
        """A step judged `num_drafted` tokens, of which the first was final, and accepted `num_accepted`, that one included."""
        judged, kept = min(num_accepted, num_drafted - 1), 0.5 ** (num_accepted / MEMORY)
        self._judged = kept * self._judged + judged
        self._accepted = kept * self._accepted + num_accepted - 1
        self._quiet = 0 if judged else self._quiet + num_accepted
        self._to_try = TRIAL if self._quiet >= QUIET else max(0, self._to_try - judged)
