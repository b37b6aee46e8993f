"""Documents to full rows, addressed by a global sample index: order and noise do not depend on who asks, or when.

Text is laid end to end, shuffled each epoch, and cut into rows of `seq_len`: a document cut by a row's end goes on in the next
row as a document of its own. Examples to fine-tune on are packed whole, the longest first into the fullest row that takes it.
Positions restart with each document, and neither attention nor CCA crosses a border.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from zaya_core.data.documents import Documents
from zaya_core.errors import DataError

PADDING = -1  # document of a slot that holds nothing


@dataclass(frozen=True)
class Batch:
    """Rows of clean tokens, each [B, S]: ids, document number in the row, position in the document, and the random phase.

    `first` is the position where the first diffusion block of the slot's document starts, in 1..block_length. `weight` is the
    loss weight of the slot's token as a label. The document of padding is -1.
    """

    token_ids: Tensor
    document: Tensor
    position: Tensor
    first: Tensor
    weight: Tensor

    def to(self, device: torch.device) -> "Batch":
        """The same rows on another device."""
        return Batch(*(getattr(self, f.name).to(device) for f in fields(self)))


class Rows(Protocol):
    """An endless sequence of rows, addressed by index."""

    rows_per_epoch: int
    num_tokens: int

    def row(self, index: int) -> tuple[np.ndarray, ...]:
        """Ids, document, position, first and weight [S] of a row."""
        ...

    def batch(self, indices: range) -> Batch:
        """The rows of some global sample indices."""
        ...

    def sha256(self) -> str:
        """Of the data."""
        ...

    def describe(self) -> str:
        """Its counts, in a line."""
        ...


def stacked(rows: Rows, indices: range) -> Batch:
    """Some rows as a batch."""
    parts = zip(*(rows.row(index) for index in indices), strict=True)
    return Batch(*(torch.from_numpy(np.stack(part)) for part in parts))


class PackedRows:
    """Rows of one set of documents; `row(index)` is a pure function of the data, the seed and the index."""

    def __init__(self, documents: Documents, *, seq_len: int, block_length: int, seed: int, whole: bool = False) -> None:
        self.documents, self.seq_len, self.block_length, self.seed = documents, seq_len, block_length, seed
        self.num_tokens = documents.num_tokens
        self._bins = _best_fit(documents.lengths, seq_len) if whole else None
        self.rows_per_epoch = self.num_tokens // seq_len if self._bins is None else len(self._bins)
        if not self.rows_per_epoch:
            raise DataError(
                f"the data has {self.num_tokens} tokens, expected at least one row of --seq-len {seq_len}",
                hint="give more --data or a smaller --seq-len",
            )
        self._epoch: tuple[int, np.ndarray, np.ndarray] | None = None

    def sha256(self) -> str:
        """Of ids, lengths and weights."""
        return self.documents.sha256()

    def describe(self) -> str:
        """Documents, tokens and rows; for whole examples the share of the rows that they fill."""
        filled = f", {self.num_tokens / self.rows_per_epoch / self.seq_len:.0%} full" if self._bins is not None else ""
        return f"{len(self.documents.lengths):,} documents, {self.num_tokens:,} tokens, {self.rows_per_epoch:,} rows{filled}"

    def batch(self, indices: range) -> Batch:
        """The rows of some global sample indices."""
        return stacked(self, indices)

    def row(self, index: int) -> tuple[np.ndarray, ...]:
        """Ids, document, position, first and weight [S] of a row."""
        token_ids, document, position, first = (np.zeros(self.seq_len, dtype=np.int64) for _ in range(4))
        weight = np.zeros(self.seq_len, dtype=np.float32)
        document.fill(PADDING)
        phase, filled = np.random.default_rng([self.seed, 1, index]), 0
        for number, (begin, count) in enumerate(self._pieces(index)):
            part, source = slice(filled, filled + count), slice(begin, begin + count)
            token_ids[part] = self.documents.token_ids[source]
            weight[part] = 1 if self.documents.weights is None else self.documents.weights[source]
            document[part], position[part] = number, np.arange(count)
            first[part] = phase.integers(1, self.block_length + 1)
            filled += count
        position[filled:] = np.arange(self.seq_len - filled)
        return token_ids, document, position, first, weight

    def _pieces(self, index: int) -> list[tuple[int, int]]:
        """(begin, count) of the runs of tokens that make the row."""
        epoch, place = divmod(index, self.rows_per_epoch)
        begins, lengths = self.documents.begins, self.documents.lengths
        if self._bins is not None:
            order = np.random.default_rng([self.seed, 0, epoch]).permutation(self.rows_per_epoch)
            return [(int(begins[which]), int(lengths[which])) for which in self._bins[order[place]]]
        order, ends = self._order(epoch)
        begin, stop = place * self.seq_len, (place + 1) * self.seq_len
        which, pieces = int(np.searchsorted(ends, begin, side="right")), []
        while begin < stop:
            source = order[which]
            count = int(min(ends[which], stop) - begin)
            pieces.append((int(begins[source] + lengths[source] - (ends[which] - begin)), count))
            begin, which = begin + count, which + 1
        return pieces

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's permutation of documents and the running end of each; the latest epoch's is kept."""
        if self._epoch is None or self._epoch[0] != epoch:
            order = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.documents.lengths))
            self._epoch = (epoch, order, np.cumsum(self.documents.lengths[order]))
        return self._epoch[1:]


