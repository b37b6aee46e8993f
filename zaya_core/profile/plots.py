"""Three pictures in one file: roofline with both steps, speed-up over batch and context, break-even acceptance."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from zaya_core.errors import ConfigError
from zaya_core.profile.forward import Step, ar_step, tidar_step
from zaya_core.profile.report import Grid
from zaya_core.profile.roofline import total
from zaya_core.profile.sweep import Cell, Scene

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def save_plot(
    path: Path, scene: Scene, grid: Grid, best: dict[tuple[int, int], Cell], edges: list[dict[str, object]], *, title: str
) -> None:
    """Write `path` in the format of its suffix; needs matplotlib (the extra named plot)."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib", hint="pip install 'zaya[plot]'") from error
    figure = Figure(figsize=(19, 6), layout="constrained")
    roof, heat, edge = figure.subplots(1, 3)
    figure.suptitle(title)
    draw_roofline(roof, scene, grid, best)
    draw_speed_up(heat, grid, best)
    draw_break_even(edge, grid, edges)
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--plot {path} cannot be written: {error}") from error


def draw_roofline(axes: "Axes", scene: Scene, grid: Grid, best: dict[tuple[int, int], Cell]) -> None:
    """Whole forwards as points: FLOP per byte against the FLOP/s that the model of the step gives them."""
    flops, bandwidth = scene.pace.flops, scene.pace.bandwidth
    reach = [10 ** (power / 10) for power in range(-5, 41)]
    axes.loglog(reach, [min(flops, x * bandwidth) / 1e12 for x in reach], color="black", linewidth=1)
    context = grid.contexts[len(grid.contexts) // 2]
    batches = [batch for batch in grid.batches if best[batch, context].fits]
    for name, marker, color in (("AR", "o", "tab:blue"), ("TiDAR", "s", "tab:orange")):
        points = [_point(scene, _step(scene, best[batch, context], name)) for batch in batches]
        axes.plot(*zip(*points, strict=True), marker=marker, color=color, linewidth=0.6, label=f"{name} step")
        for at, batch in enumerate(batches):
            if at in (0, len(batches) - 1):
                axes.annotate(f"batch {batch}", points[at], textcoords="offset points", xytext=(7, -11), fontsize=8)
    axes.axvline(flops / bandwidth, color="grey", linestyle=":", linewidth=1)
    axes.annotate(f"ridge {flops / bandwidth:.0f}", (flops / bandwidth, axes.get_ylim()[0] * 1.5), fontsize=8, rotation=90)
    axes.set(title=f"Roofline, context {context}", xlabel="FLOP per byte moved", ylabel="TFLOP/s")
    axes.legend(loc="upper left", fontsize=8)


def _step(scene: Scene, one: Cell, name: str) -> Step:
    if name == "AR":
        return ar_step(one.batch, one.context)
    proposals, block = max(1, one.proposals), one.block if one.proposals else scene.block_length
    return tidar_step(one.batch, one.context, clean=block, proposals=proposals, block_length=scene.block_length)


def _point(scene: Scene, step: Step) -> tuple[float, float]:
    cost = total(scene.parts(step))
    return cost.flops / cost.bytes, cost.flops / scene.seconds(step) / 1e12


def draw_speed_up(axes: "Axes", grid: Grid, best: dict[tuple[int, int], Cell]) -> None:
    """The best setting's speed-up, and how many blocks it proposes; blank where nothing fits the memory."""
    values = [[best[b, c].speed_up if best[b, c].fits else math.nan for c in grid.contexts] for b in grid.batches]
    high = max((value for line in values for value in line if value == value), default=1.0)
    image = axes.imshow(values, origin="lower", aspect="auto", cmap="viridis", vmin=1.0, vmax=max(high, 1.01))
    axes.set_xticks(range(len(grid.contexts)), [_short(context) for context in grid.contexts])
    axes.set_yticks(range(len(grid.batches)), [str(batch) for batch in grid.batches])
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            one = best[grid.batches[row], grid.contexts[column]]
            text = "no room" if value != value else f"{value:.2f}\n{one.proposals}p/{one.block}" if one.proposals else "AR"
            light = value == value and value < 1 + 0.6 * (high - 1)
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if light else "black")
    axes.figure.colorbar(image, ax=axes, label="speed-up over AR")
    axes.set(title="Best setting: speed-up, proposals/block", xlabel="context", ylabel="batch")


def draw_break_even(axes: "Axes", grid: Grid, edges: list[dict[str, object]]) -> None:
    """The acceptance per draft token from which diffusion wins, over the batch; a line a context."""
    for context in grid.contexts:
        points = [(line["batch"], _number(line[f"context {context}"])) for line in edges]
        known = [(batch, alpha) for batch, alpha in points if alpha is not None]
        if known:
            axes.semilogx(*zip(*known, strict=True), marker="o", markersize=4, base=2, label=f"context {_short(context)}")
    axes.set(title="Break-even: diffusion wins above the line", xlabel="batch", ylabel="acceptance of a draft token", ylim=(0, 1))
    axes.set_xticks(grid.batches, [str(batch) for batch in grid.batches])
    axes.legend(fontsize=8)


def _number(text: object) -> float | None:
    try:
        return float(str(text))
    except ValueError:
        return None


def _short(context: int) -> str:
    return f"{context // 1024}k" if context % 1024 == 0 else str(context)
