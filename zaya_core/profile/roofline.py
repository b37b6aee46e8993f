"""Bytes and FLOPs into seconds: each part takes the longer of its two, and every launch adds its own.

Parts follow one another; nothing overlaps. `Pace` says which share of the sheet's peaks is reached: 1 is the roofline itself.
"""

from dataclasses import dataclass

from zaya_core.config import ModelConfig
from zaya_core.devices import Device
from zaya_core.profile.forward import Cost


@dataclass(frozen=True)
class Pace:
    """FLOP/s, bytes/s and seconds a launch that a forward really gets."""

    flops: float
    bandwidth: float
    launch_seconds: float


def pace_of(device: Device, *, reached: bool, launch_seconds: float | None = None) -> Pace:
    """The sheet's peaks, or with `reached` the measured figures where the sheet has them."""
    flops = device.reached_flops if reached and device.reached_flops else device.flops
    bandwidth = device.reached_bandwidth if reached and device.reached_bandwidth else device.bandwidth
    return Pace(flops, bandwidth, device.launch_seconds if launch_seconds is None else launch_seconds)


def seconds_of(parts: dict[str, Cost], pace: Pace) -> float:
    """Of one forward."""
    return sum(part_seconds(cost, pace) for cost in parts.values())


def part_seconds(cost: Cost, pace: Pace) -> float:
    """Of one part."""
    return max(cost.bytes / pace.bandwidth, cost.flops / pace.flops) + cost.kernels * pace.launch_seconds


def total(parts: dict[str, Cost]) -> Cost:
    """All parts together."""
    return Cost(*(sum(getattr(cost, key) for cost in parts.values()) for key in ("bytes", "flops", "kernels")))


def attention_intensity(config: ModelConfig, width: int) -> float:
    """FLOP per byte of K/V and query slot: a slot's 4 H N per key, over the key's 2 G N elements (model.md E)."""
    return 2 * config.num_attention_heads / (config.num_key_value_heads * width)


def free_slots(device: Device, intensity: float) -> float:
    """Query slots until attention over the history is bound by arithmetic."""
    return device.ridge / intensity


def significant(value: float, digits: int = 4) -> float:
    """Rounded for a table: what is past the digits is not known."""
    return float(f"{value:.{digits}g}")
