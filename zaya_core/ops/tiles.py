"""Attention of whole rows in tiles: no [T, S] mask and no hidden score, forward or backward, in memory linear in T.

The visibility rule is looked at in squares of queries x keys, which are quartered until a square is seen by nobody, by all,
causally, or is small. Each goes to torch's fused CPU kernel, and a query's parts are merged by their log-sum-exp. The backward
of each part is the kernel's own, given the merged output and log-sum-exp.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from zaya_core.layout import Keys, Layout, visible
from zaya_core.ops.norm import widened

SQUARE = 1024  # queries and keys looked at together
LEAF = 128  # queries and keys of the smallest tile
PACKED = 512  # queries from which the bfloat16 kernel goes backward faster than the float32 one
HIDDEN = -1e30  # finite: a query that sees nothing of a tile has no weight there, and no nan


@dataclass(frozen=True)
class Tile:
    """Some queries and keys; `mask` [B, 1, queries, keys] bool says who sees which, None: all, or all up to their own."""

    queries: slice
    keys: slice
    mask: Tensor | None
    is_causal: bool


@dataclass(frozen=True)
class Tiles:
    """Disjoint tiles that cover whatever any query sees."""

    parts: list[Tile]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B, T, H, N], k and v [B, G, S, N] -> [B, T, H, N]; scale N^-1/2."""
        return _TiledAttention.apply(q.transpose(1, 2).to(v.dtype), k, v, self.parts).transpose(1, 2)


def tiles(query: Layout, keys: Keys, window: int | None) -> Tiles:
    """Cut the visibility rule into tiles."""
    narrow = Keys(*(getattr(keys, f.name).int() for f in fields(keys)))
    slots = Layout(**{f.name: getattr(query, f.name).int() for f in fields(query) if f.name != "num_clean"}, num_clean=0)
    parts: list[Tile] = []
    for queries in _steps(query.position.shape[1], SQUARE):
        rows = slots.slots_of(queries)
        for part in _steps(keys.position.shape[1], SQUARE):
            some = Keys(*(getattr(narrow, f.name)[:, part] for f in fields(narrow)))
            parts += _quartered(visible(rows, some, window), queries.start, part.start)
    return Tiles(parts)


def _steps(length: int, size: int) -> list[slice]:
    return [slice(at, min(at + size, length)) for at in range(0, length, size)]


def _quartered(mask: Tensor, first_query: int, first_key: int) -> Iterator[Tile]:
    """Tiles of the square `mask` [B, queries, keys], whose corner lies at the given slots."""
    num_queries, num_keys = mask.shape[1:]
    if not mask.any():
        return
    queries, keys = slice(first_query, first_query + num_queries), slice(first_key, first_key + num_keys)
    if mask.all():
        yield Tile(queries, keys, None, is_causal=False)
    elif num_queries == num_keys and bool((mask == torch.ones_like(mask[0]).tril()).all()):
        yield Tile(queries, keys, None, is_causal=True)
    elif max(num_queries, num_keys) <= LEAF:
        seen = mask.flatten(0, 1).any(0).nonzero().flatten()
        inside = slice(int(seen[0]), int(seen[-1]) + 1)
        cropped = slice(first_key + inside.start, first_key + inside.stop)
        yield Tile(queries, cropped, mask[:, None, :, inside].clone(), is_causal=False)
    else:
        half = max(LEAF, SQUARE // 2)
        while half >= max(num_queries, num_keys):
            half //= 2
        for some in _steps(num_queries, half):
            for part in _steps(num_keys, half):
                yield from _quartered(mask[:, some, part], first_query + some.start, first_key + part.start)


class _TiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, q: Tensor, k: Tensor, v: Tensor, parts: list[Tile]) -> Tensor:
        rows, heads, slots, width = q.shape
        wide = widened(q.dtype)
        # The heads of a slot lie together, as the projection after attention wants them.
        out = q.new_zeros(rows, slots, heads, width, dtype=wide).transpose(1, 2)
        norm = q.new_full((rows, heads, slots), float("-inf"), dtype=wide)
        for tile in parts:
            part, part_norm = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q[:, :, tile.queries], k[:, :, tile.keys], v[:, :, tile.keys], 0.0, tile.is_causal, attn_mask=_bias(tile, q.dtype)
            )
            _merge(out[:, :, tile.queries], norm[:, :, tile.queries], part, part_norm)
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, norm)
        ctx.parts = parts
        return out

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, norm = ctx.saved_tensors
        wide = widened(q.dtype)
        totals = [torch.zeros_like(part, dtype=wide) for part in (q, k, v)]
        for tile in ctx.parts:
            queries, keys = tile.queries, tile.keys
            given = (grad[:, :, queries], q[:, :, queries], k[:, :, keys], v[:, :, keys], out[:, :, queries])
            # Below, it packs more than it computes (2.0 ms against 0.7 for 128 x 128, 4 rows).
            dtype = q.dtype if queries.stop - queries.start >= PACKED else wide
            parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                *(part.to(dtype) for part in given), norm[:, :, queries], 0.0, tile.is_causal, attn_mask=_bias(tile, dtype)
            )
            for total, part, slots in zip(totals, parts, (queries, keys, keys), strict=True):
                total[:, :, slots] += part
        return *(total.to(q.dtype) for total in totals), None


def _bias(tile: Tile, dtype: torch.dtype) -> Tensor | None:
    if tile.mask is None:
        return None
    return torch.zeros(tile.mask.shape, dtype=dtype, device=tile.mask.device).masked_fill_(~tile.mask, HIDDEN)


def _merge(out: Tensor, norm: Tensor, part: Tensor, part_norm: Tensor) -> None:
    """Into the softmax over some keys, in place, that over other keys; a norm of -inf means none yet."""
    both = torch.logaddexp(norm, part_norm)
    out.mul_((norm - both).exp_()[..., None]).add_(part * (part_norm - both).exp_()[..., None].to(part.dtype))
    norm.copy_(both)
