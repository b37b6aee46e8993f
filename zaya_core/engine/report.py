"""What a finished decoding cost: the figures of conventions.md, counted as tokens become final."""

from dataclasses import dataclass, field
from typing import Any

from zaya_core.engine.request import Committed


@dataclass
class Tally:
    """Counts over one completion. The first Committed is the prefill's token; each later one is a forward's."""

    num_tokens: int = 0
    num_forwards: int = 0
    histogram: dict[int, int] = field(default_factory=dict)

    def add(self, committed: Committed) -> None:
        """Count what one forward committed, after trimming."""
        count = len(committed.finals)
        if self.num_tokens > 0:
            self.num_forwards += 1
            self.histogram[count] = self.histogram.get(count, 0) + 1
        self.num_tokens += count

    @property
    def tokens_per_forward(self) -> float | None:
        """(tokens - 1) / forwards after the prefill, so that AR is 1; None when nothing but the prefill ran."""
        return (self.num_tokens - 1) / self.num_forwards if self.num_forwards else None

    def stats(self, *, block_length: int, prefill_seconds: float, decode_seconds: float) -> dict[str, Any]:
        """The `stats` object of `zaya generate --json`, less what only the stage knows."""
        rate = (self.num_tokens - 1) / decode_seconds if self.num_forwards else None
        return {
            "num_tokens": self.num_tokens,
            "num_forwards": self.num_forwards,
            "tokens_per_forward": self.tokens_per_forward,
            "acceptance_histogram": [self.histogram.get(count, 0) for count in range(1, max(1, block_length) + 1)],
            "prefill_seconds": prefill_seconds,
            "decode_seconds": decode_seconds,
            "tokens_per_second": rate,
        }
