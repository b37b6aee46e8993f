"""The pipeline of the 8B model, as far as it goes without weights, data and a GPU: every stage's plan, on 1 node and on 128."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """A virtual environment as recipes/setup.sh wants it, with this python."""
    programs = tmp_path / "venv" / "bin"
    programs.mkdir(parents=True)
    for name, module in (("python", ""), ("zaya", "-m zaya_cli ")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {module}"$@"\n')
        (programs / name).chmod(0o755)
    (tmp_path / "venv" / "zaya-installed").touch()
    return os.environ | {"VENV": str(tmp_path / "venv")}


@pytest.mark.parametrize("nodes", ["1", "128"])
def test_every_stage_of_the_8b_pipeline_has_a_plan_that_fits(environment, tmp_path, nodes):
    command = [str(ROOT / "recipes" / "zaya1-8b.sh"), "zaya1-base", str(tmp_path / "work")]
    told = environment | {"DRY_RUN": "1", "NODES": nodes}
    said = subprocess.run(command, env=told, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    lines = [line.split() for line in said.stdout.splitlines()]
    assert [line[1] for line in lines if line[:1] == ["fits"]] == ["yes"] * 3
    tokens = [float(line[1]) for line in lines if line[:1] == ["clean_tokens"]]
    assert tokens == pytest.approx([600e9, 500e9, 33.5e9], rel=0.01)
    assert not (tmp_path / "work").exists()
