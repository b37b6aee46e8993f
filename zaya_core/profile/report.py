"""The analysis as tables: lists of rows that a terminal or a JSON reader can take. Every assumption is a line of `summary`."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from zaya_core.devices import Device
from zaya_core.profile.acceptance import Acceptance, expected
from zaya_core.profile.forward import Step, ar_step, kv_bytes, state_bytes, tidar_step
from zaya_core.profile.roofline import attention_intensity, free_slots, part_seconds, significant
from zaya_core.profile.sweep import Cell, Scene, Setting, best_of, break_even, cell
from zaya_core.settings import Settings, Tuned


@dataclass(frozen=True)
class Grid:
    """Which cells to look at."""

    batches: list[int]
    contexts: list[int]
    settings: list[Setting]


def summary(scene: Scene, device: Device) -> dict[str, Any]:
    """The model, the device, and how many blocks fit under its ridge, the verify block included in `max_blocks_per_forward`."""
    config, width = scene.config, scene.width
    intensity = attention_intensity(config, width)
    slots = free_slots(device, intensity)
    return {
        "device": device.name,
        "device_source": device.source,
        "peak_flops": device.flops,
        "peak_bandwidth": device.bandwidth,
        "ridge_flop_per_byte": device.ridge,
        "attention_flop_per_byte_per_slot": intensity,
        "free_slots": slots,
        "block_length": scene.block_length,
        "max_blocks_per_forward": slots / scene.block_length,
        "max_proposals": max(0.0, slots / scene.block_length - 1),
        "weights_bytes": scene.weight_bytes,
        "kv_per_token_bytes": kv_bytes(config, 1, width),
        "state_per_sequence_bytes": state_bytes(config, width),
        "device_memory_bytes": device.memory_bytes,
    }


def assumptions(scene: Scene, device: Device, acceptance: str) -> dict[str, Any]:
    """What the tables take for granted, each with the flag that turns it."""
    pace = scene.pace
    return {
        "acceptance (--acceptance)": acceptance,
        "tokens/forward, every level": expected(scene.acceptance, proposals=scene.block_length).tokens_per_forward,
        "used FLOP/s (--reached)": pace.flops,
        "used bytes/s (--reached)": pace.bandwidth,
        "reached by": device.reached_source or "nobody measured it",
        "us a launch (--launch-us)": pace.launch_seconds * 1e6,
        "routing correlation (--correlation)": scene.routing.correlation,
        "that of masks": scene.routing.mask_correlation,
        "routing loads": "measured" if scene.routing.loads else "equal shares",
        "element_bytes (--dtype)": str(scene.width),
        "parts of a forward": "one after the other, each at its own roof",
    }


def best_cells(scene: Scene, grid: Grid) -> dict[tuple[int, int], Cell]:
    """The best setting of every batch and context."""
    places = [(batch, context) for batch in grid.batches for context in grid.contexts]
    return {place: best_of(scene, *place, grid.settings) for place in places}


def speed_table(best: dict[tuple[int, int], Cell], grid: Grid) -> list[dict[str, Any]]:
    """A line a batch, a column a context: speed-up over AR and the setting that gives it."""
    return [
        {"batch": batch} | {f"context {context}": _brief(best[batch, context]) for context in grid.contexts}
        for batch in grid.batches
    ]


def _brief(one: Cell) -> str:
    if not one.fits:
        return "no room"
    return "1.00x ar" if one.proposals == 0 else f"{one.speed_up:.2f}x {one.proposals}p/{one.block}"


def break_even_table(scene: Scene, grid: Grid, remake: Callable[[float], Acceptance]) -> list[dict[str, Any]]:
    """A line a batch, a column a context: the acceptance from which some setting beats AR."""
    return [
        {"batch": batch} | {f"context {context}": _edge(scene, batch, context, grid, remake) for context in grid.contexts}
        for batch in grid.batches
    ]


def _edge(scene: Scene, batch: int, context: int, grid: Grid, remake: Callable[[float], Acceptance]) -> str:
    fitting = [one for one in grid.settings if cell(scene, batch, context, one).fits]
    if not fitting:
        return "no room"
    alpha = break_even(scene, batch, context, fitting, remake)
    return "never" if alpha is None else f"{alpha:.2f}"


def part_table(scene: Scene, batch: int, context: int, setting: Setting) -> list[dict[str, Any]]:
    """Where the time of an AR step and of a whole TiDAR step goes, part by part, and which roof each part is under."""
    tidar = tidar_step(batch, context, clean=setting.block, proposals=setting.proposals, block_length=setting.block)
    lines = []
    for name, step in (("ar", ar_step(batch, context)), (f"tidar {setting.proposals}p/{setting.block}", tidar)):
        lines += [_part(scene, name, batch, context, part, step) for part in scene.parts(step)]
    return lines


def _part(scene: Scene, name: str, batch: int, context: int, part: str, step: Step) -> dict[str, Any]:
    cost = scene.parts(step)[part]
    launches = cost.kernels * scene.pace.launch_seconds
    moved, computed = cost.bytes / scene.pace.bandwidth, cost.flops / scene.pace.flops
    bound = {moved: "memory", computed: "arithmetic", launches: "launches"}[max(moved, computed, launches)]
    return {
        "batch": batch,
        "context": context,
        "step": name,
        "part": part,
        "moved_bytes": cost.bytes,
        "GFLOP": significant(cost.flops / 1e9),
        "ms": significant(part_seconds(cost, scene.pace) * 1e3),
        "bound by": bound,
    }


def settings_from(
    best: dict[tuple[int, int], Cell], scene: Scene, *, model: str, device: str, dtype: str, acceptance: str
) -> Settings:
    """The best cells that fit, as the file that `generate --proposals auto` reads."""
    tuned = tuple(
        Tuned(one.batch, one.context, one.block, one.proposals, round(one.speed_up, 4)) for one in best.values() if one.fits
    )
    return Settings(model, device, dtype, acceptance, scene.block_length, tuned)


def cell_table(scene: Scene, grid: Grid) -> list[dict[str, Any]]:
    """Every cell of the sweep."""
    return [
        asdict(one) | {"tokens_per_second": one.tokens_per_second}
        for batch in grid.batches
        for context in grid.contexts
        for one in (cell(scene, batch, context, setting) for setting in grid.settings)
    ]
