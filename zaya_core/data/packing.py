"""Documents to full rows, addressed by a global sample index: order and noise do not depend on who asks, or when.

Each epoch shuffles the documents, lays them end to end and cuts rows of `seq_len`. A document cut by a row's end goes on in the
next row as a document of its own: positions restart, and neither attention nor CCA crosses the cut.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zaya_core.errors import DataError


@dataclass(frozen=True)
class Batch:
    """Rows of clean tokens, each [B, S]: ids, document number in the row, position in the document, and the random phase.

    `first` is the position where the first diffusion block of the slot's document starts, in 1..block_length.
    """

    token_ids: Tensor
    document: Tensor
    position: Tensor
    first: Tensor

    @property
    def num_ar_labels(self) -> int:
        """Tokens with a successor in their document."""
        return int((self.document[:, 1:] == self.document[:, :-1]).sum())

    @property
    def num_diffusion_labels(self) -> int:
        """Tokens inside a diffusion block: those that have a prefix."""
        return int((self.position >= self.first).sum())

    def to(self, device: torch.device) -> "Batch":
        """The same rows on another device."""
        return Batch(*(part.to(device) for part in (self.token_ids, self.document, self.position, self.first)))


class PackedRows:
    """All documents' ids end to end; `row(index)` is a pure function of the data, the seed and the index."""

    def __init__(self, documents: list[list[int]], *, seq_len: int, block_length: int, seed: int) -> None:
        lengths = np.array([len(ids) for ids in documents], dtype=np.int64)
        self.num_tokens = int(lengths.sum())
        if self.num_tokens < seq_len:
            raise DataError(
                f"the data has {self.num_tokens} tokens, expected at least one row of --seq-len {seq_len}",
                hint="give more --data or a smaller --seq-len",
            )
        self.token_ids = np.concatenate([np.asarray(ids, dtype=np.int32) for ids in documents])
        self.ends = np.cumsum(lengths)
        self.lengths = lengths
        self.seq_len, self.block_length, self.seed = seq_len, block_length, seed
        self.rows_per_epoch = self.num_tokens // seq_len
        self._epoch: tuple[int, np.ndarray, np.ndarray] | None = None

    def sha256(self) -> str:
        """Of the token ids and the documents' lengths: what a resumed run must find again."""
        digest = hashlib.sha256(self.token_ids.tobytes())
        digest.update(self.lengths.tobytes())
        return digest.hexdigest()

    def batch(self, indices: range) -> Batch:
        """The rows of some global sample indices."""
        rows = [self._row(index) for index in indices]
        return Batch(*(torch.from_numpy(np.stack(parts)) for parts in zip(*rows, strict=True)))

    def _row(self, index: int) -> tuple[np.ndarray, ...]:
        epoch, place = divmod(index, self.rows_per_epoch)
        order, ends = self._order(epoch)
        begin, stop = place * self.seq_len, (place + 1) * self.seq_len
        token_ids = np.empty(self.seq_len, dtype=np.int64)
        document, position, first = (np.empty(self.seq_len, dtype=np.int64) for _ in range(3))
        phase = np.random.default_rng([self.seed, 1, index])
        which, filled, number = int(np.searchsorted(ends, begin, side="right")), 0, 0
        while begin < stop:
            source = order[which]
            offset = begin - (ends[which] - self.lengths[source])
            count = int(min(ends[which], stop) - begin)
            start = self.ends[source] - self.lengths[source] + offset
            part = slice(filled, filled + count)
            token_ids[part] = self.token_ids[start : start + count]
            document[part], position[part] = number, np.arange(count)
            first[part] = phase.integers(1, self.block_length + 1)
            begin, filled, which, number = begin + count, filled + count, which + 1, number + 1
        return token_ids, document, position, first

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's permutation of documents and the running end of each; the latest epoch's is kept."""
        if self._epoch is None or self._epoch[0] != epoch:
            order = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.lengths))
            self._epoch = (epoch, order, np.cumsum(self.lengths[order]))
        return self._epoch[1:]
