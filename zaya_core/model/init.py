"""A random network, from a preset: upstream's initialisation (model.md A12), but for the key temperature."""

from collections.abc import Iterator

import torch
from torch import Tensor

from zaya_core.config import ModelConfig, Rope
from zaya_core.model.load import meta_model

_ZAYA1_8B = ModelConfig()

PRESETS: dict[str, ModelConfig] = {
    # For tests: everything small, a sliding layer included.
    "tiny": ModelConfig(
        vocab_size=512,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        moe_intermediate_size=64,
        num_experts=4,
        router_hidden_size=32,
        layer_types=("hybrid", "hybrid_sliding", "hybrid"),
        sliding_window=64,
        max_position_embeddings=1024,
        eos_token_id=1,
        rope_parameters={"hybrid": Rope(rope_theta=1e4)},
    ),
    # The quickstart's size, and the bundled checkpoint's.
    "mini": ModelConfig(
        vocab_size=4096,
        hidden_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        moe_intermediate_size=256,
        num_experts=8,
        router_hidden_size=64,
        max_position_embeddings=8192,
        eos_token_id=1,
        rope_parameters={"hybrid": Rope(rope_theta=1e5)},
    ),
    # For speed: large enough that weights come from memory, small enough for a laptop.
    "bench": ModelConfig(
        vocab_size=32768,
        hidden_size=1024,
        num_hidden_layers=12,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        moe_intermediate_size=1024,
        num_experts=16,
        router_hidden_size=256,
        max_position_embeddings=32768,
        eos_token_id=1,
        rope_parameters={"hybrid": Rope(rope_theta=1e6)},
    ),
    "zaya1-8b": _ZAYA1_8B,
    "zaya1-base": _ZAYA1_8B.with_changes(
        max_position_embeddings=32768, eos_token_id=1, rope_parameters={"hybrid": Rope(rope_theta=1e6)}
    ),
    "zaya1-74b": _ZAYA1_8B.with_changes(
        hidden_size=4096,
        num_hidden_layers=60,
        num_attention_heads=16,
        num_experts=24,
        moe_intermediate_size=4096,
        layer_types=("hybrid_sliding", "hybrid") * 30,
        sliding_window=4097,
        max_position_embeddings=262144,
        eos_token_id=1,
    ),
}


def random_tensors(config: ModelConfig, *, seed: int, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """The stored tensors one by one: normal weights of `initializer_range`, zero biases, unit norms and scales.

    `temp` starts at 1: upstream's zero makes every key zero and gives the query, key and convolution weights no gradient (A3).
    The router's MLP is scaled by its fan-in instead of upstream's 0.02, at which a narrow one starts with nearly equal
    probabilities for all experts.
    """
    generator = torch.Generator().manual_seed(seed)
    model = meta_model(config)
    # Named once each: a tied head is the embedding, and is not stored.
    for name, shaped in (*model.named_parameters(), *model.named_buffers()):
        tensor = torch.zeros(shaped.shape, dtype=dtype)
        if name.endswith("balancing_biases"):
            tensor = tensor.float()
            tensor[-1] = -1.0
        elif name.endswith(("scale", "norm.weight", "layernorm.weight", "temp")):
            tensor.fill_(1.0)
        elif not name.endswith("bias"):
            width = shaped.shape[-1] ** -0.5 if ".router_mlp." in name else config.initializer_range
            tensor.normal_(0.0, width, generator=generator)
        if name == "model.embed_tokens.weight" and config.pad_token_id is not None:
            tensor[config.pad_token_id] = 0.0
        yield name, tensor
