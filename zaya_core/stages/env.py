"""`zaya env`: what this machine is, and what that means for zaya."""

from collections.abc import Iterator
from dataclasses import dataclass

from zaya_core.events import Event, Result
from zaya_core.option import check_options

EXAMPLE = "zaya env --json"


@dataclass(frozen=True)
class EnvConfig:
    """`zaya env` has no options of its own."""

    def __post_init__(self) -> None:
        check_options(self)


def run(config: EnvConfig) -> Iterator[Event]:
    """One Result: software, processor, accelerators, what `auto` picks for bfloat16 weights, and what it all implies."""
    import platform

    import torch

    from zaya_core.profile.inventory import accelerators, implications, processor
    from zaya_core.runtime import has_fast_bfloat16, pick_device, pick_dtype, versions

    device = pick_device("auto")
    yield Result(
        versions()
        | {"machine": platform.machine()}
        | processor()
        | {
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "has_fast_bfloat16": has_fast_bfloat16(),
            "hip": torch.version.hip,
            "cuda": torch.version.cuda,
            "accelerators": accelerators(),
            "auto_device": str(device),
            "auto_dtype": str(pick_dtype("auto", torch.bfloat16, device, num_elements=0)).removeprefix("torch."),
            "implies": implications(device),
        }
    )
