"""`zaya info`: what it counts and traces, in both dialects, and what it says of a damaged directory."""

import json
import shutil

import pytest
import torch

from tests.checkpoints import write_random, write_tokenizer
from tests.io.original_dialect import FLAVOURS, Original, write_original
from tests.models import TINY, random_model
from zaya_cli.app import main
from zaya_core.config import ModelConfig, Tidar
from zaya_core.errors import CheckpointError, ConfigError, ZayaError
from zaya_core.io.checkpoint import Checkpoint, certificate, stored_tensors, write_checkpoint
from zaya_core.io.files import publish
from zaya_core.io.weights import write_tensors
from zaya_core.presets import PRESETS
from zaya_core.stages.info import InfoConfig, count_parameters, run

SMALL = TINY.with_changes(vocab_size=320)
TIDAR = SMALL.with_changes(tidar=Tidar(16, 4))


def info(path, **options):
    """The values of the one Result."""
    (event,) = run(InfoConfig(path, **options))
    return event.values


def write_child(directory, config: ModelConfig, stage: str, parent: Checkpoint | None) -> Checkpoint:
    """A checkpoint with a birth certificate, as a stage writes one."""
    paper = certificate(stage, parent=parent, options={}, metrics={})
    tensors = stored_tensors(random_model(config))
    with publish(directory) as aside:
        write_tokenizer(aside)
        write_checkpoint(aside, config=config, tensors=tensors.items(), dtype=torch.bfloat16, certificate=paper, generation={})
    return Checkpoint.open(directory)


@pytest.fixture
def base(tmp_path):
    return write_random(tmp_path / "base", SMALL).path


@pytest.mark.parametrize(
    ("preset", "total", "active", "without_embedding"),
    [
        ("zaya1-8b", 8_840_488_784, 1_290_741_584, 753_608_528),
        ("zaya1-base", 8_840_488_784, 1_290_741_584, 753_608_528),
        ("zaya1-74b", 74_793_953_144, 5_336_278_904, 4_262_012_792),
    ],
)
def test_counts_are_the_published_ones(preset, total, active, without_embedding):
    assert count_parameters(PRESETS[preset]) == {
        "num_parameters": total,
        "num_active_parameters": active,
        "num_active_parameters_without_embedding": without_embedding,
    }


def test_an_autoregressive_checkpoint(base):
    values = info(base)
    parameters = dict(random_model(SMALL).named_parameters())
    one_expert = sum(t[0].numel() for name, t in parameters.items() if ".experts." in name)
    others = sum(t.numel() for name, t in parameters.items() if ".experts." not in name)
    assert values["num_parameters"] == sum(t.numel() for t in parameters.values())
    assert values["num_active_parameters"] == one_expert + others
    assert values["num_active_parameters_without_embedding"] == one_expert + others - 320 * 32
    expected = {
        "path": str(base),
        "dialect": "native",
        "context": 512,
        "num_hidden_layers": 3,
        "block_length": None,
        "mask_token_id": None,
        "skip_expert_output": "zero",
        "dtype": "float32",
        "weight_bytes": 4 * (values["num_parameters"] + 3 * 5),  # the balancing biases are buffers
        "lineage": [],
        "decisions": [],
        "problems": [],
    }
    assert {key: values[key] for key in expected} == expected


def test_a_block_diffusion_checkpoint(tmp_path):
    values = info(write_child(tmp_path / "tidar", TIDAR, "convert", None).path)
    assert (values["block_length"], values["mask_token_id"], values["dtype"]) == (16, 4, "bfloat16")


def test_lineage_goes_back_to_the_base_with_hashes(tmp_path):
    base = write_child(tmp_path / "base", SMALL, "init", None)
    tidar = write_child(tmp_path / "tidar", TIDAR, "convert", base)
    trained = write_child(tmp_path / "trained", TIDAR, "midtrain-tidar", tidar)
    lineage = info(trained.path)["lineage"]
    assert lineage == [
        {"stage": "midtrain-tidar", "path": str(trained.path), "sha256": None},
        {"stage": "convert", "path": str(tidar.path), "sha256": tidar.fingerprint()},
        {"stage": "init", "path": str(base.path), "sha256": base.fingerprint()},
    ]
    assert info(tidar.path, hash=True)["lineage"][0] == lineage[1]
    assert json.loads(json.dumps(lineage)) == lineage


