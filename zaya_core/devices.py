"""Hardware sheets: what a device can do at best, dense and without sparsity, by the vendors' data sheets."""

from dataclasses import dataclass

from zaya_core.config import nearest
from zaya_core.errors import ConfigError


@dataclass(frozen=True)
class Device:
    """Peak bfloat16 FLOP/s of matrix products, bytes/s of memory, and bytes of it."""

    name: str
    flops: float
    bandwidth: float
    memory_bytes: float

    @property
    def ridge(self) -> float:
        """FLOP per byte from which a kernel is bound by arithmetic."""
        return self.flops / self.bandwidth


DEVICES = {
    sheet.name: sheet
    for sheet in (
        Device("mi250x", 383e12, 3.277e12, 128e9),
        Device("mi300x", 1307.4e12, 5.3e12, 192e9),
        Device("mi325x", 1307.4e12, 6.0e12, 256e9),
        Device("mi355x", 2516.6e12, 8.0e12, 288e9),
        Device("h100", 989.4e12, 3.35e12, 80e9),
        Device("h200", 989.4e12, 4.8e12, 141e9),
        Device("b200", 2250e12, 7.7e12, 180e9),
        Device("a100", 312e12, 2.039e12, 80e9),
        Device("l40s", 362e12, 0.864e12, 48e9),
        Device("rtx4090", 165.2e12, 1.008e12, 24e9),
    )
}


def find_device(name: str) -> Device:
    """A sheet by its name; another name is a ConfigError with the nearest."""
    if name not in DEVICES:
        raise ConfigError(f"no hardware sheet is called {name!r}", hint=nearest(name, list(DEVICES)))
    return DEVICES[name]
