"""config.json as a value: nothing is lost on the way through, and nothing impossible gets in."""

import json

import pytest

from zaya_core.config import ModelConfig, Rope, Tidar
from zaya_core.errors import ConfigError

ROPES = {
    "hybrid": {"rope_theta": 1e6, "partial_rotary_factor": 0.5, "rope_type": "default"},
    "hybrid_sliding": {"rope_theta": 1e4, "partial_rotary_factor": 1.0, "rope_type": "default"},
}
SMALL = {
    "model_type": "zaya",
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "layer_types": ["hybrid", "hybrid_sliding", "hybrid"],
    "sliding_window": 7,
    "rope_parameters": ROPES,
}


def read(**changes):
    return ModelConfig.from_json(SMALL | changes)


def test_round_trip_loses_nothing():
    values = SMALL | {
        "eos_token_id": [1, 106],
        "pad_token_id": None,
        "tidar": {"block_length": 16, "mask_token_id": 4},
        "transformers_version": "5.23.0",
        "made_up": {"nested": [1, None, {"deep": True}]},
    }
    config = ModelConfig.from_json(values)
    written = config.to_json()
    assert {key: written[key] for key in values} == values
    assert ModelConfig.from_json(json.loads(json.dumps(written))) == config


def test_reading_changes_neither_the_values_nor_shares_them():
    before = json.dumps(SMALL)
    config = read(unknown=1)
    assert json.dumps(SMALL) == before
    assert config.extra == {"unknown": 1}
    assert config.to_json()["unknown"] == 1


def test_plain_checkpoint_says_nothing_of_tidar():
    assert read().tidar is None
    assert "tidar" not in read().to_json()
    assert read(tidar={"block_length": 8, "mask_token_id": 3}).tidar == Tidar(8, 3)


def test_defaults_are_the_published_model():
    config = ModelConfig.from_json({"model_type": "zaya"})
    assert (config.vocab_size, config.num_hidden_layers, config.conv_channels, config.value_half) == (262272, 40, 1280, 128)
    assert config.layer_types == ("hybrid",) * 40
    assert config.rope_parameters["hybrid"] == Rope(5e6, 0.5)


def test_stray_rope_type_is_dropped():
    assert read(rope_parameters=ROPES | {"rope_type": "default"}) == read()


def test_missing_rotary_factor_means_the_whole_head():
    config = read(rope_parameters={"hybrid": {"rope_theta": 10.0}})
    assert config.rope_parameters["hybrid"].partial_rotary_factor == 1.0


def test_with_changes_follows_depth_and_leaves_the_original():
    config = read(layer_types=None)
    assert config.with_changes(num_hidden_layers=5).layer_types == ("hybrid",) * 5
    assert config.num_hidden_layers == 3


@pytest.mark.parametrize("key", ["activation_func", "ffn_hidden_size", "zaya_layers", "smoe_layers"])
def test_legacy_keys_are_refused(key):
    with pytest.raises(ConfigError, match=f"{key}.*original ZAYA dialect"):
        read(**{key: 1})


@pytest.mark.parametrize("kind", ["llama", None, "zaya_legacy"])
def test_another_model_type_is_refused(kind):
    with pytest.raises(ConfigError, match=f"model_type is {kind!r}, expected 'zaya'"):
        read(model_type=kind)


IMPOSSIBLE = [
    ("vocab_size", 0),
    ("vocab_size", "512"),
    ("hidden_size", -64),
    ("hidden_size", 64.5),
    ("num_hidden_layers", 0),
    ("num_hidden_layers", True),
    ("num_attention_heads", 3),
    ("num_attention_heads", None),
    ("num_key_value_heads", 0),
    ("head_dim", 0),
    ("moe_intermediate_size", 0),
    ("num_experts", 0),
    ("num_experts_per_tok", 2),
    ("router_hidden_size", -1),
    ("max_position_embeddings", 0),
    ("cca_time0", 3),
    ("cca_time0", 1),
    ("cca_time1", 4),
    ("hidden_act", "gelu"),
    ("attention_dropout", 0.1),
    ("skip_expert_output", "random"),
    ("rms_norm_eps", "small"),
    ("rms_norm_eps", 0),
    ("layer_types", ["hybrid", "hybrid"]),
    ("layer_types", ["hybrid", "full_attention", "hybrid"]),
    ("layer_types", 3),
    ("sliding_window", None),
    ("sliding_window", 0),
    ("sliding_window", "7"),
    ("pad_token_id", 512),
    ("pad_token_id", "0"),
    ("eos_token_id", "</s>"),
    ("attention_bias", "no"),
    ("tie_word_embeddings", 1),
    ("rope_parameters", [1]),
    ("rope_parameters", {"hybrid": 5}),
]


@pytest.mark.parametrize(("key", "value"), IMPOSSIBLE)
def test_impossible_value_names_the_key(key, value):
    with pytest.raises(ConfigError, match=key):
        read(**{key: value})


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ({"rope_theta": 1e6, "partial_rotary_factor": 0.5}, "rope_parameters.rope_theta is unknown"),
        ({"hybrid": ROPES["hybrid"] | {"rope_type": "linear"}}, "rope_type is 'linear'"),
        ({"hybrid": ROPES["hybrid"] | {"mscale": 4}}, "rope_parameters.hybrid.mscale is unknown"),
        ({"hybrid": ROPES["hybrid"] | {"rope_theta": 0}}, "rope_theta is 0"),
        ({"hybrid": ROPES["hybrid"] | {"rope_theta": "big"}}, "rope_parameters.hybrid"),
        ({"hybrid": ROPES["hybrid"] | {"partial_rotary_factor": 1.5}}, "partial_rotary_factor is 1.5"),
        ({"hybrid": ROPES["hybrid"] | {"partial_rotary_factor": 0.01}}, "hybrid rotary dims is 0"),
    ],
)
def test_impossible_rope(part, name):
    with pytest.raises(ConfigError, match=name):
        read(rope_parameters=part)


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ({"block_length": 16}, "tidar"),
        ({"block_length": 1, "mask_token_id": 4}, "tidar.block_length is 1"),
        ({"block_length": 2.5, "mask_token_id": 4}, "tidar.block_length is 2.5"),
        ({"block_length": 16, "mask_token_id": -1}, "tidar.mask_token_id is -1"),
        ({"block_length": 16, "mask_token_id": 512}, "tidar.mask_token_id is 512, expected below vocab_size"),
        ({"block_lenght": 16, "mask_token_id": 4}, "did you mean block_length"),
        ("yes", "tidar is 'yes'"),
    ],
)
def test_impossible_tidar(part, name):
    with pytest.raises(ConfigError, match=name):
        read(tidar=part)
