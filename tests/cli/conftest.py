"""`zaya` with the stage double as its only command: in this process, and in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from zaya_cli.app import Command, main

ROOT = Path(__file__).parents[2]
DOUBLE = Command("double", "tests.cli.stage_double", "DoubleConfig", "Says its config.")
PROGRAM = """
import sys
from tests.cli.conftest import DOUBLE
from zaya_cli.app import main
sys.exit(main(commands=[DOUBLE]))
"""


@pytest.fixture(autouse=True)
def _no_zaya_environment(monkeypatch):
    for name in os.environ:
        if name.startswith("ZAYA_") or name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
            monkeypatch.delenv(name)


@pytest.fixture
def double(capsys):
    """`double("in", "--seed", "3")` -> (exit code, stdout, stderr)."""

    def call(*arguments):
        code = main(["double", *arguments], commands=[DOUBLE])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def zaya(*arguments):
    """The real command line in a process of its own."""
    command = [sys.executable, "-m", "zaya_cli", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
