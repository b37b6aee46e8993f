"""Runs a generated program where it can do no harm, and says whether it came to its end.

Invariant: no source runs unless all of the isolation holds (`jail`); where it cannot be had, `check_isolation` refuses before any
text is generated. Passed means that the last statement was reached: exit codes, which a program chooses itself, count for nothing.
"""

import json
import math
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from zaya_core.errors import ConfigError, RunError

KILLED = 128 + signal.SIGKILL  # what the jail says of a program that the kernel ended
JAIL = Path(__file__).with_name("jail.py")
WAITING = 4
STARTING_SECONDS = 30.0  # on a busy machine, before the program's own time
PROBE = """
import errno, os, socket, threading
def refused(action):
    try:
        action()
    except (OSError, RuntimeError):
        return True
    return False
assert refused(os.fork), "it may fork"
assert refused(threading.Thread(target=print).start), "it may start threads"
assert refused(lambda: socket.create_connection(("127.0.0.1", 1), 1)), "it has a network"
assert [name for _, name in socket.if_nameindex()] == ["lo"], "it sees network interfaces"
assert refused(lambda: open("/outside", "w")), "it may write outside of its directory"
assert set(os.environ) <= {"LC_CTYPE"}, "it has an environment"
assert not os.path.exists("/proc/self") and os.listdir() == [], "it sees more than its own files"
open("inside", "w").write("x")
"""


@dataclass(frozen=True)
class Limits:
    """Of one program: whole seconds of CPU time (by the clock WAITING times as many, because a machine may be busy), address space,
    bytes of a file and of all its files.
    """

    seconds: float = 5.0
    memory_bytes: int = 2**29
    file_bytes: int = 2**24


@dataclass(frozen=True)
class Outcome:
    """Did the program reach its end, and if not, why: its last line of stderr, or the limit."""

    passed: bool
    reason: str = ""


def check_isolation(limits: Limits) -> None:
    """A ConfigError unless a program that tries to get out finds that it cannot."""
    try:
        outcome = run_program(PROBE, limits)
    except RunError as error:
        raise ConfigError(f"generated programs cannot be isolated on this machine: {error.message}", hint=NEEDS) from error
    if not outcome.passed:
        raise ConfigError(f"generated programs cannot be isolated on this machine: {outcome.reason}", hint=NEEDS)


NEEDS = "Linux 5.14 or later, whose user namespaces an ordinary user may make"


def run_program(source: str, limits: Limits) -> Outcome:
    """Run Python source, alone with the standard library; a RunError where it could not be isolated, and so was not run."""
    word = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="zaya-") as root, tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as errors:
        os.chmod(root, 0o755)  # somebody else looks for his own directory there
        given.write(f"{word}\n{source}".encode("utf-8", "surrogatepass"))
        given.seek(0)
        told, status = os.pipe()
        with open(told, "rb", buffering=0) as said:
            jail = _started(root, status, limits, given, errors)
            in_time = _watched(jail, said, WAITING * limits.seconds)
            ready, _, rest = said.read().partition(b"\n")
        errors.seek(0)
        complaint = errors.read(limits.file_bytes).decode(errors="replace").strip().rpartition("\n")[2]
    if ready != b"ready":
        raise RunError(f"the sandbox did not start: {complaint or 'it took too long'}")
    if not in_time:
        return Outcome(False, f"took more than {WAITING * limits.seconds:g} s")
    if rest.decode(errors="replace") == word:
        return Outcome(True)
    if jail.returncode == KILLED:
        return Outcome(False, f"took more than {math.ceil(limits.seconds)} s of CPU time")
    return Outcome(False, complaint[-200:] or f"ended with {jail.returncode} before its last line")


def _started(root: str, status: int, limits: Limits, given: IO[bytes], errors: IO[bytes]) -> subprocess.Popen[bytes]:
    command = [_interpreter(), "-I", "-S", "-B", str(JAIL), json.dumps(_config(root, status, limits))]
    null = subprocess.DEVNULL
    try:
        return subprocess.Popen(
            command, stdin=given, stdout=null, stderr=errors, env={}, cwd="/", pass_fds=(status,), start_new_session=True
        )
    finally:
        os.close(status)


def _watched(jail: subprocess.Popen[bytes], said: IO[bytes], seconds: float) -> bool:
    """False if it had to be killed; whatever it started dies with it. Its time counts from when it is shut in."""
    try:
        select.select([said], [], [], STARTING_SECONDS)
        jail.wait(timeout=seconds)
        return True
    except subprocess.TimeoutExpired:
        return False
    finally:
        jail.kill()
        jail.wait()


def _interpreter() -> str:
    """The program itself, not a virtual environment's link to it."""
    return os.path.realpath(sys.executable)


def _config(root: str, status: int, limits: Limits) -> dict[str, object]:
    prefix = os.path.realpath(sys.base_prefix)
    return {
        "root": root,
        "status": status,
        "shown": [prefix] if prefix != "/usr" else [],
        "cpu_seconds": math.ceil(limits.seconds),
        "memory_bytes": limits.memory_bytes,
        "file_bytes": limits.file_bytes,
    }
