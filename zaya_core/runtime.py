"""Where and how things run: device, dtype, peak memory. The one place that raises DeviceError."""

import ctypes
import os
import platform
import resource
from pathlib import Path
from typing import Any

import torch

from zaya_core.errors import ConfigError, DeviceError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEPT_PROGRAMS = 32  # of each cache
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def pick_device(name: str) -> torch.device:
    """`auto` is the accelerator if torch sees one, else the CPU; anything else must be a torch device that exists."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise DeviceError(f"--device {name} cannot be used: {str(error).splitlines()[0]}", hint="try --device cpu") from error
    return device


def pick_dtype(name: str, stored: torch.dtype, device: torch.device, *, num_elements: int) -> torch.dtype:
    """`auto` keeps the stored dtype, but for bfloat16 on a CPU without instructions for it: float32 is several times
    faster there, and is taken if `num_elements` of it fit in three quarters of the free memory.
    """
    if name != "auto":
        if name not in DTYPES:
            raise ConfigError(f"--dtype is {name!r}, expected auto, {', '.join(DTYPES)}")
        return DTYPES[name]
    if device.type == "cpu" and stored == torch.bfloat16 and not has_fast_bfloat16():
        fits = 4 * num_elements < 0.75 * available_memory_bytes()
        return torch.float32 if fits else stored
    return stored


def available_memory_bytes() -> int:
    """Memory that new allocations can have without swapping, as Linux estimates it; elsewhere the machine's memory."""
    info = Path("/proc/meminfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def free_memory_bytes(device: torch.device) -> int:
    """Memory of the device that new tensors can have."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory_bytes()


def leave_a_core() -> None:
    """One thread less for products, before the first of them: another thread of this process needs a core too.

    A team waits for its slowest thread. Measured on two cores beside the HTTP server: 906 tokens/s with one thread, 578 with two.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() - 1))


def keep_freed_pages() -> None:
    """Let glibc's malloc keep what a step frees for the next one: the kernel clears fresh pages, at the speed of a slow product.

    Measured: a step of the mini preset takes up to a third less time. Does nothing where the C library is another.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_MMAP_THRESHOLD, 2**30)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def keep_few_programs() -> None:
    """Let oneDNN, and torch's layer over it, keep few of the programs that a bfloat16 product needs for every shape.

    Call it before the first product.

    Experts and crowds get another number of rows in every step. Measured with AMX: training 50 M parameters 3.0 GB instead of 4.1
    in 3 % more time; a server of 32 streams grows by 2.2 % in 45 s instead of 5.2 to 6.2, no slower.
    """
    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(cache, str(KEPT_PROGRAMS))


def has_fast_bfloat16() -> bool:
    """Does this CPU multiply bfloat16 matrices in hardware (AVX512-BF16 or AMX)?"""
    capability = torch.backends.cpu.get_cpu_capability()
    flags = cpu_flags()
    return "avx512_bf16" in flags or "amx_bf16" in flags or (platform.machine() == "aarch64" and "bf16" in capability.lower())


def cpu_flags() -> set[str]:
    """Instruction sets as Linux names them; empty elsewhere."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return set()
    for line in info.read_text().splitlines():
        if line.startswith("flags"):
            return set(line.split(":", 1)[1].split())
    return set()


def peak_memory_bytes(device: torch.device) -> int:
    """Peak so far: the allocator's on an accelerator, the process's resident set on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def cache_root() -> Path:
    """Where what can be made again is kept between runs: $ZAYA_CACHE or ~/.cache/zaya."""
    return Path(os.environ.get("ZAYA_CACHE") or Path.home() / ".cache" / "zaya")


def versions() -> dict[str, Any]:
    """What a certificate should say about the software that made it."""
    import safetensors
    import transformers

    import zaya_core

    return {
        "zaya": zaya_core.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "safetensors": safetensors.__version__,
    }
