"""A checkpoint is an immutable directory with a birth certificate: if it opens, it is whole.

`Checkpoint.open` checks config, headers and lengths; `load_model` reads the weights straight into the model's parameters.
"""

import hashlib
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zaya_core.config import ModelConfig
from zaya_core.errors import CheckpointError, ConfigError
from zaya_core.io.files import read_json, write_json
from zaya_core.io.weights import TORCH_DTYPES, TensorInfo, read_headers, read_tensors, write_tensors
from zaya_core.runtime import versions

CONFIG = "config.json"
CERTIFICATE = "zaya.json"
GENERATION = "generation_config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
RUN_IN_PROGRESS = "run.json"
FLOAT32_BUFFERS = ("balancing_biases",)


@dataclass(frozen=True)
class Checkpoint:
    """A whole native checkpoint directory: its configuration and the headers of its tensors."""

    path: Path
    config: ModelConfig
    tensors: dict[str, TensorInfo]

    @classmethod
    def open(cls, path: Path | str) -> "Checkpoint":
        """Read config and headers; anything missing, cut or foreign is a CheckpointError or ConfigError naming it."""
        path = Path(path)
        if not path.is_dir():
            raise CheckpointError(f"{path} is not a directory, expected a checkpoint", hint="check the path")
        if not (path / CONFIG).exists():
            raise CheckpointError(f"{path} has no {CONFIG}: not a checkpoint", hint=_unfinished_hint(path))
        try:
            config = ModelConfig.from_json(read_json(path / CONFIG))
        except ConfigError as error:
            raise ConfigError(f"{path / CONFIG}: {error.message}", hint=error.hint) from error
        return cls(path, config, read_headers(path))

    @property
    def stored_dtype(self) -> torch.dtype:
        """The dtype that most of the weights have; a CheckpointError where none is a floating-point one."""
        sizes: dict[str, int] = {}
        for info in self.tensors.values():
            if info.dtype in TORCH_DTYPES:
                sizes[info.dtype] = sizes.get(info.dtype, 0) + info.num_bytes
        if not sizes:
            raise CheckpointError(f"{self.path} has no tensor of dtype {', '.join(TORCH_DTYPES)}")
        return TORCH_DTYPES[max(sizes, key=lambda name: sizes[name])]

    @property
    def num_parameters(self) -> int:
        """Stored elements, buffers included."""
        return sum(info.num_elements for info in self.tensors.values())

    def certificate(self) -> dict[str, Any] | None:
        """zaya.json, or None for a checkpoint made elsewhere."""
        return read_json(self.path / CERTIFICATE) if (self.path / CERTIFICATE).exists() else None

    def generation_config(self) -> dict[str, Any]:
        """generation_config.json, or an empty one."""
        return read_json(self.path / GENERATION) if (self.path / GENERATION).exists() else {}

    def require_tidar(self) -> None:
        """A CheckpointError unless the checkpoint was converted."""
        if self.config.tidar is None:
            raise CheckpointError(f"{self.path} is a plain autoregressive checkpoint", hint="run zaya convert first")

    def fingerprint(self) -> str:
        """SHA-256 over config and weights, as lineage records it."""
        digest = hashlib.sha256()
        for file in [self.path / CONFIG, *sorted({info.file for info in self.tensors.values()})]:
            with open(file, "rb") as handle:
                digest.update(hashlib.file_digest(handle, "sha256").digest())
        return digest.hexdigest()


def check_tensors(expected: dict[str, Tensor], tensors: dict[str, TensorInfo], source: Path) -> None:
    """Every expected tensor once with its shape, and nothing else; the error lists what is missing, left over or misshapen."""
    missing = sorted(set(expected) - set(tensors))
    extra = sorted(set(tensors) - set(expected))
    if missing or extra:
        parts = [f"missing {_some(missing)}"] * bool(missing) + [f"left over {_some(extra)}"] * bool(extra)
        raise CheckpointError(f"{source}: tensors do not fit the config: {'; '.join(parts)}")
    for name, tensor in expected.items():
        if tuple(tensor.shape) != tensors[name].shape:
            raise CheckpointError(
                f"{source}: {name} has shape {list(tensors[name].shape)}, expected {list(tensor.shape)} by {CONFIG}"
            )
        if tensors[name].dtype not in TORCH_DTYPES:
            file, dtype = tensors[name].file, tensors[name].dtype
            raise CheckpointError(f"{file}: {name} has dtype {dtype}, expected one of {', '.join(TORCH_DTYPES)}")


def load_weights(model: torch.nn.Module, checkpoint: Checkpoint, *, dtype: torch.dtype, device: torch.device) -> None:
    """Put the stored tensors in place of `model`'s (built on the meta device), one by one in their final dtype and device."""
    expected = stored_tensors(model)
    check_tensors(expected, checkpoint.tensors, checkpoint.path)
    for name, tensor in read_tensors(checkpoint.tensors):
        wanted = torch.promote_types(dtype, torch.float32) if name.endswith(FLOAT32_BUFFERS) else dtype
        assign_tensor(model, name, tensor.to(device=device, dtype=wanted))
    if checkpoint.config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight


def stored_tensors(model: torch.nn.Module) -> dict[str, Tensor]:
    """The state that goes to disk: state_dict less the tied head."""
    tensors = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight")
    return tensors


def write_checkpoint(
    directory: Path,
    *,
    config: ModelConfig,
    tensors: Iterable[tuple[str, Tensor]],
    dtype: torch.dtype,
    certificate: dict[str, Any],
    generation: dict[str, Any],
) -> None:
    """Fill `directory` (a publish's) with weights, config, generation config and certificate; the tokenizer is the caller's."""
    write_tensors(directory, ((name, in_stored_dtype(name, tensor, dtype)) for name, tensor in tensors))
    write_metadata(directory, config=config, dtype=dtype, certificate=certificate, generation=generation)


def in_stored_dtype(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor as it goes to disk: balancing biases keep their float32."""
    return tensor if name.endswith(FLOAT32_BUFFERS) else tensor.to(dtype)


def write_metadata(
    directory: Path, *, config: ModelConfig, dtype: torch.dtype, certificate: dict[str, Any], generation: dict[str, Any]
) -> None:
    """Write config, generation config and certificate."""
    write_json(directory / GENERATION, generation)
    write_json(directory / CERTIFICATE, certificate)
    write_json(directory / CONFIG, config.to_json() | {"dtype": str(dtype).removeprefix("torch.")})


def certificate(stage: str, *, parent: Checkpoint | None, options: dict[str, Any], metrics: dict[str, Any]) -> dict[str, Any]:
    """The birth certificate: which stage made this, from what, with which options, and what was measured."""
    lineage = None
    if parent is not None:
        lineage = {"path": str(parent.path), "sha256": parent.fingerprint(), "certificate": parent.certificate()}
    return {
        "stage": stage,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "options": options,
        "metrics": metrics,
        "versions": versions(),
        "parent": lineage,
    }


def assign_tensor(model: torch.nn.Module, name: str, tensor: Tensor) -> None:
    """Put `tensor` in the place of the parameter or buffer `name`."""
    owner_name, _, leaf = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    if leaf in owner._parameters:
        owner._parameters[leaf] = torch.nn.Parameter(tensor, requires_grad=False)
    else:
        owner._buffers[leaf] = tensor


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _unfinished_hint(path: Path) -> str | None:
    if (path / RUN_IN_PROGRESS).exists():
        return "it is an unfinished training run: rerun the same command to resume it, or open one of its checkpoints/step-N"
    return None
