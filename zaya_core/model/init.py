"""A random network: upstream's initialisation (model.md A12), but for the key temperature."""

from collections.abc import Iterator

import torch
from torch import Tensor

from zaya_core.config import ModelConfig
from zaya_core.model.forms import for_serving
from zaya_core.model.load import meta_model
from zaya_core.model.serving import ServingModel
from zaya_core.runtime import keep_freed_pages

CPU = torch.device("cpu")


def random_tensors(
    config: ModelConfig, *, seed: int, dtype: torch.dtype, device: torch.device = CPU
) -> Iterator[tuple[str, Tensor]]:
    """The stored tensors one by one: normal weights of `initializer_range`, zero biases, unit norms and scales.

    `temp` starts at 1: upstream's zero makes every key zero and gives the query, key and convolution weights no gradient (A3).
    The router's MLP and the convolutions of queries and keys are scaled by their fan-in instead of upstream's 0.02: at that, a
    narrow router starts with nearly equal probabilities for all experts, and two convolutions in a row start so close to zero that
    the previous token hardly reaches the keys. A seed gives other weights on another kind of device.
    """
    generator = torch.Generator(device).manual_seed(seed)
    model = meta_model(config)
    # Named once each: a tied head is the embedding, and is not stored.
    for name, shaped in (*model.named_parameters(), *model.named_buffers()):
        tensor = torch.zeros(shaped.shape, dtype=dtype, device=device)
        if name.endswith("balancing_biases"):
            tensor = tensor.float()
            tensor[-1] = -1.0
        elif name.endswith(("scale", "norm.weight", "layernorm.weight", "temp")):
            tensor.fill_(1.0)
        elif not name.endswith("bias"):
            by_fan_in = ".router_mlp." in name or ".conv_qk_" in name
            tensor.normal_(0.0, shaped[0].numel() ** -0.5 if by_fan_in else config.initializer_range, generator=generator)
        if name == "model.embed_tokens.weight" and config.pad_token_id is not None:
            tensor[config.pad_token_id] = 0.0
        yield name, tensor


def random_serving(config: ModelConfig, *, dtype: torch.dtype, device: torch.device) -> ServingModel:
    """A network of random weights laid out for decoding: to time, not to talk to."""
    keep_freed_pages()
    tensors = dict(random_tensors(config, seed=0, dtype=dtype, device=device))
    if config.tie_word_embeddings:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    model = meta_model(config).requires_grad_(False)
    model.load_state_dict(tensors, assign=True)
    return for_serving(model.eval())
