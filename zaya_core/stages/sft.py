"""`zaya sft`: fine-tune a checkpoint on conversations or prompt/completion rows, in diffusion mode; loss on the answers only.

Examples are packed whole, masks stand only over answers, and a tail of end tokens follows each example, so that drafts past
the end are defined (tidar.md section 2).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zaya_core.events import Event
from zaya_core.option import option
from zaya_core.stages.training import TrainConfig, run_training

if TYPE_CHECKING:
    from zaya_core.io.checkpoint import Checkpoint

EXAMPLE = "zaya sft out/ tuned/ --data chat.jsonl --max-steps 500 --seq-len 512 --batch-size 8 --lr 2e-4"


@dataclass(frozen=True)
class SftConfig(TrainConfig):
    """Options of `zaya sft`."""

    lora_rank: int = option(0, help="train adapters of this rank on attention, merged at the end; 0 trains all", minimum=0)


def run(config: SftConfig) -> Iterator[Event]:
    """Train on the answers; yields a Metrics event per step and ends with a Result."""

    def read_rows(parent: "Checkpoint") -> Iterator[Event]:
        from zaya_core.stages.rows import open_rows

        return open_rows(config, parent, every_token=False)

    yield from run_training(config, "sft", read_rows, lora_rank=config.lora_rank)
