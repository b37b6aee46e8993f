"""Tokenised documents: ids end to end in one array, which may be a mapped file, where each begins, what each weighs."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Example:
    """One document's ids and the loss weight of each as a label; no weights mean 1 for all."""

    token_ids: list[int]
    weights: list[float] | None = None


@dataclass(frozen=True)
class Documents:
    """`token_ids` int32 and `weights` float16 (None: all 1) of all tokens; document i has `lengths[i]` of them from `begins[i]`."""

    token_ids: np.ndarray
    weights: np.ndarray | None
    begins: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, examples: Iterable[Example]) -> "Documents":
        """In memory."""
        kept = list(examples)
        lengths = np.array([len(example.token_ids) for example in kept], dtype=np.int64)
        ids = np.fromiter((i for example in kept for i in example.token_ids), dtype=np.int32, count=int(lengths.sum()))
        weights = None
        if any(example.weights is not None for example in kept):
            rows = [example.weights or [1.0] * len(example.token_ids) for example in kept]
            weights = np.array([w for row in rows for w in row], dtype=np.float16)
        return cls(ids, weights, np.cumsum(lengths) - lengths, lengths)

    @property
    def num_tokens(self) -> int:
        """Of all documents."""
        return int(self.lengths.sum())

    def take(self, chosen: np.ndarray) -> "Documents":
        """Some documents, by a bool for each; the tokens are shared."""
        return Documents(self.token_ids, self.weights, self.begins[chosen], self.lengths[chosen])

    def split(self, every: int) -> tuple["Documents", "Documents"]:
        """All but each `every`-th document, and those."""
        held = np.arange(len(self.lengths)) % every == every - 1
        return self.take(~held), self.take(held)

    def pieces(self, length: int) -> "Documents":
        """Documents longer than `length` cut into pieces of it, each a document; the tokens are shared."""
        counts = -(-self.lengths // length)
        number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        begins = np.repeat(self.begins, counts) + number * length
        return Documents(
            self.token_ids, self.weights, begins, np.minimum(np.repeat(self.lengths, counts) - number * length, length)
        )

    def sha256(self) -> str:
        """Of ids, lengths and weights: what a resumed run must find again."""
        digest = hashlib.sha256()
        for begin, length in zip(self.begins.tolist(), self.lengths.tolist(), strict=True):
            digest.update(self.token_ids[begin : begin + length].tobytes())
        digest.update(self.lengths.tobytes())
        if self.weights is not None:
            for begin, length in zip(self.begins.tolist(), self.lengths.tolist(), strict=True):
                digest.update(self.weights[begin : begin + length].tobytes())
        return digest.hexdigest()


def joined(parts: list[Documents]) -> Documents:
    """All documents of several sets, in order; one set is returned as it is, mapped or not."""
    if len(parts) == 1:
        return parts[0]
    offsets = np.cumsum([0, *(len(part.token_ids) for part in parts[:-1])])
    weights = None
    if any(part.weights is not None for part in parts):
        filled = [np.ones(len(part.token_ids), np.float16) if part.weights is None else part.weights for part in parts]
        weights = np.concatenate(filled)
    return Documents(
        np.concatenate([part.token_ids for part in parts]),
        weights,
        np.concatenate([part.begins + offset for part, offset in zip(parts, offsets, strict=True)]),
        np.concatenate([part.lengths for part in parts]),
    )
