"""`zaya generate` on a small random checkpoint: the contract of its JSON, its inputs, and what it refuses."""

import io
import json

import pytest

from tests.checkpoints import NUM_IDS, write_random
from tests.models import TINY
from zaya_cli.app import main
from zaya_core.config import Tidar

KEYS = {"index", "prompt", "text", "token_ids", "finish_reason", "seed", "stats"}
STATS = {
    "sampler",
    "num_prompt_tokens",
    "num_tokens",
    "num_forwards",
    "tokens_per_forward",
    "acceptance_histogram",
    "judged_by_offset",
    "accepted_by_offset",
    "prefill_seconds",
    "decode_seconds",
    "tokens_per_second",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("models") / "tidar"
    write_random(path, TINY.with_changes(vocab_size=NUM_IDS + 28, tidar=Tidar(4, 4)), skip_bias=-1.0)
    return str(path)


def generate(capsys, *arguments: str) -> list[dict]:
    assert main(["generate", *arguments, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("sampler", ["ar", "lossless", "mix"])
def test_the_json_is_the_contract(model, capsys, sampler):
    (shown,) = generate(capsys, model, "-p", "def main():", "--sampler", sampler, "-n", "11", "--seed", "3", "--ignore-eos")
    assert shown.keys() == KEYS
    assert shown["stats"].keys() >= STATS
    assert (len(shown["token_ids"]), shown["finish_reason"], shown["seed"]) == (11, "length", 3)
    stats = shown["stats"]
    assert (stats["sampler"], stats["num_tokens"]) == (sampler, 11)
    assert sum(stats["acceptance_histogram"]) == stats["num_forwards"]
    assert stats["tokens_per_forward"] == pytest.approx(10 / stats["num_forwards"])
    assert len(stats["acceptance_histogram"]) == (1 if sampler == "ar" else 4)
    (again,) = generate(capsys, model, "-p", "def main():", "--sampler", sampler, "-n", "11", "--seed", "3", "--ignore-eos")
    assert again["token_ids"] == shown["token_ids"]


def test_mix_of_weight_one_is_lossless_at_the_command_line(model, capsys):
    shared = (model, "-p", "x = ", "-n", "30", "--seed", "5", "--logprobs", "--temperature", "3", "--ignore-eos")
    (lossless,) = generate(capsys, *shared, "--sampler", "lossless")
    (mix,) = generate(capsys, *shared, "--sampler", "mix", "--mix-weight", "1")
    for key in ("token_ids", "logprobs", "sampled_logprobs"):
        assert lossless[key] == mix[key]


def test_prompts_from_a_file_stdin_and_jsonl(model, capsys, tmp_path, monkeypatch):
    (tmp_path / "prompt.txt").write_text("import os\n")
    rows = [{"prompt": "import os\n"}, {"prompt": "class A:"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = (model, "-n", "5", "--seed", "1", "--ignore-eos")
    (named,) = generate(capsys, *shared, "--prompt", "import os\n")
    (filed,) = generate(capsys, *shared, "--prompt-file", str(tmp_path / "prompt.txt"))
    monkeypatch.setattr("sys.stdin", io.StringIO("import os\n"))
    (piped,) = generate(capsys, *shared)
    many = generate(capsys, *shared, "--input", str(tmp_path / "rows.jsonl"))
    assert named["token_ids"] == filed["token_ids"] == piped["token_ids"] == many[0]["token_ids"]
    assert [(row["index"], row["prompt"], row["seed"]) for row in many] == [(0, "import os\n", 1), (1, "class A:", 2)]


def test_text_streams_to_stdout_and_the_footer_to_stderr(model, capsys):
    assert main(["generate", model, "-p", "def main():", "-n", "12", "--seed", "2", "--ignore-eos"]) == 0
    plain = capsys.readouterr()
    (shown,) = generate(capsys, model, "-p", "def main():", "-n", "12", "--seed", "2", "--ignore-eos")
    assert plain.out.rstrip("\n") == shown["text"].rstrip("\n")
    assert "tokens/forward" in plain.err


def test_raw_adds_nothing(model, capsys):
    (dressed,) = generate(capsys, model, "-p", "def main():", "-n", "1")
    (raw,) = generate(capsys, model, "-p", "def main():", "-n", "1", "--raw")
    assert raw["stats"]["num_prompt_tokens"] == dressed["stats"]["num_prompt_tokens"] - 1


def test_a_literal_mask_in_the_prompt_is_an_ordinary_token(model, capsys):
    """Masks are tracked by slot: the prompt's own <mask> is read causally, and greedy drafting still equals greedy AR."""
    shared = (model, "-p", "a <mask> b", "-n", "16", "--temperature", "0", "--ignore-eos", "--dtype", "float64")
    (lossless,) = generate(capsys, *shared)
    (plain,) = generate(capsys, *shared, "--sampler", "ar")
    assert lossless["token_ids"] == plain["token_ids"]
    assert 4 not in plain["token_ids"]


def test_flags_without_effect_are_said_and_a_long_block_refused(model, capsys):
    assert main(["generate", model, "-p", "x", "-n", "2", "--sampler", "ar", "--block", "4", "--mix-weight", "0.3"]) == 0
    error = capsys.readouterr().err
    assert "--block has no effect with --sampler ar" in error
    assert "--mix-weight has no effect" in error
    for sampler in ("ar", "lossless"):
        assert main(["generate", model, "-p", "x", "--sampler", sampler, "--block", "5"]) == 2
        assert "--block is 5, expected at most the trained 4" in capsys.readouterr().err


@pytest.mark.parametrize("temperature", ["inf", "nan", "-1"])
def test_temperatures_that_are_none(model, capsys, temperature):
    assert main(["generate", model, "-p", "x", "--temperature", temperature]) == 2
    assert "temperature is" in capsys.readouterr().err
