"""The renaming is total and invertible, and native_plan names whatever does not fit."""

import pytest

from tests.io.original_dialect import Original, config_values, random_tensors, shapes
from tests.io.test_legacy import headers, network
from tests.models import BIASED, ONE_GROUP, SLIDING, TINY, UNTIED
from zaya_core.errors import CheckpointError
from zaya_core.io.checkpoint import stored_tensors
from zaya_core.io.legacy import native_config
from zaya_core.io.names import BLOCKS, detect_dialect, native_plan, original_names
from zaya_core.io.weights import TensorInfo
from zaya_core.presets import PRESETS

NET = Original()
FULL = Original(attention_bias=True, head="biased")
# One tensor of each kind: the first of every repeated one, and the last layer's.
KINDS = [name for name in shapes(FULL) if not any(part in name for part in ("layers.2.", "layers.3.", "experts.1.", "experts.2."))]
CONFIGS = {"tiny": TINY, "sliding": SLIDING, "biased": BIASED, "untied": UNTIED, "one_group": ONE_GROUP}


def plan(net, infos):
    config, _ = native_config(config_values(net), infos)
    return native_plan(infos, config, stored_tensors(network(config)))


def infos_of(net=NET):
    return headers(dict(random_tensors(net)))


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_renaming_is_a_bijection(name, block):
    config = CONFIGS[name]
    expected = stored_tensors(network(config))
    back = {}
    for key in expected:
        for place, original in enumerate(original_names(key, config, block)):
            assert original not in back, f"{key} and {back[original]} share {original}"
            back[original] = (key, place)
    stacked = sum(tensor.shape[0] - 1 for key, tensor in expected.items() if ".experts." in key)
    assert len(back) == len(expected) + stacked
    assert {key for key, _ in back.values()} == set(expected)


@pytest.mark.parametrize(("preset", "original", "native"), [("zaya1-8b", 2483, 1283), ("zaya1-74b", 4683, 1923)])
def test_released_checkpoints_have_as_many_tensors(preset, original, native):
    config = PRESETS[preset]
    expected = stored_tensors(network(config))
    assert len(expected) == native
    assert sum(len(original_names(key, config)) for key in expected) == original


@pytest.mark.parametrize("net", [NET, Original(attention_bias=True), Original(head="biased"), Original(block="smoe_block")])
def test_every_original_tensor_is_read_once(net):
    found = plan(net, infos_of(net))
    sources = [name for names in found.values() for name in names]
    assert sorted(sources) == sorted(shapes(net))


def test_experts_are_stacked_in_their_own_order():
    names = plan(Original(num_experts=12), infos_of(Original(num_experts=12)))["model.layers.1.mlp.experts.down_proj"]
    assert [int(name.split(".")[6]) for name in names] == list(range(12))


@pytest.mark.parametrize("name", KINDS)
def test_any_missing_tensor_is_named(name):
    infos = infos_of(FULL)
    del infos[name]
    with pytest.raises(CheckpointError, match=f"missing {name}"):
        plan(FULL, infos)


# The embedding alone is not in it: it has no second tensor to outvote it, so its shape is the network's.
@pytest.mark.parametrize("name", [name for name in KINDS if name != "model.embed_tokens.weight"])
@pytest.mark.parametrize("change", ["wider", "shorter", "deeper"])
def test_any_misshapen_tensor_is_named(name, change):
    infos = infos_of(FULL)
    shape = infos[name].shape
    wrong = {"wider": (*shape[:-1], shape[-1] + 8), "shorter": (shape[0] // 2, *shape[1:]), "deeper": (*shape, 1)}[change]
    infos[name] = TensorInfo(infos[name].file, "F32", wrong)
    with pytest.raises(CheckpointError) as caught:
        plan(FULL, infos)
    assert f"misfit {name} has shape {list(wrong)}, expected {list(shape)}" in caught.value.message
    assert "base: tensors do not fit" in caught.value.message


@pytest.mark.parametrize(
    "name",
    [
        "lm_head.weight",
        "model.layers.0.res_scale.residual_scale",
        "model.layers.1.zaya_block.router.router_states_scale",
        "model.layers.1.zaya_block.experts.local_experts.4.linear_fc1.weight",
        "model.layers.6.input_norm.weight",
        "model.layers.3.smoe_block.router.down_proj.weight",
        "model.layers.0.self_attn.qkv.lora_linear_q.0.weight",
        "visual.patch_embed.weight",
    ],
)
def test_any_tensor_left_over_is_named(name):
    infos = infos_of()
    infos[name] = TensorInfo(infos["model.final_norm.weight"].file, "F32", (64,))
    with pytest.raises(CheckpointError, match=f"left over {name}"):
        plan(NET, infos)


def test_all_faults_are_listed_and_a_flood_is_cut():
    infos = infos_of()
    for name in ("model.final_norm.weight", "model.res_scale.residual_bias"):
        del infos[name]
    infos["extra"] = TensorInfo(infos["model.embed_tokens.weight"].file, "F32", (1,))
    with pytest.raises(CheckpointError) as caught:
        plan(NET, infos)
    for part in ("missing model.final_norm.weight", "missing model.res_scale.residual_bias", "left over extra"):
        assert part in caught.value.message
    infos |= {f"extra{number}": infos["extra"] for number in range(40)}  # and "extra" itself
    with pytest.raises(CheckpointError, match=r"; 21 more left over$"):
        plan(NET, infos)


def test_experts_of_two_dtypes_are_refused():
    infos = infos_of()
    name = "model.layers.3.zaya_block.experts.local_experts.2.linear_fc1.weight"
    infos[name] = TensorInfo(infos[name].file, "BF16", infos[name].shape)
    with pytest.raises(CheckpointError, match=f"{name} is BF16, expected F32"):
        plan(NET, infos)


def test_a_tensor_of_integers_is_refused():
    infos = infos_of()
    infos["model.final_norm.weight"] = TensorInfo(infos["model.final_norm.weight"].file, "I32", (64,))
    with pytest.raises(CheckpointError, match=r"model\.final_norm\.weight is I32, expected one of F64"):
        plan(NET, infos)


def test_the_tensors_decide_the_dialect():
    native = list(stored_tensors(network(TINY)))
    assert detect_dialect(TINY.to_json(), native)[0] == "native"
    dialect, why = detect_dialect(config_values(NET), shapes(NET))
    assert dialect == "original"
    assert "model.layers.0.self_attn.qkv.conv_qk.0.bias" in why
    assert "activation_func, ffn_hidden_size" in why
    dialect, why = detect_dialect(TINY.to_json(), shapes(Original(block="smoe_block")))
    assert dialect == "original"
    assert "no key of the original dialect" in why
    assert detect_dialect(config_values(NET), native)[0] == "native"
    with pytest.raises(CheckpointError, match=r"no ZAYA network's: lm_head\.weight"):
        detect_dialect({}, ["lm_head.weight"])
