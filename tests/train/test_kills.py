"""Twenty SIGKILLs at random moments of one run: the weights at the end are those of a run that nobody touched."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.train.test_resume import arguments, figures, tidar  # noqa: F401  (a fixture)
from zaya_cli.app import main
from zaya_core.io.checkpoint import Checkpoint

KILLS, STEPS = 20, 400


def start(command: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "zaya_cli", *command, "-q"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_somewhere(command: list[str], out: Path, chance: random.Random) -> None:
    """At a random moment: of the start in one of five, else of the first second of stepping and saving."""
    process, before = start(command), num_lines(out / "metrics.jsonl")
    if chance.random() < 0.2:
        time.sleep(chance.uniform(0, 4))
    else:
        while num_lines(out / "metrics.jsonl") <= before and process.poll() is None:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.6))
    assert process.poll() is None, "the run ended before its kill: give it more steps"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_random_kills_change_no_bit(tidar, tmp_path):  # noqa: F811
    chance, more = random.Random(4), {"max-steps": STEPS}
    out, reached = tmp_path / "killed", []
    for _ in range(KILLS):
        kill_somewhere(arguments(tidar, out, **more), out, chance)
        assert not (out / "config.json").exists()
        saves = [path for path in (out / "checkpoints").glob("step-*") if path.suffix != ".partial"]
        for path in saves:
            Checkpoint.open(path)
        reached.append(max((int(path.name.removeprefix("step-")) for path in saves), default=0))
    assert reached == sorted(reached), "a kill loses no save"
    assert reached[-1] > KILLS, "the kills met a run that got on"
    for directory in (out, tmp_path / "unbroken"):
        assert main([*arguments(tidar, directory, **more), "-q"]) == 0
    left, right = (path / "model.safetensors" for path in (out, tmp_path / "unbroken"))
    assert left.read_bytes() == right.read_bytes()
    assert not list(out.rglob("*.partial"))
    assert figures(out) == figures(tmp_path / "unbroken")
