"""The sandbox really stops what it promises to stop, and what is harmless comes through. Where it cannot be had, it says so."""

import os
import signal
import subprocess
import sys
import time

import pytest

from zaya_core.errors import ConfigError
from zaya_core.evaluation import sandbox
from zaya_core.evaluation.sandbox import Limits, check_isolation, run_program

LIMITS = Limits(seconds=0.5, memory_bytes=2**28)
try:
    check_isolation(Limits())
except ConfigError as error:
    pytest.skip(str(error), allow_module_level=True)


def test_a_harmless_program_passes():
    source = "import math, json, collections\nopen('mine', 'w').write('x')\nassert open('mine').read() == 'x' and math.pi > 3"
    assert run_program(source, LIMITS).passed


STOPPED = {
    "an error": ("1 / 0", "ZeroDivisionError"),
    "no program": ("def f(:", "SyntaxError"),
    "an endless loop": ("while True:\n    pass", "took more than"),
    "a long sleep": ("import time\ntime.sleep(60)", "took more than 2 s"),
    "an early end": ("import sys\nsys.exit(0)\nassert False", "before its last line"),
    "an early end without clean-up": ("import os\nos._exit(0)", "before its last line"),
    "a memory bomb": ("x = []\nwhile True:\n    x.append(bytearray(2**24))", "MemoryError"),
    "a fork bomb": ("import os\nwhile True:\n    os.fork()", "Resource temporarily unavailable"),
    "a program": ("import subprocess\nsubprocess.run(['/bin/sh', '-c', 'true'])", "Resource temporarily unavailable"),
    "a thread": ("import threading\nthreading.Thread(target=print).start()", "can't start new thread"),
    "the network": ("import socket\nsocket.create_connection(('1.1.1.1', 53), 1)", "Network is unreachable"),
    "this machine's network": ("import socket\nsocket.create_connection(('127.0.0.1', PORT), 1)", "Network is unreachable"),
    "a huge file": ("open('x', 'wb').write(b'0' * 2**25)", "File too large"),
    "many files": ("for i in range(99):\n    open(str(i), 'wb').write(b'0' * 2**22)", "No space left"),
    "the root": ("open('/x', 'w')", "Read-only file system"),
    "the interpreter": ("import os\nopen(os.__file__, 'a')", "Errno"),
    "our files": (f"open({__file__!r})", "No such file"),
    "temporary files": ("open('/tmp/x', 'w')", "No such file"),
    "processes": ("import os\nos.kill(PARENT, 9)", "No such process"),
    "becoming root": ("import os\nos.setuid(0)", "Operation not permitted"),
    "mounting": (
        "import ctypes\nassert ctypes.CDLL(None).mount(b'tmpfs', b'/work', b'tmpfs', 0, None) == 0, 'refused'",
        "refused",
    ),
    "the environment": ("import os\nassert 'PATH' in os.environ, 'empty'", "empty"),
    "much talk": ("import sys\nwhile True:\n    sys.stderr.write('x' * 2**16)", ""),
}


@pytest.fixture(scope="module")
def port():
    """One that somebody listens on."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize(("source", "reason"), STOPPED.values(), ids=STOPPED)
def test_it_stops(source, reason, port):
    outcome = run_program(source.replace("PORT", str(port)).replace("PARENT", str(os.getpid())), LIMITS)
    assert not outcome.passed
    assert reason in outcome.reason


def test_cpu_time_ends_before_the_clock_does():
    assert "1 s of CPU time" in run_program("while True:\n    pass", Limits(seconds=1.0)).reason


def test_nothing_is_left_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(tmp_path))
    tmp_path.chmod(0o755)
    assert run_program("open('x', 'w').write('y')", LIMITS).passed
    assert list(tmp_path.iterdir()) == []


def test_a_program_dies_with_whoever_runs_it():
    mark = f"endless_{os.getpid()}_{time.time_ns()}"
    code = f"from zaya_core.evaluation.sandbox import *; run_program('{mark} = 1\\nwhile True: pass', Limits(seconds=60))"
    runner = subprocess.Popen([sys.executable, "-c", code])
    inside = _wait_for(lambda: _descendants(runner.pid), lambda found: len(found) >= 2)
    runner.send_signal(signal.SIGKILL)
    runner.wait()
    assert inside
    assert _wait_for(lambda: [pid for pid in inside if os.path.exists(f"/proc/{pid}")], lambda alive: not alive) == []


def _wait_for(look, is_enough):
    for _ in range(500):
        found = look()
        if is_enough(found):
            return found
        time.sleep(0.02)
    raise AssertionError(found)


def _descendants(pid):
    """Processes below this one, as this machine numbers them."""
    parents = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                parents[int(name)] = int(file.read().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = {pid}
    for _ in range(5):
        found |= {child for child, parent in parents.items() if parent in found}
    return sorted(found - {pid})


@pytest.mark.parametrize(
    ("text", "broken", "said"),
    [
        # As on a kernel without user namespaces: the program never runs.
        ("NEW_NAMESPACES = 0x10000000", "NEW_NAMESPACES = 0xFFFFFFFF", r"cannot be isolated on this machine: .*unshare"),
        (" | 0x40000000 |", " |", r"it sees network interfaces|it has a network"),
    ],
    ids=["no namespaces", "no network namespace"],
)
def test_a_jail_that_does_not_hold_is_refused(monkeypatch, tmp_path, text, broken, said):
    source = sandbox.JAIL.read_text()
    assert text in source
    (tmp_path / "jail.py").write_text(source.replace(text, broken))
    monkeypatch.setattr(sandbox, "JAIL", tmp_path / "jail.py")
    with pytest.raises(ConfigError, match=said):
        check_isolation(LIMITS)
