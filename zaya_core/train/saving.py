"""Saves written behind the run's back: a step waits for the copy of the state, not for the disk."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from zaya_core.train.run import Run


class Saver:
    """Writes one save at a time in a thread; a save that failed is raised at the next `check`, `save` or `wait`."""

    def __init__(self, training: Run, *, keep: int) -> None:
        self._training, self._keep = training, keep
        self._thread = ThreadPoolExecutor(1, "save")
        self._pending: Future[None] | None = None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Let a save that is being written end, whatever ended the run."""
        self._thread.shutdown(wait=True)

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Begin to publish what `write` fills as the save of `step`, once the one before has ended."""
        self.wait()
        self._pending = self._thread.submit(self._training.save, step, write, keep=self._keep)

    def check(self) -> None:
        """Raise the error of a save that failed."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Until the last save is published."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()
