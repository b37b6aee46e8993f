"""A run that is killed and resumed ends in the same bits as one that is not."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from zaya_cli.app import main
from zaya_core.errors import CheckpointError, ConfigError
from zaya_core.io.checkpoint import Checkpoint
from zaya_core.stages.midtrain import MidtrainConfig, run

STEPS = 6


@pytest.fixture(scope="module")
def tidar(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("models")
    text = root / "text"
    text.mkdir()
    for number in range(12):
        (text / f"{number}.txt").write_text("".join(f"line {i} of text {number}: {i * number}\n" for i in range(80)))
    assert main(["init", "tiny", str(root / "base"), "--data", str(text), "--dtype", "float32", "-q"]) == 0
    assert main(["convert", str(root / "base"), str(root / "tidar"), "--block", "4", "-q"]) == 0
    return root


def arguments(root: Path, out: Path, **changes: object) -> list[str]:
    options = {"max-steps": STEPS, "seq-len": 48, "batch-size": 2, "save-every": 1, "data": root / "text", "log-every": 2} | changes
    flags = [part for key, value in options.items() for part in (f"--{key}", str(value))]
    return ["midtrain", str(root / "tidar"), str(out), *flags]


@pytest.fixture(scope="module")
def unbroken(tidar) -> Path:
    assert main([*arguments(tidar, tidar / "unbroken"), "-q"]) == 0
    return tidar / "unbroken"


def same_result(left: Path, right: Path) -> None:
    """Weights, optimizer, and every logged figure that is not a clock's or a memory's."""
    for name in ("model.safetensors", f"checkpoints/step-{STEPS}/training_state/optimizer.safetensors"):
        a, b = load_file(left / name), load_file(right / name)
        assert a.keys() == b.keys()
        assert all(a[key].equal(b[key]) for key in a), name
    assert figures(left) == figures(right)
    assert [row["step"] for row in figures(right)] == list(range(1, STEPS + 1))


def figures(out: Path) -> list[dict]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    clocks = ("tokens_per_second", "eta_seconds", "memory_bytes")
    return [{key: value for key, value in row.items() if key not in clocks} for row in rows]


def start(command: list[str]) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "zaya_cli", *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.002)


def test_killed_after_three_steps_and_resumed(tidar, unbroken, tmp_path):
    out = tmp_path / "killed"
    process = start(arguments(tidar, out))
    wait_for(out / "checkpoints" / "step-3", process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        Checkpoint.open(out)
    assert main([*arguments(tidar, out), "-q"]) == 0
    same_result(unbroken, out)


def test_killed_in_the_middle_of_a_save(tidar, unbroken, tmp_path):
    """The moment a save's aside directory appears is inside the save; what it leaves is cleared, the save before it serves."""
    out = tmp_path / "killed"
    for step in (2, 4):
        process = start(arguments(tidar, out))
        wait_for(out / "checkpoints" / f"step-{step}.partial", process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        for path in (out / "checkpoints").glob("step-*"):
            if path.suffix != ".partial":
                Checkpoint.open(path)
    assert main([*arguments(tidar, out), "-q"]) == 0
    same_result(unbroken, out)


def test_sigterm_saves_and_exits_143(tidar, unbroken, tmp_path):
    out = tmp_path / "terminated"
    process = start([*arguments(tidar, out, **{"save-every": 100})])
    wait_for(out / "metrics.jsonl", process)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    error = process.stderr.read().decode().strip().splitlines()[-1]
    assert "rerun the same command" in error
    assert list((out / "checkpoints").glob("step-*"))
    assert main([*arguments(tidar, out, **{"save-every": 1}), "-q"]) == 0
    same_result(unbroken, out)


def test_a_finished_run_says_so_and_other_options_are_refused(tidar, unbroken, capsys):
    before = (unbroken / "model.safetensors").stat().st_mtime_ns
    assert main(arguments(tidar, unbroken)) == 0
    assert "finished" in capsys.readouterr().err
    assert (unbroken / "model.safetensors").stat().st_mtime_ns == before
    assert main(arguments(tidar, unbroken, lr=0.5)) == 2
    assert "lr was 0.001, now 0.5" in capsys.readouterr().err.replace("\n", " ")


def test_saves_are_pruned_and_latest_points(tidar, unbroken):
    saves = sorted(path.name for path in (unbroken / "checkpoints").iterdir())
    assert saves == ["LATEST", "step-5", "step-6"]
    assert (unbroken / "checkpoints" / "LATEST").read_text() == "step-6\n"


def test_the_published_directory_is_a_checkpoint_with_a_certificate(unbroken):
    paper = Checkpoint.open(unbroken).certificate()
    assert paper["stage"] == "midtrain-tidar"
    assert paper["parent"]["certificate"]["stage"] == "convert"
    assert paper["parent"]["certificate"]["parent"]["certificate"]["stage"] == "init"
    assert paper["metrics"]["step"] == STEPS


def test_accumulated_batches_equal_one_large_batch(tidar, tmp_path):
    """Losses are divided by the counts of the whole step: splitting a step changes rounding only."""
    losses = []
    for size, parts in ((4, 1), (1, 4)):
        options = {"max_steps": 3, "seq_len": 48, "batch_size": size, "gradient_accumulation_steps": parts, "seed": 3}
        config = MidtrainConfig(tidar / "tidar", tmp_path / str(size), data=(str(tidar / "text"),), **options)
        list(run(config))
        losses.append([(row["ar_loss"], row["diffusion_loss"], row["grad_norm"]) for row in figures(tmp_path / str(size))])
    assert losses[0] == [pytest.approx(row, rel=1e-4) for row in losses[1]]


def test_training_refuses_what_cannot_be(tidar, tmp_path):
    text = str(tidar / "text")
    with pytest.raises(ConfigError, match="--block is 8, expected the checkpoint's 4"):
        list(run(MidtrainConfig(tidar / "tidar", tmp_path / "a", data=(text,), block=8)))
    with pytest.raises(CheckpointError, match="plain autoregressive"):
        list(run(MidtrainConfig(tidar / "base", tmp_path / "a", data=(text,))))
    with pytest.raises(ConfigError, match="context of 1024"):
        list(run(MidtrainConfig(tidar / "tidar", tmp_path / "a", data=(text,), seq_len=4096)))
    with pytest.raises(ConfigError, match="--data is missing"):
        MidtrainConfig(tidar / "tidar", tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_dry_run_touches_nothing(tidar, tmp_path):
    config = MidtrainConfig(tidar / "tidar", tmp_path / "a", data=(str(tidar / "text"),), seq_len=48, dry_run=True)
    result = list(run(config))[-1].values
    assert result["clean_tokens"] == 1000 * 8 * 48
    assert not (tmp_path / "a").exists()


def test_training_lowers_both_losses(tidar, tmp_path):
    config = MidtrainConfig(
        tidar / "tidar", tmp_path / "a", data=(str(tidar / "text"),), seq_len=64, max_steps=60, lr=1e-2, batch_size=8
    )
    list(run(config))
    rows = figures(tmp_path / "a")
    assert rows[-1]["ar_loss"] < rows[0]["ar_loss"] - 2
    assert rows[-1]["diffusion_loss"] < rows[0]["diffusion_loss"] - 2
