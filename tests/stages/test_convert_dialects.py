"""`zaya convert` from the original dialect, and back to a plain native checkpoint."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints import NUM_IDS, our_logits, write_random, write_tokenizer
from tests.io.original_dialect import FLAVOURS, Original, write_original
from tests.io.original_forward import read_logits
from tests.models import TINY
from zaya_core.events import Progress, Result, Warn
from zaya_core.io.checkpoint import Checkpoint
from zaya_core.io.source import tensor_sha256
from zaya_core.stages.convert import ConvertConfig, run


def convert(base, out, **options) -> list:
    return list(run(ConvertConfig(base, out, **options)))


def result(events) -> dict:
    assert isinstance(events[-1], Result)
    return events[-1].values


@pytest.mark.parametrize("to", ["tidar", "native"])
def test_the_original_dialect_converts_and_equals_an_independent_reading(tmp_path, to, original_flavour):
    net = Original()
    tensors = write_original(tmp_path / "base", net, original_flavour)
    events = convert(tmp_path / "base", tmp_path / "out", to=to, mask_token_id=7 if to == "tidar" else None)
    assert result(events)["dialect"] == "original"
    config = Checkpoint.open(tmp_path / "out").config
    assert config.skip_expert_output == "identity"
    assert (config.tidar is None) == (to == "native")
    ids = [9, 11, 30, 8, 21, 17, 40, 12, 33, 10]
    theirs, skipped = read_logits(net, tensors, ids)
    ours = our_logits(tmp_path / "out", torch.tensor([ids]))[0].double()
    keep = torch.arange(ours.shape[1]) != 7
    assert skipped > 0
    assert float((ours - theirs)[:, keep].abs().max() / theirs.abs().max()) < 1e-5


@pytest.fixture(params=FLAVOURS)
def original_flavour(request) -> str:
    return request.param


def test_a_skip_that_passes_through_is_counted_and_said(tmp_path):
    write_original(tmp_path / "base", Original())
    events = convert(tmp_path / "base", tmp_path / "out", to="native")
    values = result(events)
    assert values["num_skip_choices"] > 0
    assert values["equal_in_transformers"] is False
    assert any(isinstance(event, Warn) and "skip expert passes its input through" in event.text for event in events)


@pytest.mark.parametrize("free", ["reserved", "grown"])
def test_there_and_back_is_byte_equal(tmp_path, free):
    """native -> tidar -> native: tensors, config and tokenizer as they were, the mask row included."""
    vocab_size = NUM_IDS + 28 if free == "reserved" else None
    base = tmp_path / "base"
    if vocab_size:
        write_random(base, TINY.with_changes(vocab_size=vocab_size), skip_bias=-1.0)
    else:
        _write_without_free_id(base)
    forward = convert(base, tmp_path / "tidar", block=4)
    assert result(forward)["max_delta_logit"] == 0
    convert(tmp_path / "tidar", tmp_path / "back", to="hf")
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(tensor_sha256(before[name]) == tensor_sha256(after[name]) for name in before)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        left, right = (json_or_text(root / name) for root in (base, tmp_path / "back"))
        assert left == right, name


def json_or_text(path):
    text = path.read_text()
    return json.loads(text) if path.suffix == ".json" else text


def _write_without_free_id(base) -> None:
    """A tokenizer that uses every row and reserves none."""
    write_tokenizer(base)
    path = base / "tokenizer.json"
    values = json.loads(path.read_text())
    vocabulary = values["model"]["vocab"]
    spoken = {token: f"<word{place}>" for place, token in enumerate(vocabulary) if token.startswith(("<unused", "<mask"))}
    values["added_tokens"] = [item | {"content": spoken.get(item["content"], item["content"])} for item in values["added_tokens"]]
    values["model"]["vocab"] = {spoken.get(token, token): index for token, index in values["model"]["vocab"].items()}
    path.write_text(json.dumps(values))
    rows = len(values["model"]["vocab"])
    weights = base.with_name("weights")
    write_random(weights, TINY.with_changes(vocab_size=rows), tokenizer=False, skip_bias=-1.0)
    for file in weights.iterdir():
        (base / file.name).write_bytes(file.read_bytes())


def test_the_report_names_every_tensor_and_decision(tmp_path):
    write_original(tmp_path / "base", Original(), "list")
    events = convert(tmp_path / "base", tmp_path / "out", mask_token_id=7)
    report = json.loads((tmp_path / "out" / "conversion_report.json").read_text())
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert report["dialect"] == "original"
    assert any("num_attention_heads" in line for line in report["source"])
    assert report["mask"]["token_id"] == 7
    assert report["tensors"].keys() == stored.keys()
    assert all(report["tensors"][name]["sha256"] == tensor_sha256(tensor) for name, tensor in stored.items())
    progress = [event.done for event in events if isinstance(event, Progress)]
    assert progress == sorted(progress)
    assert len(progress) == len(stored)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_dtype_converts_and_the_biases_keep_theirs(tmp_path, dtype):
    write_random(tmp_path / "base", TINY.with_changes(vocab_size=NUM_IDS + 28), skip_bias=-1.0)
    convert(tmp_path / "base", tmp_path / "out", dtype=dtype, block=4)
    kinds = {name: str(tensor.dtype) for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items()}
    assert {kind for name, kind in kinds.items() if name.endswith("balancing_biases")} == {"torch.float32"}
    assert {kind for name, kind in kinds.items() if not name.endswith("balancing_biases")} == {f"torch.{dtype}"}


def test_a_missing_expert_is_named(tmp_path):
    from zaya_core.errors import CheckpointError

    write_original(tmp_path / "base", Original())
    path = tmp_path / "base" / "model.safetensors"
    tensors = load_file(path)
    lost = next(name for name in tensors if ".local_experts.1.linear_fc2" in name)
    del tensors[lost]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=lost.replace(".", r"\.")):
        convert(tmp_path / "base", tmp_path / "out", mask_token_id=7)
    assert not (tmp_path / "out").exists()
