"""The quality-speed frontier as a picture: pass@1 with its interval over tokens per forward, and over tokens a second."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from zaya_core.errors import ConfigError
from zaya_core.evaluation.report import POOLED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SPEEDS = ("tokens/forward", "tokens/s")


def save_frontier(path: Path, rows: list[dict[str, Any]], *, title: str) -> None:
    """Write `path` in the format of its suffix, of the rows of `report.quality_rows`; needs matplotlib (the extra named plot)."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib", hint="pip install 'zaya[plot]'") from error
    figure = Figure(figsize=(14, 6), layout="constrained")
    figure.suptitle(title)
    for axes, speed in zip(figure.subplots(1, 2, sharey=True), SPEEDS, strict=True):
        _draw(axes, rows, speed)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--plot {path} cannot be written: {error}") from error


def _draw(axes: "Axes", rows: list[dict[str, Any]], speed: str) -> None:
    """A line for each task through its samplers; all tasks together thick, with names and intervals."""
    rows = [row for row in rows if row[speed] is not None]
    lines: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        lines.setdefault((row["model"], row["task"]), []).append(row)
    is_alone = len({task for _, task in lines}) == 1
    for (model, task), unsorted in lines.items():
        points = sorted(unsorted, key=lambda row: row[speed])
        is_main = is_alone or task == POOLED
        low, high = zip(*(_reach(row) for row in points), strict=True)
        axes.errorbar(
            [row[speed] for row in points],
            [row["pass@1"] for row in points],
            yerr=(low, high),
            marker="o",
            capsize=3,
            linewidth=2 if is_main else 0.7,
            alpha=1 if is_main else 0.5,
            label=f"{model}: {task}" if len({name for name, _ in lines}) > 1 else task,
        )
        for row in points if is_main else ():
            axes.annotate(row["sampler"], (row[speed], row["pass@1"]), textcoords="offset points", xytext=(6, 6), fontsize=9)
    axes.set(xlabel=speed, ylabel="pass@1", ylim=(0, 1))
    axes.set_xlim(0, 1.15 * max((row[speed] for row in rows), default=1))  # names stand right of their points
    axes.grid(alpha=0.3)


def _reach(row: dict[str, Any]) -> tuple[float, float]:
    low, high = row["pass@1_95%"]
    return max(0.0, row["pass@1"] - low), max(0.0, high - row["pass@1"])
