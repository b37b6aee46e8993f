"""init and convert: the sizes of the presets, and a conversion that changes nothing but the mask."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, ZayaForCausalLM

from tests.checkpoints import TEXT, our_logits, relative_error, their_config, their_logits, write_random
from tests.models import TINY, UNTIED, random_ids, randomise
from zaya_core.config import Tidar
from zaya_core.data.tokenizer import TextTokenizer
from zaya_core.errors import CheckpointError, ConfigError
from zaya_core.events import Result
from zaya_core.io.checkpoint import Checkpoint
from zaya_core.io.weights import SINGLE, read_tensors
from zaya_core.presets import PRESETS
from zaya_core.stages import convert, init

SMALL = PRESETS["tiny"].with_changes(vocab_size=320)  # the tokenizer's 300 ids, and free rows


def run(stage, config):
    """The values of the stage's last event, its Result."""
    *_, last = stage.run(config)
    assert isinstance(last, Result)
    return last.values


def run_convert(base, out, **options):
    return run(convert, convert.ConvertConfig(base=base, out=out, **options))


@pytest.mark.parametrize(
    ("preset", "size"), [("zaya1-8b", 8_840_488_784), ("zaya1-base", 8_840_488_784), ("zaya1-74b", 74_793_953_144)]
)
def test_published_sizes(tmp_path, preset, size):
    values = run(init, init.InitConfig(preset, tmp_path / "out", no_tokenizer=True, dry_run=True))
    assert (values["num_parameters"], values["weight_bytes"], values["dry_run"]) == (size, 2 * size, True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("preset", "millions"), [("tiny", 0), ("mini", 11), ("bench", 659)])
