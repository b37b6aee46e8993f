"""config.json as a frozen value, with upstream's field names (model.md B1).

Unknown keys are kept and written back; an impossible value raises ConfigError at construction. `config.tidar is None` is the
test for a plain autoregressive checkpoint. It refuses to know the other on-disk dialect (io/names) and any file.
"""

import difflib
import types
from dataclasses import dataclass, field, fields, replace
from typing import Any, get_args, get_origin

from zaya_core.errors import ConfigError

LAYER_TYPES = ("hybrid", "hybrid_sliding")
SKIP_OUTPUTS = ("zero", "identity")
HEADER = {"architectures": ["ZayaForCausalLM"], "model_type": "zaya"}
JSON_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "text", tuple: "a list", dict: "an object"}


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of one layer type: the first `int(head_dim * partial_rotary_factor)` dims rotate, base `rope_theta`.

    `yarn` (arXiv 2309.00071) stretches the slow dims by `factor` past the `original_max_position_embeddings` tokens it was
    trained with; `default` has neither.
    """

    rope_theta: float = 5e6
    partial_rotary_factor: float = 0.5
    rope_type: str = "default"
    factor: float | None = None
    original_max_position_embeddings: int | None = None

    def __post_init__(self) -> None:
        _expect(self.rope_type in ("default", "yarn"), "rope_type", self.rope_type, "'default' or 'yarn'")
        if self.rope_type == "yarn":
            _expect((self.factor or 0) >= 1, "factor", self.factor, "a number of at least 1 beside rope_type 'yarn'")
            original = self.original_max_position_embeddings
            _expect((original or 0) > 0, "original_max_position_embeddings", original, "a positive integer beside rope_type 'yarn'")
        else:
            _expect(self.factor is None, "factor", self.factor, "absent without rope_type 'yarn'")
        _expect(self.rope_theta > 0, "rope_theta", self.rope_theta, "a positive number")
        _expect(0 < self.partial_rotary_factor <= 1, "partial_rotary_factor", self.partial_rotary_factor, "in (0, 1]")


@dataclass(frozen=True)
class Tidar:
    """What makes a checkpoint a block-diffusion one: the block it was trained with and the id that fills a masked slot."""

    block_length: int
    mask_token_id: int

    def __post_init__(self) -> None:
        _expect(self.block_length >= 2, "tidar.block_length", self.block_length, "at least 2")
        _expect(self.mask_token_id >= 0, "tidar.mask_token_id", self.mask_token_id, "a token id")


@dataclass(frozen=True)
class ModelConfig:
    """A ZAYA network. Defaults are ZAYA1-8B's. `rope_parameters` maps a layer type to its Rope; `extra` holds unknown keys."""

    vocab_size: int = 262272
    hidden_size: int = 2048
    num_hidden_layers: int = 40
    num_attention_heads: int = 8
    num_key_value_heads: int = 2
    head_dim: int = 128
    hidden_act: str = "silu"
    moe_intermediate_size: int = 2048
    num_experts: int = 16
    num_experts_per_tok: int = 1
    router_hidden_size: int = 256
    cca_time0: int = 2
    cca_time1: int = 2
    layer_types: tuple[str, ...] | None = None
    sliding_window: int | None = None
    rope_parameters: dict[str, Rope] = field(default_factory=dict)
    max_position_embeddings: int = 131072
    rms_norm_eps: float = 1e-5
    attention_bias: bool = False
    attention_dropout: float = 0.0
    lm_head_bias: bool = False
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02
    pad_token_id: int | None = 0
    bos_token_id: int | None = 2
    eos_token_id: int | tuple[int, ...] | None = 106
    skip_expert_output: str = "zero"
    tidar: Tidar | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.layer_types is None:
            object.__setattr__(self, "layer_types", ("hybrid",) * self.num_hidden_layers)
        ropes = {"hybrid": Rope(), "hybrid_sliding": Rope(rope_theta=1e4)} | self.rope_parameters
        object.__setattr__(self, "rope_parameters", ropes)
        _check_geometry(self)

    @property
    def conv_channels(self) -> int:
        """C: the query and key latents, side by side."""
        return (self.num_attention_heads + self.num_key_value_heads) * self.head_dim

    @property
    def value_half(self) -> int:
        """Width of each half of the value: the current token's, and the delayed one's."""
        return self.num_key_value_heads * self.head_dim // 2

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Every id that ends a text."""
        if self.eos_token_id is None:
            return ()
        return self.eos_token_id if isinstance(self.eos_token_id, tuple) else (self.eos_token_id,)

    def window(self, layer_type: str) -> int | None:
        """Tokens that a layer of this type sees, the query included; None for all (model.md A5)."""
        return self.sliding_window if layer_type == "hybrid_sliding" else None

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "ModelConfig":
        """Read a native config.json. Unknown keys go to `extra`; a model_type other than "zaya" is a ConfigError."""
        values = dict(values)
        if values.get("model_type") != "zaya":
            raise ConfigError(f"model_type is {values.get('model_type')!r}, expected 'zaya'")
        _refuse_legacy(values)
        known = {item.name for item in fields(cls)} - {"extra"}
        chosen = {key: values.pop(key) for key in list(values) if key in known}
        values = {key: value for key, value in values.items() if value != HEADER.get(key)}
        chosen["rope_parameters"] = _read_rope(chosen.get("rope_parameters"))
        if chosen.get("tidar") is not None:
            chosen["tidar"] = _read_part(Tidar, "tidar", chosen["tidar"])
        for key in ("layer_types", "eos_token_id"):
            if isinstance(chosen.get(key), list):
                chosen[key] = tuple(chosen[key])
        _check_types(cls, "config: ", chosen)
        return cls(**chosen, extra=values)

    def to_json(self) -> dict[str, Any]:
        """The inverse of `from_json`, as a native config.json that transformers reads."""
        values = HEADER | self.extra
        for item in fields(self):
            if item.name not in ("extra", "tidar", "rope_parameters"):
                values[item.name] = getattr(self, item.name)
        values["layer_types"] = list(self.layer_types)
        if isinstance(self.eos_token_id, tuple):
            values["eos_token_id"] = list(self.eos_token_id)
        values["rope_parameters"] = {
            name: {item.name: value for item in fields(Rope) if (value := getattr(rope, item.name)) is not None}
            for name, rope in self.rope_parameters.items()
        }
        if self.tidar is not None:
            values["tidar"] = {"block_length": self.tidar.block_length, "mask_token_id": self.tidar.mask_token_id}
        return values

    def with_changes(self, **changes: Any) -> "ModelConfig":
        """A copy with some fields changed; layer types follow a new depth."""
        if "num_hidden_layers" in changes and "layer_types" not in changes:
            changes["layer_types"] = None
        return replace(self, **changes)


def nearest(name: str, known: list[str]) -> str:
    """A hint naming the most similar known name, or all of them."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(known))}"


