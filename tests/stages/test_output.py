"""`zaya generate --input --output`: one line per completion, in order, the same whatever ran beside it, whatever was killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from tests.checkpoints import NUM_IDS, write_random
from tests.models import TINY
from zaya_cli.app import main
from zaya_core.config import Tidar

ROWS, EACH = 5, 3
OPTIONS = ("--max-new-tokens", "12", "--seed", "7", "--n", str(EACH), "--temperature", "8", "--logprobs", "--dtype", "float64")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("models") / "tidar"
    write_random(path, TINY.with_changes(vocab_size=NUM_IDS + 28, tidar=Tidar(4, 4)), skip_bias=-1.0)
    return str(path)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("rows") / "x.jsonl"
    rows = [{"prompt": "def main():" + " x" * 7 * number} for number in range(ROWS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def wanted(model, prompts, tmp_path_factory):
    """The completions of an undisturbed run, one at a time."""
    path = tmp_path_factory.mktemp("wanted") / "y.jsonl"
    assert main(["generate", model, "--input", prompts, "--output", str(path), *OPTIONS, "-q"]) == 0
    return told(path)


def told(path):
    """The lines less what measures the machine."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["stats"] = {key: row["stats"][key] for key in ("num_tokens", "num_forwards", "acceptance_histogram")}
    return rows


def assert_same(rows, wanted):
    """Beside others a forward rounds differently; everything but the last bits of log-probabilities is equal."""
    for left, right in zip(rows, wanted, strict=True):
        for key in ("logprobs", "sampled_logprobs"):
            assert left[key] == pytest.approx(right[key], abs=1e-9)
    rows, wanted = ([{key: row[key] for key in row if "logprobs" not in key} for row in some] for some in (rows, wanted))
    assert rows == wanted


def arguments(model, prompts, out, *more):
    return ["generate", model, "--input", prompts, "--output", str(out), *OPTIONS, *more]


def names(path):
    return sorted(item.name for item in path.parent.iterdir())


def test_lines_are_the_contract_in_the_inputs_order(wanted, prompts):
    texts = [json.loads(line)["prompt"] for line in Path(prompts).read_text().splitlines()]
    assert [row["index"] for row in wanted] == list(range(ROWS * EACH))
    assert [row["prompt"] for row in wanted] == [text for text in texts for _ in range(EACH)]
    assert [row["seed"] for row in wanted] == [7 + index for index in range(ROWS * EACH)]
    assert len({tuple(row["token_ids"]) for row in wanted}) == ROWS * EACH, "completions of a prompt differ"
    for row in wanted:
        assert len(row["token_ids"]) == len(row["logprobs"]) == len(row["sampled_logprobs"]) == row["stats"]["num_tokens"]


