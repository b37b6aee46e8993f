"""Grouped-query attention under a visibility mask, without repeating K and V and without scoring what no query may see.

A view is the visibility rule of one forward made ready for one way to compute attention; every layer of a kind shares it.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from zaya_core.layout import Keys, Layout, visible
from zaya_core.ops.flex import flex_view
from zaya_core.ops.tiles import tiles

QUERY_CHUNK = 128  # queries that share a choice of keys


class View(Protocol):
    """Who sees whom, ready to attend."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B, T, H, N], k and v [B, G, S, N] -> [B, T, H, N]; scale N^-1/2.

        A query that sees nothing gets a meaningless finite row: only padding slots do, and nobody reads them.
        """
        ...


def row_view(query: Layout, keys: Keys, window: int | None) -> View:
    """For a forward without history, which may be long and may be trained: block masks on a GPU, tiles on the CPU."""
    return flex_view(query, keys, window) if query.position.is_cuda else tiles(query, keys, window)


@dataclass(frozen=True)
class Sight:
    """Some queries, the keys that any of them sees (None: all), and who sees which: `mask` [B, 1, queries, keys] bool."""

    queries: slice
    keys: Tensor | None
    mask: Tensor


@dataclass(frozen=True)
class Sights:
    """A step's or a prefill's queries over history and their own slots."""

    parts: list[Sight]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As `View` says."""
        q = q.transpose(1, 2).to(v.dtype)
        outputs = []
        for part in self.parts:
            keys, values = (k, v) if part.keys is None else (k.index_select(2, part.keys), v.index_select(2, part.keys))
            outputs.append(F.scaled_dot_product_attention(q[:, :, part.queries], keys, values, part.mask, enable_gqa=True))
        joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)
        return joined.transpose(1, 2)


def sights(query: Layout, keys: Keys, window: int | None) -> Sights:
    """The visibility rule in chunks of queries, so that no [T, S] mask of a long prefill ever exists."""
    slots = query.position.shape[1]
    if slots <= QUERY_CHUNK:
        return Sights([Sight(slice(0, slots), None, visible(query, keys, window)[:, None])])
    parts = []
    for begin in range(0, slots, QUERY_CHUNK):
        queries = slice(begin, begin + QUERY_CHUNK)
        mask = visible(query.slots_of(queries), keys, window)
        seen = mask.any(1).any(0).nonzero().flatten()
        parts.append(Sight(queries, seen, mask.index_select(2, seen)[:, None]))
    return Sights(parts)


def attend_slow(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """The oracle of `attend`: explicit scores under `mask` [B, T, S], explicit softmax."""
    rows, slots, heads, width = q.shape
    groups = k.shape[1]
    grouped = q.reshape(rows, slots, groups, heads // groups, width)
    scores = torch.einsum("btgin,bgsn->bgits", grouped, k) * width**-0.5
    weights = scores.masked_fill(~mask[:, None, None], float("-inf")).softmax(-1)
    return torch.einsum("bgits,bgsn->btgin", weights, v).reshape(rows, slots, heads, width)
