"""What has been read once is not read again: a new request begins with the longest prefix that any row holds.

Rows that have left stay as long as nobody needs their places. Continuing a prefix is exact: K, V and CCA's tails are copied, at the
lengths where tails were kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from zaya_core.engine.request import Request
from zaya_core.model.pool import MARK, Pool, Row


class Reader(Protocol):
    """A request in work: where it stands, and what it has read."""

    request: Request
    row: Row

    def history(self) -> list[int]:
        """The tokens that are committed."""
        ...


@dataclass(frozen=True)
class Kept:
    """A row that has left, and its tokens."""

    row: Row
    token_ids: list[int]


class Prefixes:
    """Rows that have left, the least recently used first; at most `most` of them."""

    def __init__(self, pool: Pool, most: int) -> None:
        self.pool, self.most = pool, most
        self.num_reused = 0  # tokens
        self._kept: list[Kept] = []

    def keep(self, row: Row, token_ids: list[int]) -> None:
        """Take over the row of a request that has left."""
        if self.most == 0 or row.length < MARK:
            self.pool.close(row)
            return
        self.pool.shrink(row)
        self._kept.append(Kept(row, token_ids))
        if len(self._kept) > self.most:
            self._drop()

    def can_make_room(self, capacity: int) -> bool:
        """Would a row of this capacity fit, if kept rows went?"""
        return self.pool.gap_for(capacity, without=[kept.row for kept in self._kept]) is not None

    def make_room(self, capacity: int) -> bool:
        """Let kept rows go, the least recently used first, until one of this capacity fits; none if that would not help."""
        if not self.can_make_room(capacity):
            return False
        while self.pool.gap_for(capacity) is None:
            self._drop()
        return True

    def find(self, reader: Reader, others: Sequence[Reader]) -> None:
        """Begin the row of a request that has read nothing with the longest prefix there is."""
        prompt_ids = reader.request.prompt_ids
        sources = [(common_length(prompt_ids, kept.token_ids), kept.row) for kept in self._kept]
        sources += [(common_length(prompt_ids, other.history()), other.row) for other in others if other.row.length >= MARK]
        # The last token is always read: its row of logits draws the first new one.
        usable = [(min(length, len(prompt_ids) - 1) // MARK * MARK, number) for number, (length, _) in enumerate(sources)]
        length, number = max(usable, default=(0, 0))
        if length == 0:
            return
        row = sources[number][1]
        self.pool.continued(reader.row, row, length)
        self.num_reused += length
        for kept in [kept for kept in self._kept if kept.row is row]:
            self._kept.remove(kept)
            self._kept.append(kept)

    def _drop(self) -> None:
        self.pool.close(self._kept.pop(0).row)


def common_length(left: Sequence[int], right: Sequence[int]) -> int:
    """Of the longest common prefix, by halving."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if left[low:middle] == right[low:middle] else (low, middle - 1)
    return low
