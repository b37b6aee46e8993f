"""Decoding on a GPU: a forward has one of few shapes, and all that varies within a shape lies in one tensor of integers.

So the work of a step is captured as a graph at its shape's second forward and replayed from then on: one launch instead of
hundreds, and nothing is read back on the way. CUDA and HIP share the API, of which CUDA's was run (recipes/bench/gpu.py).
Without a GPU the same program runs uncaptured, as the tests do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from zaya_core.config import ModelConfig
from zaya_core.layout import HISTORY, Layout
from zaya_core.model.pool import Pool, Row
from zaya_core.model.serving import ServingModel, Step, taps_of
from zaya_core.ops.products import padded
from zaya_core.ops.spans import PADDED, Spans

MOST_CLEAN = 64  # tokens of a row that are a step; more are a prompt's chunk, whose shapes do not come back
MOST_SLOTS = 8192  # of a graph: what it computes with stays allocated
TILE = 16  # slots that one program of the attention kernel takes
NOWHERE = 2**30  # first slot of a tile that is none


@dataclass(frozen=True)
class Shape:
    """What a program is made for: slots and rows, both rounded up, and the slots of a tile."""

    slots: int
    rows: int
    tile: int

    @property
    def num_tiles(self) -> int:
        """Enough for any rows of so many slots."""
        return self.rows if self.tile == 1 else self.slots // self.tile + self.rows

    @cached_property
    def sizes(self) -> dict[str, int]:
        """The integers of a forward, in the order in which they lie."""
        each = dict.fromkeys(("token", "position", "start", "block", "place", "older", "prev"), self.slots)
        return each | {"tails": HISTORY * self.rows, "rows": 4 * self.rows, "tiles": 2 * self.num_tiles}


@dataclass(frozen=True)
class StaticLayer:
    """One layer of a forward, as `LayerPool`; K and V go to the slots `place` [T] of the pool."""

    joined: Tensor
    fresh: Tensor
    place: Tensor
    stored: tuple[Tensor, Tensor]

    def stage(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """[1, G, T, N] -> all keys and values of the pool [1, G, slots, N]."""
        for into, new in zip(self.stored, (k, v), strict=True):
            into[0].index_copy_(1, self.place, new[0].to(into.dtype))
        return self.stored


class StaticPool(Pool):
    """A pool whose forwards are described by integers alone. One slot and one row more take what padding leaves behind."""

    def __init__(self, config: ModelConfig, empty: Tensor, num_slots: int, *, max_rows: int, marks: bool = False) -> None:
        super().__init__(config, empty, num_slots + 1, max_rows=max_rows + 1, marks=marks)
        self.num_slots, self.max_rows = num_slots, max_rows
        self.shape, self.programs = Shape(1, 1, 1), dict[Shape, Program]()
        self.graph_memory = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None
        groups = config.num_key_value_heads
        self.stored = [(part[None, :groups], part[None, groups:]) for part in self._stored]
        self._room = self.tails[:, :0]

    @property
    def num_past(self) -> int:
        """As of a pool, with the rows that pad."""
        return HISTORY * self.shape.rows

    @property
    def is_step(self) -> bool:
        """May this forward's shape come back?"""
        return self.shape.slots <= MOST_SLOTS and all(part.step.num_clean <= MOST_CLEAN for part in self.parts)

    def layout(self, steps: Sequence[tuple[Row, Layout]]) -> Layout:
        """As of a pool, but on the host."""
        layout = self._placed(steps)
        slots, rows = layout.position.shape[1], len(steps)
        tile = TILE if slots > rows else 1
        self.shape = Shape(padded(slots, TILE) if slots > TILE else _power(slots), _power(rows), tile)
        return layout

    def room(self) -> Tensor:
        """Where this forward's time steps stand [L, slots, W]: one place for all shapes, since one forward follows another."""
        slots = self.num_past + self.shape.slots
        if self._room.shape[1] < slots:
            # A captured program holds on to the smaller one before; doubled, all of them take no more than the newest again.
            self._room = self.tails.new_empty(len(self.tails), max(slots, 2 * self._room.shape[1]), self.tails.shape[2])
        return self._room[:, :slots]

    def numbers(self, token_ids: Tensor, layout: Layout) -> Tensor:
        """The integers of the forward that `layout` just laid out, end to end as `Shape.sizes` says; token ids [T]."""
        shape, parts = self.shape, self.parts
        taps = taps_of(layout.prev[0], HISTORY * len(parts)).view(-1, 3)
        taps = torch.where(taps < HISTORY * len(parts), taps, taps + HISTORY * (shape.rows - len(parts)))
        tails = [tail for part in parts for tail in range(part.row.number * HISTORY, (part.row.number + 1) * HISTORY)]
        spans = [(part.row.begin, part.row.length, part.slots.start, part.slots.stop - part.slots.start) for part in parts]
        tiles = [(number, slot) for number, span in enumerate(spans) for slot in range(0, span[3], shape.tile)]
        tiles += [(0, NOWHERE)] * (shape.num_tiles - len(tiles))
        found = {
            "token": (token_ids, 0),
            "position": (layout.position[0], 0),
            "start": (layout.start[0], 0),
            "block": (layout.block[0], PADDED),
            "place": (torch.cat([torch.arange(part.staged.start, part.staged.stop) for part in parts]), self.num_slots),
            "older": (taps[:, 0], 0),
            "prev": (taps[:, 1], 0),
            "tails": (torch.tensor(tails), self.max_rows * HISTORY),
            "rows": (torch.tensor(spans).flatten(), 0),
            "tiles": (torch.tensor(tiles).flatten(), 0),
        }
        return torch.cat([F.pad(part, (0, shape.sizes[name] - len(part)), value=value) for name, (part, value) in found.items()])


