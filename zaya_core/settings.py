"""The settings file: how to decode at which batch and context, as `zaya profile --save-settings` found it on a device.

    {"zaya_settings": 2, "model": NAME, "device": NAME, "dtype": NAME, "acceptance": TEXT, "block_length": 16,
     "cells": [{"batch": 1, "context": 4096, "block": 16, "proposals": 3, "speed_up": 2.1}, ...]}

`block` masks are a block, and as many tokens at most are verified; `proposals` 0 says that plain AR decoding is fastest there. A
choice depends on a request's own options and this file alone, so that a seeded request decodes the same whatever else runs
(tidar.md section 3).
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zaya_core.errors import ConfigError

SCHEMA = 2  # before it, `block` was what is verified of whole blocks
HEADER = ("model", "device", "dtype", "acceptance", "block_length")


@dataclass(frozen=True)
class Tuned:
    """One cell: the best setting at a batch and context, and what it is expected to bring over AR."""

    batch: int
    context: int
    block: int
    proposals: int
    speed_up: float


@dataclass(frozen=True)
class Settings:
    """Cells for one model on one device; never empty."""

    model: str
    device: str
    dtype: str
    acceptance: str
    block_length: int
    cells: tuple[Tuned, ...]

    def choose(self, batch: int, context: int) -> Tuned:
        """The cell nearest by ratio of batch and of context; the smaller one of two equally near."""

        def distance(cell: Tuned) -> tuple[float, int, int]:
            apart = abs(math.log(max(batch, 1) / cell.batch)) + abs(math.log(max(context, 1) / cell.context))
            return apart, cell.batch, cell.context

        return min(self.cells, key=distance)

    def to_json(self) -> dict[str, Any]:
        """The file's content."""
        return {"zaya_settings": SCHEMA} | asdict(self)


def read_settings(path: Path, *, block_length: int | None) -> Settings:
    """The file at `path`; a ConfigError where it is none, or is for another trained block than `block_length`."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"--settings {path} cannot be read: {error}") from error
    if not isinstance(values, dict) or values.get("zaya_settings") != SCHEMA:
        raise ConfigError(f"--settings {path} is no settings file", hint="zaya profile --save-settings writes one")
    try:
        cells = tuple(_cell(cell) for cell in values["cells"])
        settings = Settings(**{name: values[name] for name in HEADER}, cells=cells)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"--settings {path} is damaged: {error!r}", hint="write it again with zaya profile") from error
    if not cells:
        raise ConfigError(f"--settings {path} has no cells", hint="write it again with zaya profile")
    if block_length is not None and settings.block_length != block_length:
        raise ConfigError(f"--settings {path} is for blocks of {settings.block_length}, expected the model's {block_length}")
    return settings


def _cell(values: dict[str, Any]) -> Tuned:
    cell = Tuned(**values)
    wholes = (cell.batch, cell.context, cell.block, cell.proposals)
    if not all(isinstance(whole, int) for whole in wholes) or min(wholes[:3]) < 1 or cell.proposals < 0:
        raise ValueError(f"a cell of {values}")
    return cell
