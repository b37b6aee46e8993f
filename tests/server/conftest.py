"""A real `zaya serve-local` in a process of its own, on a free port."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from openai import OpenAI

ROOT = Path(__file__).parents[2]


@dataclass
class Server:
    """A process that serves, its address and where its log goes."""

    process: subprocess.Popen
    url: str
    log: Path

    @property
    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    def connect(self) -> http.client.HTTPConnection:
        address = urlsplit(self.url)
        return http.client.HTTPConnection(address.hostname, address.port, timeout=60)

    def ask(self, method, path, body=None, headers=None):
        """(status, headers, parsed or plain body) of one request."""
        connection = self.connect()
        if isinstance(body, dict):
            body = json.dumps(body)
        given = {"Content-Type": "application/json"} if body is not None else {}
        connection.request(method, path, body, given | (headers or {}))
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        is_json = answer.headers.get("content-type", "").startswith("application/json")
        return answer.status, answer.headers, json.loads(text) if is_json else text.decode()

    def post(self, path, **body):
        status, _, answer = self.ask("POST", path, body)
        return status, answer

    def metric(self, name):
        _, _, text = self.ask("GET", "/metrics")
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith((name + " ", name + "{")))

    def wait_for(self, name, value, seconds=10):
        """Until a metric has this value."""
        end = time.monotonic() + seconds
        while self.metric(name) != value:
            assert time.monotonic() < end, f"{name} is {self.metric(name)}, expected {value}"
            time.sleep(0.02)

    def wait_for_log(self, text, seconds=10):
        """Until the log holds this."""
        end = time.monotonic() + seconds
        while text not in self.log.read_text():
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.02)

    def stop(self, number=signal.SIGTERM):
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(60)


@contextlib.contextmanager
def serving(log, *arguments, environment=None):
    """A server that is ready; killed at the end if it still runs."""
    command = [sys.executable, "-m", "zaya_cli", "serve-local", "--port", "0", "--json", "--dtype", "float32", *arguments]
    own = {key: value for key, value in os.environ.items() if not key.startswith("ZAYA_")}
    own |= {"OMP_NUM_THREADS": "1"} | (environment or {})
    with open(log, "w") as stderr:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True, env=own)
    try:
        line = process.stdout.readline()
        assert line, log.read_text()
        yield Server(process, json.loads(line)["url"], log)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The bundled model with default options."""
    with serving(tmp_path_factory.mktemp("server") / "log") as running:
        yield running
