"""This machine as a hardware sheet: what it really copies and multiplies, and what a small operation costs it.

Each figure is the best of a few rounds, because whatever else runs only slows them down.
"""

import time
from collections.abc import Callable

import torch

from zaya_core.devices import Device
from zaya_core.runtime import available_memory_bytes

ROUNDS = 5
COPY_BYTES = {"cpu": 2**29, "cuda": 2**30}  # past any cache
SIDE = {"cpu": 1024, "cuda": 8192}
SMALL_OPERATIONS = 200


def measured_device(device: torch.device, dtype: torch.dtype) -> Device:
    """A sheet of `device` for products of `dtype`: bytes/s count what is read and what is written."""
    name = torch.cuda.get_device_properties(device).name if device.type == "cuda" else f"{torch.get_num_threads()} cpu threads"
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else available_memory_bytes()
    return Device(
        name,
        flops=product_rate(device, dtype),
        bandwidth=max(copy_rate(device), read_rate(device)),
        memory_bytes=memory,
        source=f"measured here: copy or sum of {COPY_BYTES[device.type] >> 20} MiB, product of side {SIDE[device.type]}",
        launch_seconds=small_operation_seconds(device),
    )


def copy_rate(device: torch.device) -> float:
    """Bytes/s, read and written."""
    source = torch.ones(COPY_BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES[device.type] / best_seconds(lambda: target.copy_(source), device)


def read_rate(device: torch.device) -> float:
    """Bytes/s of a sum: on a CPU a copy also fetches what it overwrites, and weights are only read."""
    source = torch.ones(COPY_BYTES[device.type] // 4, device=device)
    return COPY_BYTES[device.type] / best_seconds(source.sum, device)


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square product."""
    side = SIDE[device.type]
    left, right = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / best_seconds(lambda: left @ right, device)


def small_operation_seconds(device: torch.device) -> float:
    """What an operation on next to nothing costs, launches overlapped where they can be."""
    x = torch.ones(8, device=device)

    def many() -> None:
        for _ in range(SMALL_OPERATIONS):
            torch.add(x, 1.0, out=x)

    return best_seconds(many, device) / SMALL_OPERATIONS


def best_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Of `ROUNDS` after a warm-up."""
    work()
    return min(timed(work, device) for _ in range(ROUNDS))


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, the device's queue empty before and after."""
    _wait(device)
    began = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
