"""The slots of one forward as integers, and the one rule that decides what they see.

A slot is a place in the forward: it holds a token (clean) or the mask (masked). A query sees the clean slots before its
`start`, and every slot of its own block; same document, inside the window of its position where the layer has one. Causal,
packed, training and decode forwards differ only in these integers (tidar.md sections 2 and 3). The layout refuses to know tokens.

Time shifts go through `prev`: an index into [two history slots | slots of this forward], because in a branching step the
predecessor of a slot is not the slot to its left. `NO_HISTORY` points at the newer history slot, which is zeros without a cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import torch
from torch import Tensor

HISTORY = 2  # time steps of history that CCA reaches back: two convolutions of two taps
NO_HISTORY = HISTORY - 1
CLEAN = -1


@dataclass(frozen=True, eq=False)
class Layout:
    """Per-slot integers, each [B, T] int64; the first `num_clean` slots of every row are clean, in order."""

    position: Tensor  # the token's position in its document (RoPE, window)
    start: Tensor  # sees clean slots at positions below this
    block: Tensor  # CLEAN, or an id shared by the masks of one block
    document: Tensor
    prev: Tensor  # predecessor, index into [HISTORY | slots]
    num_clean: int

    def to(self, device: torch.device) -> "Layout":
        """The same slots on another device."""
        if self.position.device == device:
            return self
        return Layout(
            **{f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "num_clean"}, num_clean=self.num_clean
        )

    def slots_of(self, queries: slice) -> "Layout":
        """Some of the slots, as queries only: `prev` still indexes the whole forward."""
        parts = {f.name: getattr(self, f.name)[:, queries] for f in fields(self) if f.name != "num_clean"}
        return Layout(**parts, num_clean=self.num_clean)


@dataclass(frozen=True)
class Keys:
    """What a query may look at, each [B, S] int64: history and the slots of this forward."""

    position: Tensor
    block: Tensor
    document: Tensor


def visible(query: Layout, keys: Keys, window: int | None = None) -> Tensor:
    """The rule: [B, T, S] bool, may query t see key s? `window` counts the query's own position (model.md A5)."""
    before = (keys.block == CLEAN)[:, None, :] & (keys.position[:, None, :] < query.start[:, :, None])
    own_block = (keys.block != CLEAN)[:, None, :] & (keys.block[:, None, :] == query.block[:, :, None])
    sees = (before | own_block) & (keys.document[:, None, :] == query.document[:, :, None])
    if window is not None:
        sees = sees & (keys.position[:, None, :] > query.position[:, :, None] - window)
    return sees


def causal(offset: Tensor, num_slots: int, block_length: int = 0) -> Layout:
    """`num_slots` clean slots after `offset` [B] tokens of history, then one masked block (the prefill's first draft)."""
    if block_length == 0:
        return step(offset, num_slots, (), 0)
    return step(offset, num_slots, (num_slots,), block_length)


def step(offset: Tensor, num_clean: int, levels: tuple[int, ...], block_length: int) -> Layout:
    """A decode step: `num_clean` draft tokens after `offset` [B], then for each level l a masked block after draft token l.

    blk_l stands at positions offset + l .. offset + l + block_length - 1 and sees the history and d_1..d_l (tidar.md section 3).
    """
    device = offset.device
    clean = torch.arange(num_clean, device=device)
    inside = torch.arange(block_length, device=device)
    level = torch.tensor(levels, dtype=torch.int64, device=device)
    masks = (level[:, None] + inside).flatten()
    position = torch.cat([clean, masks])
    start = torch.cat([clean + 1, level.repeat_interleave(block_length)])
    block = torch.cat([torch.full_like(clean, CLEAN), torch.arange(len(levels), device=device).repeat_interleave(block_length)])
    # A block's first mask follows its last draft token; every other slot follows its left neighbour.
    slot = torch.arange(position.numel(), device=device) + HISTORY
    prev = slot - 1
    prev[num_clean :: block_length or 1] = level - 1 + HISTORY
    rows = offset.numel()
    return Layout(
        position=offset[:, None] + position,
        start=offset[:, None] + start,
        block=block.expand(rows, -1),
        document=torch.zeros_like(block).expand(rows, -1),
        prev=prev.expand(rows, -1),
        num_clean=num_clean,
    )


@lru_cache(maxsize=4096)
def template(num_clean: int, levels: tuple[int, ...] = (), block_length: int = 0) -> Layout:
    """A decode step of one row without history [1, T], made once: every step of its shape is this one, shifted."""
    return step(torch.zeros(1, dtype=torch.int64), num_clean, levels, block_length)


