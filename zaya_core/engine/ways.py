"""`--proposals auto`: how the next step drafts, chosen before each by what the text itself has accepted so far.

How earlier drafts fared is the past of the text, so the choice changes no law (tidar.md section 3). It depends on this request and
on a table made beforehand, never on what else runs.
"""

from dataclasses import dataclass
from typing import NamedTuple

MEMORY = 256  # tokens after which half of what was seen is forgotten: a text changes, and after AR steps drafts are tried again
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


class Watch:
    """One text's chance of a draft token: what was judged, older steps counting less, and the guess."""

    def __init__(self, ways: Ways) -> None:
        self._ways, self._judged, self._accepted = ways, 0.0, 0.0

    @property
    def chance(self) -> float:
        """Near the guess as long as little was judged, and long after."""
        return (TRUST * self._ways.guess + self._accepted) / (TRUST + self._judged)

    @property
    def way(self) -> Way:
        """Of the next forward."""
        return self._ways.at(self.chance)

    def saw(self, num_drafted: int, num_accepted: int) -> None:
        """A step judged `num_drafted` tokens, of which the first was final, and accepted `num_accepted`, that one included."""
        kept = 0.5 ** (num_accepted / MEMORY)
        self._judged = kept * self._judged + min(num_accepted, num_drafted - 1)
        self._accepted = kept * self._accepted + num_accepted - 1
