"""A line from the user: edited with readline at a terminal, read as it comes from a pipe. It does not know what it is for."""

import sys

from zaya_cli.render import has_color


def ask(prompt: str) -> str | None:
    """The next line, or None where no more will come. Ctrl-C at a terminal drops the line, and asks again."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        line = sys.stdin.readline()
        return line.rstrip("\n") if line else None
    import readline  # noqa: F401  input() edits and remembers lines once it is imported

    # Marked as without width, or readline would wrap too early.
    shown = f"\001\033[1;36m\002{prompt}\001\033[0m\002" if has_color(sys.stdout) else prompt
    while True:
        try:
            return input(shown)
        except KeyboardInterrupt:
            print(file=sys.stderr)
        except EOFError:
            print(file=sys.stderr)
            return None