def side_by_side(steps: Sequence[Layout], lengths: Sequence[int]) -> Layout:
    """Steps of several rows, each a `template` [1, T_i], after `lengths` tokens of history, laid end to end [1, T].

    Each is a document, numbered in order; `prev` indexes [HISTORY slots of each | slots]. Clean slots come first in each step only,
    so `num_clean` is 0.
    """
    if len(steps) == 1:
        (only,), (length,) = steps, lengths
        return Layout(only.position + length, only.start + length, only.block, only.document, only.prev, num_clean=0)
    sizes = torch.tensor([step.position.shape[1] for step in steps])
    number = torch.arange(len(steps)).repeat_interleave(sizes)
    length, begin = torch.tensor(lengths)[number], (sizes.cumsum(0) - sizes)[number]
    joined = {name: torch.cat([getattr(step, name)[0] for step in steps]) for name in ("position", "start", "block", "prev")}
    before = joined["prev"]
    prev = torch.where(before < HISTORY, before + number * HISTORY, before + begin + (len(steps) - 1) * HISTORY)
    parts = (joined["position"] + length, joined["start"] + length, joined["block"], number, prev)
    return Layout(*(part[None] for part in parts), num_clean=0)


def packed(document: Tensor, position: Tensor) -> Layout:
    """Clean rows [B, S] of whole or cut documents: positions restart with each, and nothing crosses a border."""
    slot = torch.arange(document.shape[1], device=document.device) + HISTORY
    prev = torch.where(position == 0, NO_HISTORY, slot - 1)
    return Layout(position, position + 1, torch.full_like(position, CLEAN), document, prev, document.shape[1])


def training_row(
    document: Tensor,
    position: Tensor,
    first: Tensor,
    block_length: int,
    labelled: Tensor | None = None,
    own: slice | None = None,
) -> tuple[Layout, Tensor]:
    """The doubled row: clean slots [B, S], then masked blocks over them (tidar.md section 2).

    `first` [B, S] is the position, at least 1, where the first block of the slot's document starts: the random phase. Blocks
    are always whole; masks past the end of their document have no target. Blocks without a `labelled` slot [B, S] are left out,
    and so are blocks that begin outside of the slots `own`.
    Returns the layout of S + M slots and `target` [B, M]: the clean slot that each mask predicts, or -1. M is the batch's
    largest number of masks.
    """
    rows, num_clean = document.shape
    starts_block = (position >= first) & ((position - first) % block_length == 0) & (document >= 0)
    if labelled is not None:
        starts_block = starts_block & _block_has(labelled & (position >= first) & (document >= 0), starts_block)
    if own is not None:
        slot = torch.arange(num_clean, device=document.device)
        starts_block = starts_block & (slot >= own.start) & (slot < own.stop)
    num_blocks = int(starts_block.sum(1).max())
    # Slots that start a block sort first, in order; rows with fewer blocks are filled with blocks that see only themselves.
    begin = torch.argsort((~starts_block).to(torch.int8), dim=1, stable=True)[:, :num_blocks]
    used = starts_block.gather(1, begin)
    inside = torch.arange(block_length, device=document.device)
    slot = (begin[:, :, None] + inside).flatten(1)
    owner = torch.where(used, document.gather(1, begin), -1).repeat_interleave(block_length, 1)
    begin_position = position.gather(1, begin).repeat_interleave(block_length, 1)
    inside_row = slot < num_clean
    same_document = document.gather(1, slot.clamp_max(num_clean - 1)) == owner
    target = torch.where(inside_row & same_document & (owner >= 0), slot, -1)

    mask_slot = num_clean + torch.arange(num_blocks * block_length, device=document.device) + HISTORY
    prev = (mask_slot - 1).expand(rows, -1).clone()
    prev[:, ::block_length] = torch.where(used, begin - 1 + HISTORY, NO_HISTORY)
    clean = packed(document, position)
    block = torch.arange(num_blocks, device=document.device).repeat_interleave(block_length).expand(rows, -1)
    masks = Layout(begin_position + inside.repeat(num_blocks), begin_position, block, owner, prev, 0)
    joined = {
        name: torch.cat([getattr(clean, name), getattr(masks, name)], 1)
        for name in ("position", "start", "block", "document", "prev")
    }
    return Layout(**joined, num_clean=num_clean), target


def _block_has(labelled: Tensor, starts_block: Tensor) -> Tensor:
    """[B, S] at the first slot of each block: is any of its slots labelled?"""
    number = starts_block.cumsum(1)  # of the slot's block in its row, counted from 1; a document before its first block has none
    hits = torch.zeros(number.shape[0], number.shape[1] + 1, dtype=torch.int64, device=number.device)
    return hits.scatter_add_(1, number, labelled.long()).gather(1, number) > 0


def keys_of(layout: Layout) -> Keys:
    """The keys of a forward without history: its own slots."""
    return Keys(layout.position, layout.block, layout.document)
