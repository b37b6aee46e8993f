"""What a TiDAR step costs and brings against an AR step, cell by cell: batch x context x proposals x block.

Both halves of every ratio come from the same arithmetic, device and dtype. A cell whose weights, history and working memory do not
fit the device is marked and never chosen.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from zaya_core.config import ModelConfig
from zaya_core.profile.acceptance import Acceptance, Expected, expected
from zaya_core.profile.forward import Cost, Step, ar_step, cost_of, kv_bytes, state_bytes, tidar_step, weight_bytes
from zaya_core.profile.roofline import Pace, seconds_of
from zaya_core.profile.routing import Routing

LOGITS_AT_ONCE = 2**28  # bytes: rows of logits are made and judged in pieces of this
USABLE = 0.92  # of the device's memory; the rest is the runtime's
ALPHAS = tuple(percent / 100 for percent in range(0, 100, 2))


@dataclass(frozen=True)
class Setting:
    """How to decode: `block` tokens verified at most and masks in each of `proposals` blocks; 0 proposals is the AR sampler."""

    block: int
    proposals: int


@dataclass(frozen=True)
class Scene:
    """A model on a device: everything a cell's figures depend on but the cell."""

    config: ModelConfig
    pace: Pace
    memory_bytes: float
    width: int
    routing: Routing
    acceptance: Acceptance
    loops: bool = False

    @property
    def block_length(self) -> int:
        """The trained block."""
        return self.acceptance.block_length

    @cached_property
    def weight_bytes(self) -> float:
        """Of the whole model."""
        return weight_bytes(self.config, self.width)

    def parts(self, step: Step) -> dict[str, Cost]:
        """The step's cost, part by part."""
        return cost_of(self.config, step, routing=self.routing, width=self.width, loops=self.loops)

    def seconds(self, step: Step) -> float:
        """Of one forward."""
        return seconds_of(self.parts(step), self.pace)

    def held_bytes(self, step: Step) -> float:
        """Weights, histories, the step's own slots and a piece of its logits."""
        history = step.rows * (kv_bytes(self.config, step.context + step.slots, self.width) + state_bytes(self.config, self.width))
        working = step.rows * step.slots * (8 * self.config.hidden_size + 4 * self.config.moe_intermediate_size) * self.width
        logits = 4 * step.rows * step.logit_rows * self.config.vocab_size
        return self.weight_bytes + history + working + min(logits, LOGITS_AT_ONCE)

    def fits(self, step: Step) -> bool:
        """Capacity check."""
        return self.held_bytes(step) <= USABLE * self.memory_bytes


@dataclass(frozen=True)
class Cell:
    """One setting at one batch and context, in the long run. `step_ratio` is of a whole step: full draft, all its proposals."""

    batch: int
    context: int
    block: int
    proposals: int
    ar_seconds: float
    step_seconds: float
    step_ratio: float
    tokens_per_forward: float
    speed_up: float
    memory_bytes: float
    fits: bool

    @property
    def tokens_per_second(self) -> float:
        """Of the whole batch, with this setting."""
        return self.batch * self.speed_up / self.ar_seconds


def cell(scene: Scene, batch: int, context: int, setting: Setting) -> Cell:
    """The figures of one setting. Speed-up counts the steps as they come: shifted drafts are shorter than whole ones."""
    ar = scene.seconds(ar_step(batch, context))
    if setting.proposals == 0:
        step = ar_step(batch, context)
        return Cell(batch, context, 1, 0, ar, ar, 1.0, 1.0, 1.0, scene.held_bytes(step), scene.fits(step))
    means = expected(scene.acceptance.cut(setting.block), proposals=setting.proposals)
    proposals = min(setting.proposals, setting.block)
    whole = tidar_step(batch, context, clean=setting.block, proposals=proposals, block_length=setting.block)
    whole_seconds = scene.seconds(whole)
    usual_seconds = scene.seconds(mean_step(batch, context, setting.block, means))
    return Cell(
        batch,
        context,
        setting.block,
        setting.proposals,
        ar,
        whole_seconds,
        whole_seconds / ar,
        means.tokens_per_forward,
        means.tokens_per_forward * ar / usual_seconds,
        scene.held_bytes(whole),
        scene.fits(whole),
    )


def mean_step(batch: int, context: int, block: int, means: Expected) -> Step:
    """The step of the long run's mean draft and proposals."""
    return tidar_step(batch, context, clean=means.clean, proposals=means.proposals, block_length=block)


def cells(scene: Scene, batches: list[int], contexts: list[int], settings: list[Setting]) -> Iterator[Cell]:
    """The whole grid."""
    for batch in batches:
        for context in contexts:
            for setting in settings:
                yield cell(scene, batch, context, setting)


def settings_of(blocks: list[int], proposals: list[int]) -> list[Setting]:
    """Every combination that differs: no more proposals than levels."""
    return [Setting(block, count) for block in blocks for count in proposals if 0 < count <= block]


def best_of(scene: Scene, batch: int, context: int, settings: list[Setting]) -> Cell:
    """The fastest setting that fits; the AR one where none is faster, or none fits."""
    plain = cell(scene, batch, context, Setting(1, 0))
    tried = [cell(scene, batch, context, setting) for setting in settings]
    return max([plain, *(one for one in tried if one.fits)], key=lambda one: one.speed_up)


def break_even(
    scene: Scene, batch: int, context: int, settings: list[Setting], remake: Callable[[float], Acceptance]
) -> float | None:
    """The smallest acceptance, to .02, from which some setting beats AR; None: never.

    `remake` gives the acceptance model of an alpha. The gain grows with it, so halving finds the edge.
    """
    ar = scene.seconds(ar_step(batch, context))

    def wins(alpha: float) -> bool:
        model = remake(alpha)
        for one in settings:
            means = expected(model.cut(one.block), proposals=one.proposals)
            if means.tokens_per_forward * ar > scene.seconds(mean_step(batch, context, one.block, means)):
                return True
        return False

    low, high = 0, len(ALPHAS)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if wins(ALPHAS[middle]) else (middle + 1, high)
    return ALPHAS[low] if low < len(ALPHAS) else None
