"""An exception as one line and an exit code: 1 the run failed, 2 usage or config or data, 128 + n a signal. Never 0."""

import sys

import click

from zaya_cli.render import has_color
from zaya_core.errors import ZayaError

SMALLER = "lower --batch-size or --seq-len"


def report(error: BaseException) -> int:
    """Print the error's line on stderr, red on a terminal, and return the exit code."""
    message, code = diagnose(error)
    line = f"error: {' '.join(message.splitlines())}"
    click.echo(click.style(line, fg="red") if has_color(sys.stderr) else line, err=True)
    return code


def diagnose(error: BaseException) -> tuple[str, int]:
    """What happened and how to mend it, with the exit code."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(error, ZayaError):
        return str(error), error.exit_code
    if isinstance(error, click.ClickException):
        return _usage(error), error.exit_code
    if _is_out_of_memory(error):
        return f"{_headed('out of memory', error)} ({SMALLER})", 1
    if isinstance(error, OSError):
        return f"{error} (-v shows the traceback)", 1
    return f"{_headed(type(error).__name__, error)} (this is a bug in zaya; run again with -v for the traceback)", 1


def _usage(error: click.ClickException) -> str:
    message = error.format_message().rstrip(".")
    message = message[:1].lower() + message[1:]  # as our own messages are
    context = getattr(error, "ctx", None)
    return f"{message} (see {context.command_path} --help)" if context else message


def _is_out_of_memory(error: BaseException) -> bool:
    torch = sys.modules.get("torch")  # where torch was never imported, it raised nothing
    if isinstance(error, MemoryError) or (torch and isinstance(error, torch.OutOfMemoryError)):
        return True
    # On a CPU torch has no exception of its own for this.
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _headed(head: str, error: BaseException) -> str:
    lines = str(error).splitlines()
    return f"{head}: {lines[0]}" if lines else head
