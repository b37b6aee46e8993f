"""The original dialect read natively: equal to an independent half-layer reading, every skew mended aloud, the rest refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.io.original_dialect import FLAVOURS, Original, config_values, random_tensors, write_original
from tests.io.original_forward import read_logits
from zaya_core.config import ModelConfig
from zaya_core.errors import CheckpointError, ConfigError
from zaya_core.io.checkpoint import stored_tensors
from zaya_core.io.legacy import folded_temperature, folds_temperature, native_config
from zaya_core.io.names import native_plan
from zaya_core.io.weights import TensorInfo, read_headers
from zaya_core.layout import causal
from zaya_core.model import Zaya

SLIDING = Original(windows=(3, 0, 0, 0, 3, 0))
NETS = {
    "plain": Original(),
    "sliding": SLIDING,
    "attention_bias": Original(attention_bias=True),
    "untied": Original(head="untied"),
    "biased_head": Original(head="biased"),
    "clamp_temp": Original(clamp_temp=True),
    "full_rotation": Original(partial=1.0),
    "one_layer": Original(num_half_layers=2),
}
IDS = torch.randint(5, 97, (17,), generator=torch.Generator().manual_seed(3)).tolist()


def headers(tensors: dict[str, torch.Tensor]) -> dict[str, TensorInfo]:
    """What read_headers would find for these tensors."""
    return {name: TensorInfo(Path("base/model.safetensors"), "F32", tuple(tensor.shape)) for name, tensor in tensors.items()}


def read(net: Original, values: dict | None = None) -> tuple[ModelConfig, tuple[str, ...]]:
    """`native_config` of a network that is never written."""
    return native_config(values or config_values(net), headers(dict(random_tensors(net))))


def network(config: ModelConfig) -> Zaya:
    with torch.device("meta"):
        return Zaya(config)


def native_model(directory: Path, tensors: dict[str, torch.Tensor]) -> tuple[Zaya, tuple[str, ...]]:
    """Our network with an original checkpoint's weights, by the plan."""
    values = json.loads((directory / "config.json").read_text())
    infos = read_headers(directory)
    config, report = native_config(values, infos)
    state = {}
    for key, names in native_plan(infos, config, stored_tensors(network(config))).items():
        parts = [tensors[name] for name in names]
        state[key] = torch.stack(parts) if "mlp.experts." in key else parts[0]
        if key.endswith("qk_norm.temp") and folds_temperature(values):
            state[key] = folded_temperature(parts[0])
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model = Zaya(config)
    model.load_state_dict(state, strict=True)
    return model.eval().requires_grad_(False), report


def our_logits(model: Zaya) -> torch.Tensor:
    layout = causal(torch.zeros(1, dtype=torch.int64), len(IDS))
    return model.logits(model(torch.tensor([IDS]), layout))[0].double()


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("name", NETS)
def test_logits_equal_an_independent_reading(tmp_path, name, flavour):
    net = replace(NETS[name], block="smoe_block" if flavour == "internal" else "zaya_block")
    tensors = write_original(tmp_path, net, flavour, seed=1)
    model, _ = native_model(tmp_path, tensors)
    theirs, num_skipped = read_logits(net, tensors, IDS)
    assert relative_error(our_logits(model), theirs) < 1e-5
    assert num_skipped > 0, "the tokens must reach the skip expert"


def test_every_flavour_gives_the_same_native_config():
    net = replace(SLIDING, attention_bias=True)
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
    found = [read(net, config_values(net, flavour) | ids)[0] for flavour in FLAVOURS]
    assert all(config == found[0] for config in found)
    assert found[0].extra == {"transformers_version": "4.57.0"}
    assert ModelConfig.from_json(found[0].to_json()).with_changes(extra={}) == found[0].with_changes(extra={})


def test_skipped_tokens_pass_through_in_the_original_and_only_there(tmp_path):
    net = Original()
    tensors = write_original(tmp_path, net)
    model, report = native_model(tmp_path, tensors)
    assert model.config.skip_expert_output == "identity"
    assert "skip_expert_output is 'identity', as in the original code" in report
    zero = Zaya(model.config.with_changes(skip_expert_output="zero"))
    zero.load_state_dict(model.state_dict())
    zero.eval().requires_grad_(False)
    through, nothing = read_logits(net, tensors, IDS)[0], read_logits(net, tensors, IDS, skip="zero")[0]
    assert relative_error(our_logits(model), through) < 1e-5
    assert relative_error(our_logits(zero), nothing) < 1e-5
    assert relative_error(nothing, through) > 1e-3


