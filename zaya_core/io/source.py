"""A checkpoint in either on-disk dialect, read as native tensors one at a time, memory-mapped.

Invariant: every tensor of the directory is accounted for by the plan, and every native tensor has its shape.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from zaya_core.config import ModelConfig
from zaya_core.io.checkpoint import CONFIG, Checkpoint, check_tensors
from zaya_core.io.files import read_json
from zaya_core.io.legacy import folded_temperature, folds_temperature, native_config
from zaya_core.io.names import detect_dialect, native_plan
from zaya_core.io.weights import TensorInfo, read_headers


@dataclass(frozen=True)
class Source:
    """`plan` maps each native name to the stored tensor, or to the experts' tensors in stacking order."""

    checkpoint: Checkpoint
    dialect: str
    decisions: tuple[str, ...]
    plan: dict[str, tuple[str, ...]]
    folds_temperature: bool

    @classmethod
    def open(cls, path: Path, expected: Callable[[ModelConfig], dict[str, Tensor]]) -> "Source":
        """Detect the dialect, settle the configuration, account for every tensor.

        `expected` gives the state that a configuration's network stores, from a network on the meta device.
        """
        if not (path / CONFIG).is_file():
            Checkpoint.open(path)  # says what is wrong
        values, tensors = read_json(path / CONFIG), read_headers(path)
        dialect, why = detect_dialect(values, tensors)
        if dialect == "native":
            checkpoint = Checkpoint.open(path)
            check_tensors(expected(checkpoint.config), tensors, path)
            return cls(checkpoint, dialect, (why,), {name: (name,) for name in tensors}, False)
        config, decisions = native_config(values, tensors)
        plan = native_plan(tensors, config, expected(config))
        return cls(Checkpoint(path, config, tensors), dialect, (why, *decisions), plan, folds_temperature(values))

    @property
    def config(self) -> ModelConfig:
        """The native configuration."""
        return self.checkpoint.config

    @property
    def num_bytes(self) -> int:
        """Bytes of all stored tensors."""
        return sum(info.num_bytes for info in self.checkpoint.tensors.values())

    def native_names(self) -> Iterator[str]:
        """Native names in the order in which the source's files hold their first parts, so that reading moves forward."""
        order = {name: place for place, name in enumerate(self.checkpoint.tensors)}
        yield from sorted(self.plan, key=lambda name: order[self.plan[name][0]])


class SourceReader:
    """Opens each of a source's files once, for as long as the context lasts."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._files: dict[Path, Any] = {}
        self._stack = ExitStack()

    def read(self, name: str) -> Tensor:
        """A native tensor: the stored one, mapped, or the stack of its experts, copied."""
        parts = [self._stored(part) for part in self.source.plan[name]]
        tensor = torch.stack(parts) if ".mlp.experts." in name and self.source.dialect == "original" else parts[0]
        if name.endswith("qk_norm.temp") and self.source.folds_temperature:
            return folded_temperature(tensor)
        return tensor

    def _stored(self, name: str) -> Tensor:
        info: TensorInfo = self.source.checkpoint.tensors[name]
        if info.file not in self._files:
            self._files[info.file] = self._stack.enter_context(safe_open(info.file, "pt"))
        return self._files[info.file].get_tensor(name)

    def __enter__(self) -> "SourceReader":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._files.clear()
        self._stack.close()


def tensor_sha256(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes as safetensors stores them."""
    raw = tensor.detach().contiguous().flatten().view(torch.uint8) if tensor.numel() else tensor.flatten()
    return hashlib.sha256(memoryview(raw.numpy())).hexdigest()
