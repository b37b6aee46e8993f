"""`zaya midtrain`: train a checkpoint on text, with the AR objective or the joint AR + one-step diffusion one (TiDAR)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zaya_core.events import Event
from zaya_core.stages.training import TrainConfig, run_training

if TYPE_CHECKING:
    from zaya_core.io.checkpoint import Checkpoint

EXAMPLE = "zaya midtrain tidar/ out/ --data stdlib --max-steps 1000 --seq-len 512 --batch-size 8"


@dataclass(frozen=True)
class MidtrainConfig(TrainConfig):
    """Options of `zaya midtrain`."""


def run(config: MidtrainConfig) -> Iterator[Event]:
    """Train on every token of the data; yields a Metrics event per step and ends with a Result."""

    def read_rows(parent: "Checkpoint") -> Iterator[Event]:
        from zaya_core.stages.rows import open_rows

        return open_rows(config, parent, every_token=True)

    yield from run_training(config, f"midtrain-{config.objective}", read_rows)
