"""Random ZAYA networks for the tests: every parameter and buffer randomised, because a fresh initialisation proves nothing."""

import torch
from torch import Tensor

from zaya_core.config import ModelConfig, Rope
from zaya_core.model import Zaya

TINY = ModelConfig(
    vocab_size=97,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    moe_intermediate_size=24,
    num_experts=4,
    router_hidden_size=16,
    max_position_embeddings=512,
    eos_token_id=1,
    rope_parameters={"hybrid": Rope(rope_theta=1e4), "hybrid_sliding": Rope(rope_theta=1e3)},
)
SLIDING = TINY.with_changes(layer_types=("hybrid_sliding", "hybrid", "hybrid_sliding"), sliding_window=5)
BIASED = TINY.with_changes(attention_bias=True)
UNTIED = TINY.with_changes(tie_word_embeddings=False, lm_head_bias=True)
ONE_GROUP = TINY.with_changes(hidden_size=40, num_attention_heads=3, num_key_value_heads=1, head_dim=16)
MANY_HEADS = SLIDING.with_changes(hidden_size=24, num_attention_heads=6, num_key_value_heads=3, head_dim=4)


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Fan-in scaled weights, norms and scales around 1, temp around 1.5, and a skip bias that some tokens choose."""
    generator = torch.Generator().manual_seed(seed)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, tensor in sorted(tensors.items()):
        if "inv_freq" in name:
            continue
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32)
        if name.endswith("temp"):
            noise = 1.5 + 0.2 * noise
        elif name.endswith("balancing_biases"):
            noise = 0.1 * noise
        elif name.endswith(("scale", "norm.weight", "layernorm.weight")):
            noise = 1 + 0.2 * noise
        elif tensor.dim() == 1:
            noise = 0.2 * noise
        elif name.endswith("embed_tokens.weight"):
            pass
        else:
            fan_in = tensor[0].numel() if "proj" in name and tensor.dim() == 2 else tensor.shape[-1]
            if "conv" in name:
                fan_in = tensor[0].numel()
            noise = noise / fan_in**0.5
        with torch.no_grad():
            tensor.copy_(noise)


def random_model(config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> Zaya:
    """A randomised model in evaluation form."""
    model = Zaya(config)
    randomise(model, seed)
    return model.to(dtype).eval().requires_grad_(False)


def random_ids(config: ModelConfig, rows: int, length: int, seed: int = 0) -> Tensor:
    """Token ids [rows, length] clear of the special ones."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, config.vocab_size, (rows, length), generator=generator)
