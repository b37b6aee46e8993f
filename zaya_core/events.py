"""What a stage says while it works: plain values, JSON-able through `dataclasses.asdict`. The caller decides what to show."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Event:
    """Base of all events, so that a stage is typed `Iterator[Event]`."""


@dataclass(frozen=True)
class Note(Event):
    """One line worth telling."""

    text: str


@dataclass(frozen=True)
class Warn(Event):
    """One line that the user should not miss."""

    text: str


@dataclass(frozen=True)
class Progress(Event):
    """`done` of `total` units (`unit`: "B", "steps", "rows") of the work called `label`."""

    label: str
    done: float
    total: float
    unit: str


@dataclass(frozen=True)
class Metrics(Event):
    """One training step's figures, exactly as the line in metrics.jsonl; `total_steps` for the progress bar."""

    values: dict[str, Any]
    total_steps: int


@dataclass(frozen=True)
class Text(Event):
    """Generated text that is final: `text` extends what came before for completion `index`."""

    text: str
    index: int = 0


@dataclass(frozen=True)
class Drafts(Event):
    """What one forward did to completion `index`, as (token id, text) pieces, `seconds` after the start.

    Final are `accepted`, then `drawn` (the verifier's own); `rejected` had been drafted after the accepted, and `pre_drafted` is
    what the next forward will judge.
    """

    index: int
    seconds: float
    accepted: tuple[tuple[int, str], ...] = ()
    drawn: tuple[tuple[int, str], ...] = ()
    rejected: tuple[tuple[int, str], ...] = ()
    pre_drafted: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class Ask(Event):
    """A question to the user. Whoever draws the events sends the line back into the generator, or None where no more will come."""

    text: str


@dataclass(frozen=True)
class Result(Event):
    """A finished product, one JSON object of the command's contract (`--json` prints it)."""

    values: dict[str, Any] = field(default_factory=dict)