@pytest.mark.parametrize("batch_size", ["4", "32"])
def test_company_changes_nothing(model, prompts, wanted, tmp_path, batch_size, capsys):
    out = tmp_path / "y.jsonl"
    assert main([*arguments(model, prompts, out, "--batch-size", batch_size), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_completions_made"] == ROWS * EACH
    assert_same(told(out), wanted)
    assert names(out) == ["y.jsonl", "y.jsonl.run.json"]


def test_a_finished_file_is_left_as_it_is(model, prompts, tmp_path, capsys):
    out = tmp_path / "y.jsonl"
    assert main(arguments(model, prompts, out, "-q")) == 0
    before = out.read_bytes()
    assert main([*arguments(model, prompts, out), "--batch-size", "9"]) == 0
    assert "15 of 15 completions are there" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert main(arguments(model, prompts, out, "--temperature", "1")) == 2
    error = capsys.readouterr().err
    assert "temperature was 8.0 and is 1.0" in error
    assert error.count("\n") == 1
    assert main(arguments(model, prompts, out, "--temperature", "1", "--overwrite", "-q")) == 0
    assert out.read_bytes() != before


def test_a_seed_that_was_drawn_is_kept(model, prompts, tmp_path):
    out = tmp_path / "y.jsonl"
    command = ["generate", model, "--input", prompts, "--output", str(out), "-n", "4", "--proposals", "2", "-q"]
    assert main(command) == 0
    before = out.read_bytes()
    out.write_bytes(before[: len(before) // 2])
    assert main(command) == 0
    assert [row["token_ids"] for row in told(out)] == [json.loads(line)["token_ids"] for line in before.splitlines()]


def test_bad_input_writes_nothing(model, tmp_path, capsys):
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": ' + json.dumps("long " * 500) + "}\n")
    assert main(arguments(model, str(path), tmp_path / "out" / "y.jsonl")) == 2
    assert f"{path}:2: the prompt has" in capsys.readouterr().err
    assert names(path) == ["x.jsonl"]


def start(command, **environment):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen([sys.executable, "-m", "zaya_cli", *command, "-q"], env=environment, stderr=subprocess.PIPE)


def kill_on_the_way(command, size, chance, **environment):
    """Once `size()` bytes are more than before."""
    process, before = start(command, **environment), size()
    while size() <= before and process.poll() is None:
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.05))
    if process.poll() is None:
        os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def num_bytes(out):
    return sum(path.stat().st_size for path in out.parent.glob("y.jsonl*") if "run.json" not in path.name)


def test_kills_lose_nothing_and_repeat_nothing(model, prompts, wanted, tmp_path):
    out, chance = tmp_path / "y.jsonl", random.Random(1)
    command = arguments(model, prompts, out, "--batch-size", "1")
    killed = [kill_on_the_way(command, partial(num_bytes, out), chance) for _ in range(2)]
    assert any(killed)
    assert num_bytes(out) > 0
    assert main([*command, "-q"]) == 0
    assert told(out) == wanted
    assert names(out) == ["y.jsonl", "y.jsonl.run.json"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills_of_a_long_run(model, tmp_path):
    prompts = tmp_path / "x.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"def f{number}():"}) + "\n" for number in range(60)))
    whole, out, chance = tmp_path / "whole" / "y.jsonl", tmp_path / "killed" / "y.jsonl", random.Random(2)
    assert main([*arguments(model, str(prompts), whole), "--batch-size", "5", "-q"]) == 0
    killed = sum(
        kill_on_the_way(arguments(model, str(prompts), out, "--batch-size", "5"), partial(num_bytes, out), chance)
        for _ in range(20)
    )
    assert killed > 10
    assert main([*arguments(model, str(prompts), out), "--batch-size", "5", "-q"]) == 0
    assert_same(told(out), told(whole))


def test_sigterm_stops_between_forwards(model, prompts, wanted, tmp_path):
    out = tmp_path / "y.jsonl"
    process = start(arguments(model, prompts, out, "--batch-size", "1"))
    while num_bytes(out) == 0:
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate()
    if process.returncode == 0:
        pytest.skip("it was done before the signal came")
    assert process.returncode == 143
    assert b"rerun the same command to go on" in error
    assert main([*arguments(model, prompts, out), "-q"]) == 0
    assert told(out) == wanted


def test_ranks_share_the_work(model, prompts, wanted, tmp_path):
    """As torchrun starts them, one after the other; the second is killed once and started again."""
    out = tmp_path / "y.jsonl"
    command = arguments(model, prompts, out)
    first, second = (start(command, RANK=str(rank), WORLD_SIZE="2") for rank in range(2))
    while not list(tmp_path.glob("y.jsonl.part-1")) and second.poll() is None:
        time.sleep(0.002)
    second.kill()
    second.communicate()
    assert first.communicate()[1] == b""
    again = start(command, RANK="1", WORLD_SIZE="2")
    assert again.communicate()[1] == b""
    assert (first.returncode, again.returncode) == (0, 0)
    assert told(out) == wanted
    assert names(out) == ["y.jsonl", "y.jsonl.run.json"]
