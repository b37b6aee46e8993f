"""Random checkpoints in the original ZAYA dialect, in every config flavour; names and shapes from model.md section C alone.

Nothing here comes from zaya_core: what it writes is evidence against zaya_core.io.names and legacy. Its reader is original_forward.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

FLAVOURS = ("scalar", "fork_default", "list", "flat_rope", "internal")


@dataclass(frozen=True)
class Original:
    """Sizes and switches of a tiny network. `windows` counts earlier tokens for each half-layer, 0 for all of them."""

    num_half_layers: int = 6
    hidden: int = 64
    q_heads: int = 4
    kv_heads: int = 2
    head_dim: int = 8
    expert_width: int = 24
    num_experts: int = 4
    router: int = 16
    vocab: int = 97
    theta: float = 1e4
    partial: float = 0.5
    windows: tuple[int, ...] = ()
    sliding_theta: float = 1e3
    attention_bias: bool = False
    head: str = "tied"  # tied, untied or biased (untied as well)
    clamp_temp: bool = False
    block: str = "zaya_block"

    @property
    def channels(self) -> int:
        """Width of the convolved query and key latents."""
        return (self.q_heads + self.kv_heads) * self.head_dim


def shapes(net: Original) -> dict[str, tuple[int, ...]]:
    """Every tensor of the checkpoint."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (net.vocab, net.hidden)}
    for half in range(net.num_half_layers):
        name = f"model.layers.{half}"
        found[f"{name}.input_norm.weight"] = (net.hidden,)
        found |= _merge(f"{name}.res_scale", net, is_first=half == 0)
        part = _attention_shapes(net) if half % 2 == 0 else _expert_shapes(net, is_first=half == 1)
        found |= {f"{name}.{key}": shape for key, shape in part.items()}
    found |= _merge("model.res_scale", net, is_first=False)
    found["model.final_norm.weight"] = (net.hidden,)
    if net.head != "tied":
        found["lm_head.weight"] = (net.vocab, net.hidden)
    if net.head == "biased":
        found["lm_head.bias"] = (net.vocab,)
    return found


def _merge(name: str, net: Original, *, is_first: bool) -> dict[str, tuple[int, ...]]:
    branches = ("hidden_states",) if is_first else ("hidden_states", "residual")
    return {f"{name}.{branch}_{part}": (net.hidden,) for branch in branches for part in ("scale", "bias")}


