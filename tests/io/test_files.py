"""Files are whole or absent: after an error, after SIGKILL at any file operation, on a full disk."""

import os
import shutil
import signal
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.checkpoints import write_random
from tests.faults import full_disk
from tests.models import TINY
from zaya_core.errors import CheckpointError, RunError
from zaya_core.io.checkpoint import Checkpoint
from zaya_core.io.files import check_writable, publish, read_json, write_json, write_text

ROOT = Path(__file__).parents[2]

# Publishes a copy of a checkpoint, and kills itself at its n-th file operation: argv is source, target, overwrite, n.
SUICIDE = """
import os, shutil, signal, sys
from pathlib import Path
from zaya_core.io.files import publish

source, out, overwrite, last = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "True", int(sys.argv[4])
files, count = sorted(source.iterdir()), 0

def watch(event, _):
    global count
    if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.scandir", "shutil.copyfile"):
        count += 1
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
with publish(out, overwrite=overwrite) as directory:
    for file in files:
        shutil.copyfile(file, directory / file.name)
"""


def tree(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def publish_text(out, text, error=None, **options):
    with publish(out, **options) as directory:
        (directory / "a.txt").write_text(text)
        if error is not None:
            raise error


def test_nothing_is_there_before_the_end(tmp_path):
    out = tmp_path / "deep" / "out"
    with publish(out) as directory:
        (directory / "sub").mkdir()
        (directory / "sub" / "a.txt").write_text("a")
        assert not out.exists()
    assert tree(tmp_path) == ["deep", "deep/out", "deep/out/sub", "deep/out/sub/a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_nothing(tmp_path, error):
    with pytest.raises(error):
        publish_text(tmp_path / "out", "half", error)
    assert tree(tmp_path) == []


def test_an_error_leaves_what_was_there(tmp_path):
    publish_text(tmp_path / "out", "old")
    with pytest.raises(ValueError):
        publish_text(tmp_path / "out", "half", ValueError, overwrite=True)
    assert tree(tmp_path) == ["out", "out/a.txt"]
    assert (tmp_path / "out" / "a.txt").read_text() == "old"


def test_a_full_target_needs_overwrite(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    publish_text(out, "first")
    with pytest.raises(CheckpointError, match=f"{out} is not empty .*--overwrite"):
        publish_text(out, "second")
    assert (out / "a.txt").read_text() == "first"
    (out / "b.txt").write_text("of the first")
    publish_text(out, "third", overwrite=True)
    assert tree(tmp_path) == ["out", "out/a.txt"], "overwriting replaces, it does not mix"
    assert (out / "a.txt").read_text() == "third"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_is_never_a_target(tmp_path, overwrite):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(CheckpointError, match="is a file"):
        check_writable(tmp_path / "out", overwrite=overwrite)
    assert (tmp_path / "out").read_text() == "mine"


def test_leftovers_of_a_killed_run_are_cleared(tmp_path):
    for name in ("out.partial", "out.old.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "stale.txt").write_text("stale")
    (tmp_path / "out").mkdir()
    publish_text(tmp_path / "out", "new", overwrite=True)
    assert tree(tmp_path) == ["out", "out/a.txt"]


@pytest.mark.parametrize(
    "write",
    [
        lambda directory: (directory / "a.txt").write_text("x" * 10_000),
        lambda directory: save_file({"a": torch.zeros(10_000)}, directory / "a.safetensors"),
    ],
    ids=["python", "safetensors"],
)
def test_a_full_disk_is_the_runs_failure(tmp_path, write):
    out = tmp_path / "out"
    with pytest.raises(RunError, match=f"writing {out} failed: .*[Ff]ile too large"), publish(out) as directory, full_disk(4096):
        write(directory)
    assert tree(tmp_path) == []


def run_until(number, source, out, overwrite):
    command = [sys.executable, "-c", SUICIDE, str(source), str(out), str(overwrite), str(number)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def state_of(out, fingerprints):
    """Which checkpoint `out` is, or "absent"; anything between does not open, or has other bytes, and fails here."""
    return fingerprints[Checkpoint.open(out).fingerprint()] if out.exists() else "absent"


@pytest.mark.parametrize("overwrite", [False, True])
def test_sigkill_at_every_file_operation(tmp_path, overwrite):
    new = write_random(tmp_path / "new", TINY, tokenizer=False)
    old = write_random(tmp_path / "old", TINY, seed=1, tokenizer=False)
    fingerprints = {new.fingerprint(): "new", old.fingerprint(): "old"}
    work, out, seen = tmp_path / "work", tmp_path / "work" / "out", []
    for number in range(1, 200):
        shutil.rmtree(work, ignore_errors=True)
        if overwrite:
            publish_copy(old.path, out)
        ran = run_until(number, new.path, out, overwrite)
        if ran.returncode == 0:
            break
        assert ran.returncode == -signal.SIGKILL, ran.stderr
        seen.append(state_of(out, fingerprints))
        publish_copy(new.path, out)
        assert tree(work) == ["out", *(f"out/{name}" for name in tree(new.path))], "the next run clears what the kill left"
    assert len(seen) >= 10, "the loop must have met the operations"
    assert state_of(out, fingerprints) == "new"
    order = ["old", "absent", "new"] if overwrite else ["absent", "new"]
    assert [state for state, _ in groupby(seen)] == order, "the target changes once"


def publish_copy(source, out):
    with publish(out, overwrite=True) as directory:
        for file in source.iterdir():
            os.link(file, directory / file.name)


def test_single_files_are_replaced_whole(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": "é"})
    with pytest.raises(OSError), full_disk(8):
        write_text(path, "x" * 100)
    assert read_json(path) == {"a": "é"}
    with open(path, encoding="utf-8") as reader:
        write_json(path, {"b": 1})
        assert "é" in reader.read(), "who had it open sees the old file whole"
    assert read_json(path) == {"b": 1}
    assert tree(tmp_path) == ["a.json"]


@pytest.mark.parametrize(("content", "word"), [(b"{", "not JSON"), (b"\xff", "not JSON"), (b"[1]", "holds list"), (b"", "JSON")])
def test_broken_json_names_the_file(tmp_path, content, word):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{tmp_path / 'a.json'} .*{word}"):
        read_json(tmp_path / "a.json")
    with pytest.raises(CheckpointError, match=r"b\.json is missing"):
        read_json(tmp_path / "b.json")
