"""Tensors of a checkpoint directory: safetensors shards and their index, memory-mapped, checked before anything is read."""

import json
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from zaya_core.errors import CheckpointError
from zaya_core.io.files import read_json, write_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_SHARD_BYTES = 5 * 10**9
ITEM_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
TORCH_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies and what it is, from a shard's header alone."""

    file: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        """Product of the shape."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def num_bytes(self) -> int:
        """Bytes on disk."""
        return self.num_elements * ITEM_BYTES[self.dtype]


def read_headers(directory: Path) -> dict[str, TensorInfo]:
    """Every tensor of the directory; a missing, cut or disagreeing shard is a CheckpointError that names it."""
    if not (directory / INDEX).exists():
        if not (directory / SINGLE).exists():
            pickles = sorted(p.name for p in directory.glob("*") if p.suffix in (".bin", ".pt", ".pth"))
            hint = f"{pickles[0]} is a pickle and is never read: it could run code" if pickles else None
            raise CheckpointError(f"{directory} has neither {SINGLE} nor {INDEX}", hint=hint)
        return _read_header(directory / SINGLE)
    weight_map = read_json(directory / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{directory / INDEX} has no weight_map")
    tensors: dict[str, TensorInfo] = {}
    for name in sorted({_plain_name(name, directory / INDEX) for name in weight_map.values()}):
        tensors |= _read_header(directory / name)
    wrong = [key for key, name in weight_map.items() if key not in tensors or tensors[key].file.name != name]
    if wrong or len(tensors) != len(weight_map):
        loose = wrong or sorted(set(tensors) - set(weight_map))
        raise CheckpointError(f"{directory / INDEX} and its shards disagree on {', '.join(loose[:5])}")
    return tensors


def read_tensors(tensors: dict[str, TensorInfo]) -> Iterator[tuple[str, Tensor]]:
    """Tensors file by file, memory-mapped."""
    by_file: dict[Path, list[str]] = {}
    for name, info in tensors.items():
        by_file.setdefault(info.file, []).append(name)
    for path, names in by_file.items():
        with safe_open(path, "pt") as file:
            for name in names:
                yield name, file.get_tensor(name)


def write_tensors(directory: Path, tensors: Iterable[tuple[str, Tensor]], *, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """Write shards of at most `max_shard_bytes` and an index; one shard is held in memory at a time."""
    for _ in stream_tensors(directory, tensors, max_shard_bytes=max_shard_bytes):
        pass


def stream_tensors(
    directory: Path, tensors: Iterable[tuple[str, Tensor]], *, max_shard_bytes: int = MAX_SHARD_BYTES
) -> Iterator[int]:
    """`write_tensors` as a generator of the bytes taken so far, to show progress; it writes only as it is consumed."""
    shards: list[list[str]] = []
    pending: dict[str, Tensor] = {}
    total = pending_bytes = 0
    for name, tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        if pending and pending_bytes + size > max_shard_bytes:
            shards.append(_flush(directory, pending, len(shards) + 1))
            pending, pending_bytes = {}, 0
        pending[name] = tensor.detach().contiguous()
        pending_bytes += size
        total += size
        yield total
    if not shards:
        save_tensors(pending, directory / SINGLE)
        return
    shards.append(_flush(directory, pending, len(shards) + 1))
    weight_map = {}
    for number, names in enumerate(shards, 1):
        final = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        os.rename(directory / _shard_name(number), directory / final)
        weight_map |= dict.fromkeys(names, final)
    write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _flush(directory: Path, tensors: dict[str, Tensor], number: int) -> list[str]:
    save_tensors(tensors, directory / _shard_name(number))
    return list(tensors)


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """One safetensors file, readable by whom the umask lets read; the library alone would make it the owner's only."""
    save_file(tensors, path, metadata={"format": "pt"})
    os.chmod(path, 0o666 & ~_umask())


def _umask() -> int:
    mask = os.umask(0o022)  # the only way to read it is to set it
    os.umask(mask)
    return mask


def _shard_name(number: int) -> str:
    return f"model-{number:05d}.safetensors"


def _plain_name(name: object, index: Path) -> str:
    if not isinstance(name, str) or name != os.path.basename(name) or not name.endswith(".safetensors"):
        raise CheckpointError(f"{index} points at {name!r}, expected a .safetensors file in the same directory")
    return name


def _read_header(path: Path) -> dict[str, TensorInfo]:
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size, 100_000_000):
                raise CheckpointError(f"{path} is damaged: its header claims {length} bytes of a {size}-byte file")
            header = json.loads(file.read(length))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    except (struct.error, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: no safetensors header ({size} bytes)") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is damaged: its header is not an object")
    header.pop("__metadata__", None)
    places = sorted((*_read_entry(path, name, item), name) for name, item in header.items())
    end = 0
    for begin, stop, name in places:
        if begin != end:
            raise CheckpointError(f"{path}: {name} starts at byte {begin}, expected {end}: tensors lie end to end")
        end = stop
    tensors = {name: TensorInfo(path, item["dtype"], tuple(item["shape"])) for name, item in header.items()}
    if 8 + length + end != size:
        raise CheckpointError(f"{path} is cut: {size} bytes, expected {8 + length + end}", hint="copy or download it again")
    return tensors


def _read_entry(path: Path, name: str, item: Any) -> tuple[int, int]:
    """First and last byte of one tensor in the header, which must have its dtype's and shape's size."""
    try:
        dtype, shape, (begin, stop) = item["dtype"], item["shape"], item["data_offsets"]
        is_whole = isinstance(dtype, str) and all(type(number) is int and number >= 0 for number in (*shape, begin, stop))
    except (KeyError, TypeError, ValueError):
        is_whole = False
    if not is_whole:
        raise CheckpointError(f"{path}: {name} has the header {item!r}, expected dtype, shape and data_offsets")
    if dtype not in ITEM_BYTES:
        raise CheckpointError(f"{path}: {name} has dtype {dtype}, expected one of {', '.join(ITEM_BYTES)}")
    if stop - begin != TensorInfo(path, dtype, tuple(shape)).num_bytes:
        raise CheckpointError(f"{path}: {name} {shape} {dtype} does not fill bytes {begin}..{stop}")
    return begin, stop