def _power(count: int) -> int:
    return 1 << (count - 1).bit_length()


class StaticModel(ServingModel):
    """As `ServingModel`, for the pools that it makes. What it returns holds until the next forward over the same pool."""

    @property
    def captures(self) -> bool:
        """Does a step become a graph?"""
        return self.device.type == "cuda"

    @torch.inference_mode()
    def __call__(self, token_ids: Tensor, layout: Layout, pool: StaticPool, routing: list[Tensor] | None = None) -> Tensor:
        """Token ids [1, T], best on the host, -> hidden [1, T, D]."""
        count = token_ids.shape[1]
        program = pool.programs.get(pool.shape) or Program(pool)
        if pool.is_step:
            pool.programs[pool.shape] = program
        program(self, pool, pool.numbers(token_ids[0].cpu(), layout))
        pool.joined = program.joined
        if routing is not None:
            routing += [choice[:, :count] for choice in program.routing]
        return program.hidden[None, :count]

    def new_pool(self, num_slots: int, *, max_rows: int = 1, marks: bool = False) -> StaticPool:
        """An empty pool for this model."""
        empty = torch.stack([layer.attention.empty for layer in self.layers])
        return StaticPool(self.config, empty, num_slots, max_rows=max_rows, marks=marks)


class Program:
    """A forward of one shape over one pool: run as it is at first, captured at the second time.

    Leaves `hidden` [slots, D], each layer's choice [1, slots] in `routing`, and `joined` for the pool's commit.
    """

    def __init__(self, pool: StaticPool) -> None:
        self.shape = pool.shape
        self.joined = pool.room()
        self.numbers = torch.zeros(sum(self.shape.sizes.values()), dtype=torch.int64, device=pool.device)
        self.hidden, self.routing = self.joined, list[Tensor]()
        self.graph: torch.cuda.CUDAGraph | None = None
        self.has_run = False

    def __call__(self, model: StaticModel, pool: StaticPool, numbers: Tensor) -> None:
        """The model and the pool are those of the first time."""
        self.numbers.copy_(numbers, non_blocking=True)
        # The first run was the warm-up: kernels are compiled and libraries have their workspaces.
        if self.graph is None and self.has_run and model.captures:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool.graph_memory, capture_error_mode="thread_local"):
                self._run(model, pool)
            self.graph = graph  # now that it is whole: where memory ended meanwhile, the next forward tries again
        if self.graph is None:
            self._run(model, pool)
        else:
            self.graph.replay()
        self.has_run = True

    def _run(self, model: StaticModel, pool: StaticPool) -> None:
        sizes, slots = self.shape.sizes, self.shape.slots
        part = dict(zip(sizes, self.numbers.split(list(sizes.values())), strict=True))
        place, num_past = part["place"], HISTORY * self.shape.rows
        self.joined[:, :num_past] = pool.tails.index_select(1, part["tails"])
        layers = [
            StaticLayer(joined, joined[num_past:], place, stored)
            for joined, stored in zip(self.joined.unbind(), pool.stored, strict=True)
        ]
        own = torch.arange(num_past, num_past + slots, device=place.device)
        taps = None if slots == 1 else torch.stack([part["older"], part["prev"], own], -1).flatten()
        spans = (part["position"], part["start"], part["block"], part["rows"].view(-1, 4), part["tiles"].view(-1, 2))
        kinds = set(model.config.layer_types)
        views = {kind: Spans(*spans, self.shape.tile, model.config.window(kind)) for kind in kinds}
        step = Step(taps, model.turns(part["position"][None]), views, part["block"] == PADDED)
        self.routing = []
        self.hidden = model.run(part["token"], step, layers, self.routing)
