"""The original ZAYA dialect's tensor names and the native ones: one pure, total, invertible renaming (model.md C2).

The original dialect alternates half-layers: 2l is layer l's attention, 2l + 1 its experts, one tensor an expert. Every merge of
a block's output into the stream lies in the half-layer after that block, so layer l's last one is in half-layer 2l + 2, and the
network's last one in `model.res_scale`. It refuses any tensor left over, missing or misshapen, and to know config.json (io/legacy).
"""

from collections.abc import Collection, Iterator
from typing import Any

from torch import Tensor

from zaya_core.config import ModelConfig
from zaya_core.errors import CheckpointError
from zaya_core.io.weights import TORCH_DTYPES, TensorInfo

BLOCKS = ("zaya_block", "smoe_block")  # the expert half-layer as released, and in Zyphra's internal checkpoints
ORIGINAL_MARKS = (*(f".{name}." for name in BLOCKS), ".self_attn.qkv.")
NATIVE_MARKS = (".self_attn.qkv_proj.", ".mlp.experts.")
LEGACY_CONFIG_KEYS = ("activation_func", "ffn_hidden_size", "ffn_hidden_size_list", "zaya_layers", "smoe_layers")
MAX_NAMED = 20

NETWORK_NAMES = (
    ("model.embed_tokens.", "model.embed_tokens."),
    ("model.norm.", "model.final_norm."),
    ("model.input_", "model.layers.0.res_scale."),
    ("lm_head.", "lm_head."),
)
# Beginning of a native name in its layer; which half-layer after 2l holds it; beginning of the original name there.
LAYER_NAMES = (
    ("input_layernorm.", 0, "input_norm."),
    ("self_attn.qkv_proj.q_proj.", 0, "self_attn.qkv.linear_q."),
    ("self_attn.qkv_proj.k_proj.", 0, "self_attn.qkv.linear_k."),
    ("self_attn.qkv_proj.v_proj_current.", 0, "self_attn.qkv.val_proj1."),
    ("self_attn.qkv_proj.v_proj_delayed.", 0, "self_attn.qkv.val_proj2."),
    ("self_attn.qkv_proj.conv_qk_depthwise.", 0, "self_attn.qkv.conv_qk.0."),
    ("self_attn.qkv_proj.conv_qk_grouped.", 0, "self_attn.qkv.conv_qk.1."),
    ("self_attn.qk_norm.", 0, "self_attn.qkv."),
    ("self_attn.o_proj.", 0, "self_attn.o_proj."),
    ("post_attention_residual_scale.", 1, "res_scale."),
    ("post_attention_layernorm.", 1, "input_norm."),
    ("mlp.gate.router_mlp.norm.", 1, "{block}.router.rmsnorm_eda."),
    ("mlp.gate.router_mlp.fc1.", 1, "{block}.router.router_mlp.0."),
    ("mlp.gate.router_mlp.fc2.", 1, "{block}.router.router_mlp.2."),
    ("mlp.gate.router_mlp.out_proj.", 1, "{block}.router.router_mlp.4."),
    ("mlp.gate.", 1, "{block}.router."),
    ("post_mlp_residual_scale.", 2, "res_scale."),
)
EXPERT_NAMES = {"mlp.experts.gate_up_proj": "linear_fc1.weight", "mlp.experts.down_proj": "linear_fc2.weight"}


def detect_dialect(values: dict[str, Any], keys: Collection[str]) -> tuple[str, str]:
    """`native` or `original`, and why. The tensors' names decide, for a config can be stale; CheckpointError if neither fits."""
    for dialect, marks in (("original", ORIGINAL_MARKS), ("native", NATIVE_MARKS)):
        found = next((key for key in sorted(keys) if any(mark in key for mark in marks)), None)
        if found is not None:
            named = [key for key in LEGACY_CONFIG_KEYS if key in values]
            why = f"config.json has {', '.join(named)}" if named else "config.json has no key of the original dialect"
            return dialect, f"it has tensors such as {found}; {why}"
    raise CheckpointError(f"the tensors are no ZAYA network's: {', '.join(sorted(keys)[:3]) or 'there are none'}")


def block_name(keys: Collection[str]) -> str:
    """What these original names call the expert half-layer; a mixture leaves tensors over in `native_plan`."""
    return next((name for name in BLOCKS if any(f".{name}." in key for key in keys)), BLOCKS[0])


def original_names(key: str, config: ModelConfig, block: str = BLOCKS[0]) -> tuple[str, ...]:
    """The original name of a native tensor, or its experts' names in the order in which they are stacked."""
    if not key.startswith("model.layers."):
        return (next(new + key.removeprefix(old) for old, new in NETWORK_NAMES if key.startswith(old)),)
    _, _, number, rest = key.split(".", 3)
    layer = int(number)
    if rest in EXPERT_NAMES:
        experts = f"model.layers.{2 * layer + 1}.{block}.experts.local_experts"
        return tuple(f"{experts}.{expert}.{EXPERT_NAMES[rest]}" for expert in range(config.num_experts))
    old, half, new = next(row for row in LAYER_NAMES if rest.startswith(row[0]))
    name = new.format(block=block) + rest.removeprefix(old)
    is_last = 2 * layer + half == 2 * config.num_hidden_layers
    return (f"model.{name}" if is_last else f"model.layers.{2 * layer + half}.{name}",)


def native_plan(tensors: dict[str, TensorInfo], config: ModelConfig, expected: dict[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """Each native key and the original tensor, or tensors to stack in order, that make it.

    `expected` is the state that `config`'s network stores (`stored_tensors` of one on the meta device). CheckpointError names
    every original tensor that is missing, left over or does not fit.
    """
    block = block_name(tensors)
    plan = {key: original_names(key, config, block) for key in expected}
    wanted = {name for names in plan.values() for name in names}
    misfits = [fault for key, names in plan.items() for fault in _misfits(names, tuple(expected[key].shape), tensors)]
    faults = [
        *_some("missing", sorted(wanted - set(tensors))),
        *_some("left over", sorted(set(tensors) - wanted)),
        *_some("misfit", misfits),
    ]
    if faults:
        directory = next(iter(tensors.values())).file.parent
        raise CheckpointError(f"{directory}: tensors do not fit the config: {'; '.join(faults)}")
    return plan


def _misfits(names: tuple[str, ...], shape: tuple[int, ...], tensors: dict[str, TensorInfo]) -> Iterator[str]:
    present = [(name, tensors[name]) for name in names if name in tensors]
    wanted = shape[1:] if ".local_experts." in names[0] else shape
    for name, info in present:
        if info.shape != wanted:
            yield f"{name} has shape {list(info.shape)}, expected {list(wanted)}"
        if info.dtype not in TORCH_DTYPES:
            yield f"{name} is {info.dtype}, expected one of {', '.join(TORCH_DTYPES)}"
        if info.dtype != present[0][1].dtype:
            yield f"{name} is {info.dtype}, expected {present[0][1].dtype} as {present[0][0]}"


def _some(kind: str, faults: list[str]) -> list[str]:
    more = [f"{len(faults) - MAX_NAMED} more {kind}"] * (len(faults) > MAX_NAMED)
    return [f"{kind} {fault}" for fault in faults[:MAX_NAMED]] + more
