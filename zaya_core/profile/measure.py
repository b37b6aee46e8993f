"""Runs the real model: steps of a chosen shape over a made-up history, prompts decoded under watch, one prefill.

A step is what the engine's is without its bookkeeping: forward, the rows of the head that are read, their laws. History is random
K and V, because time does not depend on what they say. It draws no conclusions: those are `calibration`'s.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from zaya_core.config import ModelConfig
from zaya_core.engine.batch import Network
from zaya_core.layout import Layout, template
from zaya_core.model.pool import Pool
from zaya_core.profile.calibration import Timing
from zaya_core.profile.forward import Step, ar_step, tidar_step
from zaya_core.profile.machine import timed
from zaya_core.profile.routing import Seen

WARM_UP = 2  # rounds, of each pass: on a GPU the second captures
PASSES = 3
ENOUGH = 5  # rounds of a pass that agree
STEADY = 1.1  # times the fastest: what agrees


@dataclass(frozen=True)
class Shape:
    """A step to time; 0 proposals is an AR step."""

    batch: int
    context: int
    proposals: int


class Rig:
    """Steps of one shape, again and again over the same history: nothing is committed."""

    def __init__(self, model: Network, shape: Shape, block_length: int) -> None:
        self.model, self.shape, self.block_length = model, shape, block_length
        self.clean = block_length if shape.proposals else 1
        levels = _levels(shape.proposals, block_length)
        self.template = template(self.clean, levels, block_length if levels else 0)
        slots = self.template.position.shape[1]
        self.pool = model.new_pool(shape.batch * (shape.context + slots), max_rows=shape.batch, marks=False)
        self.rows = [self.pool.open(shape.context + slots) for _ in range(shape.batch)]
        self.pool.fill()
        for row in self.rows:
            row.length = shape.context
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(0, model.config.vocab_size, (shape.batch, slots), generator=generator)
        if levels and model.config.tidar is not None:
            ids[:, self.clean :] = model.config.tidar.mask_token_id
        elif levels:
            ids[:, self.clean :] = 0
        self.token_ids = ids.view(1, -1)
        first = torch.arange(shape.batch)[:, None] * slots
        self.judged = (first + torch.arange(self.clean)).flatten().to(model.device)
        self.drafted = (first + self.clean + torch.arange(1, block_length)).flatten().to(model.device)

    @torch.inference_mode()
    def step(self, routing: list[Tensor] | None = None) -> None:
        """One forward and the laws of its rows."""
        layout = self.pool.layout([(row, self.template) for row in self.rows])
        hidden = self.model(self.token_ids, layout, self.pool, routing)[0]
        self.model.logits(hidden[self.judged]).softmax(-1)
        if self.shape.proposals:
            self.model.logits(hidden[self.drafted]).softmax(-1)

    def distinct(self) -> float:
        """Experts hit by a step, the skip expert aside, averaged over the layers."""
        routing: list[Tensor] = []
        self.step(routing)
        return mean_distinct(routing, self.model.config.num_experts)

    def rounds(self, most_seconds: float) -> list[float]:
        """Seconds of rounds, after a warm-up: until `ENOUGH` are steady or the time is up, and at least two."""
        for _ in range(WARM_UP):
            self.step()
        began, seconds = time.perf_counter(), []
        while len(seconds) < 2 or time.perf_counter() - began < most_seconds:
            seconds.append(timed(self.step, self.model.device))
            fast = [taken for taken in seconds if taken <= STEADY * min(seconds)]
            if len(fast) >= ENOUGH:
                break
        return seconds

    def described(self) -> Step:
        """The same step for the arithmetic."""
        shape = self.shape
        if not shape.proposals:
            return ar_step(shape.batch, shape.context)
        return tidar_step(shape.batch, shape.context, clean=self.clean, proposals=shape.proposals, block_length=self.block_length)


def timings(model: Network, shapes: list[Shape], block_length: int, *, most_seconds: float) -> Iterator[tuple[int, list[Timing]]]:
    """All shapes, `PASSES` times over, so that what disturbs the machine for a while spoils no shape for good.

    Yields how many are done, and after the last one all timings in the order of `shapes`.
    """
    seconds: list[list[float]] = [[] for _ in shapes]
    made: dict[int, tuple[Step, float]] = {}
    for number in range(PASSES * len(shapes)):
        index = number % len(shapes)
        rig = Rig(model, shapes[index], block_length)
        seconds[index] += rig.rounds(most_seconds / PASSES)
        if index not in made:
            made[index] = rig.described(), rig.distinct()
        is_last = number + 1 == PASSES * len(shapes)
        yield number + 1, [Timing(made[at][0], tuple(seconds[at]), made[at][1]) for at in made] if is_last else []


def _levels(proposals: int, block_length: int) -> tuple[int, ...]:
    """That many levels, spread over the block; which ones makes no difference to the time."""
    return tuple(sorted({1 + index * block_length // proposals for index in range(proposals)})) if proposals else ()


def mean_distinct(routing: list[Tensor], num_experts: int) -> float:
    """Of a forward's choices, a tensor a layer."""
    return sum(int((choice.unique() < num_experts).sum()) for choice in routing) / len(routing)


def prefill_seconds(model: Network, num_tokens: int) -> float:
    """Of a prompt of random tokens, in one forward; the best of three."""
    pool = model.new_pool(num_tokens, max_rows=1, marks=False)
    row, step = pool.open(num_tokens), template(num_tokens)
    ids = torch.randint(0, model.config.vocab_size, (1, num_tokens))

    @torch.inference_mode()
    def run() -> None:
        model(ids, pool.layout([(row, step)]), pool, None)

    run()
    return min(timed(run, model.device) for _ in range(3))


@dataclass
class Watched:
    """A network that notes, for every forward through it, how many slots it had and which experts they chose."""

    model: Network
    seen: list[Seen] = field(default_factory=list)
    counts: Tensor | None = None

    @property
    def config(self) -> ModelConfig:
        """The model's."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """The model's."""
        return self.model.device

    def __call__(self, token_ids: Tensor, layout: Layout, past: Pool, routing: list[Tensor] | None = None) -> Tensor:
        """As the model."""
        choices: list[Tensor] = []
        hidden = self.model(token_ids, layout, past, choices)
        if routing is not None:
            routing += choices
        num_experts = self.config.num_experts
        masks = int((layout.block >= 0).sum())
        self.seen.append(Seen(token_ids.numel() - masks, masks, mean_distinct(choices, num_experts)))
        counted = torch.stack([choice.flatten().bincount(minlength=num_experts + 1)[:num_experts] for choice in choices])
        self.counts = counted if self.counts is None else self.counts + counted
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """As the model."""
        return self.model.logits(hidden)

    def new_pool(self, num_slots: int, *, max_rows: int, marks: bool) -> Pool:
        """As the model."""
        return self.model.new_pool(num_slots, max_rows=max_rows, marks=marks)

    def loads(self) -> tuple[tuple[float, ...], ...]:
        """Each layer's shares of its experts."""
        assert self.counts is not None, "nothing was run"
        return tuple(tuple((layer / layer.sum()).tolist()) for layer in self.counts.double())


def save_trace(path: Path, rig: Rig) -> None:
    """Two steps as a chrome trace (chrome://tracing, ui.perfetto.dev)."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if rig.model.device.type == "cuda" else [])]
    rig.step()
    with profile(activities=activities) as recorded:
        for _ in range(2):
            rig.step()
    recorded.export_chrome_trace(str(path))
