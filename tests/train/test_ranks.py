"""Several ranks train what one rank trains, on gloo; a run killed on some ranks goes on on others."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.train.test_resume import arguments, figures, tidar  # noqa: F401  (a fixture)
from zaya_cli.app import main
from zaya_core.io.checkpoint import Checkpoint
from zaya_core.io.weights import read_tensors

STEPS = 12
EXACT = {"kl": 1e-10, "ar-muon": 1e-10, "single": 1e-5}  # float64, float64, float32


def torchrun(num_ranks: int, *command: str) -> subprocess.Popen:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    return subprocess.Popen(
        [*launch, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen) -> str:
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said[-3000:]
    return said


def zaya(num_ranks: int, root: Path, out: Path, **changes: object) -> subprocess.Popen:
    """A midtrain run whose steps have four rows, however many ranks there are."""
    axes = changes.get("expert-parallel", 1), changes.get("context-parallel", 1)
    changes = {"max-steps": STEPS, "batch-size": 4 * int(axes[1]) // num_ranks} | changes
    return torchrun(num_ranks, "-m", "zaya_cli", *arguments(root, out, **changes), "-q")


def judge(path: Path) -> None:
    for case, results in json.loads(path.read_text()).items():
        alone = results.pop("alone")
        assert results
        for layout, result in results.items():
            place = f"{case} on {layout}"
            assert len(result["steps"]) == len(alone["steps"]) == 20, place
            for ours, other in zip((*alone["steps"], alone["held_out"]), (*result["steps"], result["held_out"]), strict=True):
                assert other == pytest.approx(ours, rel=EXACT[case]), place
            for name, values in alone["weights"].items():
                assert result["weights"][name] == pytest.approx(values, abs=10 * EXACT[case]), (place, name)


@pytest.mark.timeout(400)
def test_two_ranks_of_each_axis_train_what_one_rank_trains(tmp_path):
    finish(torchrun(2, "-m", "tests.train.across", str(tmp_path / "out.json"), "2x1x1", "1x2x1", "1x1x2"))
    judge(tmp_path / "out.json")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_four_ranks_of_two_axes_train_what_one_rank_trains(tmp_path):
    finish(torchrun(4, "-m", "tests.train.across", str(tmp_path / "out.json"), "2x2x1", "2x1x2", "1x2x2", "4x1x1"))
    judge(tmp_path / "out.json")


def same_figures(left: Path, right: Path) -> None:
    """Every step once, losses to 1e-5."""
    for ours, other in zip(figures(left), figures(right), strict=True):
        for name in ("step", "tokens_seen", "loss", "ar_loss", "diffusion_loss", "grad_norm"):
            assert other[name] == pytest.approx(ours[name], rel=1e-5), (name, ours["step"])


def cut_back(out: Path, to: Path, step: int) -> None:
    """A copy of a finished run as it was when it had just saved `step`."""
    shutil.copytree(out, to)
    for path in to.iterdir():
        if path.is_file() and path.name not in ("run.json", "metrics.jsonl"):
            path.unlink()
    for path in (to / "checkpoints").glob("step-*"):
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)


@pytest.mark.timeout(400)
def test_a_run_of_two_ranks_goes_on_on_one_and_back(tidar, tmp_path):  # noqa: F811
    two = tmp_path / "two"
    finish(zaya(2, tidar, two, **{"context-parallel": 2, "save-total-limit": 99}))
    assert Checkpoint.open(two).config == Checkpoint.open(tidar / "tidar").config
    cut_back(two, tmp_path / "one", 5)
    assert main([*arguments(tidar, tmp_path / "one", **{"max-steps": STEPS, "batch-size": 4, "save-total-limit": 99}), "-q"]) == 0
    same_figures(two, tmp_path / "one")
    cut_back(tmp_path / "one", tmp_path / "back", 7)
    finish(zaya(2, tidar, tmp_path / "back", **{"expert-parallel": 2, "optimizer": "adamw"}))
    same_figures(two, tmp_path / "back")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_of_four_ranks_goes_on_on_one_and_on_two(tidar, tmp_path):  # noqa: F811
    more = {"optimizer": "muon", "save-total-limit": 99, "gradient-checkpointing": "full"}
    four = tmp_path / "four"
    finish(zaya(4, tidar, four, **more, **{"expert-parallel": 2}))
    for num_ranks, out in ((1, tmp_path / "one"), (2, tmp_path / "two")):
        cut_back(four, out, 5)
        finish(zaya(num_ranks, tidar, out, **more))
        same_figures(four, out)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_rank_ends_the_run_and_a_rerun_ends_in_the_same_bits(tidar, tmp_path):  # noqa: F811
    more = {"max-steps": 60, "context-parallel": 2, "save-every": 5}
    out = tmp_path / "killed"
    process = zaya(2, tidar, out, **more)
    while len(figures(out) if (out / "metrics.jsonl").exists() else []) < 12:
        time.sleep(0.05)
        assert process.poll() is None, process.communicate()[0]
    workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout.split()
    os.kill(int(workers[-1]), signal.SIGKILL)
    said, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "exitcode  : -9" in said
    assert not (out / "config.json").exists()
    finish(zaya(2, tidar, out, **more))
    finish(zaya(2, tidar, tmp_path / "unbroken", **more))
    left, right = (dict(read_tensors(Checkpoint.open(path).tensors)) for path in (out, tmp_path / "unbroken"))
    assert all(left[name].equal(right[name]) for name in right)
    assert figures(out) == figures(tmp_path / "unbroken")


def test_a_worker_says_its_own_error_and_its_exit_code(tidar, tmp_path):  # noqa: F811
    process = zaya(2, tidar, tmp_path / "out", **{"context-parallel": 2, "seq-len": 47, "batch-size": 4})
    said, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "error: --seq-len is 47, expected a multiple of --context-parallel 2" in said
    assert "exitcode  : 2" in said
    assert not (tmp_path / "out").exists()
