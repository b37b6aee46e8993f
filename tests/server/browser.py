"""A headless Chromium, driven over its debugging pipe: no package but the browser itself."""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One page of one browser; `requests` are the addresses that it asked for."""

    def __init__(self, profile: Path) -> None:
        read_end, browser_writes = os.pipe()
        browser_reads, write_end = os.pipe()
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
            "about:blank",
        ]
        # A shell moves the pipe's ends to the two descriptors; they are high enough not to be one of the two.
        reads, writes = (fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (browser_reads, browser_writes))
        shell = ["bash", "-c", f'exec "$@" 3<&{reads} 4>&{writes}', "browser", CHROMIUM, *flags]
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(shell, pass_fds=(reads, writes), stdout=quiet, stderr=quiet)
        os.close(reads)
        os.close(writes)
        os.close(browser_reads)
        os.close(browser_writes)
        self._in, self._out = os.fdopen(write_end, "wb", 0), os.fdopen(read_end, "rb")
        self._held, self._next, self.requests = b"", 0, []
        self.errors: list[str] = []
        target = next(t for t in self._call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self.session = self._call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        return self._call(method, self.session, **parameters)

    def run(self, script):
        """A JavaScript expression's value."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, script, seconds=60):
        end = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < end, script
            time.sleep(0.05)

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def close(self):
        self.process.kill()
        self.process.wait()
        self._in.close()
        self._out.close()

    def _call(self, method, session=None, **parameters):
        self._next += 1
        number = self._next
        command = {"id": number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        self._in.write(json.dumps(command).encode() + b"\0")
        while True:
            message = self._message()
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            if message.get("method") == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            if message.get("method") == "Runtime.exceptionThrown":
                self.errors.append(str(message["params"]))

    def _message(self):
        while b"\0" not in self._held:
            self._held += self._out.read1(65536)
        message, _, self._held = self._held.partition(b"\0")
        return json.loads(message)
