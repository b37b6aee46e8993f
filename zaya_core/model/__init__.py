"""The ZAYA network, readable next to the paper. It refuses to know losses, samplers and devices."""

from zaya_core.model.decoder import Zaya
from zaya_core.model.pool import Pool

__all__ = ["Pool", "Zaya"]
