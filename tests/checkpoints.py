"""Checkpoint directories for the tests: a small tokenizer and randomised weights, written as a stage writes them."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, ZayaConfig

from tests.models import random_model
from zaya_core.config import ModelConfig
from zaya_core.data.tokenizer import train_tokenizer
from zaya_core.io.checkpoint import Checkpoint, stored_tensors, write_checkpoint
from zaya_core.io.files import publish
from zaya_core.layout import causal
from zaya_core.model.load import load_model

TEXT = "def main():\n    return 'The capital of France is Paris'\n\n\nQuestion: a train leaves at 9:40.\nAnswer: 12:05\n"
NUM_IDS = 300  # few merges: prompts stay many tokens long


def write_tokenizer(directory: Path) -> None:
    """A byte-level tokenizer of at most NUM_IDS ids."""
    directory.mkdir(parents=True, exist_ok=True)
    train_tokenizer([TEXT], NUM_IDS, directory)


def write_random(
    directory: Path, config: ModelConfig, *, seed: int = 0, tokenizer: bool = True, skip_bias: float | None = None
) -> Checkpoint:
    """A float32 checkpoint with every weight randomised; `skip_bias` sets the last balancing bias of every layer."""
    tensors = stored_tensors(random_model(config, seed))
    for name, tensor in tensors.items():
        if name.endswith("balancing_biases") and skip_bias is not None:
            tensor[-1] = skip_bias
    with publish(directory) as aside:
        if tokenizer:
            write_tokenizer(aside)
        write_checkpoint(aside, config=config, tensors=tensors.items(), dtype=torch.float32, certificate={}, generation={})
    return Checkpoint.open(directory)


def our_logits(path: Path, ids: Tensor) -> Tensor:
    """[B, T] -> [B, T, V] by our forward, in float32."""
    model = load_model(Checkpoint.open(path), dtype=torch.float32, device=torch.device("cpu"))
    with torch.inference_mode():
        return model.logits(model(ids, causal(torch.zeros(ids.shape[0], dtype=torch.int64), ids.shape[1])))


def their_logits(path: Path, ids: Tensor) -> Tensor:
    """The same by transformers, from the directory alone."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.inference_mode():
        return model(ids).logits


def their_config(config: ModelConfig) -> ZayaConfig:
    """transformers' form of a config."""
    return ZayaConfig(**{key: value for key, value in config.to_json().items() if key not in ("architectures", "model_type")})


def relative_error(left: Tensor, right: Tensor, *, mask: int | None) -> float:
    """Largest difference over the largest logit, the mask's column aside."""
    keep = torch.arange(right.shape[-1]) != mask
    return float((left - right)[..., keep].abs().max() / right[..., keep].abs().max())
