"""What a sequence leaves behind: K, V and the tails that CCA's time shifts reach back to.

Invariant: a forward only stages; `commit` alone makes history. Clean slots come first in a layout, in order, so committing n
of them advances a length and keeps the right tails, and rolling back is doing nothing. Staged K and V lie right after the
history in the same buffers, so the history is never copied but when a buffer grows.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from zaya_core.config import ModelConfig
from zaya_core.layout import CLEAN, FAR, HISTORY, Keys, Layout
from zaya_core.ops.shift import with_history

GROWTH = 256  # slots: buffers grow by whole multiples of this


class LayerPast(Protocol):
    """What one layer of a forward finds before and beside its own slots."""

    def prepend(self, latents: Tensor, values: Tensor, empty: tuple[Tensor, Tensor], layout: Layout) -> tuple[Tensor, Tensor]:
        """Raw latents and delayed values of this forward [B, T, C] behind those that `layout.prev` reaches back to.

        `empty` is what stands before a document [B, HISTORY, C].
        """
        ...

    def stage(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """[B, G, T, N] of this forward -> all keys and values [B, G, S, N], in the order of `Past.keys`."""
        ...


class Past(Protocol):
    """What a forward finds before and beside its own slots: a decoding cache, or the other ranks' part of its rows."""

    layers: Sequence[LayerPast]

    def keys(self, layout: Layout) -> Keys:
        """Everything that the slots of `layout` may look at."""
        ...


class LayerCache:
    """One layer: K, V [B, G, capacity, N]; raw latents [B, 2, C] and delayed values [B, 2, G * N / 2] of the last two tokens."""

    def __init__(self, config: ModelConfig, owner: "Cache", dtype: torch.dtype) -> None:
        rows, device = owner.lengths.numel(), owner.lengths.device
        self.owner = owner
        empty = torch.empty(rows, config.num_key_value_heads, 0, config.head_dim, dtype=dtype, device=device)
        self.k, self.v = empty, empty
        self.latent_tail = torch.zeros(rows, HISTORY, config.conv_channels, dtype=dtype, device=device)
        self.value_tail = torch.zeros(rows, HISTORY, config.value_half, dtype=dtype, device=device)
        self._staged: tuple[Tensor, Tensor] = (self.latent_tail, self.value_tail)

    @property
    def lengths(self) -> Tensor:
        """Committed tokens per row [B]."""
        return self.owner.lengths

    def stage(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write [B, G, T, N] after each row's history; return views [B, G, S, N] of history and this forward's slots."""
        num_slots = k.shape[2]
        end = self.owner.longest + num_slots
        self._reserve(end)
        if self.owner.is_even:
            begin = self.owner.longest
            self.k[:, :, begin:end], self.v[:, :, begin:end] = k, v
        else:
            row = torch.arange(k.shape[0], device=k.device)[:, None]
            slot = self.lengths[:, None] + torch.arange(num_slots, device=k.device)
            self.k[row, :, slot] = k.transpose(1, 2)
            self.v[row, :, slot] = v.transpose(1, 2)
        return self.k[:, :, :end], self.v[:, :, :end]

    def prepend(self, latents: Tensor, values: Tensor, empty: tuple[Tensor, Tensor], layout: Layout) -> tuple[Tensor, Tensor]:
        """[B, T, C] of this forward after the tails -> [B, HISTORY + T, C]; `commit` will cut the new tails from them."""
        fresh = (self.lengths == 0)[:, None, None]
        z = with_history(self.latent_tail, latents)
        past_values = with_history(torch.where(fresh, empty[1].to(self.value_tail.dtype), self.value_tail), values)
        end = HISTORY + layout.num_clean
        self._staged = (z[:, :end], past_values[:, :end])
        return z, past_values

    def commit(self, counts: Tensor, count: int | None) -> None:
        """Keep the tails after each row's first `counts` [B] staged slots; `count` where all rows agree."""
        latents, values = self._staged
        if count is not None:
            self.latent_tail, self.value_tail = (part[:, count : count + HISTORY] for part in (latents, values))
            return
        row = torch.arange(counts.numel(), device=counts.device)[:, None]
        slot = counts[:, None] + torch.arange(HISTORY, device=counts.device)
        self.latent_tail, self.value_tail = latents[row, slot], values[row, slot]

    def _reserve(self, num_slots: int) -> None:
        rows, groups, capacity, width = self.k.shape
        if num_slots <= capacity:
            return
        # Doubling keeps the copies of a long generation linear in its length.
        grown = max(-(-num_slots // GROWTH) * GROWTH, min(2 * capacity, capacity + 16 * GROWTH))
        for name in ("k", "v"):
            old = getattr(self, name)
            # Zeros, not empty: a masked key still enters the product, and 0 * nan is nan.
            new = old.new_zeros(rows, groups, grown, width)
            new[:, :, :capacity] = old
            setattr(self, name, new)


class Cache:
    """The history of `rows` sequences of one document each; `lengths` [B] counts committed tokens."""

    def __init__(self, config: ModelConfig, rows: int, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=device)
        self.longest = 0
        self.is_even = True
        self.layers = [LayerCache(config, self, dtype) for _ in range(config.num_hidden_layers)]

    def keys(self, layout: Layout) -> Keys:
        """History and `layout`'s slots as the keys of a forward, in the order that `stage` returns them."""
        end = self.longest + layout.position.shape[1]
        slot = torch.arange(end, device=self.lengths.device).expand(self.lengths.numel(), -1)
        if self.is_even:
            history = slot[:, : self.longest]
            clean = torch.full_like(history, CLEAN)
            return Keys(
                torch.cat([history, layout.position], 1),
                torch.cat([clean, layout.block], 1),
                torch.zeros_like(slot),
            )
        own = slot - self.lengths[:, None]
        inside = (own >= 0) & (own < layout.position.shape[1])
        own = own.clamp(0, layout.position.shape[1] - 1)
        committed = slot < self.lengths[:, None]
        position = torch.where(committed, slot, torch.where(inside, layout.position.gather(1, own), FAR))
        block = torch.where(inside, layout.block.gather(1, own), CLEAN)
        return Keys(position, block, torch.zeros_like(slot))

    def commit(self, counts: Tensor | int) -> None:
        """Make each row's first `counts` staged clean slots history: an int for all rows, or [B]."""
        count = counts if isinstance(counts, int) else None
        counts = torch.full_like(self.lengths, counts) if isinstance(counts, int) else counts
        for layer in self.layers:
            layer.commit(counts, count)
        self.lengths = self.lengths + counts
        if count is None:
            self.longest = int(self.lengths.max())
            self.is_even = bool((self.lengths == self.longest).all())
        else:
            self.longest += count