def test_our_presets_have_the_size_that_transformers_counts(tmp_path, preset, millions):
    values = run(init, init.InitConfig(preset, tmp_path / "out", no_tokenizer=True, dry_run=True))
    with torch.device("meta"):
        theirs = ZayaForCausalLM(their_config(PRESETS[preset]))
    assert values["num_parameters"] == theirs.num_parameters()
    assert values["num_parameters"] // 10**6 == millions


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tiny base as `zaya init` makes it."""
    root = tmp_path_factory.mktemp("init")
    (root / "text.txt").write_text(TEXT)
    options = {"preset": "tiny", "data": (str(root / "text.txt"),), "vocab_size": 300}
    run(init, init.InitConfig(out=root / "base", **options))
    run(init, init.InitConfig(out=root / "again", **options))
    run(init, init.InitConfig(out=root / "other", **options, seed=1))
    return root


def test_init_is_whole_and_a_function_of_its_seed(made):
    base, again, other = (Checkpoint.open(made / name) for name in ("base", "again", "other"))
    assert (base.stored_dtype, base.config.vocab_size, base.config.tidar) == (torch.bfloat16, 300, None)
    assert TextTokenizer(base.path).num_ids <= 300
    certificate = base.certificate()
    assert (certificate["stage"], certificate["parent"], certificate["options"]["preset"]) == ("init", None, "tiny")
    assert base.fingerprint() == again.fingerprint() != other.fingerprint()
    tensors = dict(read_tensors(base.tensors))
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    assert not tensors["model.embed_tokens.weight"][0].any(), "the padding row is zero"
    assert all(tensor.min() == tensor.max() == 1 for name, tensor in tensors.items() if name.endswith("temp"))
    assert all(tensor.dtype == torch.float32 for name, tensor in tensors.items() if name.endswith("balancing_biases"))


def test_init_then_convert_loads_everywhere(made, tmp_path):
    values = run_convert(made / "base", tmp_path / "out", block=8)
    assert values["mask_token_id"] == AutoTokenizer.from_pretrained(tmp_path / "out").convert_tokens_to_ids("<mask>") == 4
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == [1]
    assert (tmp_path / "out" / "chat_template.jinja").read_bytes() == (made / "base" / "chat_template.jinja").read_bytes()


def test_init_refuses_a_tokenizer_that_does_not_fit(made, tmp_path):
    with pytest.raises(ConfigError, match=r"the tokenizer has \d+ ids, expected at most --vocab-size 280"):
        run(init, init.InitConfig("tiny", tmp_path / "out", tokenizer=made / "base", vocab_size=280))
    with pytest.raises(ConfigError, match=r"preset 'tinny' is unknown .did you mean tiny"):
        run(init, init.InitConfig("tinny", tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def base(tmp_path):
    """A randomised base whose skip bias is the one that transformers insists on (model.md A6)."""
    return write_random(tmp_path / "base", SMALL, skip_bias=-1.0)


def test_convert_keeps_the_model(base, tmp_path):
    values = run_convert(base.path, tmp_path / "out", block=8)
    assert (values["mask_token_id"], values["mask_token"]) == (4, "<mask>")
    assert values["max_delta_logit"] == values["max_kl"] == 0
    assert values["top1_agreement"] == 1
    assert values["max_logit"] > 1
    ids = random_ids(SMALL, 2, 40)
    source = our_logits(base.path, ids)
    assert relative_error(our_logits(tmp_path / "out", ids), source, mask=4) == 0
    assert relative_error(their_logits(tmp_path / "out", ids), source, mask=4) < 1e-5
    out = Checkpoint.open(tmp_path / "out")
    assert out.config == base.config.with_changes(tidar=Tidar(8, 4), extra={"dtype": "float32"})
    old, new = dict(read_tensors(base.tensors)), dict(read_tensors(out.tensors))
    name = "model.embed_tokens.weight"
    num_ids = TextTokenizer(base.path).num_ids
    torch.testing.assert_close(new[name][4], old[name][:num_ids].mean(0))
    new[name][4] = old[name][4]
    assert old.keys() == new.keys()
    assert all(torch.equal(old[key], new[key]) for key in old)


def test_the_certificate_says_what_was_done(base, tmp_path):
    source_row = dict(read_tensors(base.tensors))["model.embed_tokens.weight"][4].tolist()
    run_convert(base.path, tmp_path / "out", block=8)
    paper = Checkpoint.open(tmp_path / "out").certificate()
    assert (paper["stage"], paper["parent"]["sha256"]) == ("convert", base.fingerprint())
    assert paper["parent"]["path"] == str(base.path)
    assert (paper["options"]["block"], paper["options"]["mask_token_id"]) == (8, None)
    mask = paper["decisions"]["mask"]
    assert (mask["token_id"], mask["token"], mask["why"]) == (4, "<mask>", "the tokenizer has <mask>")
    assert mask["source_row"] == source_row, "what was overwritten can be had back"
    assert paper["metrics"]["num_rows"] > 50


def test_a_directory_that_transformers_wrote(tmp_path):
    model = ZayaForCausalLM(their_config(TINY)).eval()
    randomise(model, 3)
    for layer in model.model.layers:
        layer.mlp.gate.balancing_biases[-1] = -1.0
    model.save_pretrained(tmp_path / "base")
    ids = random_ids(TINY, 2, 30)
    with torch.inference_mode():
        source = model(ids).logits
    run_convert(tmp_path / "base", tmp_path / "out", block=4, mask_token_id=7)
    assert relative_error(our_logits(tmp_path / "out", ids), source, mask=7) < 1e-5
    assert relative_error(their_logits(tmp_path / "out", ids), source, mask=7) < 1e-5


def test_an_untied_head_keeps_its_rows(tmp_path):
    base = write_random(tmp_path / "base", UNTIED.with_changes(vocab_size=320), skip_bias=-1.0)
    run_convert(base.path, tmp_path / "out")
    old, new = dict(read_tensors(base.tensors)), dict(read_tensors(Checkpoint.open(tmp_path / "out").tensors))
    assert torch.equal(old["lm_head.weight"], new["lm_head.weight"])
    ids = random_ids(UNTIED, 1, 20)
    assert relative_error(their_logits(tmp_path / "out", ids), our_logits(base.path, ids), mask=None) < 1e-5


def rewrite(checkpoint, change):
    tensors = dict(read_tensors(checkpoint.tensors))
    change(tensors)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, checkpoint.path / SINGLE)


def refused(kind, message, base, out, **options):
    with pytest.raises(kind, match=message):
        run_convert(base, out, **options)
    assert sorted(path.name for path in out.parent.iterdir()) == ["base"], "a refusal writes nothing"


def test_a_vocabulary_without_a_free_id_grows(tmp_path):
    base = write_random(tmp_path / "base", SMALL.with_changes(vocab_size=300), skip_bias=-1.0)
    path = base.path / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8").replace("<mask>", "<was-mask>").replace("<unused", "<word"), encoding="utf-8")
    values = run_convert(base.path, tmp_path / "out")
    assert (values["mask_token_id"], values["mask_token"]) == (300, "<|mask|>")
    out = Checkpoint.open(tmp_path / "out")
    assert (out.config.vocab_size, out.tensors["model.embed_tokens.weight"].shape[0]) == (320, 320)
    assert out.certificate()["decisions"]["mask"]["source_row"] is None
    assert AutoTokenizer.from_pretrained(out.path).convert_tokens_to_ids("<|mask|>") == 300
    ids = random_ids(base.config, 1, 20)
    assert relative_error(their_logits(out.path, ids)[..., :300], our_logits(base.path, ids), mask=None) < 1e-5


def test_leftover_and_missing_keys_are_listed(base, tmp_path):
    rewrite(base, lambda tensors: tensors.update(extra=tensors.pop("model.norm.weight")))
    for dry_run in (False, True):
        message = r"missing model\.norm\.weight; left over extra"
        refused(CheckpointError, message, base.path, tmp_path / "out", dry_run=dry_run)


def test_a_converted_source_and_a_missing_tokenizer(tmp_path):
    base = write_random(tmp_path / "base", SMALL, tokenizer=False)
    refused(ConfigError, r"no tokenizer\.json .*--mask-token-id", base.path, tmp_path / "out")
    refused(ConfigError, "--mask-token-id is 320, expected below", base.path, tmp_path / "out", mask_token_id=320)
    config = base.config.to_json() | {"tidar": {"block_length": 8, "mask_token_id": 4}}
    (base.path / "config.json").write_text(json.dumps(config))
    refused(CheckpointError, "is a TiDAR checkpoint already", base.path, tmp_path / "out", mask_token_id=4)


def test_dry_run_writes_nothing(base, tmp_path):
    values = run_convert(base.path, tmp_path / "out", dry_run=True)
    assert (values["dry_run"], values["mask_token_id"], values["num_parameters"]) == (True, 4, base.num_parameters)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_full_out_needs_overwrite(base, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"is not empty .*--overwrite"):
        run_convert(base.path, out)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    run_convert(base.path, out, overwrite=True)
    assert Checkpoint.open(out).config.tidar == Tidar(16, 4)
    assert not (out / "mine.txt").exists()
