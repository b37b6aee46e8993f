"""A checkpoint into a model: whole, or one layer at a time where the machine cannot hold it."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from zaya_core.config import ModelConfig
from zaya_core.io.checkpoint import Checkpoint, assign_tensor, load_weights, stored_tensors
from zaya_core.io.source import Source
from zaya_core.model.decoder import Zaya
from zaya_core.model.forms import for_serving
from zaya_core.model.serving import ServingModel
from zaya_core.runtime import available_memory_bytes, keep_freed_pages

PACKED_SHARE = 0.8  # of the memory that is free


def meta_model(config: ModelConfig) -> Zaya:
    """The network without storage: shapes and names only."""
    with torch.device("meta"):
        return Zaya(config)


def open_source(path: Path) -> Source:
    """A checkpoint directory of either dialect, every tensor accounted for."""
    return Source.open(path, lambda config: stored_tensors(meta_model(config)))


def load_model(checkpoint: Checkpoint, *, dtype: torch.dtype, device: torch.device) -> Zaya:
    """The checkpoint's network in evaluation form, without a second copy of the weights in memory."""
    model = meta_model(checkpoint.config)
    load_weights(model, checkpoint, dtype=dtype, device=device)
    return model.eval()


def load_serving(checkpoint: Checkpoint, *, dtype: torch.dtype, device: torch.device) -> ServingModel:
    """The checkpoint's network laid out for decoding; its weights are packed where memory has room for that copy."""
    keep_freed_pages()
    num_bytes = checkpoint.num_parameters * torch.finfo(dtype).bits // 8
    packs = num_bytes < PACKED_SHARE * available_memory_bytes()
    return for_serving(load_model(checkpoint, dtype=dtype, device=device), packs=packs)


def streamed_model(config: ModelConfig, read: Callable[[str], Tensor], *, dtype: torch.dtype) -> Zaya:
    """A network whose decoder layers take their weights from `read(native name)` when they run, and drop them after.

    Holds the vocabulary and one layer; the forward itself is the ordinary one.
    """
    model = meta_model(config)

    def fill(prefix: str, module: nn.Module) -> None:
        for name in dict(module.state_dict()):
            assign_tensor(module, name, read(prefix + name).to(dtype))

    def drop(module: nn.Module, arguments: object, output: object) -> None:
        module.to("meta")

    def attach(prefix: str, layer: nn.Module) -> None:
        layer.register_forward_pre_hook(lambda module, arguments: fill(prefix, module))
        layer.register_forward_hook(drop)

    for name in stored_tensors(model):
        if not name.startswith("model.layers."):
            assign_tensor(model, name, read(name).to(dtype))
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    for index, layer in enumerate(model.model.layers):
        attach(f"model.layers.{index}.", layer)
    return model.eval()