@pytest.mark.parametrize("entries", [[3, 0, 0, 0, 3, 0], [3, 0, 3], [3, 0, 0, 0, 3, 0, 0, 0]])
def test_windows_count_the_query_natively(entries):
    config, report = read(SLIDING, config_values(SLIDING) | {"swa_layers": entries})
    assert config.layer_types == ("hybrid_sliding", "hybrid", "hybrid_sliding")
    assert config.sliding_window == 4
    assert config.rope_parameters["hybrid_sliding"].rope_theta == 1e3
    assert "swa_layers counts 3 tokens before the query; sliding_window is 4, the query included" in report


def test_without_a_sliding_theta_the_default_is_reported():
    values = config_values(SLIDING)
    del values["swa_rotary_base"]
    config, report = read(SLIDING, values)
    assert config.rope_parameters["hybrid_sliding"].rope_theta == 1e4
    assert "swa_rotary_base is not in config.json; 10000 is assumed" in report


def test_the_released_skews_are_mended_aloud():
    config, report = read(Original(), config_values(Original(), "list"))
    assert (config.num_attention_heads, config.head_dim, config.num_hidden_layers) == (4, 8, 3)
    assert "num_attention_heads is 8 in config.json, 4 by the weights" in report
    assert "num_hidden_layers is 120 half-layers in config.json, 6 by zaya_layers, which counts" in report


def test_nothing_is_mended_where_config_and_weights_agree():
    assert [line for line in read(Original())[1] if "by the weights" in line] == []


@pytest.mark.parametrize(
    ("key", "wrong", "line"),
    [
        ("num_attention_heads", 8, "num_attention_heads is 8 in config.json, 4 by the weights"),
        ("num_query_groups", 4, "num_query_groups is 4 in config.json, 2 by the weights"),
        ("head_dim", 16, "head_dim is 16 in config.json, 8 by the weights"),
        ("hidden_size", 128, "hidden_size is 128 in config.json, 64 by the weights"),
        ("vocab_size", 99, "vocab_size is 99 in config.json, 97 by the weights"),
        ("ffn_hidden_size", 24, "ffn_hidden_size is 24 in config.json, 48 by the weights"),
        ("num_experts", 16, "num_experts is 16 in config.json, 4 by the weights"),
        ("zaya_mlp_expansion", 256, "zaya_mlp_expansion is 256 in config.json, 16 by the weights"),
        ("num_hidden_layers", 120, "num_hidden_layers is 120 half-layers in config.json, 6 by the weights"),
    ],
)
def test_the_weights_win_over_config(key, wrong, line):
    config, report = read(Original(), config_values(Original()) | {key: wrong})
    assert line in report
    assert config == read(Original())[0]


@pytest.mark.parametrize("rows", [16, 64])
def test_config_decides_between_weights_that_disagree(rows):
    infos = headers(dict(random_tensors(Original(num_half_layers=4))))
    name = "model.layers.0.self_attn.qkv.linear_q.weight"
    infos[name] = TensorInfo(infos[name].file, "F32", (rows, 64))
    assert native_config(config_values(Original()), infos)[0].num_attention_heads == 4


def test_biases_that_config_denies_are_taken_from_the_weights():
    net = Original(attention_bias=True)
    config, report = read(net, config_values(net) | {"attention_bias": False})
    assert config.attention_bias
    assert "attention_bias is false in config.json, but the weights have it" in report


def test_a_stray_rope_type_and_a_nested_rope_are_read():
    values = config_values(Original())
    del values["rope_theta"]
    nested = {"rope_type": "default", "hybrid": {"rope_theta": 7e5, "partial_rotary_factor": 0.25}}
    rope = read(Original(), values | {"rope_parameters": nested})[0].rope_parameters["hybrid"]
    assert (rope.rope_theta, rope.partial_rotary_factor) == (7e5, 0.25)


