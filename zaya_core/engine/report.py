"""What a finished decoding cost: the figures of conventions.md, counted as tokens become final."""

from dataclasses import dataclass, field
from typing import Any

from zaya_core.engine.request import Committed


@dataclass
class Tally:
    """Tokens of one completion by the forward that made them final: the prefill's first, then each later one's.

    `drafted` and `accepted` tokens of each forward include the draft's first, which is final already.
    """

    counts: list[int] = field(default_factory=list)
    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)

    def add(self, committed: Committed) -> None:
        """Count what one forward committed."""
        self.counts.append(len(committed.finals))
        self.drafted.append(len(committed.drafted))
        self.accepted.append(committed.num_accepted)

    def trim(self, num_tokens: int) -> None:
        """Leave out tokens past so many, and the forwards that made nothing else: a stop string was cut."""
        excess = self.num_tokens - num_tokens
        while excess > 0:
            cut = min(excess, self.counts[-1])
            excess -= cut
            self.counts[-1] -= cut
            if self.counts[-1] == 0:
                self.counts.pop()

    @property
    def num_tokens(self) -> int:
        """All of them."""
        return sum(self.counts)

    @property
    def num_forwards(self) -> int:
        """Forwards after the prefill."""
        return max(0, len(self.counts) - 1)

    @property
    def tokens_per_forward(self) -> float | None:
        """(tokens - 1) / forwards after the prefill, so that AR is 1; None when nothing but the prefill ran."""
        return (self.num_tokens - 1) / self.num_forwards if self.num_forwards else None

    def stats(self, *, block_length: int, prefill_seconds: float, decode_seconds: float) -> dict[str, Any]:
        """The `stats` object of `zaya generate --json`, less what only the stage knows."""
        rate = (self.num_tokens - 1) / decode_seconds if self.num_forwards else None
        later = self.counts[1:]
        return {
            "num_tokens": self.num_tokens,
            "num_forwards": self.num_forwards,
            "tokens_per_forward": self.tokens_per_forward,
            "acceptance_histogram": [later.count(count) for count in range(1, max(1, block_length) + 1)],
            "judged_by_offset": [self._num_judged(offset) for offset in range(1, block_length)],
            "accepted_by_offset": [sum(count > offset for count in self.accepted) for offset in range(1, block_length)],
            "prefill_seconds": prefill_seconds,
            "decode_seconds": decode_seconds,
            "tokens_per_second": rate,
        }

    def _num_judged(self, offset: int) -> int:
        """Forwards that verified the draft's token at `offset`: there was one, and those before it had been accepted."""
        return sum(drafted > offset <= accepted for drafted, accepted in zip(self.drafted, self.accepted, strict=True))
