"""`--dry-run` of a training stage: will it fit, and how long will it take? Reads no weights, no data, and needs no GPU."""

import os
import re
from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING

from zaya_core.errors import ConfigError
from zaya_core.events import Event, Note, Result, Warn
from zaya_core.stages.training import TrainConfig

if TYPE_CHECKING:
    from zaya_core.config import ModelConfig
    from zaya_core.train.plan import Work

PLACE = re.compile(r"(\d+)x([a-z0-9]+)")


def planned(config: TrainConfig, model: "ModelConfig") -> Iterator[Event]:
    """A table with a column per --plan-for (this machine where there is none), then the run in figures."""
    from zaya_core.train.plan import ASSUMED_UTILISATION, cure, flops_of

    columns, warnings = {}, []
    for name, world, room, flops in [_place(text) for text in config.plan_for] or [_here()]:
        work = _work(config, world)
        columns[name] = _column(model, work, room, flops)
        if columns[name]["fits"] == "no":
            warnings.append(Warn(f"{name}: will not fit: set {cure(model, work, room)}"))
    yield Note(f"assumed: {ASSUMED_UTILISATION:.0%} of the devices' peak bfloat16 FLOP/s; equal shares; no rank waits for another")
    rows = next(iter(columns.values()))
    yield Result({"table": [{"of one rank": row} | {name: column[row] for name, column in columns.items()} for row in rows]})
    yield from warnings
    tokens, total = work.clean_tokens, flops_of(model, work)  # of the last column
    yield Result({"dry_run": True, "path": str(config.out), "clean_tokens": tokens, "flops": total})


def _work(config: TrainConfig, world: int) -> "Work":
    from zaya_core.train.plan import Work

    expert, context = config.expert_parallel, config.context_parallel
    if world % (expert * context):
        raise ConfigError(f"--expert-parallel {expert} x --context-parallel {context} does not divide {world} ranks")
    given = {f.name: getattr(config, f.name) for f in fields(Work) if f.name not in ("world", "expert", "context")}
    return Work(**given, world=world, expert=expert, context=context)


def _column(model: "ModelConfig", work: "Work", room: float, flops: float | None) -> dict[str, str]:
    from zaya_core.train.plan import flops_of, hours_of, memory_of

    parts = memory_of(model, work)
    total, save, resume = (parts.pop(f"{name}_bytes") for name in ("total", "save", "resume"))
    sums = {"all": total, "it has": room, "peak of a resume": resume, "a save, of the first rank's host": save}
    column = {f"{key.removesuffix('_bytes')} GB": _gigabytes(value) for key, value in (parts | sums).items()}
    column["fits"] = "yes" if max(total, resume) <= room else "no"
    column["clean tokens of the run"] = f"{work.clean_tokens:.3g}"
    column["hours of the run"] = "-" if flops is None else f"{hours_of(flops_of(model, work), work, flops):,.1f}"
    return column


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.3g}" if count < 1e12 else f"{count / 1e9:.0f}"


def _place(text: str) -> tuple[str, int, float, float | None]:
    """Name, ranks, bytes of each, FLOP/s of each."""
    from zaya_core.devices import find_device

    found = PLACE.fullmatch(text.lower())
    if not found:
        raise ConfigError(f"--plan-for is {text!r}, expected COUNTxDEVICE such as 8xmi300x")
    sheet = find_device(found[2])
    return text, int(found[1]), sheet.memory_bytes, sheet.flops


def _here() -> tuple[str, int, float, float | None]:
    from zaya_core.runtime import available_memory_bytes

    world = int(os.environ.get("WORLD_SIZE", "1"))
    # Its ranks may be on many machines; this one's memory is for its own.
    return f"{world} here", world, available_memory_bytes() / int(os.environ.get("LOCAL_WORLD_SIZE", world)), None