def _expect(condition: bool, name: str, value: Any, expected: str) -> None:
    if not condition:
        raise ConfigError(f"config: {name} is {value!r}, expected {expected}")


def _check_geometry(config: ModelConfig) -> None:
    for name in [
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "moe_intermediate_size",
        "num_experts",
        "router_hidden_size",
        "max_position_embeddings",
    ]:
        _expect(getattr(config, name) > 0, name, getattr(config, name), "a positive integer")
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    _expect(heads % groups == 0, "num_attention_heads", heads, f"a multiple of num_key_value_heads ({groups})")
    _expect(groups * config.head_dim % 2 == 0, "head_dim", config.head_dim, "even times num_key_value_heads")
    for name in ("cca_time0", "cca_time1"):
        _expect(getattr(config, name) == 2, name, getattr(config, name), "2, the only kernel size that ZAYA uses")
    _expect(config.num_experts_per_tok == 1, "num_experts_per_tok", config.num_experts_per_tok, "1")
    _expect(config.rms_norm_eps > 0, "rms_norm_eps", config.rms_norm_eps, "a positive number")
    pad = config.pad_token_id
    _expect(pad is None or 0 <= pad < config.vocab_size, "pad_token_id", pad, f"below vocab_size ({config.vocab_size})")
    _expect(config.hidden_act == "silu", "hidden_act", config.hidden_act, "'silu'")
    _expect(config.attention_dropout == 0, "attention_dropout", config.attention_dropout, "0")
    _expect(config.skip_expert_output in SKIP_OUTPUTS, "skip_expert_output", config.skip_expert_output, str(SKIP_OUTPUTS))
    types = config.layer_types
    _expect(len(types) == config.num_hidden_layers, "layer_types", f"{len(types)} entries", f"{config.num_hidden_layers}")
    for kind in types:
        _expect(kind in LAYER_TYPES, "layer_types", kind, f"one of {LAYER_TYPES}")
    if "hybrid_sliding" in types:
        _expect((config.sliding_window or 0) > 0, "sliding_window", config.sliding_window, "a positive integer")
    for kind in types:
        rotated = int(config.head_dim * config.rope_parameters[kind].partial_rotary_factor)
        _expect(rotated % 2 == 0 and rotated > 0, f"{kind} rotary dims", rotated, "a positive even number")
    if config.tidar is not None:
        mask = config.tidar.mask_token_id
        _expect(mask < config.vocab_size, "tidar.mask_token_id", mask, f"below vocab_size ({config.vocab_size})")


