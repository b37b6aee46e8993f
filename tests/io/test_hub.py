"""Hugging Face ids, against a cache directory as huggingface_hub lays it out, offline."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoints import NUM_IDS, write_random
from tests.models import TINY

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def offline(tmp_path) -> dict[str, str]:
    """An environment whose hub cache holds org/base and nothing else."""
    repository = tmp_path / "hf" / "hub" / "models--org--base"
    write_random(repository / "snapshots" / REVISION, TINY.with_changes(vocab_size=NUM_IDS + 28), skip_bias=-1.0)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(REVISION)
    return os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}


def zaya(environment: dict[str, str], folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "zaya_cli", *arguments]
    return subprocess.run(command, check=False, env=environment, cwd=folder, capture_output=True, text=True, timeout=120)


def test_a_cached_id_converts_and_an_unknown_one_is_one_line(offline, tmp_path):
    offline["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = zaya(offline, tmp_path, "convert", "org/base", "out", "--block", "4", "-q")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "config.json").exists()
    lost = zaya(offline, tmp_path, "convert", "org/other", "out2", "-q")
    assert lost.returncode == 2
    assert len(lost.stderr.strip().splitlines()) == 1
    assert "org/other is no directory" in lost.stderr
