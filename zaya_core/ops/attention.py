"""Grouped-query attention under a visibility mask, without repeating K and V and without scoring what no query may see."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from zaya_core.layout import Keys, Layout, visible

QUERY_CHUNK = 128  # queries that share a choice of keys


@dataclass(frozen=True)
class Sight:
    """Some queries, the keys that any of them sees (None: all), and who sees which: `mask` [B, 1, queries, keys] bool."""

    queries: slice
    keys: Tensor | None
    mask: Tensor


def sights(query: Layout, keys: Keys, window: int | None) -> list[Sight]:
    """The visibility rule in chunks of queries, so that no [T, S] mask of a long row ever exists.

    A chunk of a causal row drops the keys after it; a chunk of masked blocks also drops all other blocks. That halves the work of
    a long prefill, and makes a training row cost about twice its clean half instead of four times.
    """
    slots = query.position.shape[1]
    if slots <= QUERY_CHUNK:
        return [Sight(slice(0, slots), None, visible(query, keys, window)[:, None])]
    parts = []
    for begin in range(0, slots, QUERY_CHUNK):
        queries = slice(begin, begin + QUERY_CHUNK)
        mask = visible(query.slots_of(queries), keys, window)
        seen = mask.any(1).any(0).nonzero().flatten()
        parts.append(Sight(queries, seen, mask.index_select(2, seen)[:, None]))
    return parts


def attend(q: Tensor, k: Tensor, v: Tensor, visible: list[Sight]) -> Tensor:
    """q [B, T, H, N], k and v [B, G, S, N] -> [B, T, H, N]; scale N^-1/2.

    A query that sees nothing gets a meaningless finite row: only padding slots do, and nobody reads them.
    """
    q = q.transpose(1, 2).to(v.dtype)
    outputs = []
    for sight in visible:
        keys, values = (k, v) if sight.keys is None else (k.index_select(2, sight.keys), v.index_select(2, sight.keys))
        outputs.append(F.scaled_dot_product_attention(q[:, :, sight.queries], keys, values, sight.mask, enable_gqa=True))
    joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)
    return joined.transpose(1, 2)


def attend_slow(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """The oracle of `attend`: explicit scores under `mask` [B, T, S], explicit softmax."""
    rows, slots, heads, width = q.shape
    groups = k.shape[1]
    grouped = q.reshape(rows, slots, groups, heads // groups, width)
    scores = torch.einsum("btgin,bgsn->bgits", grouped, k) * width**-0.5
    weights = scores.masked_fill(~mask[:, None, None], float("-inf")).softmax(-1)
    return torch.einsum("bgits,bgsn->btgin", weights, v).reshape(rows, slots, heads, width)
