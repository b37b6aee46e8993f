"""Hardware sheets: what a device can do at best, dense and without sparsity, each figure with its source.

A sheet is data: a built-in one by its name, or a YAML file with the same keys. What a machine really does is measured
elsewhere (profile/machine) and comes back as a sheet like any other.
"""

from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from zaya_core.config import nearest
from zaya_core.errors import ConfigError

GRAPH_LAUNCH_SECONDS = 1.5e-6  # assumed: the gap between two kernels of a captured graph
FULL_KEYS = "name, flops, bandwidth, memory_bytes"


@dataclass(frozen=True)
class Device:
    """Peak bfloat16 FLOP/s of matrix products, bytes/s of memory, and bytes of it.

    `reached_flops` and `reached_bandwidth` are the best that somebody measured, where known; `launch_seconds` is what each
    kernel of a forward adds. Every figure is positive.
    """

    name: str
    flops: float
    bandwidth: float
    memory_bytes: float
    source: str = "not given"
    reached_flops: float | None = None
    reached_bandwidth: float | None = None
    reached_source: str = ""
    launch_seconds: float = GRAPH_LAUNCH_SECONDS

    def __post_init__(self) -> None:
        for key in ("flops", "bandwidth", "memory_bytes"):
            if getattr(self, key) <= 0:
                raise ConfigError(f"device {self.name}: {key} is {getattr(self, key)}, expected a positive number")
        if self.launch_seconds < 0:
            raise ConfigError(f"device {self.name}: launch_seconds is {self.launch_seconds}, expected at least 0")

    @property
    def ridge(self) -> float:
        """FLOP per byte from which a kernel is bound by arithmetic."""
        return self.flops / self.bandwidth


_AMD, _NVIDIA = "AMD data sheet", "NVIDIA data sheet"
_MAMF = "mamf-finder, as cited for the ZAYA1 base report (arXiv 2511.17127)"
_H100_REACHED = {"reached_flops": 720e12, "reached_source": "SemiAnalysis, December 2024"}

DEVICES = {
    sheet.name: sheet
    for sheet in (
        Device("mi250x", 383e12, 3.277e12, 128e9, f"{_AMD}, at second hand; bandwidth from memory"),
        Device(
            "mi300x", 1307.4e12, 5.3e12, 192e9, f"{_AMD}, at second hand", 668.4e12, 4.33e12, f"{_MAMF}; bandwidth: the same report"
        ),
        Device("mi325x", 1307.4e12, 6.0e12, 256e9, f"{_AMD}, at second hand", 784.9e12, None, _MAMF),
        Device("mi355x", 2516.6e12, 8.0e12, 288e9, f"{_AMD}, at second hand; bfloat16 is half of fp8", 1565e12, None, _MAMF),
        Device("h100", 989.4e12, 3.35e12, 80e9, f"{_NVIDIA} (SXM), from memory", reached_bandwidth=3.036e12, **_H100_REACHED),
        Device("h200", 989.4e12, 4.8e12, 141e9, f"{_NVIDIA}, from memory", **_H100_REACHED),
        Device("b200", 2250e12, 7.7e12, 180e9, f"{_NVIDIA} (HGX), at second hand", 1745e12, None, _MAMF),
        Device("a100", 312e12, 2.039e12, 80e9, f"{_NVIDIA} (80 GB SXM), at second hand"),
        Device("l40s", 362e12, 0.864e12, 48e9, f"{_NVIDIA}, from memory"),
        Device("rtx4090", 165.2e12, 1.008e12, 24e9, f"{_NVIDIA}, from memory, not checked; float32 accumulation"),
    )
}


def find_device(name: str) -> Device:
    """A built-in sheet by its name, or that of a FILE.yaml; another name is a ConfigError with the nearest."""
    if name.endswith((".yaml", ".yml")):
        return read_sheet(Path(name))
    if name not in DEVICES:
        raise ConfigError(f"no hardware sheet is called {name!r}", hint=nearest(name, list(DEVICES)))
    return DEVICES[name]


def read_sheet(path: Path) -> Device:
    """A sheet of one's own: `flops`, `bandwidth` and `memory_bytes` are needed, the name is the file's by default."""
    try:
        values = yaml.safe_load(path.read_bytes())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is no hardware sheet: {str(error).splitlines()[0]}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}, expected `key: value` lines", hint=f"keys: {FULL_KEYS}")
    known = {item.name: item for item in fields(Device)}
    for key in values:
        if key not in known:
            raise ConfigError(f"{path}: unknown key {key!r}", hint=nearest(str(key), list(known)))
    values = {"name": path.stem, "source": str(path)} | values
    missing = [name for name, item in known.items() if item.default is MISSING and name not in values]
    if missing:
        raise ConfigError(f"{path}: {', '.join(missing)} missing", hint=f"keys: {FULL_KEYS}")
    return Device(**{key: _read(path, key, value, known[key].type) for key, value in values.items()})


def _read(path: Path, key: str, value: Any, kind: Any) -> Any:
    """YAML 1.1 takes `5e12`, without a dot, for text: numbers are read from text as well."""
    if kind is str:
        return str(value)
    if value is None and kind is not float:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{path}: {key} is {value!r}, expected a number") from None