class MixedRows:
    """Rows of several sources in given shares: each run of `PERIOD` rows holds the same number of each, in a drawn order."""

    PERIOD = 1000

    def __init__(self, sources: list[PackedRows], shares: list[float], *, seed: int) -> None:
        self.sources, self.seed = sources, seed
        exact = np.array(shares) / sum(shares) * self.PERIOD
        self.counts = exact.astype(np.int64)
        for place in np.argsort(self.counts - exact, kind="stable")[: self.PERIOD - int(self.counts.sum())]:
            self.counts[place] += 1  # largest remainders
        self.num_tokens = sum(source.num_tokens for source in sources)
        self.rows_per_epoch = sum(source.rows_per_epoch for source in sources)

    def sha256(self) -> str:
        """Of all sources."""
        return " ".join(source.sha256() for source in self.sources)

    def describe(self) -> str:
        """Each source's counts and share."""
        shares = self.counts / self.PERIOD
        return "; ".join(f"{share:.1%} of {source.describe()}" for share, source in zip(shares, self.sources, strict=True))

    def batch(self, indices: range) -> Batch:
        """The rows of some global sample indices."""
        return stacked(self, indices)

    def row(self, index: int) -> tuple[np.ndarray, ...]:
        """The row of the source whose turn it is."""
        period, place = divmod(index, self.PERIOD)
        turns = np.repeat(np.arange(len(self.sources)), self.counts)
        turns = np.random.default_rng([self.seed, 2, period]).permutation(turns)
        source = int(turns[place])
        return self.sources[source].row(period * int(self.counts[source]) + int((turns[:place] == source).sum()))


@dataclass(frozen=True)
class Leg:
    """The rows of a run from a step on; a batch holds `factor` times as many of them as --batch-size says."""

    rows: Rows
    first_step: int = 0
    factor: int = 1


class LeggedRows:
    """A run whose rows change on the way, shorter before longer; the last leg's speak for all."""

    def __init__(self, legs: list[Leg]) -> None:
        self.legs, self.last = legs, legs[-1].rows
        self.rows_per_epoch, self.num_tokens = self.last.rows_per_epoch, self.last.num_tokens
        self.row, self.batch, self.sha256, self.describe = self.last.row, self.last.batch, self.last.sha256, self.last.describe


def leg_at(rows: Rows, step: int) -> Leg:
    """The leg that the 0-based step belongs to."""
    if not isinstance(rows, LeggedRows):
        return Leg(rows)
    return [leg for leg in rows.legs if leg.first_step <= step][-1]


def _best_fit(lengths: np.ndarray, seq_len: int) -> list[list[int]]:
    """Examples of at most `seq_len` in rows: the longest first, each into the fullest row that still takes it."""
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free slots, bin), ordered
    for which in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[which])
        place = bisect_left(room, (length, -1))
        if place == len(room):
            bins.append([])
            free, number = seq_len, len(bins) - 1
        else:
            free, number = room.pop(place)
        bins[number].append(which)
        insort(room, (free - length, number))
    return bins
