"""`--proposals auto`: how the next step drafts, chosen before each by how the drafts before it fared.

That is past when the choice is made, so no law changes (tidar.md section 3). The requests of an engine that are decoded this way
learn and choose together: a step costs what all of them put into it. Those with settings of their own never look here.
"""

from dataclasses import dataclass
from typing import NamedTuple

MEMORY = 128  # judged drafts after which half of what was seen before is forgotten: texts change
QUIET, TRIAL = 128, 8  # after so many steps without a judged draft so many are judged, whatever is thought of them
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
    """The chance of a draft token, from the guess and what was judged since, and the way that follows from it, step by step."""

    def __init__(self, ways: Ways) -> None:
        self._ways, self._judged, self._accepted = ways, 0.0, 0.0
        self._rows = self._now = self._quiet = self._to_try = 0
        self.way = ways.at(ways.guess)  # of the next forward

    @property
    def chance(self) -> float:
        """Near the guess as long as little was judged."""
        return (TRUST * self._ways.guess + self._accepted) / (TRUST + self._judged)

    def saw(self, num_drafted: int, num_accepted: int) -> None:
        """A row judged `num_drafted` tokens, of which the first was final, and accepted `num_accepted`, that one included."""
        judged = min(num_accepted, num_drafted - 1)
        kept = 0.5 ** (judged / MEMORY)
        self._judged = kept * self._judged + judged
        self._accepted = kept * self._accepted + num_accepted - 1
        self._rows, self._now = self._rows + 1, self._now + judged

    def choose(self) -> None:
        """A step is over: how shall the next one draft? Where no row was seen, as with prompts alone, as before."""
        if not self._rows:
            return
        self._quiet = 0 if self._now else self._quiet + 1
        self._to_try = TRIAL if self._quiet >= QUIET else max(0, self._to_try - self._now)
        self._rows = self._now = 0
        self.way = self._ways.first_drafting if self._to_try else self._ways.at(self.chance)
