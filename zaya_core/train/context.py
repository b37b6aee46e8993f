"""Rows split over a context axis: what a rank needs of its neighbours, in every layer (model.md D5).

Each rank holds a span of clean slots and the masked blocks that begin there. All clean keys and values are gathered; the time
shifts of the span's first slots take two raw latents and one delayed value from the left rank.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from zaya_core.layout import CLEAN, HISTORY, Keys, Layout
from zaya_core.ops.attention import View
from zaya_core.ops.exchange import from_all, from_left
from zaya_core.ops.shift import with_history

RowView = Callable[[Layout, Keys, int | None], View]


class ContextSplit:
    """The rest of the rows as one rank sees it; stands where a cache does, and serves all layers alike."""

    def __init__(self, row: Layout, own: slice, group: dist.ProcessGroup, *, num_layers: int, row_view: RowView) -> None:
        """`row` is the layout of whole rows, `own` the span of this rank, `row_view` how the model's whole rows attend."""
        self.group, self.num_own, self.row_view = group, own.stop - own.start, row_view
        self.layers = [self] * num_layers
        self.row = row
        # The slot before the span may begin a document: it has no predecessor, whatever the left rank holds there.
        self.has_older = (row.position[:, max(own.start - 1, 0)] > 0)[:, None, None]

    def view(self, layout: Layout, window: int | None) -> View:
        """Who sees whom."""
        return self.row_view(layout, self.keys(layout), window)

    def keys(self, layout: Layout) -> Keys:
        """Every clean slot of the rows, then this rank's own masks."""
        clean, masks = slice(0, self.row.num_clean), slice(self.num_own, None)
        position, document = (
            torch.cat([getattr(self.row, name)[:, clean], getattr(layout, name)[:, masks]], 1) for name in ("position", "document")
        )
        block = F.pad(layout.block[:, masks], (self.row.num_clean, 0), value=CLEAN)
        return Keys(position, block, document)

    def prepend(self, latents: Tensor, values: Tensor, empty: tuple[Tensor, Tensor], layout: Layout) -> tuple[Tensor, Tensor]:
        """[B, T, C] of this forward after the history of a document's start and the left rank's last slots."""
        last = slice(self.num_own - HISTORY, self.num_own)
        given = torch.cat([latents[:, last], values[:, last]], -1)
        past_latents, past_values = from_left(given, group=self.group).split([latents.shape[2], values.shape[2]], -1)
        older, newer = past_latents.split(1, 1)
        past_latents = torch.cat([older * self.has_older, newer], 1)
        history = (torch.cat([empty[0], past_latents], 1), torch.cat([empty[1], past_values], 1))
        return with_history(history[0], latents), with_history(history[1], values)

    def stage(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """[B, G, T, N] of this forward -> [B, G, S, N] in the order of `keys`."""
        clean, masks = torch.stack([k, v]).split([self.num_own, k.shape[2] - self.num_own], 3)
        row = from_all(clean, group=self.group).movedim(0, 3).flatten(3, 4)
        whole = torch.cat([row, masks], 3)
        return whole[0], whole[1]


def spanned(row: Layout, own: slice) -> Layout:
    """The slots of one rank: the span `own` of the clean ones, and all masks that `row` has.

    `prev` indexes [no history | left rank's last slots | slots], each of the first two HISTORY long.
    """
    num_own, first_mask = own.stop - own.start, row.num_clean
    kept = torch.cat([torch.arange(own.start, own.stop), torch.arange(first_mask, row.position.shape[1])]).to(row.prev.device)
    taken = {name: getattr(row, name)[:, kept] for name in ("position", "start", "block", "document")}
    before = row.prev[:, kept]
    slot = before - HISTORY
    local = torch.where(slot < first_mask, slot - own.start, slot - first_mask + num_own) + 2 * HISTORY
    return Layout(**taken, prev=torch.where(slot < 0, before, local), num_clean=num_own)


def with_borders(hidden: Tensor, num_right: int, group: dist.ProcessGroup) -> Tensor:
    """[B, own, D] between the left rank's last slot and the right rank's first `num_right`, without gradients."""
    edge = torch.cat([hidden[:, :num_right], hidden[:, -1:]], 1).detach().contiguous()
    edges = [torch.empty_like(edge) for _ in range(group.size())]
    dist.all_gather(edges, edge, group=group)
    left, right = edges[group.rank() - 1], edges[(group.rank() + 1) % group.size()]
    return torch.cat([left[:, -1:], hidden.detach(), right[:, :num_right]], 1)