def test_a_base_made_elsewhere_ends_the_lineage(tmp_path, base):
    foreign = Checkpoint.open(base)
    (base / "zaya.json").unlink()
    child = write_child(tmp_path / "tidar", TIDAR, "convert", foreign)
    assert info(child.path)["lineage"][1] == {"stage": None, "path": str(base), "sha256": foreign.fingerprint()}
    assert info(base)["lineage"] == []
    assert info(base, hash=True)["lineage"] == [{"stage": None, "path": str(base), "sha256": foreign.fingerprint()}]


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_an_original_checkpoint(tmp_path, flavour):
    net = Original(block="smoe_block" if flavour == "internal" else "zaya_block")
    tensors = write_original(tmp_path, net, flavour)
    values = info(tmp_path)
    assert (values["dialect"], values["num_hidden_layers"], values["skip_expert_output"]) == ("original", 3, "identity")
    buffers = sum(t.numel() for name, t in tensors.items() if name.endswith("balancing_biases"))
    assert values["num_parameters"] == sum(t.numel() for t in tensors.values()) - buffers
    assert values["decisions"][0].startswith("it has tensors such as model.layers.0.self_attn.qkv.conv_qk.0.bias")
    assert "skip_expert_output is 'identity', as in the original code" in values["decisions"]
    assert values["problems"] == ["it has no tokenizer.json: text can be neither read nor written"]


def test_a_tokenizer_that_does_not_fit_is_a_problem(tmp_path):
    narrow = write_random(tmp_path / "narrow", TINY)
    assert info(narrow.path)["problems"] == ["the tokenizer has 300 ids, the embedding 97 rows"]
    endless = write_random(tmp_path / "endless", SMALL.with_changes(eos_token_id=(1, 310)))
    assert info(endless.path)["problems"] == ["eos_token_id 310 is no id of the tokenizer (300 ids): no text would end"]


def cut(path):
    shard = path / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])


def split(path):
    tensors = stored_tensors(random_model(SMALL))
    (path / "model.safetensors").unlink()
    write_tensors(path, tensors.items(), max_shard_bytes=50_000)


def lose_a_shard(path):
    split(path)
    next(path.glob("model-00002-*")).unlink()


def break_the_index(path):
    split(path)
    (path / "model.safetensors.index.json").write_text('{"weight_map": ')


def lose_a_tensor(path):
    tensors = stored_tensors(random_model(SMALL))
    del tensors["model.layers.1.self_attn.o_proj.weight"]
    write_tensors(path, tensors.items())


def pickle(path):
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def foreign(path):
    write_tensors(path, [("model.layers.0.mlp.up_proj.weight", torch.zeros(2, 2))])


def claim_another_shape(path):
    values = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(values | {"hidden_size": 64}))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (shutil.rmtree, "is not a directory"),
        (lambda path: (path / "config.json").unlink(), "has no config.json"),
        (lambda path: (path / "config.json").write_text("{"), "config.json is not JSON"),
        (lambda path: (path / "config.json").write_text("{}"), "model_type is None"),
        (lambda path: (path / "model.safetensors").unlink(), "has neither model.safetensors nor"),
        (lambda path: (path / "model.safetensors").write_bytes(b""), "is damaged"),
        (cut, "model.safetensors is cut"),
        (lose_a_shard, "model-00002-of-"),
        (break_the_index, "index.json is not JSON"),
        (lose_a_tensor, "missing model.layers.1.self_attn.o_proj.weight"),
        (pickle, "neither"),
        (foreign, "no ZAYA network's"),
        (claim_another_shape, "has shape"),
        (lambda path: (path / "zaya.json").write_text("{"), "zaya.json is not JSON"),
        (lambda path: (path / "zaya.json").write_text('{"parent": 5}'), "the parent of"),
        (lambda path: (path / "tokenizer.json").write_text("{"), "tokenizer.json is not a tokenizer"),
    ],
)
def test_a_damaged_directory_says_what_is_wrong(base, damage, says):
    damage(base)
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        info(base)
    assert says in caught.value.message
    assert caught.value.exit_code == 2


def test_a_damaged_original_says_what_is_wrong(tmp_path):
    tensors = write_original(tmp_path, Original())
    del tensors["model.res_scale.residual_bias"]
    write_tensors(tmp_path, tensors.items())
    with pytest.raises(ZayaError, match=r"missing model\.res_scale\.residual_bias"):
        info(tmp_path)


def test_on_the_command_line(tmp_path, capsys):
    base = write_child(tmp_path / "base", SMALL, "init", None)
    child = write_child(tmp_path / "tidar", TIDAR, "convert", base)
    assert main(["info", str(child.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == info(child.path)
    assert main(["info", str(child.path)]) == 0
    rows = [line.split(None, 1) for line in capsys.readouterr().out.splitlines()]
    assert ["block_length", "16"] in rows
    assert ["sha256", base.fingerprint()] in rows
    cut(child.path)
    assert main(["info", str(child.path)]) == 2
    assert "model.safetensors is cut" in capsys.readouterr().err


def test_each_decision_is_a_line_of_its_own(tmp_path, capsys):
    write_original(tmp_path, Original(), "list")
    assert main(["info", str(tmp_path)]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "num_attention_heads is 8 in config.json, 4 by the weights" in lines
