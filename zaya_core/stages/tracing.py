"""The drafts of every forward as lines of JSON, and such lines as events again."""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from zaya_core.errors import DataError
from zaya_core.events import Drafts, Event

LONGEST_PAUSE = 0.5  # seconds: a replay keeps the run's pace, but does not wait for its prefills


def traced(path: Path, events: Iterator[Event]) -> Iterator[Event]:
    """Write the Drafts among the events to `path`; all are passed on."""
    with open(path, "w", encoding="utf-8") as file:
        for event in events:
            if isinstance(event, Drafts):
                file.write(json.dumps(asdict(event)) + "\n")
                file.flush()
            yield event


def replayed(path: Path) -> Iterator[Event]:
    """The Drafts of a trace at the pace of the run, completion by completion."""
    steps = sorted(_read(path), key=lambda step: step.index)
    before = None
    for step in steps:
        if before is not None and before.index == step.index:
            time.sleep(min(LONGEST_PAUSE, max(0.0, step.seconds - before.seconds)))
        yield step
        before = step


def _read(path: Path) -> Iterator[Drafts]:
    from zaya_core.data.sources import read_jsonl

    for place, row in read_jsonl(path, "--replay"):
        try:
            yield Drafts(**row)
        except TypeError as error:
            raise DataError(f"{place}: not a line of a --trace: {error}") from error
