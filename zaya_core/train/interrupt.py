"""SIGINT and SIGTERM wait for the step's end, so that its state can be saved."""

import signal
import threading
from types import FrameType, TracebackType
from typing import NoReturn

from zaya_core.errors import Interrupted


class InterruptFlag:
    """A context in which the two signals set a flag instead of killing; a second one falls through to the old handler."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._old: dict[int, object] = {}

    @property
    def is_set(self) -> bool:
        """Has a signal come?"""
        return self.signal_number is not None

    def stop(self, message: str) -> NoReturn:
        """Raise Interrupted, whose exit code is 128 + the signal's number: SIGTERM where another rank got it."""
        raise Interrupted(message, signal_number=self.signal_number or signal.SIGTERM)

    def __enter__(self) -> "InterruptFlag":
        # Python delivers signals to the main thread only; elsewhere the embedding program owns them.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal_number = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._old.clear()
