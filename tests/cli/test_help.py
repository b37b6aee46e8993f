"""What `zaya` says without running anything, and that it says it without torch."""

import subprocess
import sys

import click
import pytest

from tests.cli.conftest import ROOT, zaya
from zaya_cli.app import COMMANDS, LazyGroup, main
from zaya_core import __version__

WITHOUT_TORCH = """
import sys
from zaya_cli.app import main
code = main(sys.argv[1:])
heavy = {"torch", "transformers", "rich"} | {name for name in sys.modules if name.startswith("zaya_core.stages.")}
print(code, sorted(heavy & set(sys.modules)), file=sys.stderr)
"""


@pytest.fixture(params=COMMANDS, ids=lambda command: command.name)
def command(request):
    return request.param


@pytest.mark.parametrize("flag", ["--help", "-h", "--version"])
def test_says_without_torch_or_stages(flag):
    program = [sys.executable, "-c", WITHOUT_TORCH, flag]
    ran = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.stderr == "0 []\n"


def test_version():
    assert zaya("--version").stdout == f"zaya {__version__}\n"


def test_help_lists_commands_in_pipeline_order():
    text = zaya("--help").stdout
    lines = [next(line for line in text.splitlines() if line.split()[:1] == [command.name]) for command in COMMANDS]
    assert [text.index(line) for line in lines] == sorted(text.index(line) for line in lines)
    for command, line in zip(COMMANDS, lines, strict=True):
        assert line.endswith(command.help)


def test_bare_zaya_is_a_usage_error_that_shows_the_help():
    ran = zaya()
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "Commands:" in ran.stderr


def test_command_has_help_and_example(command, capsys):
    assert main([command.name, "--help"]) == 0
    text = capsys.readouterr().out
    assert command.help in text
    assert f"zaya {command.name}" in text.split("Example:")[1]


def test_command_help_does_not_import_torch(command):
    program = [sys.executable, "-c", WITHOUT_TORCH, command.name, "--help"]
    ran = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.stderr.startswith("0 ")
    assert "'torch'" not in ran.stderr


def test_command_option_names_are_unique(command):
    built = LazyGroup(COMMANDS).get_command(click.Context(click.Command("zaya")), command.name)
    names = [name for parameter in built.params for name in (*parameter.opts, *parameter.secondary_opts)]
    assert len({*names, "-h", "--help"}) == len(names) + 2


def test_double_help_shows_arguments_defaults_and_choices(double):
    code, out, err = double("--help")
    assert (code, err) == (0, "")
    assert "Usage: zaya double [OPTIONS] IN [OUT]" in out
    assert "--no-no-cache" not in out
    for text in (
        "[default: 4]",
        "[default: packing]",
        "Where to read.",
        "-b, --batch-size",
        "--packing / --no-packing",
        "[tidar|ar]",
        "--config",
    ):
        assert text in out
    assert "zaya double in out --batch-size 8" in out