def _check_types(owner: type, place: str, values: dict[str, Any]) -> None:
    """Each value has the type that its field of `owner` says; JSON has no tuples, and an integer is a number there."""
    for item in fields(owner):
        if item.name in values and not _fits(values[item.name], item.type):
            kinds = get_args(item.type) if isinstance(item.type, types.UnionType) else (item.type,)
            expected = " or ".join(JSON_NAMES.get(get_origin(kind) or kind, "null") for kind in kinds)
            raise ConfigError(f"{place}{item.name} is {values[item.name]!r}, expected {expected}")


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(kind, types.UnionType):
        return any(_fits(value, part) for part in get_args(kind))
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_fits(part, get_args(kind)[0]) for part in value)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else get_origin(kind) or kind)


def _refuse_legacy(values: dict[str, Any]) -> None:
    """Keys of the alternating-layer dialect: read as native they would build another network in silence (model.md B1)."""
    found = [key for key in ("activation_func", "ffn_hidden_size", "zaya_layers", "smoe_layers") if key in values]
    if found:
        raise ConfigError(f"config: {', '.join(found)} belong to the original ZAYA dialect, expected native keys")


def _read_rope(values: Any) -> dict[str, Rope]:
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"config: rope_parameters is {values!r}, expected an object per layer type")
    # The published file carries a stray top-level "rope_type" beside the layer types; upstream drops it as well.
    parts = {key: part for key, part in values.items() if key != "rope_type"}
    for key in parts:
        if key not in LAYER_TYPES:
            raise ConfigError(f"config: rope_parameters.{key} is unknown, expected {' and '.join(LAYER_TYPES)}")
    # Upstream's default for a missing partial_rotary_factor is 1: the whole head rotates.
    whole = {"partial_rotary_factor": 1.0}
    return {
        key: _read_part(Rope, f"rope_parameters.{key}", whole | part if isinstance(part, dict) else part)
        for key, part in parts.items()
    }


def _read_part(kind: type, name: str, values: Any) -> Any:
    known = [item.name for item in fields(kind)]
    if not isinstance(values, dict):
        raise ConfigError(f"config: {name} is {values!r}, expected an object with {', '.join(known)}")
    for key in values:
        if key not in known:
            raise ConfigError(f"config: {name}.{key} is unknown", hint=nearest(key, known))
    _check_types(kind, f"config: {name}.", values)
    try:
        return kind(**values)
    except TypeError as error:
        raise ConfigError(f"config: {name} is {values!r}: {error}") from error
