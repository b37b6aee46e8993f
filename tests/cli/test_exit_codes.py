"""How a run ends: the exit code, one line on stderr, the traceback only with -v."""

import os
import pty
import subprocess
import sys

import pytest

from tests.cli.conftest import PROGRAM, ROOT, zaya

SMALLER = "(lower --batch-size or --seq-len)"
BUG = "(this is a bug in zaya; run again with -v for the traceback)"


@pytest.mark.parametrize(
    ("ends", "code", "line"),
    [
        ("checkpoint", 2, "in: no config.json (give a checkpoint directory)"),
        ("run", 1, "loss is nan at step 3"),
        ("bug", 1, f"KeyError: 'router' {BUG}"),
        ("two-lines", 1, f"ValueError: first {BUG}"),
        ("eof", 1, f"EOFError: truncated {BUG}"),
        ("gpu-memory", 1, f"out of memory: CUDA out of memory {SMALLER}"),
        (
            "cpu-memory",
            1,
            f"out of memory: DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes {SMALLER}",
        ),
        ("memory", 1, f"out of memory {SMALLER}"),
        ("disk", 1, "[Errno 28] No space left on device (-v shows the traceback)"),
        ("sigint", 130, "interrupted"),
        ("sigterm", 143, "stopped by SIGTERM after step 3"),
    ],
)
def test_exit_code_and_one_line(double, ends, code, line):
    got, out, err = double("in", "--ends", ends, "-q")
    assert got == code
    assert out == "half a \n"
    assert err == f"warning: a warning\nerror: {line}\n"


def test_success_is_zero(double):
    assert double("in")[0] == 0


def test_verbose_shows_the_traceback_then_the_line(double):
    _, _, err = double("in", "--ends", "bug", "-v")
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("error: KeyError")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--bach-size", "3"], "no such option '--bach-size'. Did you mean '--batch-size'? (see zaya double --help)"),
        (["--seed", "x"], "invalid value for '--seed': 'x' is not a valid integer (see zaya double --help)"),
        (["--objective", "mlm"], "invalid value for '--objective': 'mlm' is not one of 'tidar', 'ar'"),
        (["-c", "no.yaml"], "invalid value for '-c' / '--config': File 'no.yaml' does not exist"),
        (["--batch-size", "0"], "--batch-size is 0, expected at least 1"),
        (["a", "b"], "got unexpected extra argument (b) (see zaya double --help)"),
    ],
)
def test_usage_errors(double, arguments, line):
    code, out, err = double("in", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {line}")
    assert err.count("\n") == 1


def test_missing_argument(double):
    code, _, err = double()
    assert (code, err) == (2, "error: missing argument 'IN' (see zaya double --help)\n")


def test_unknown_command_names_the_nearest():
    ran = zaya("ganerate")
    assert ran.returncode == 2
    assert ran.stderr == "error: no such command 'ganerate', did you mean generate? (see zaya --help)\n"


def test_unknown_top_level_option():
    ran = zaya("--versoin")
    assert ran.returncode == 2
    assert "Did you mean '--version'?" in ran.stderr


@pytest.mark.parametrize("arguments", [["in"], ["in", "--json"], ["in", "--json", "-v"]])
def test_a_reader_that_leaves_is_quiet(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", PROGRAM, "double", *arguments]
    ran = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert ran.returncode == 1
    assert not {"Traceback", "error", "Error", "Exception"} & set(ran.stderr.replace(":", " ").split())


def on_a_terminal(*arguments, env=None):
    """Run the double with stderr on a pseudo-terminal: (exit code, stdout, stderr)."""
    master, slave = pty.openpty()
    command = [sys.executable, "-c", PROGRAM, "double", *arguments]
    environment = {**os.environ, "TERM": "xterm-256color", **(env or {})}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=slave)
    os.close(slave)
    out, _ = process.communicate(timeout=120)
    said = b""
    try:
        while chunk := os.read(master, 4096):
            said += chunk
    except OSError:  # Linux reports the closed end of a terminal this way
        pass
    os.close(master)
    return process.returncode, out.decode(), said.decode()


def test_error_is_red_on_a_terminal():
    code, _, err = on_a_terminal("in", "--ends", "run", "-q")
    assert code == 1
    assert "\x1b[31merror: loss is nan at step 3\x1b[0m" in err


def test_no_color_leaves_no_escape_codes():
    code, _, err = on_a_terminal("in", "--ends", "run", "-q", env={"NO_COLOR": "1"})
    assert code == 1
    assert "\x1b" not in err
    assert "error: loss is nan" in err


def test_bars_are_drawn_on_a_terminal_and_stdout_stays_clean():
    code, out, err = on_a_terminal("in", "--json")
    assert code == 0
    assert "reading" in err
    assert "1 / 2 rows" in err
    assert "loss 5.125 tok/s 1,234" in err
    assert all(line.startswith("{") for line in out.splitlines())
