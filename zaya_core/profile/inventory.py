"""What this machine is made of, and what that implies: the part of `zaya env` that a report of a measurement needs.

Vendors' libraries are asked where they are installed and left out where they are not: nothing here is needed to run. Not run on a
GPU: the tests put recorded answers in the libraries' place.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from zaya_core.runtime import cpu_flags, has_fast_bfloat16

WORTH_NAMING = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8", "asimd", "bf16", "sve")
FP8_ARCHITECTURES = ("gfx942", "gfx950", "sm_89", "sm_90", "sm_100", "sm_120")


def processor() -> dict[str, Any]:
    """Cores, threads and the instruction sets that decide which products are fast."""
    flags = cpu_flags()
    return {
        "num_cores": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "instruction_sets": [name for name in WORTH_NAMING if name in flags],
    }


def accelerators() -> list[dict[str, Any]]:
    """One entry each, from torch, with what the vendor's library adds: power cap, partitions, driver."""
    count = torch.cuda.device_count()
    if count == 0:
        return []
    sources = (from_amdsmi, from_rocm_smi) if torch.version.hip else (from_nvml,)
    more = next((found for ask in sources if (found := ask()) is not None), [])
    return [_from_torch(index) | (more[index] if index < len(more) else {"vendor_library": None}) for index in range(count)]


def _from_torch(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    architecture = getattr(properties, "gcnArchName", "").split(":")[0] or f"sm_{properties.major}{properties.minor}"
    return {
        "name": properties.name,
        "architecture": architecture,
        "memory_bytes": properties.total_memory,
        "num_compute_units": properties.multi_processor_count,
    }


def from_amdsmi() -> list[dict[str, Any]] | None:
    """AMD's library; None where it is missing or will not start."""
    library = _library("amdsmi")
    if library is None or _asked(library.amdsmi_init) is FAILED:
        return None
    found = []
    for handle in library.amdsmi_get_processor_handles():
        cap = _asked(lambda handle=handle: library.amdsmi_get_power_cap_info(handle)["power_cap"])
        found.append(
            {
                "vendor_library": "amdsmi",
                # Microwatts in most releases, watts in some.
                "power_cap_watts": None if cap is FAILED else cap / 1e6 if cap > 1e5 else cap,
                "compute_partition": _or_none(lambda handle=handle: library.amdsmi_get_gpu_compute_partition(handle)),
                "memory_partition": _or_none(lambda handle=handle: library.amdsmi_get_gpu_memory_partition(handle)),
            }
        )
    library.amdsmi_shut_down()
    return found


def from_rocm_smi() -> list[dict[str, Any]] | None:
    """AMD's older command line; None where it is missing or fails."""
    program = shutil.which("rocm-smi")
    if program is None:
        return None
    command = [program, "--showmaxpower", "--showcomputepartition", "--showmemorypartition", "--json"]
    said = _asked(lambda: subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout)
    cards = FAILED if said is FAILED else _asked(lambda: json.loads(said))
    if not isinstance(cards, dict):
        return None
    names = sorted((name for name in cards if name.startswith("card")), key=lambda name: int(name[4:]))
    return [_from_card(cards[name]) for name in names]


def _from_card(card: dict[str, str]) -> dict[str, Any]:
    def first(word: str) -> str | None:
        return next((value for key, value in card.items() if word in key.lower()), None)

    power = first("power")
    return {
        "vendor_library": "rocm-smi",
        "power_cap_watts": None if power is None else float(power),
        "compute_partition": first("compute partition"),
        "memory_partition": first("memory partition"),
    }


def from_nvml() -> list[dict[str, Any]] | None:
    """NVIDIA's library (nvidia-ml-py); None where it is missing or will not start."""
    library = _library("pynvml")
    if library is None or _asked(library.nvmlInit) is FAILED:
        return None
    found = []
    for index in range(library.nvmlDeviceGetCount()):
        handle = library.nvmlDeviceGetHandleByIndex(index)
        cap = _asked(lambda handle=handle: library.nvmlDeviceGetPowerManagementLimit(handle))
        mig = _asked(lambda handle=handle: library.nvmlDeviceGetMigMode(handle)[0])
        found.append(
            {
                "vendor_library": "nvml",
                "driver": _or_none(library.nvmlSystemGetDriverVersion),
                "power_cap_watts": None if cap is FAILED else cap / 1e3,
                "is_partitioned": None if mig is FAILED else bool(mig),
            }
        )
    library.nvmlShutdown()
    return found


def implications(device: torch.device) -> dict[str, Any]:
    """What follows for zaya: attention after its probe, grouped products, and which narrow dtypes pay."""
    from zaya_core.model.decoder import Zaya
    from zaya_core.presets import PRESETS
    from zaya_core.train.probe import choose_attention

    tiny = Zaya(PRESETS["tiny"]).to(device)
    architectures = [_from_torch(index)["architecture"] for index in range(torch.cuda.device_count())]
    return {
        "training_attention": choose_attention(tiny).removeprefix("attention: "),
        "grouped_products": "one grouped product" if device.type == "cuda" else "one product for each expert that is hit",
        "bfloat16": "yes" if device.type == "cuda" or has_fast_bfloat16() else "slow: no instructions for it",
        "fp8": "in hardware, not used here" if any(name in FP8_ARCHITECTURES for name in architectures) else "no",
    }


FAILED = object()


def _asked(question: Callable[[], Any]) -> Any:
    """The answer, or FAILED: vendors' libraries raise types of their own, and none of them is our user's concern."""
    try:
        return question()
    except Exception:
        return FAILED


def _or_none(question: Callable[[], Any]) -> Any:
    answer = _asked(question)
    return None if answer is FAILED else answer


def _library(name: str) -> Any:
    found = _asked(lambda: import_module(name))
    return None if found is FAILED else found
