"""The user's errors. Each says what is wrong, what was expected, and how to mend it; the command line prints one line.

Anything that is our fault is an `assert` or an ordinary exception and ends in a traceback.
"""


class ZayaError(Exception):
    """An error that its reader can act on: `message` names the value and what was expected, `hint` the cure."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(ZayaError):
    """An option, a config key or a model geometry that cannot be."""

    exit_code = 2


class DataError(ZayaError):
    """Training or prompt data that cannot be read or used; the message starts with file:line where there is one."""

    exit_code = 2


class CheckpointError(ZayaError):
    """A directory that is not a whole checkpoint, or not one that this stage can read."""

    exit_code = 2


class RunError(ZayaError):
    """A run that started well and failed: a check that did not hold, a loss that is not a number."""

    exit_code = 1


class DeviceError(ZayaError):
    """The machine's fault: no such device, out of memory. The hint names the option to turn."""

    exit_code = 1


class Interrupted(ZayaError):
    """A signal ended the run after its state was saved; the exit code is 128 + the signal's number."""

    def __init__(self, message: str, *, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
