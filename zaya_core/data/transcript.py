"""The one place that decides where a text ends: at an end token, a stop string or the limit, and what is kept of it then.

Invariant: however the tokens are split over calls, text, tokens and finish_reason come out the same, and what was shown is never
taken back. It does not know how the tokens were made.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from zaya_core.data.stream import TextStream
from zaya_core.data.tokenizer import TextTokenizer


class Token(Protocol):
    """Whatever else is known of a token stays with it."""

    @property
    def token_id(self) -> int:
        """Its id."""
        ...


SomeToken = TypeVar("SomeToken", bound=Token)


class Transcript(Generic[SomeToken]):
    """One completion as it grows: `text` is certain and may be shown, `tokens` are its own, `finish_reason` says that it is over.

    An end token stays among the tokens and has no text. A stop string is cut from both: the tokens end with the last one whose
    characters all lie before it, so that where it begins inside a token the text reaches a little further than the tokens.
    Text that may still become a stop string is held back.
    """

    def __init__(self, tokenizer: TextTokenizer, stops: Sequence[str] = ()) -> None:
        assert all(stops), "an empty stop string would end every text at once"
        self.text = ""
        self.tokens: list[SomeToken] = []
        self.finish_reason: str | None = None
        self._stops = tuple(stops)
        self._stream = TextStream(tokenizer)
        self._reach = [0]  # characters that were whole after so many tokens

    def push(self, tokens: Sequence[SomeToken], finish_reason: str | None = None) -> str:
        """Take the next final tokens, and why they are the last: "stop" (the last is an end token), "length" or None.

        Returns the text that is certain now. After a stop string the rest of `tokens` is dropped and `finish_reason` is "stop".
        """
        assert self.finish_reason is None, self.finish_reason
        shown = len(self.text)
        has_end = finish_reason == "stop"
        for token in tokens[: len(tokens) - has_end]:
            self.tokens.append(token)
            known = len(self._stream.text)
            self._stream.push([token.token_id])
            self._reach.append(len(self._stream.text))
            if self._ends_at_stop(known):
                return self.text[shown:]
        if finish_reason is None:
            self.text = self._stream.text[: len(self._stream.text) - self._num_held()]
            return self.text[shown:]
        self.tokens += tokens[len(tokens) - has_end :]
        known = len(self._stream.text)
        self._stream.finish()
        if not self._ends_at_stop(known):
            self.text, self.finish_reason = self._stream.text, finish_reason
        return self.text[shown:]

    @property
    def num_certain(self) -> int:
        """How many of `tokens` no stop string can take back: all, once it is over."""
        if self.finish_reason is not None:
            return len(self.tokens)
        within = bisect_right(self._reach, len(self.text)) - 1
        return bisect_left(self._reach, self._reach[within])

    def _ends_at_stop(self, known: int) -> bool:
        """Cut everything at the stop string that is whole first, of those that end after `known` characters."""
        whole = self._stream.text
        found = [(at + len(stop), at) for stop in self._stops if (at := whole.find(stop, max(0, known - len(stop) + 1))) >= 0]
        if not found:
            return False
        _, begin = min(found)
        self.text, self.finish_reason = whole[:begin], "stop"
        reached = max(length for length in self._reach if length <= begin)
        del self.tokens[self._reach.index(reached) :]
        return True

    def _num_held(self) -> int:
        """Characters at the end that may be the beginning of a stop string."""
        whole = self._stream.text
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        sizes = range(min(longest, len(whole)), 0, -1)
        return next((size for size in sizes if any(stop.startswith(whole[-size:]) for stop in self._stops)), 0)
