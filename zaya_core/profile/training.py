"""What a training stage would need on given devices: memory of a rank, tokens/s, MFU, days, and what the doubled row costs.

The counting is train/plan's; here it is turned around: devices for a number of days, days for a number of devices.
"""

from dataclasses import dataclass, replace
from typing import Any

from zaya_core.config import ModelConfig
from zaya_core.devices import Device
from zaya_core.train.plan import Work, flops_of, memory_of


@dataclass(frozen=True)
class Goal:
    """`tokens` clean tokens at `utilisation` of the peak (recomputation is work too); devices for `days` if that is asked."""

    tokens: float
    utilisation: float
    days: float | None


def training_figures(config: ModelConfig, work: Work, device: Device, goal: Goal) -> dict[str, Any]:
    """Of the whole run; `work` says how a rank trains, its steps are as many as the tokens need."""
    step = replace(work, max_steps=1)
    flops = flops_of(config, step) / step.clean_tokens * goal.tokens
    plain = replace(step, objective="ar")
    once = replace(step, gradient_checkpointing="none")
    share_of_model = flops_of(config, once) / flops_of(config, step)
    seconds = flops / (work.world * device.flops * goal.utilisation)
    memory = memory_of(config, work)
    figures = {
        "tokens": goal.tokens,
        "ranks": work.world,
        "steps": goal.tokens / step.clean_tokens,
        "tokens_per_step": step.clean_tokens,
        "flops": flops,
        "days": seconds / 86400,
        "tokens_per_second": goal.tokens / seconds,
        "tokens_per_second_per_rank": goal.tokens / seconds / work.world,
        "utilisation": goal.utilisation,
        "mfu": goal.utilisation * share_of_model,
        "doubled_row_over_ar": flops_of(config, step) / flops_of(config, plain),
        "rank_bytes": memory["total_bytes"],
        "device_bytes": device.memory_bytes,
        "fits": memory["total_bytes"] <= device.memory_bytes,
    }
    if goal.days is not None:
        figures["ranks_for_days"] = -(-flops // (goal.days * 86400 * device.flops * goal.utilisation))
    return figures


def memory_table(config: ModelConfig, work: Work) -> list[dict[str, Any]]:
    """A rank's bytes by what they are for."""
    return [{"memory of a rank": key.removesuffix("_bytes"), "size_bytes": value} for key, value in memory_of(config, work).items()]
