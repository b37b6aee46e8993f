"""config.json of the original ZAYA dialect, in any of its flavours, as a native ModelConfig (model.md C3-C5).

The geometry is what the tensors' shapes say; config.json has a vote only where they disagree among themselves. What the weights
cannot tell (rotary embedding, windows, epsilon, special ids, switches) is read from config.json. Every value mended, assumed or
folded is one line for the report. It refuses a switch that the native network does not have, and a theta or context left unsaid.
"""

import re
from collections import Counter
from typing import Any, NamedTuple

from torch import Tensor

from zaya_core.config import ModelConfig
from zaya_core.errors import CheckpointError, ConfigError
from zaya_core.io.weights import TensorInfo

ATTENTION = "self_attn.qkv"
NEEDED = {  # switch -> the one value that the native network has
    "cca": True,
    "zaya_use_mod": True,
    "smoe_use_mod": True,
    "zaya_use_eda": True,
    "smoe_use_eda": True,
    "scale_residual_merge": True,
    "gated_linear_unit": True,
    "add_bias_linear": False,
    "activation_func": "swiglu",
    "normalization": "RMSNorm",
    "moe_router_topk": 1,
}
WITHOUT_MEANING = (
    "fused_add_norm",
    "apply_rope_fusion",
    "bias_activation_fusion",
    "activation_func_fp8_input_store",
    "mamba_cache_dtype",
    "residual_in_fp32",
    "zaya_high_prec",
    "smoe_high_prec",
)
LAYERS = ("zaya_layers", "smoe_layers")
ROTARY = ("rope_scaling", "rope_theta", "rotary_base", "partial_rotary_factor", "rope_pct", "swa_layers", "swa_rotary_base")
# Not carried over: the writer's own business, or a pointer to code of the other dialect.
WRITER = ("architectures", "model_type", "auto_map", "dtype", "torch_dtype")


class Geometry(NamedTuple):
    """Where a size can be read: an axis of every tensor whose name ends so, and the keys of config.json that repeat it."""

    suffix: str
    axis: int
    keys: tuple[str, ...]
    factor: int = 1  # config.json's number over the native one
    in_heads: bool = False  # the axis counts head_dim times the native number


GEOMETRY = {
    "vocab_size": Geometry("model.embed_tokens.weight", 0, ("vocab_size",)),
    "hidden_size": Geometry("model.embed_tokens.weight", 1, ("hidden_size",)),
    "head_dim": Geometry(f"{ATTENTION}.conv_qk.1.weight", 1, ("head_dim", "kv_channels")),
    "num_attention_heads": Geometry(f"{ATTENTION}.linear_q.weight", 0, ("cca_num_q_heads", "num_attention_heads"), in_heads=True),
    "num_key_value_heads": Geometry(f"{ATTENTION}.temp", 0, ("num_query_groups", "num_query_groups_list", "num_key_value_heads")),
    "cca_time0": Geometry(f"{ATTENTION}.conv_qk.0.weight", 2, ("cca_time0",)),
    "cca_time1": Geometry(f"{ATTENTION}.conv_qk.1.weight", 2, ("cca_time1",)),
    "moe_intermediate_size": Geometry("linear_fc2.weight", 1, ("ffn_hidden_size", "ffn_hidden_size_list"), factor=2),
    "router_hidden_size": Geometry("router.down_proj.weight", 0, ("zaya_mlp_expansion", "smoe_mlp_expansion")),
}


def native_config(values: dict[str, Any], tensors: dict[str, TensorInfo]) -> tuple[ModelConfig, tuple[str, ...]]:
    """The native configuration of an original checkpoint, and one line for every decision taken on the way.

    ConfigError for a switch or a rotary embedding that the native network lacks, CheckpointError for tensors that tell no geometry.
    """
    _refuse(values)
    report: list[str] = []
    native = _geometry(values, tensors, report)
    native |= _attention(values, native["num_hidden_layers"], report)
    native |= _switches(values, tensors, report)
    native |= _special_ids(values, report)
    dropped = [key for key in WITHOUT_MEANING if key in values]
    if dropped:
        report.append(f"dropped from config.json, without meaning in the native network: {', '.join(dropped)}")
    if folds_temperature(values):
        report.append("clamp_temp is true: exp(clamp(temp, 1e-7, 2)) is stored as temp, which cannot be undone")
    report.append("skip_expert_output is 'identity', as in the original code")
    carried = {key: value for key, value in values.items() if key not in _consumed()}
    return ModelConfig.from_json(carried | native | {"model_type": "zaya", "skip_expert_output": "identity"}), tuple(report)


def folds_temperature(values: dict[str, Any]) -> bool:
    """Whether the original network reads exp(clamp(temp)) where the native one reads temp itself."""
    return bool(values.get("clamp_temp"))


def folded_temperature(temp: Tensor) -> Tensor:
    """The native key temperature of a clamp_temp checkpoint, in the dtype given."""
    return temp.float().clamp(1e-7, 2).exp().to(temp.dtype)


