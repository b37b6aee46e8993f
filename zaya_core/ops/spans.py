"""Attention of many rows' steps over their own spans of a pool, with all that varies from step to step held in tensors.

Nothing here has a shape that depends on a length, and on a GPU nothing is read back: a step can be captured as a graph once and
replayed for other lengths. Equal to masked attention over the whole pool (`attend_spans_slow`).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from zaya_core.layout import CLEAN, Keys, Layout, visible

PADDED = -2  # block of a slot that holds nothing: it sees nothing of its step, and nobody sees it


@dataclass(frozen=True)
class Spans:
    """A view (see ops/attention) of T slots laid end to end, int64 all.

    `position`, `start` and `block` [T] are the layout's; `rows` [R, 4] hold where a row begins in the pool, its committed length,
    its first slot of the step and how many it has; `tiles` [M, 2] name a row and one of its slots, from which a kernel takes
    `tile` slots (those past the row's last count for nothing).
    """

    position: Tensor
    start: Tensor
    block: Tensor
    rows: Tensor
    tiles: Tensor
    tile: int
    window: int | None

    def attend_heads(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [1, H, T, N], k and v [1, G, slots, N] -> [1, T, H, N]; scale N^-1/2. A padded slot gets zeros."""
        if not q.is_cuda:
            return attend_spans_slow(self, q, k, v)
        from zaya_core.ops.kernels import attend_spans  # Triton comes with torch's builds for GPUs alone

        return attend_spans(self, q[0], k[0], v[0])[None]


def attend_spans_slow(spans: Spans, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The oracle: row by row, through a mask cut from the visibility rule."""
    out = torch.zeros_like(q)
    for begin, length, first, count in spans.rows.tolist():
        if not count:
            continue
        own, seen = slice(first, first + count), slice(begin, begin + length + count)
        position, start, block = (part[None, own] for part in (spans.position, spans.start, spans.block))
        document = torch.zeros_like(position)
        history = torch.arange(length, device=q.device)[None]
        keys = Keys(
            torch.cat([history, position], 1),
            torch.cat([torch.full_like(history, CLEAN), block], 1),
            torch.cat([torch.zeros_like(history), document], 1),
        )
        sees = visible(Layout(position, start, block, document, document, 0), keys, spans.window)[:, None]
        out[:, :, own] = F.scaled_dot_product_attention(q[:, :, own], k[:, :, seen], v[:, :, seen], sees, enable_gqa=True)
    return out.transpose(1, 2)