def test_a_linear_rope_of_factor_1_scales_nothing():
    values = {key: value for key, value in config_values(Original()).items() if "rot" not in key}
    values["rope_parameters"] = {"rope_theta": 1e6, "rope_type": "linear", "factor": 1.0}
    config, report = read(Original(), values | {"rope_theta": 1e4})
    assert (config.rope_parameters["hybrid"].rope_theta, config.rope_parameters["hybrid"].partial_rotary_factor) == (1e6, 0.5)
    assert "rope_theta is 10000.0 in config.json, 1000000.0 in its rope_parameters, which is taken" in report
    assert any(line.startswith("partial_rotary_factor is not in config.json; 0.5 is assumed") for line in report)


@pytest.mark.parametrize(("flavour", "eos"), [("scalar", 106), ("fork_default", 1), ("list", 1), ("internal", 106)])
def test_special_ids_left_out_have_their_flavours_default(flavour, eos):
    net = Original(vocab=128, block="smoe_block" if flavour == "internal" else "zaya_block")
    values = {key: value for key, value in config_values(net, flavour).items() if not key.endswith("_token_id")}
    config, report = read(net, values)
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 2, eos)
    assert f"eos_token_id is not in config.json; {eos} is assumed, the default of its flavour" in report


def test_special_ids_are_carried():
    config, report = read(Original(), config_values(Original()) | {"eos_token_id": [1, 6], "pad_token_id": 3})
    assert (config.eos_token_ids, config.pad_token_id) == ((1, 6), 3)
    assert not any("token_id" in line for line in report)


def test_keys_without_native_meaning_are_dropped_aloud_and_others_kept():
    config, report = read(Original(), config_values(Original()) | {"zaya_high_prec": True, "use_cache": False})
    assert config.extra == {"transformers_version": "4.57.0", "use_cache": False}
    assert "dropped from config.json, without meaning in the native network: residual_in_fp32, zaya_high_prec" in report


def test_clamp_temp_is_folded_and_reported():
    temp = torch.tensor([-1.0, 0.5, 3.0])
    assert torch.allclose(folded_temperature(temp), torch.tensor([0.0, 0.5, 2.0]).exp())
    assert folded_temperature(temp.bfloat16()).dtype == torch.bfloat16
    assert folds_temperature({"clamp_temp": True})
    assert not folds_temperature({"clamp_temp": False})
    net = Original(clamp_temp=True)
    assert any(line.startswith("clamp_temp is true: exp(clamp(temp, 1e-7, 2)) is stored") for line in read(net)[1])
    assert not any("clamp_temp" in line for line in read(Original())[1])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cca", False),
        ("zaya_use_mod", False),
        ("smoe_use_eda", False),
        ("zaya_use_eda", None),
        ("scale_residual_merge", False),
        ("gated_linear_unit", False),
        ("add_bias_linear", True),
        ("activation_func", "gelu"),
        ("normalization", "LayerNorm"),
        ("moe_router_topk", 2),
        ("num_experts_per_tok", 2),
        ("attention_dropout", 0.1),
        ("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4}),
        ("rope_scaling", {"type": "linear", "factor": 4}),
        ("rope_parameters", 5),
        ("rope_theta", None),
        ("rope_theta", "big"),
        ("max_position_embeddings", None),
        ("sliding_window", 64),
        ("swa_layers", [3, 0]),
        ("swa_layers", [3, 0, 4]),
        ("swa_layers", "all"),
        ("zaya_layers", ["a", 4, 4, "a"]),
        ("zaya_layers", 6),
        ("num_experts", "four"),
    ],
)
def test_what_the_native_network_lacks_is_refused(key, value):
    with pytest.raises(ConfigError, match=key):
        read(Original(), config_values(Original()) | {key: value})


@pytest.mark.parametrize("suffix", ["linear_q.weight", "conv_qk.1.weight", "temp", "router.down_proj.weight", "linear_fc2.weight"])
def test_tensors_that_tell_no_geometry_are_named(suffix):
    infos = {key: info for key, info in headers(dict(random_tensors(Original()))).items() if not key.endswith(suffix)}
    with pytest.raises(CheckpointError, match=suffix):
        native_config(config_values(Original()), infos)


def test_an_empty_tensor_claims_no_size():
    infos = headers(dict(random_tensors(Original())))
    for half in (0, 2):
        name = f"model.layers.{half}.self_attn.qkv.conv_qk.1.weight"
        infos[name] = TensorInfo(infos[name].file, "F32", (0, 10**15, 2))
    assert native_config(config_values(Original()), infos)[0].head_dim == 8