def _attention_shapes(net: Original) -> dict[str, tuple[int, ...]]:
    q, k = net.q_heads * net.head_dim, net.kv_heads * net.head_dim
    linears = {
        "self_attn.qkv.linear_q": (q, net.hidden),
        "self_attn.qkv.linear_k": (k, net.hidden),
        "self_attn.qkv.val_proj1": (k // 2, net.hidden),
        "self_attn.qkv.val_proj2": (k // 2, net.hidden),
        "self_attn.o_proj": (net.hidden, q),
    }
    found = {f"{name}.weight": shape for name, shape in linears.items()}
    if net.attention_bias:
        found |= {f"{name}.bias": shape[:1] for name, shape in linears.items()}
    return found | {
        "self_attn.qkv.conv_qk.0.weight": (net.channels, 1, 2),
        "self_attn.qkv.conv_qk.0.bias": (net.channels,),
        "self_attn.qkv.conv_qk.1.weight": (net.channels, net.head_dim, 2),
        "self_attn.qkv.conv_qk.1.bias": (net.channels,),
        "self_attn.qkv.temp": (net.kv_heads,),
    }


def _expert_shapes(net: Original, *, is_first: bool) -> dict[str, tuple[int, ...]]:
    width, classes = net.router, net.num_experts + 1
    found = {
        "router.down_proj.weight": (width, net.hidden),
        "router.down_proj.bias": (width,),
        "router.balancing_biases": (classes,),
        "router.rmsnorm_eda.weight": (width,),
        "router.router_mlp.0.weight": (width, width),
        "router.router_mlp.0.bias": (width,),
        "router.router_mlp.2.weight": (width, width),
        "router.router_mlp.2.bias": (width,),
        "router.router_mlp.4.weight": (classes, width),
    }
    if not is_first:
        found["router.router_states_scale"] = (width,)
    for expert in range(net.num_experts):
        found[f"experts.local_experts.{expert}.linear_fc1.weight"] = (2 * net.expert_width, net.hidden)
        found[f"experts.local_experts.{expert}.linear_fc2.weight"] = (net.hidden, net.expert_width)
    return {f"{net.block}.{key}": shape for key, shape in found.items()}


def random_tensors(net: Original, seed: int = 0, dtype: torch.dtype = torch.float32) -> Iterator[tuple[str, Tensor]]:
    """Random weights, one by one: scales and norms about 1, temperatures clear of 0, fan-in scaled matrices."""
    generator = torch.Generator().manual_seed(seed)
    for name, shape in shapes(net).items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("temp"):
            noise = 1.5 + 0.4 * noise
        elif name.endswith(("scale", "norm.weight", "rmsnorm_eda.weight")):
            noise = 1 + 0.2 * noise
        elif len(shape) == 1:
            noise = 0.2 * noise
            if name.endswith("balancing_biases"):
                noise[-1] = 0.2  # so that some tokens choose the skip expert
        elif "embed_tokens" not in name:
            noise = noise / math.prod(shape[1:]) ** 0.5
        yield name, noise.to(torch.float32 if name.endswith("balancing_biases") else dtype)


def config_values(net: Original, flavour: str = "scalar") -> dict[str, Any]:
    """config.json as that flavour's code writes it, with its known skews."""
    uncompressed = net.hidden // net.head_dim
    halves = net.num_half_layers
    values: dict[str, Any] = {
        "model_type": "zaya",
        "architectures": ["ZayaForCausalLM"],
        "torch_dtype": "bfloat16",
        "transformers_version": "4.57.0",
        "vocab_size": net.vocab,
        "hidden_size": net.hidden,
        "num_hidden_layers": halves,
        "max_position_embeddings": 512,
        "norm_epsilon": 1e-5,
        "moe_router_topk": 1,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "tie_word_embeddings": net.head == "tied",
        "lm_head_bias": net.head == "biased",
        "attention_bias": net.attention_bias,
        "activation_func": "swiglu",
        "normalization": "RMSNorm",
        "sliding_window": None,
        "residual_in_fp32": True,
        "add_bias_linear": False,
    }
    values |= dict.fromkeys(("cca", "zaya_use_mod", "zaya_use_eda", "gated_linear_unit", "scale_residual_merge"), True)
    per_layer = {
        "cca_num_q_heads": [net.q_heads, 0] * (halves // 2),
        "num_query_groups_list": [net.kv_heads, 0] * (halves // 2),
        "ffn_hidden_size_list": [0, 2 * net.expert_width] * halves,  # longer than the layers
        "num_attention_heads": uncompressed,
        "num_key_value_heads": net.kv_heads,
    }
    scalars = {
        "num_query_groups": net.kv_heads,
        "num_key_value_heads": net.kv_heads,
        "ffn_hidden_size": 2 * net.expert_width,
        "num_experts": net.num_experts,
        "zaya_mlp_expansion": net.router,
        "num_attention_heads": net.q_heads,
        "head_dim": net.head_dim,
        "rope_theta": net.theta,
        "partial_rotary_factor": net.partial,
    }
    layers, expansion = ["a", net.num_experts] * (halves // 2), [0, net.router] * (halves // 2)
    if flavour == "list":
        values |= per_layer | {"zaya_layers": layers, "zaya_mlp_expansion": expansion, "num_hidden_layers": 120}
        values |= {"rope_scaling": False, "rope_theta": net.theta, "partial_rotary_factor": net.partial}
    elif flavour == "internal":
        values |= per_layer | {"smoe_layers": layers, "smoe_mlp_expansion": expansion}
        values |= {"rotary_base": net.theta, "rope_pct": net.partial}
    else:
        values |= scalars
    if flavour == "fork_default":
        values |= {"cca_num_q_heads": net.q_heads, "num_attention_heads": uncompressed}
        del values["head_dim"]
    elif flavour == "flat_rope":
        rope = {"rope_type": "default", "rope_theta": values.pop("rope_theta")}
        values["rope_parameters"] = rope | {"partial_rotary_factor": values.pop("partial_rotary_factor")}
    if net.windows:
        values |= {"swa_layers": list(net.windows), "swa_rotary_base": net.sliding_theta}
    return values | ({"clamp_temp": True} if net.clamp_temp else {})


def write_original(directory: Path, net: Original, flavour: str = "scalar", seed: int = 0) -> dict[str, Tensor]:
    """A checkpoint directory of config.json and one shard; returns its tensors."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = dict(random_tensors(net, seed))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config_values(net, flavour)))
    return tensors
