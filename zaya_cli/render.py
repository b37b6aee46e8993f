"""Values to text: how a number, a step, a footer and a table of results read. It prints nothing itself.

Units follow the names: `_bytes` reads as GiB, `_seconds` as time, `num_` with thousands separated.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any, TextIO


def has_color(stream: TextIO) -> bool:
    """Whether escape codes may be written: on a real terminal, unless NO_COLOR says otherwise (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def in_bytes(count: float) -> str:
    """1288490189 -> `1.2 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def in_seconds(seconds: float) -> str:
    """0.314 -> `0.31 s`, 185 -> `3m05s`, 3725 -> `1h02m`."""
    if seconds < 60:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def short(number: float) -> str:
    """Four significant digits."""
    return f"{number:.4g}"


def thousands(number: float) -> str:
    """12345.6 -> `12,346`."""
    return f"{number:,.0f}"


METRICS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("loss", "loss", short),
    ("ar_loss", "ar_loss", short),
    ("diffusion_loss", "diffusion_loss", short),
    ("acceptance_length", "acceptance_length", short),
    ("lr", "lr", short),
    ("grad_norm", "grad_norm", short),
    ("tokens_per_second", "tok/s", thousands),
    ("memory_bytes", "memory", in_bytes),
    ("eta_seconds", "eta", in_seconds),
)
IN_BAR = ("loss", "acceptance_length", "tokens_per_second", "eta_seconds")


def metrics_line(values: Mapping[str, Any], total_steps: int) -> str:
    """One logged step as a line: `step 10/200 loss 5.1 ... eta 3m05s`."""
    step = [f"step {values['step']}/{total_steps}"] if "step" in values else []
    return " ".join([*step, *_figures(values)])


def bar_figures(values: Mapping[str, Any]) -> str:
    """The few figures that fit beside a progress bar."""
    return " ".join(_figures({key: values[key] for key in IN_BAR if key in values}))


def _figures(values: Mapping[str, Any]) -> list[str]:
    return [f"{label} {write(values[key])}" for key, label, write in METRICS if values.get(key) is not None]


def amount(done: float, total: float, unit: str) -> str:
    """How far a piece of work is: `1.2 GiB / 3.4 GiB`, `10 / 200 steps`."""
    if unit == "B":
        return f"{in_bytes(done)} / {in_bytes(total)}"
    return f"{thousands(done)} / {thousands(total)} {unit}"


FOOTER: tuple[tuple[str, Callable[[Any], str]], ...] = (
    ("num_tokens", lambda value: f"{value} tokens"),
    ("tokens_per_second", lambda value: f"{value:.1f} tok/s"),
    ("time_to_first_token_seconds", lambda value: f"first token {in_seconds(value)}"),
    ("tokens_per_forward", lambda value: f"{value:.2f} tokens/forward"),
    ("acceptance", lambda value: f"acceptance {value}"),
    ("peak_memory_bytes", lambda value: f"peak {in_bytes(value)}"),
    ("batch_size", lambda value: f"batch {value}"),
    ("dtype", str),
    ("device", str),
    ("sampler", str),
)


def footer(stats: Mapping[str, Any]) -> str:
    """A completion's speed and the conditions it was measured under, on one line; what was not measured is left out."""
    known = {"time_to_first_token_seconds": stats.get("prefill_seconds"), **stats}
    known["acceptance"] = _acceptance(stats.get("acceptance_histogram") or [])
    return " · ".join(write(known[key]) for key, write in FOOTER if known.get(key) is not None)


def _acceptance(histogram: list[int]) -> str | None:
    """Mean tokens committed by a forward, of the block's length; entry i counts forwards that committed i + 1."""
    if len(histogram) < 2 or not sum(histogram):
        return None
    mean = sum((index + 1) * count for index, count in enumerate(histogram)) / sum(histogram)
    return f"{mean:.1f}/{len(histogram)}"


def document_line(row: Mapping[str, Any], number: int) -> str:
    """The heading of one document of a training row, as `zaya_core.data.inspect` gives it."""
    tokens = row["documents"][number]["tokens"]
    counts = (
        f"{len(tokens)} tokens, {sum(weight > 0 for _, _, weight, _ in tokens)} with a loss, {sum(t[3] for t in tokens)} blocks"
    )
    padding = f", then {row['num_padding']} of padding" if number == len(row["documents"]) - 1 and row["num_padding"] else ""
    return f"row {row['row']}, document {number}: {counts}{padding}; ¦ begins a block, ⟦⟧ has no loss"


def token_runs(tokens: Iterable[tuple[int, str, float, bool]]) -> Iterator[tuple[str, bool]]:
    """Runs of (text, does it carry a loss), a mark before each token where a block begins."""
    for has_loss, run in groupby(tokens, key=lambda token: token[2] > 0):
        yield "".join(("¦" if begins else "") + text for _, text, _, begins in run), has_loss


def table_rows(values: Mapping[str, Any], depth: int = 0) -> Iterator[tuple[str, str]]:
    """(key, text) of a result; what is nested follows its key, two spaces deeper."""
    for key, value in values.items():
        name = "  " * depth + str(key)
        if isinstance(value, Mapping) and value:
            yield name, ""
            yield from table_rows(value, depth + 1)
        elif isinstance(value, (list, tuple)) and any(isinstance(part, Mapping) for part in value):
            yield from table_rows({f"{key}[{index}]": part for index, part in enumerate(value)}, depth)
        elif isinstance(value, (list, tuple)) and any(" " in str(part) for part in value):
            # Sentences: a line each under one key.
            yield from ((name if index == 0 else "", str(part)) for index, part in enumerate(value))
        else:
            yield name, cell(str(key), value)


def cell(key: str, value: Any) -> str:
    """A value as people read it, by its key's unit."""
    if value is None or value == [] or value == {}:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(cell(key, part) for part in value)
    if not isinstance(value, (int, float)):
        return str(value)
    return _number(key, value)


def _number(key: str, value: float) -> str:
    if key.endswith("_bytes"):
        return in_bytes(value)
    if key.endswith("_seconds"):
        return in_seconds(value)
    if key.startswith("num_"):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
