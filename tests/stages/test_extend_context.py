"""`zaya extend-context`: the config it writes, the rows it trains on, the report, and what it refuses."""

import json

import pytest

from zaya_cli.app import main
from zaya_core.config import Rope
from zaya_core.errors import ConfigError
from zaya_core.io.checkpoint import Checkpoint
from zaya_core.io.files import read_json
from zaya_core.stages.extend_context import ExtendContextConfig, extended


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    lines = [{"text": " ".join(str(n * i) for i in range(length))} for n, length in enumerate([60, 900, 2500] * 40)]
    (root / "text.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["init", "tiny", str(root / "base"), "--data", str(root / "text.jsonl"), "--dtype", "float32", "-q"]) == 0
    assert main(["convert", str(root / "base"), str(root / "tidar"), "--block", "4", "-q"]) == 0
    return root


def flags(root, out, *more: str) -> list[str]:
    data = ["--data", str(root / "text.jsonl"), "--context", "2048", "--batch-size", "1", "--eval-rows", "1", "-q"]
    return ["extend-context", str(root / "tidar"), str(out), *data, *more]


def test_a_run_in_legs_ends_with_a_longer_context_and_a_report(root, tmp_path):
    legs = ["--stages", "512:0.5,2k:0.5", "--max-steps", "4", "--rope-theta", "4e5"]
    assert main(flags(root, tmp_path / "long", *legs)) == 0
    config = Checkpoint.open(tmp_path / "long").config
    assert config.max_position_embeddings == 2048
    assert config.rope_parameters["hybrid"] == Rope(rope_theta=4e5)
    report = read_json(tmp_path / "long" / "report.json")
    assert report.keys() == {"before", "after"}
    assert list(report["after"]["needle"]) == ["256", "512", "1024", "2048"]
    assert "1024" in report["after"]["ar_loss"], "held-out rows reach past the old context"
    rows = [json.loads(line) for line in (tmp_path / "long" / "metrics.jsonl").read_text().splitlines()]
    seen = [after["tokens_seen"] - before["tokens_seen"] for before, after in zip([{"tokens_seen": 0}, *rows], rows, strict=False)]
    assert all(1000 < tokens <= 2048 for tokens in seen), "a step has as many tokens in every leg"


def test_yarn_stretches_what_the_parent_knew():
    from zaya_core.presets import PRESETS

    config = ExtendContextConfig("in", "out", data=("x",), context=4096, rope_scaling="yarn")
    new = extended(config, PRESETS["tiny"])
    assert new.rope_parameters["hybrid"].factor == 4.0
    assert new.rope_parameters["hybrid"].original_max_position_embeddings == 1024
    assert new.rope_parameters["hybrid_sliding"] == PRESETS["tiny"].rope_parameters["hybrid_sliding"]
    with pytest.raises(ConfigError, match="stretched already"):
        extended(config, new)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "--context is missing"),
        ({"context": 2048, "seq_len": 4096}, "at most --context 2048"),
        ({"context": 2048, "rope_theta": 1e5, "rope_scaling": "yarn"}, "two ways to the same end"),
        ({"context": 2048, "stages": "1k:0.5,2k"}, "expected LENGTH:SHARE"),
        ({"context": 2048, "stages": "1k:0.5,2k:0.6"}, "add up to 1.1"),
        ({"context": 2048, "stages": "1000:0.5,2k:0.5"}, "divide and end with 2048"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        ExtendContextConfig("in", "out", data=("x",), **options)


def test_long_rows_need_long_documents(root, tmp_path, capsys):
    (tmp_path / "short.jsonl").write_text('{"text": "one two three"}\n' * 200)
    data = ["--data", str(tmp_path / "short.jsonl"), "--context", "2048", "--max-steps", "1", "-q"]
    assert main(["extend-context", str(root / "tidar"), str(tmp_path / "out"), *data]) == 2
    assert "no document fills half a row of 2048 tokens" in capsys.readouterr().err
