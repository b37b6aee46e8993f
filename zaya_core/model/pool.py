"""What sequences leave behind: K, V and the tails that CCA's time shifts reach back to, of many rows side by side.

Every row owns a span of the pool's slots, and a forward takes the slots of all its rows laid end to end, with no padding.
Invariant: a forward only stages; `commit` alone makes history. Clean slots come first in each part, in order, so committing n
of them advances a length and keeps the right tails, and rolling back is doing nothing. History is never copied.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from zaya_core.config import ModelConfig
from zaya_core.errors import ConfigError
from zaya_core.layout import HISTORY, Layout, side_by_side
from zaya_core.ops.attention import View
from zaya_core.ops.looks import Look, Looks, looks_of
from zaya_core.ops.norm import widened

MARK = 64  # tokens between two lengths at which a row can be continued by another


@dataclass(eq=False)
class Row:
    """A sequence: its span of slots, the number of committed tokens, and tails [L, HISTORY, W] kept at some lengths on the way."""

    number: int
    begin: int
    capacity: int
    length: int = 0
    marks: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """One row's share of a forward: its slots as a `layout.template`, and where they stand in both."""

    row: Row
    step: Layout
    slots: slice  # of the forward
    staged: slice  # of the pool


@dataclass(frozen=True)
class LayerPool:
    """One layer of one forward, all views of the pool.

    `joined` [HISTORY * parts + T, W] holds the tails of the rows, then what the layer puts into `fresh` [T, W]; `into` are the
    places for K and V of each part [G, T_i, N]; `stored` is all of K and V [1, G, slots, N].
    """

    joined: Tensor
    fresh: Tensor
    parts: Sequence[Part]
    into: Sequence[tuple[Tensor, Tensor]]
    stored: tuple[Tensor, Tensor]

    def prepend(self, latents: Tensor, values: Tensor, empty: tuple[Tensor, Tensor], layout: Layout) -> tuple[Tensor, Tensor]:
        """As LayerPast says, for one row of slots [1, T, C]."""
        width = latents.shape[2] + values.shape[2]
        self.fresh[:, :width].copy_(torch.cat([latents, values], -1)[0])
        joined = self.joined[None, :, :width].to(latents.dtype)
        return joined[..., : latents.shape[2]], joined[..., latents.shape[2] :]

    def stage(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write [1, G, T, N] after each row's history; returns all keys and values of the pool [1, G, slots, N]."""
        for part, (k_into, v_into) in zip(self.parts, self.into, strict=True):
            k_into.copy_(k[0, :, part.slots])
            v_into.copy_(v[0, :, part.slots])
        return self.stored


class Pool:
    """The histories of up to `max_rows` rows in `num_slots` slots. Rows are opened and closed at will."""

    def __init__(self, config: ModelConfig, empty: Tensor, num_slots: int, *, max_rows: int, marks: bool = False) -> None:
        """`empty` [L, W] is what stands before a document, as `empty_step` makes it. With `marks`, rows can be `continued`."""
        self._marks = marks
        self.config, self.num_slots, self.max_rows, self.device = config, num_slots, max_rows, empty.device
        groups, width = config.num_key_value_heads, config.head_dim
        # Zeros, which the kernel gives when they are touched: a hidden key still enters a product, and 0 * nan is nan.
        self._stored = torch.zeros(len(empty), 2 * groups, num_slots, width, dtype=empty.dtype, device=self.device)
        self._empty = empty.to(widened(empty.dtype))
        self.tails = self._empty[:, None].repeat(1, max_rows * HISTORY, 1)
        self.joined = self.tails
        self._rows: list[Row] = []
        self._at: list[int] = []  # this forward's rows' tails
        self.parts: list[Part] = []
        self._layers: list[LayerPool] = []

    @property
    def rows(self) -> list[Row]:
        """Those that are open."""
        return list(self._rows)

    @property
    def num_past(self) -> int:
        """Time steps of history before the slots of this forward."""
        return HISTORY * len(self.parts)

    @property
    def is_chain(self) -> bool:
        """Is this forward one row's clean slots alone, each after its left neighbour?"""
        return len(self.parts) == 1 and self.parts[0].step.num_clean == self.parts[0].step.position.shape[1]

    def gap_for(self, capacity: int, *, without: Sequence[Row] = ()) -> int | None:
        """Where a row of this capacity can begin, now or if some rows were closed; None if nowhere."""
        rows = [row for row in self._rows if row not in without]
        if len(rows) >= self.max_rows:
            return None
        end = 0
        for row in sorted(rows, key=lambda row: row.begin):
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
        self.tails[:, self._tail(row)] = self._empty[:, None]
        return row

    def close(self, row: Row) -> None:
        """Give its slots back."""
        self._rows.remove(row)

    def shrink(self, row: Row) -> None:
        """Give back the slots that a row has not used; it will not go on."""
        row.capacity = row.length

    def continued(self, row: Row, source: Row, length: int) -> None:
        """Begin an empty row with the first `length` tokens of another, one of its marks: K, V and tails are copied."""
        begin = slice(row.begin, row.begin + length)
        self._stored[:, :, begin] = self._stored[:, :, source.begin : source.begin + length]
        self.tails[:, self._tail(row)] = source.marks[length]
        row.length, row.marks = length, {at: tails for at, tails in source.marks.items() if at <= length}

    def layout(self, steps: Sequence[tuple[Row, Layout]]) -> Layout:
        """The slots of one forward [1, T]: each row's step after its history, end to end."""
        layout = self._placed(steps)
        self._begin(self.num_past + layout.position.shape[1])
        return layout.to(self.device)

    def _placed(self, steps: Sequence[tuple[Row, Layout]]) -> Layout:
        """Takes the steps in as `parts`; their layout on the host."""
        self.parts, done = [], 0
        for row, step in steps:
            count, begin = step.position.shape[1], row.begin + row.length
            if row.length + count > row.capacity:
                raise ConfigError(f"a step of {count} slots does not fit into the {row.capacity - row.length} left of its row")
            self.parts.append(Part(row, step, slice(done, done + count), slice(begin, begin + count)))
            done += count
        self._at = [at for row, _ in steps for at in range(self._tail(row).start, self._tail(row).stop)]
        return side_by_side([step for _, step in steps], [row.length for row, _ in steps])

    def _begin(self, end: int) -> None:
        """Room for a forward's time steps, with the rows' tails before them."""
        if self.joined.shape[1] < end or self.joined is self.tails:
            self.joined = self.tails.new_empty(self.tails.shape[0], end, self.tails.shape[2])
        self.joined[:, : self.num_past] = self.tails.index_select(1, torch.tensor(self._at, device=self.device))
        self._layers = []

    @property
    def storage(self) -> tuple[Tensor, Tensor]:
        """All of a forward's time steps [L, .., W], tails first, and of K and V [L, 2 G, slots, N]."""
        return self.joined, self._stored

    @property
    def layers(self) -> list[LayerPool]:
        """The same, layer by layer: made in one go, these views cost a fraction of what they cost one by one."""
        if self._layers:
            return self._layers
        groups, num_past = self.config.num_key_value_heads, self.num_past
        end = num_past + self.parts[-1].slots.stop
        keys, values = self._stored[:, None, :groups], self._stored[:, None, groups:]
        into = [zip(keys[:, 0, :, p.staged].unbind(), values[:, 0, :, p.staged].unbind(), strict=True) for p in self.parts]
        each = (
            self.joined[:, :end].unbind(),
            self.joined[:, num_past:end].unbind(),
            zip(*into, strict=True),
            zip(keys.unbind(), values.unbind(), strict=True),
        )
        self._layers = [LayerPool(joined, fresh, self.parts, slots, all_) for joined, fresh, slots, all_ in zip(*each, strict=True)]
        return self._layers

    def view(self, layout: Layout, window: int | None) -> View:
        """Who sees whom in this forward."""
        return Looks([look for part in self.parts for look in self._looks(part, window)])

    def _looks(self, part: Part, window: int | None) -> list[Look]:
        return [
            look.moved(part.slots.start, part.row.begin)
            for look in looks_of(part.step, part.row.length, window, self._stored.dtype)
        ]

    def commit(self, counts: Sequence[int]) -> None:
        """Make the first `counts` staged clean slots of each part history."""
        taken = []
        for number, (part, count) in enumerate(zip(self.parts, counts, strict=True)):
            assert count <= part.step.num_clean, (count, part.step.num_clean)
            first = self.num_past + part.slots.start
            # The newest two of [tail | slots], which stand apart where there are several parts.
            steps = [*range(number * HISTORY, (number + 1) * HISTORY), *range(first, first + count)]
            taken += steps[-HISTORY:]
            length = part.row.length
            for at in range(length // MARK * MARK + MARK, length + count + 1, MARK) if self._marks else ():
                part.row.marks[at] = self.joined[:, torch.tensor(steps[at - length : at - length + HISTORY])]
            part.row.length += count
        taken_at, at = torch.tensor([taken, self._at]).to(self.device, non_blocking=True)
        self.tails.index_copy_(1, at, self.joined.index_select(1, taken_at))

    def fill(self) -> None:
        """Random keys and values everywhere, to time with: what an allocation happens to hold may be slow, or not a number."""
        self._stored.normal_()

    def _tail(self, row: Row) -> slice:
        return slice(row.number * HISTORY, (row.number + 1) * HISTORY)


def empty_step(config: ModelConfig, delayed: nn.Linear) -> Tensor:
    """What stands before a document [C + G N]: zero latents, the delayed values of a zero hidden state, room for current ones."""
    empty = delayed.weight.new_zeros(config.conv_channels + 2 * config.value_half)
    if config.attention_bias:
        empty[config.conv_channels : -config.value_half] = delayed.bias
    return empty
