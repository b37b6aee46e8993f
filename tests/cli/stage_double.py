"""A stage for the tests: options of every type, and a run that says its config or ends the way `ends` asks."""

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from zaya_core.errors import CheckpointError, Interrupted, RunError
from zaya_core.events import Event, Metrics, Note, Progress, Result, Text, Warn
from zaya_core.option import check_options, option, resolved

EXAMPLE = "zaya double in out --batch-size 8"

ERRORS = {
    "checkpoint": CheckpointError("in: no config.json", hint="give a checkpoint directory"),
    "run": RunError("loss is nan at step 3"),
    "bug": KeyError("router"),
    "two-lines": ValueError("first\nsecond"),
    "cpu-memory": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    "memory": MemoryError(),
    "disk": OSError(28, "No space left on device"),
    "eof": EOFError("truncated"),
    "sigint": KeyboardInterrupt(),
    "sigterm": Interrupted("stopped by SIGTERM after step 3", signal_number=signal.SIGTERM),
}


@dataclass(frozen=True)
class DoubleConfig:
    model: str = option(help="Where to read.", argument=True, metavar="IN")
    out: Path = option(Path("out"), help="Where to write.", argument=True)
    batch_size: int = option(4, help="Rows per rank.", minimum=1, short="b")
    lr: float = option(1e-3, help="Learning rate.", above=0)
    dtype: str = option("float32", help="Number type.")
    packing: bool = option(True, help="Pack documents.")
    data: tuple[str, ...] = option((), help="Data files.")
    objective: Literal["tidar", "ar"] = option("tidar", help="What to train.")
    seed: int | None = option(None, help="Seed.")
    no_cache: bool = option(False, help="Keep nothing.")
    cache_dir: Path | None = option(None, help="Cache.")
    ends: str = option("well", help="How the run ends.")

    def __post_init__(self) -> None:
        check_options(self)


def run(config: DoubleConfig) -> Iterator[Event]:
    """Some of every event, then the error asked for, or the config as a result."""
    yield Note("a note")
    yield Warn("a warning")
    yield Progress("reading", 1, 2, "rows")
    yield Metrics({"step": 3, "loss": 5.125, "tokens_per_second": 1234.5}, total_steps=10)
    yield Text("half a ")
    if config.ends == "gpu-memory":
        import torch  # as in a stage: not before it runs

        raise torch.OutOfMemoryError("CUDA out of memory")
    if config.ends in ERRORS:
        raise ERRORS[config.ends]
    yield Text("line")
    yield Result(resolved(config))
