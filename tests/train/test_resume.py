"""A run that is killed and resumed ends in the same bits as one that is not."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.faults import full_disk
from zaya_cli.app import main
from zaya_core.errors import CheckpointError, ConfigError, RunError
from zaya_core.events import Metrics
from zaya_core.io.checkpoint import Checkpoint
from zaya_core.stages.midtrain import MidtrainConfig, run

STEPS = 6

# argv: the end of a path, a signal's number, and a zaya command. Sends itself the signal when that path is first made or opened.
SELF_SIGNAL = """
import os, sys
from zaya_cli.app import main

moment, number, armed = sys.argv[1], int(sys.argv[2]), True

def watch(event, arguments):
    global armed
    path = {"os.rename": 1, "os.mkdir": 0, "open": 0}.get(event)
    if armed and path is not None and str(arguments[path]).endswith(moment):
        armed = False
        os.kill(os.getpid(), number)

sys.addaudithook(watch)
sys.exit(main(sys.argv[3:]))
"""


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
    papers = [Checkpoint.open(out).certificate()["metrics"]["loss"] for out in (left, right)]
    assert papers[0] == papers[1]
    assert [row["step"] for row in figures(right)] == list(range(1, STEPS + 1))


def figures(out: Path) -> list[dict]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    clocks = ("tokens_per_second", "eta_seconds", "memory_bytes")
    return [{key: value for key, value in row.items() if key not in clocks} for row in rows]


def run_with_signal(command: list[str], moment: str, number: int) -> subprocess.CompletedProcess:
    """Run a command that sends itself a signal at its first rename to, or mkdir of, a path that ends with `moment`."""
    child = [sys.executable, "-c", SELF_SIGNAL, moment, str(int(number)), *command]
    return subprocess.run(child, check=False, capture_output=True, text=True, timeout=300)


def test_killed_after_three_steps_and_resumed(tidar, unbroken, tmp_path):
    out = tmp_path / "killed"
    killed = run_with_signal(arguments(tidar, out), "step-4.partial", signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL
    assert (out / "checkpoints" / "LATEST").read_text() == "step-3\n"
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        Checkpoint.open(out)
    assert main([*arguments(tidar, out), "-q"]) == 0
    same_result(unbroken, out)


MOMENTS = ["step-2.partial/training_state", "step-2", "step-4.partial/config.json", "killed/model.safetensors"]


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_in_the_middle_of_a_save(tidar, unbroken, tmp_path, moment):
    """What the kill leaves is never opened; the save before it serves, or the start."""
    out = tmp_path / "killed"
    assert run_with_signal(arguments(tidar, out), moment, signal.SIGKILL).returncode == -signal.SIGKILL
    assert not (out / "config.json").exists()
    for path in (out / "checkpoints").glob("step-*"):
        if path.suffix != ".partial":
            Checkpoint.open(path)
    assert main([*arguments(tidar, out), "-q"]) == 0
    same_result(unbroken, out)


def test_a_full_disk_in_the_middle_of_a_save_keeps_the_one_before(tidar, unbroken, tmp_path):
    out = tmp_path / "full"
    config = MidtrainConfig(
        tidar / "tidar", out, data=(str(tidar / "text"),), max_steps=STEPS, seq_len=48, batch_size=2, save_every=1, log_every=2
    )
    events = run(config)
    while not (isinstance(event := next(events), Metrics) and event.values["step"] == 4):
        pass
    while sorted(path.name for path in (out / "checkpoints").iterdir()) != ["LATEST", "step-2", "step-3"]:
        time.sleep(0.01)  # the save of step 3 is written beside the run
    with pytest.raises(RunError, match=r"writing .*step-4 failed: .*[Ff]ile too large"), full_disk(100_000):
        list(events)
    assert (out / "checkpoints" / "LATEST").read_text() == "step-3\n"
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["LATEST", "step-2", "step-3"]
    assert main([*arguments(tidar, out), "-q"]) == 0
    same_result(unbroken, out)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_polite_signal_saves_and_exits_with_its_code(tidar, unbroken, tmp_path, number):
    out = tmp_path / "terminated"
    stopped = run_with_signal(arguments(tidar, out, **{"save-every": 100}), "metrics.jsonl", number)
    assert stopped.returncode == 128 + number
    assert "rerun the same command" in stopped.stderr.strip().splitlines()[-1]
    assert [path.name for path in (out / "checkpoints").glob("step-*")] == ["step-1"]
    assert main([*arguments(tidar, out, **{"save-every": 1}), "-q"]) == 0
    same_result(unbroken, out)


def test_resuming_from_an_earlier_save_rewinds(tidar, unbroken, tmp_path):
    out = tmp_path / "rewound"
    many = {"save-total-limit": 9}
    assert main([*arguments(tidar, out, **many), "-q"]) == 0
    (out / "config.json").unlink()
    assert main([*arguments(tidar, out, **many), "-q", "--resume", str(out / "checkpoints" / "step-2")]) == 0
    same_result(unbroken, out)
    (out / "config.json").unlink()
    assert main([*arguments(tidar, out, **many), "-q", "--resume", str(out / "checkpoints" / "step-77")]) == 2


def test_changed_data_is_not_resumed(tidar, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("one two three four five six seven eight nine ten\n" * 40)
    assert main([*arguments(tidar, tmp_path / "out", data=text), "-q"]) == 0
    (tmp_path / "out" / "config.json").unlink()
    text.write_text("ten nine eight seven six five four three two one\n" * 40)
    assert main([*arguments(tidar, tmp_path / "out", data=text), "-q"]) == 2
    assert "data_sha256 was" in capsys.readouterr().err


def test_out_must_not_hold_what_the_run_reads(tidar, tmp_path):
    before = sorted(path.name for path in (tidar / "tidar").iterdir())
    for out in (tidar / "tidar", tidar):
        assert main([*arguments(tidar, out), "--overwrite", "-q"]) == 2
    assert sorted(path.name for path in (tidar / "tidar").iterdir()) == before


def test_a_bad_device_leaves_nothing(tidar, tmp_path):
    assert main([*arguments(tidar, tmp_path / "out"), "--device", "cuda:77", "-q"]) == 1
    assert not (tmp_path / "out").exists()


def test_rows_without_a_block_are_no_error(tidar, tmp_path):
    """Rows of four tokens with blocks of four: the phase often leaves no block at all."""
    options = {"max_steps": 12, "seq_len": 4, "batch_size": 1, "log_every": 1}
    list(run(MidtrainConfig(tidar / "tidar", tmp_path / "out", data=(str(tidar / "text"),), **options)))
    rows = figures(tmp_path / "out")
    assert any("acceptance_length" not in row for row in rows)
    assert all(row["loss"] > 0 for row in rows)


def test_a_finished_run_says_so_and_other_options_are_refused(tidar, unbroken, capsys):
    before = (unbroken / "model.safetensors").stat().st_mtime_ns
    assert main(arguments(tidar, unbroken)) == 0
    assert "finished" in capsys.readouterr().err
    assert (unbroken / "model.safetensors").stat().st_mtime_ns == before
    assert main(arguments(tidar, unbroken, lr=0.5)) == 2
    assert "lr was 0.001, now 0.5" in capsys.readouterr().err.replace("\n", " ")


def test_overwriting_a_checkpoint_trains_and_says_nothing_of_finished(tidar, unbroken, tmp_path, capsys):
    """Only a run of ours is finished; any other directory with a config.json is overwritten when told to, refused when not."""
    out = tmp_path / "other"
    shutil.copytree(tidar / "base", out)
    assert main([*arguments(tidar, out), "-q"]) == 2
    assert main([*arguments(tidar, out), "--overwrite", "-q"]) == 0
    assert "finished" not in capsys.readouterr().err
    same_result(unbroken, out)


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
        options = {"max_steps": 1, "seq_len": 48, "batch_size": size, "gradient_accumulation_steps": parts, "seed": 3}
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
