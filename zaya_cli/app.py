"""The `zaya` command: which commands there are, and how a run ends.

Only a named command's stage is imported; `zaya --help` and `zaya --version` import neither torch nor a stage.
Each command has three moves: read its config, run the stage, render the events. No failure exits with 0.
"""

import importlib
import os
import sys
import traceback
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

from zaya_cli.failure import report
from zaya_cli.options import argument_rows, parameters, read_config, read_output
from zaya_core import __version__
from zaya_core.config import nearest

if TYPE_CHECKING:
    from zaya_cli.console import Console
    from zaya_core.events import Event

ABOUT = "Turn an autoregressive mixture-of-experts language model into a block-diffusion one (TiDAR), and run it."
PRECEDENCE = "Every option is also a key of --config FILE.yaml and a variable ZAYA_<NAME>; a flag wins, then the file."


@dataclass(frozen=True)
class Command:
    """One line of `zaya --help`: the command's name, its stage's module and config class, and what it is for."""

    name: str
    module: str
    config: str
    help: str


COMMANDS = (
    Command("init", "zaya_core.stages.init", "InitConfig", "Write a random base model from a preset."),
    Command("convert", "zaya_core.stages.convert", "ConvertConfig", "Make a TiDAR checkpoint from an AR one."),
    Command("midtrain", "zaya_core.stages.midtrain", "MidtrainConfig", "Train a checkpoint on text."),
    Command("extend-context", "zaya_core.stages.extend_context", "ExtendContextConfig", "Train a checkpoint to read longer texts."),
    Command("sft", "zaya_core.stages.sft", "SftConfig", "Fine-tune a checkpoint on conversations or answers."),
    Command("generate", "zaya_core.stages.generate", "GenerateConfig", "Continue a prompt."),
    Command("serve-local", "zaya_core.stages.serve_local", "ServeLocalConfig", "Serve a model to OpenAI's clients."),
    Command("profile", "zaya_core.stages.profile", "ProfileConfig", "Tell where block diffusion pays, on which device."),
    Command("eval", "zaya_core.stages.evaluate", "EvalConfig", "Tell how good a model is, by which sampler, at which speed."),
    Command("info", "zaya_core.stages.info", "InfoConfig", "Tell what a checkpoint is and where it comes from."),
    Command("env", "zaya_core.stages.env", "EnvConfig", "Tell what this machine is."),
)


class StageCommand(click.Command):
    """One stage as a click command: parameters from its dataclass, its example in the help."""

    def __init__(self, name: str, stage: ModuleType, config_class: type, *, help: str) -> None:
        super().__init__(name, params=parameters(config_class), help=help, epilog=_epilog(stage.EXAMPLE))
        self.stage = stage
        self.config_class = config_class

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = argument_rows(self.config_class)
        if rows:
            with formatter.section("Arguments"):
                formatter.write_dl(rows)
        super().format_options(ctx, formatter)

    def invoke(self, ctx: click.Context) -> None:
        from zaya_cli.console import Console  # rich: not needed to show help

        output = read_output(ctx)
        try:
            config = read_config(self.config_class, ctx)
            with Console(output) as console:
                perform(self.stage.run(config), console)
        except (click.ClickException, BrokenPipeError):
            raise
        except Exception:
            if output.verbose:
                traceback.print_exc()
            raise


class LazyGroup(click.Group):
    """The commands in pipeline order; a stage is imported when its command is named."""

    def __init__(self, commands: Sequence[Command]) -> None:
        names = {"help_option_names": ["-h", "--help"], "token_normalize_func": dashed}
        super().__init__("zaya", help=ABOUT, context_settings=names)
        self.table = {command.name: command for command in commands}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> StageCommand | None:
        command = self.table.get(cmd_name)
        if command is None:
            return None
        stage = importlib.import_module(command.module)
        return StageCommand(command.name, stage, getattr(stage, command.config), help=command.help)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(command.name, command.help) for command in self.table.values()])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        name = dashed(args[0])
        if name not in self.table and not name.startswith("-"):
            raise click.UsageError(f"no such command {args[0]!r}, {nearest(name, list(self.table))}", ctx)
        return super().resolve_command(ctx, args)


def main(arguments: Sequence[str] | None = None, *, commands: Sequence[Command] = COMMANDS) -> int:
    """Run one command line and return its exit code."""
    try:
        _run(sys.argv[1:] if arguments is None else arguments, commands)
        sys.stdout.flush()
        return 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except BrokenPipeError:
        return _reader_left()
    except (Exception, KeyboardInterrupt) as error:
        return report(error)


def perform(events: "Generator[Event, str | None, None]", console: "Console") -> None:
    """Draw a stage's events, and send the user's line back where one asks."""
    reply = None
    with suppress(StopIteration):
        while True:
            event = events.send(reply)
            reply = console.show(event) if speaks_for_all() else None


def speaks_for_all() -> bool:
    """Is this the only process, or the first of a torchrun? The others show nothing but their errors."""
    return os.environ.get("RANK", "0") == "0"


def dashed(name: str) -> str:
    """Dash and underscore are equal in names: `batch_size` is `batch-size`."""
    return name.replace("_", "-")


def _run(arguments: Sequence[str], commands: Sequence[Command]) -> Any:
    version = click.version_option(__version__, prog_name="zaya", message="%(prog)s %(version)s")
    group = version(LazyGroup(commands))
    # Not click's own main(): it turns an EOFError from anywhere, a truncated file too, into "aborted".
    with group.make_context("zaya", list(arguments)) as context:
        return group.invoke(context)


def _reader_left() -> int:
    """`zaya ... | head` is no one's error: say nothing, and leave python nothing to flush at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _epilog(example: str) -> str:
    lines = "\n".join(f"  {line}" for line in example.strip().splitlines())
    return f"\b\nExample:\n{lines}\n\n{PRECEDENCE}"
