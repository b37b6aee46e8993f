"""One completion as it is being written: final tokens in, pieces for the client out. Lives in the engine's thread.

Invariant: what a piece tells is final; only its `draft` is provisional. It does not know HTTP.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from zaya_core.data.transcript import Transcript
from zaya_core.engine.report import Tally
from zaya_core.engine.request import Committed, Final
from zaya_core.server.orders import Order
from zaya_core.server.refusal import Refusal
from zaya_core.server.served import Served

DRAFT_CONTEXT = 16  # tokens before a draft that its text may depend on


@dataclass(frozen=True)
class Piece:
    """What one forward added to completion `index`: `num_final` tokens, of which `tokens` and `text` are certain to stay.

    `draft` is text that the next forward will judge. `failure` says why nothing more will come, where it was no one's wish.
    """

    index: int
    text: str = ""
    tokens: tuple[Final, ...] = ()
    num_final: int = 0
    draft: str | None = None
    finish_reason: str | None = None
    failure: Refusal | None = None


class Writing:
    """An order in work. `outlet` takes its pieces from the engine's thread; `is_withdrawn` may be set from any."""

    def __init__(self, order: Order, served: Served, outlet: Callable[[Piece], None], *, shows_drafts: bool = False) -> None:
        self.order, self.served, self.outlet, self.shows_drafts = order, served, outlet, shows_drafts
        self.transcript: Transcript[Final] = Transcript(served.tokenizer, order.stops)
        self.tally = Tally()
        self.is_withdrawn = False
        self.submitted_at = time.monotonic()
        self.last_at: float | None = None  # when the newest tokens came
        self._num_sent = 0

    @property
    def is_over(self) -> bool:
        """Nothing more will come."""
        return self.is_withdrawn or self.transcript.finish_reason is not None

    def take(self, committed: Committed) -> None:
        """Tokens that a forward made final, and the piece that they make."""
        before = len(self.transcript.tokens)
        text = self.transcript.push(committed.finals, committed.finish_reason)
        kept = max(0, len(self.transcript.tokens) - before)
        self.tally.add(committed)
        self.tally.trim(len(self.transcript.tokens))
        tokens = tuple(self.transcript.tokens[self._num_sent : self.transcript.num_certain])
        self._num_sent += len(tokens)
        self.last_at = time.monotonic()
        reason = self.transcript.finish_reason
        failure = self.order.constraint and self.order.constraint.failure
        if reason is not None and failure:
            told = Refusal(400, f"the grammar could not be followed to its end: {failure}", code="grammar_failed")
            self.outlet(Piece(self.order.index, failure=told))
            return
        draft = self._draft(committed) if self.shows_drafts and reason is None else None
        self.outlet(Piece(self.order.index, text, tokens, kept, draft, reason))

    def fail(self, message: str) -> None:
        """End without a text: the engine could not go on."""
        self.is_withdrawn = True
        self.outlet(Piece(self.order.index, failure=Refusal(500, message)))

    def _draft(self, committed: Committed) -> str:
        tail = [token.token_id for token in self.transcript.tokens[-DRAFT_CONTEXT:]]
        decode = self.served.tokenizer.decode
        return decode([*tail, *committed.pre_drafted])[len(decode(tail)) :]
