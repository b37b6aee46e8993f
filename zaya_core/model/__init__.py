"""The ZAYA network, readable next to the paper. It refuses to know losses, samplers and devices."""

from zaya_core.model.cache import Cache
from zaya_core.model.decoder import Zaya

__all__ = ["Cache", "Zaya"]
