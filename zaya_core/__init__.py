"""zaya_core: the library behind `zaya`. Each stage reads a checkpoint directory and writes one; nothing here prints."""

__version__ = "0.1.0"
