"""A conversion killed at any moment leaves nothing that opens, and a rerun starts clean."""

import signal
import subprocess
import sys

import pytest

from tests.checkpoints import NUM_IDS, write_random
from tests.models import TINY
from zaya_core.errors import CheckpointError
from zaya_core.io.checkpoint import Checkpoint

CHILD = """
import sys, zaya_core.stages.convert as stage
from pathlib import Path
import zaya_core.model.load, zaya_core.model.parity
print("ready", flush=True)
for event in stage.run(stage.ConvertConfig(Path(sys.argv[1]), Path(sys.argv[2]), block=4)):
    print(type(event).__name__, flush=True)
    sys.stdin.readline()  # one line lets it go on
"""


def test_kills_spread_over_the_conversion(tmp_path):
    write_random(tmp_path / "base", TINY.with_changes(vocab_size=NUM_IDS + 28), skip_bias=-1.0)
    out = tmp_path / "out"
    for moment in (1, 3, 20, 60, 80):  # lines the child prints before it is killed: notes, bytes written, the comparison
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, tmp_path / "base", out], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(moment):
            assert child.stdout.readline(), "the child ended before it was killed"
            child.stdin.write("\n")
            child.stdin.flush()
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        with pytest.raises(CheckpointError):
            Checkpoint.open(out)
    child = subprocess.run(
        [sys.executable, "-c", CHILD, tmp_path / "base", out], input=1000 * chr(10), capture_output=True, text=True, check=True
    )
    assert Checkpoint.open(out).config.tidar is not None
    assert child.stdout.splitlines()[-1] == "Result"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out"]