def _refuse(values: dict[str, Any]) -> None:
    for key, wanted in NEEDED.items():
        value = values.get(key, wanted)
        if value != wanted or isinstance(value, bool) != isinstance(wanted, bool):
            raise ConfigError(f"config: {key} is {value!r}, and the native network has only {wanted!r}")


def _geometry(values: dict[str, Any], tensors: dict[str, TensorInfo], report: list[str]) -> dict[str, Any]:
    sizes: dict[str, Any] = {}
    for name, where in GEOMETRY.items():
        unit = sizes["head_dim"] if where.in_heads else 1
        found = [size // unit for size in _sizes(tensors, where)]
        said = {key: _number(values, key) for key in where.keys}
        sizes[name] = _settle(found, {key: size for key, size in said.items() if size}, where.factor, report)
    layers = _layer_list(values)
    sizes["num_experts"] = _settle(_experts(tensors), _said_experts(values, layers), 1, report)
    return sizes | {"num_hidden_layers": _depth(values, layers, tensors, report)}


def _sizes(tensors: dict[str, TensorInfo], where: Geometry) -> list[int]:
    """That axis of every such tensor. Empty tensors do not count: their other axes cost no bytes and can claim any size."""
    found = [info for key, info in tensors.items() if key.endswith(where.suffix)]
    sizes = [info.shape[where.axis] for info in found if info.num_elements and len(info.shape) > where.axis]
    if not sizes:
        raise CheckpointError(f"missing {where.suffix}, or every one misshapen: it tells {' or '.join(where.keys)}")
    return sizes


def _settle(found: list[int], said: dict[str, int], factor: int, report: list[str]) -> int:
    """The size that most tensors and config keys agree on, tensors first; each config key that says another is reported."""
    votes = Counter([*found, *(size // factor for size in said.values())])
    chosen = max(found, key=lambda size: votes[size])
    report += [
        f"{key} is {size} in config.json, {chosen * factor} by the weights" for key, size in said.items() if size != chosen * factor
    ]
    return chosen


def _experts(tensors: dict[str, TensorInfo]) -> list[int]:
    """Experts by their tensors, and by the rows of every router: one more, for the skip expert."""
    numbers = {match[1] for key in tensors if (match := re.search(r"\.local_experts\.(\d+)\.", key))}
    rows = _sizes(tensors, Geometry("router.router_mlp.4.weight", 0, ("num_experts",)))
    return [*(row - 1 for row in rows), len(numbers)]


def _said_experts(values: dict[str, Any], layers: tuple[str, list[Any]] | None) -> dict[str, int]:
    said = {"num_experts": _number(values, "num_experts")} | ({layers[0]: layers[1][1]} if layers else {})
    return {key: size for key, size in said.items() if size}


def _layer_list(values: dict[str, Any]) -> tuple[str, list[Any]] | None:
    """The list with "a" for an attention half-layer and the number of experts for another, and its name."""
    name = next((key for key in LAYERS if values.get(key)), None)
    if name is None:
        return None
    entries = values[name]
    is_paired = isinstance(entries, list) and len(entries) % 2 == 0 and all(entry == "a" for entry in entries[::2])
    if not is_paired or not all(isinstance(entry, int) for entry in entries[1::2]):
        raise ConfigError(f"config: {name} does not alternate 'a' and a number of experts")
    return name, entries


def _depth(values: dict[str, Any], layers: tuple[str, list[Any]] | None, tensors: dict[str, TensorInfo], report: list[str]) -> int:
    """Native layers: half the layer list, which upstream builds from; without one, half of the half-layers stored."""
    blocks = re.compile(r"model\.layers\.(\d+)\.(?:self_attn|zaya_block|smoe_block)\.")
    stored = {match[1] for key in tensors if (match := blocks.match(key))}
    halves = len(layers[1]) if layers else -(-len(stored) // 2) * 2
    said = _number(values, "num_hidden_layers")
    if said and said != halves:
        source = f"{layers[0]}, which counts" if layers else "the weights"
        report.append(f"num_hidden_layers is {said} half-layers in config.json, {halves} by {source}")
    return halves // 2


def _attention(values: dict[str, Any], depth: int, report: list[str]) -> dict[str, Any]:
    """Rotary embedding and sliding windows."""
    full = _rope(values, report)
    windows = _windows(values, depth)
    if not any(windows):
        return {"rope_parameters": {"hybrid": full}, "layer_types": ["hybrid"] * depth, "sliding_window": None}
    theta = values.get("swa_rotary_base")
    if theta is None:
        theta = 1e4
        report.append("swa_rotary_base is not in config.json; 10000 is assumed")
    before = max(windows)
    report.append(f"swa_layers counts {before} tokens before the query; sliding_window is {before + 1}, the query included")
    return {
        "rope_parameters": {"hybrid": full, "hybrid_sliding": full | {"rope_theta": theta}},
        "layer_types": ["hybrid_sliding" if size else "hybrid" for size in windows],
        "sliding_window": before + 1,
    }


def _rope(values: dict[str, Any], report: list[str]) -> dict[str, Any]:
    """The full layers' rotary embedding: top-level keys, or a flat (or one layer type's) rope_parameters, which wins."""
    given = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(given, dict) or not isinstance(given.get("hybrid", {}), dict):
        raise ConfigError(f"config: rope_parameters is {given!r}, expected an object")
    given = given.get("hybrid", given)
    kind, factor = given.get("rope_type", given.get("type", "default")), given.get("factor", 1)
    if kind != "default" and (kind, factor) != ("linear", 1):
        raise ConfigError(f"config: rope_parameters or rope_scaling is {given!r}, and the native network scales none")
    names = ("rope_theta", "rotary_base")
    theta, outer = _first_of(names, given, values), _first_of(names, values)
    if theta is None:
        raise ConfigError("config: rope_theta is missing, and the weights do not tell it")
    if outer not in (None, theta):
        report.append(f"rope_theta is {outer} in config.json, {theta} in its rope_parameters, which is taken")
    partial = _first_of(("partial_rotary_factor", "rope_pct"), given, values)
    if partial is None:
        partial = 0.5
        report.append("partial_rotary_factor is not in config.json; 0.5 is assumed, as in every released checkpoint")
    return {"rope_theta": theta, "partial_rotary_factor": partial}


def _windows(values: dict[str, Any], depth: int) -> list[int]:
    """Tokens before the query that each native layer sees, 0 for all; one entry a layer or a half-layer, lists may run on."""
    entries = values.get("swa_layers")
    if not entries:
        if values.get("sliding_window"):
            raise ConfigError(f"config: sliding_window is {values['sliding_window']!r}, but no swa_layers says where")
        return [0] * depth
    if not isinstance(entries, list) or not all(isinstance(entry, int) and entry >= 0 for entry in entries):
        raise ConfigError(f"config: swa_layers is {entries!r}, expected a list of window sizes")
    if len(entries) != depth and len(entries) < 2 * depth:
        raise ConfigError(f"config: swa_layers has {len(entries)} entries, expected {depth} or {2 * depth}")
    windows = entries if len(entries) == depth else entries[: 2 * depth : 2]
    if len(set(windows) - {0}) > 1:
        raise ConfigError(f"config: swa_layers has windows {sorted(set(windows) - {0})}, and the native network has one")
    return windows


def _switches(values: dict[str, Any], tensors: dict[str, TensorInfo], report: list[str]) -> dict[str, Any]:
    """Biases and head as the tensors have them, and the few numbers that only config.json knows."""
    stored = {
        "attention_bias": any(key.endswith(f"{ATTENTION}.linear_q.bias") for key in tensors),
        "lm_head_bias": "lm_head.bias" in tensors,
    }
    native: dict[str, Any] = {}
    for key, is_stored in stored.items():
        native[key] = bool(values.get(key)) or is_stored
        if native[key] != bool(values.get(key)):
            report.append(f"{key} is false in config.json, but the weights have it")
    if values.get("max_position_embeddings") is None:
        raise ConfigError("config: max_position_embeddings is missing, and the weights do not tell it")
    native["rms_norm_eps"] = _first_of(("norm_epsilon", "rms_norm_eps"), values)
    if native["rms_norm_eps"] is None:
        native["rms_norm_eps"] = 1e-5
        report.append("norm_epsilon is not in config.json; 1e-5 is assumed, as in every released checkpoint")
    return native


def _special_ids(values: dict[str, Any], report: list[str]) -> dict[str, Any]:
    """Ids that config.json leaves out have the default of the code that wrote it: the base's ends on 1, the 8B's on 106."""
    is_base = any(key in values for key in ("zaya_layers", "cca_num_q_heads"))
    native = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1 if is_base and "smoe_layers" not in values else 106}
    for key, default in native.items():
        if key not in values:
            report.append(f"{key} is not in config.json; {default} is assumed, the default of its flavour")
    return native | {key: values[key] for key in native if key in values}


def _number(values: dict[str, Any], key: str) -> int | None:
    """An integer of config.json; of a list with one entry a half-layer, the first that is not 0."""
    value = values.get(key)
    if isinstance(value, list):
        value = next((entry for entry in value if entry), None)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise ConfigError(f"config: {key} is {value!r}, expected an integer")
    return value


def _first_of(names: tuple[str, ...], *places: dict[str, Any]) -> Any:
    return next((place[name] for place in places for name in names if place.get(name) is not None), None)


def _consumed() -> set[str]:
    """Keys that native_config has read or replaced; any other is carried over as it is."""
    geometry = {key for where in GEOMETRY.values() for key in where.keys}
    ids = {"tidar", "clamp_temp", "norm_epsilon", "num_experts", "num_hidden_layers", "layer_types"}
    return geometry | ids | {*NEEDED, *WITHOUT_MEANING, *LAYERS, *ROTARY, *WRITER}
