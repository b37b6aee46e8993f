"""What sequences leave behind: K, V and the tails that CCA's time shifts reach back to, of many rows side by side.

Every row owns a span of the pool's slots, and a forward takes the slots of all its rows laid end to end, with no padding.
Invariant: a forward only stages; `commit` alone makes history. Clean slots come first in each part, in order, so committing n
of them advances a length and keeps the right tails, and rolling back is doing nothing. History is never copied.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zaya_core.config import ModelConfig
from zaya_core.errors import ConfigError
from zaya_core.layout import CLEAN, FAR, HISTORY, Keys, Layout, side_by_side
from zaya_core.ops.attention import View
from zaya_core.ops.flex import flex_view
from zaya_core.ops.looks import Look, Looks, looks_of

UNUSED = -1  # document of a slot that belongs to no part of the forward


@dataclass
class Row:
    """A sequence: its span of slots, and how many tokens are committed."""

    number: int
    begin: int
    capacity: int
    length: int = 0


@dataclass(frozen=True)
class Part:
    """One row's share of a forward: its slots as `layout.step` made them, from position 0."""

    row: Row
    step: Layout

    @property
    def num_slots(self) -> int:
        """Of the forward."""
        return self.step.position.shape[1]

    @property
    def staged(self) -> slice:
        """Where its K and V go in the pool."""
        begin = self.row.begin + self.row.length
        return slice(begin, begin + self.num_slots)


class LayerPool:
    """One layer: K then V [2G, slots, N]; joined raw latents and delayed values [rows * HISTORY, C + G N / 2] of the last tokens."""

    def __init__(self, config: ModelConfig, empty: Tensor, owner: "Pool") -> None:
        groups, width = config.num_key_value_heads, config.head_dim
        self.owner, self.groups, self.empty, self.channels = owner, groups, empty, config.conv_channels
        self.stored = torch.empty(2 * groups, owner.num_slots, width, dtype=empty.dtype, device=empty.device)
        self.tails = empty.repeat(owner.max_rows * HISTORY, 1)
        self._joined = self.tails

    def extend(self, joined: Tensor) -> Tensor:
        """[T, C + half] of this forward behind the tails of its rows: the array that `prev` indexes."""
        self._joined = torch.cat([self.owner.tails_of(self.tails), joined])
        return self._joined

    def prepend(self, latents: Tensor, values: Tensor, empty: tuple[Tensor, Tensor], layout: Layout) -> tuple[Tensor, Tensor]:
        """As LayerPast says, for one row of slots [1, T, C]."""
        joined = self.extend(torch.cat([latents, values], -1)[0])[None]
        return joined[..., : self.channels], joined[..., self.channels :]

    def stage(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write [1, G, T, N] after each row's history; returns all keys and values of the pool [1, G, slots, N]."""
        done = 0
        for part in self.owner.parts:
            slots = slice(done, done + part.num_slots)
            self.stored[: self.groups, part.staged] = k[0, :, slots]
            self.stored[self.groups :, part.staged] = v[0, :, slots]
            done = slots.stop
        return self.stored[None, : self.groups], self.stored[None, self.groups :]

    def keep(self, to: Tensor, taken: Tensor) -> None:
        """Make some of the staged time steps the tails of their rows."""
        self.tails[to] = self._joined[taken]


class Pool:
    """The histories of up to `max_rows` rows in `num_slots` slots. Rows are opened and closed at will."""

    def __init__(self, config: ModelConfig, empty: Sequence[Tensor], num_slots: int, *, max_rows: int) -> None:
        """`empty` [C + G N / 2]: what stands before a document, in each layer."""
        self.num_slots, self.max_rows, self.device = num_slots, max_rows, empty[0].device
        self.layers = [LayerPool(config, part, self) for part in empty]
        self.parts: list[Part] = []
        self._rows: list[Row] = []
        self._tails = torch.arange(0)

    @property
    def num_past(self) -> int:
        """Time steps of history before the slots of this forward."""
        return HISTORY * len(self.parts)

    def gap_for(self, capacity: int) -> int | None:
        """Where a row of this capacity can begin now, or None."""
        if len(self._rows) >= self.max_rows:
            return None
        end = 0
        for row in sorted(self._rows, key=lambda row: row.begin):
            if row.begin - end >= capacity:
                return end
            end = row.begin + row.capacity
        return end if self.num_slots - end >= capacity else None

    def open(self, capacity: int) -> Row:
        """A new row, empty; ConfigError where there is no room for it."""
        begin = self.gap_for(capacity)
        if begin is None:
            raise ConfigError(f"no room for {capacity} slots in a pool of {self.num_slots} with {len(self._rows)} rows")
        number = min(set(range(self.max_rows)) - {row.number for row in self._rows})
        row = Row(number, begin, capacity)
        self._rows.append(row)
        for layer in self.layers:
            layer.tails[number * HISTORY : (number + 1) * HISTORY] = layer.empty
        return row

    def close(self, row: Row) -> None:
        """Give its slots back."""
        self._rows.remove(row)

    def layout(self, parts: Sequence[tuple[Row, Layout]]) -> Layout:
        """The slots of one forward [1, T]: each row's step after its history, end to end."""
        self.parts = [Part(row, step) for row, step in parts]
        for part in self.parts:
            room = part.row.capacity - part.row.length
            if part.num_slots > room:
                raise ConfigError(f"a step of {part.num_slots} slots does not fit into the {room} that its row has left")
        numbers = torch.tensor([part.row.number for part in self.parts], device=self.device)
        self._tails = (numbers[:, None] * HISTORY + torch.arange(HISTORY, device=self.device)).flatten()
        return side_by_side([part.step for part in self.parts], [part.row.length for part in self.parts])

    def tails_of(self, tails: Tensor) -> Tensor:
        """Those of the rows in this forward, in its order."""
        return tails[self._tails]

    def view(self, layout: Layout, window: int | None) -> View:
        """Who sees whom in this forward."""
        if self.device.type == "cuda":
            return flex_view(layout, self.keys(layout), window)
        looks, done = [], 0
        for part in self.parts:
            looks += [look.moved(done, part.row.begin) for look in looks_of(part.step, part.row.length, window)]
            done += part.num_slots
        return Looks(looks)

    def keys(self, layout: Layout) -> Keys:
        """Every slot of the pool as a key: the documents of `layout` number its parts."""
        position = torch.full((1, self.num_slots), FAR, device=self.device)
        block, document = torch.full_like(position, CLEAN), torch.full_like(position, UNUSED)
        done = 0
        for number, part in enumerate(self.parts):
            begin, slots = part.row.begin, slice(done, done + part.num_slots)
            position[0, begin : part.staged.start] = torch.arange(part.row.length, device=self.device)
            position[0, part.staged], block[0, part.staged] = layout.position[0, slots], layout.block[0, slots]
            document[0, begin : part.staged.stop] = number
            done = slots.stop
        return Keys(position, block, document)

    def commit(self, counts: Sequence[int]) -> None:
        """Make the first `counts` staged clean slots of each part history."""
        taken, done = [], self.num_past
        for number, (part, count) in enumerate(zip(self.parts, counts, strict=True)):
            assert count <= part.step.num_clean, (count, part.step.num_clean)
            # The newest two of [tail | slots]; the tail is not next to the slots where there are several parts.
            steps = [*range(number * HISTORY, (number + 1) * HISTORY), *range(done, done + count)]
            taken += steps[-HISTORY:]
            part.row.length += count
            done += part.num_slots
        index = torch.tensor(taken, device=self.device)
        for layer in self.layers:
            layer.keep(self._tails, index)
