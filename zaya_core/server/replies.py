"""Pieces of text into OpenAI's objects: whole answers, chunks of a stream, log-probabilities, usage. It waits for nothing."""

import json
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import zaya_core
from zaya_core.engine.request import Final
from zaya_core.server.orders import Assignment
from zaya_core.server.scoring import Score
from zaya_core.server.served import Served
from zaya_core.server.tools import CallReader
from zaya_core.server.writing import Piece, Writing

LEAST_LOGPROB = -9999.0  # JSON has no infinity
CONTINUATION = 0x80  # of a UTF-8 character, in its two highest bits
DONE = b"data: [DONE]\n\n"


def event(value: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


class Reply:
    """The answer to one assignment; the two kinds of completion differ in their choices only."""

    prefix: str
    kind: str
    chunk_kind: str

    def __init__(self, assignment: Assignment, served: Served, writings: Sequence[Writing]) -> None:
        self.assignment, self.served, self.writings = assignment, served, writings
        self._head = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": served.name,
            "system_fingerprint": f"zaya-{zaya_core.__version__}",
        }

    def usage(self) -> dict[str, Any]:
        """Exact counts, and ours: forwards after the prefills, and how many tokens each of them gave."""
        num_prompt = sum(len(prompt) for prompt in self.assignment.prompts)
        counts = [len(writing.transcript.tokens) for writing in self.writings]
        later = [count for writing in self.writings for count in writing.tally.counts[1:]]
        length = max([1, *(writing.order.request.how.block_length for writing in self.writings)])
        extension = {
            "sampler": self.assignment.sampler,
            "seed": self.assignment.seed,
            "num_forwards": len(later),
            "tokens_per_forward": sum(later) / len(later) if later else None,
            "acceptance_histogram": [later.count(number) for number in range(1, length + 1)],
        }
        return {
            "prompt_tokens": num_prompt,
            "completion_tokens": sum(counts),
            "total_tokens": num_prompt + sum(counts),
            "zaya": extension,
        }

    def whole(self, pieces: Iterable[Piece]) -> dict[str, Any]:
        """The answer as one object."""
        by_index: dict[int, list[Piece]] = {index: [] for index in range(self._num_choices())}
        for piece in pieces:
            by_index[piece.index].append(piece)
        choices = [self._choice(index, parts) for index, parts in by_index.items()]
        return {**self._head, "object": self.kind, "choices": choices, "usage": self.usage()}

    def chunks(self, piece: Piece) -> Iterator[bytes]:
        """What a piece adds to the stream, and the end of its choice."""
        for choice in self._deltas(piece):
            yield event({**self._head, "object": self.chunk_kind, "choices": [choice], **self._usage_so_far()})

    def last_chunks(self) -> Iterator[bytes]:
        """Usage where it was asked for, and the end."""
        if self.assignment.includes_usage:
            yield event({**self._head, "object": self.chunk_kind, "choices": [], "usage": self.usage()})
        yield DONE

    def take_scores(self, prompt: int, scores: list[Score]) -> None:
        """Only texts are scored."""
        raise NotImplementedError

    def first_pieces(self) -> list[Piece]:
        """What there is to tell before anything is written."""
        return []

    def _usage_so_far(self) -> dict[str, Any]:
        if self.assignment.includes_usage_so_far:
            return {"usage": self.usage()}
        return {"usage": None} if self.assignment.includes_usage else {}

    def _num_choices(self) -> int:
        return len(self.writings)

    def _drafted(self, piece: Piece) -> dict[str, Any]:
        if not self.assignment.shows_drafts:
            return {}
        return {"zaya": {"num_tokens": piece.num_final, "draft": piece.draft or ""}}

    def _choice(self, index: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        raise NotImplementedError

    def _deltas(self, piece: Piece) -> Iterator[dict[str, Any]]:
        raise NotImplementedError

    def _token(self, token_id: int) -> tuple[str, bytes]:
        """A token as text, where it is some, and its bytes."""
        raw = self.served.grammars.bytes_of(token_id)
        try:
            return raw.decode("utf-8"), raw
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw), raw


class ChatReply(Reply):
    """`chat.completion`."""

    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, assignment: Assignment, served: Served, writings: Sequence[Writing]) -> None:
        super().__init__(assignment, served, writings)
        self._readers = {}
        if assignment.dialect is not None:
            self._readers = {w.order.index: CallReader(assignment.dialect, assignment.tools) for w in writings}
        self._begun: set[int] = set()

    def _choice(self, index: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        said, calls = "", []
        for piece in pieces:
            more, called = self._read(piece)
            said += more
            calls += [call.sent() for call in called]
        message: dict[str, Any] = {"role": "assistant", "content": said or (None if calls else ""), "refusal": None}
        if calls:
            message["tool_calls"] = calls
        tokens = [token for piece in pieces for token in piece.tokens]
        reason = self._reason(index, pieces[-1].finish_reason)
        return {"index": index, "message": message, "logprobs": self._logprobs(index, tokens), "finish_reason": reason}

    def _deltas(self, piece: Piece) -> Iterator[dict[str, Any]]:
        if piece.index not in self._begun:
            self._begun.add(piece.index)
            yield self._delta(piece.index, {"role": "assistant", "content": ""})
        reader = self._readers.get(piece.index)
        place = len(reader.calls) if reader else 0
        said, called = self._read(piece)
        if said or piece.tokens or self.assignment.shows_drafts:
            logprobs = self._logprobs(piece.index, piece.tokens)
            if said or logprobs or self.assignment.shows_drafts:
                yield self._delta(piece.index, {"content": said}, logprobs=logprobs) | self._drafted(piece)
        for number, call in enumerate(called, place):
            yield self._delta(piece.index, {"tool_calls": [call.sent(number)]})
        if piece.finish_reason is not None:
            yield self._delta(piece.index, {}, reason=self._reason(piece.index, piece.finish_reason))

    def _delta(
        self, index: int, delta: dict[str, Any], *, logprobs: dict[str, Any] | None = None, reason: str | None = None
    ) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def _read(self, piece: Piece) -> tuple[str, list[Any]]:
        """What is said and what is called; calls beyond those that the client wants are dropped."""
        reader = self._readers.get(piece.index)
        if reader is None:
            return piece.text, []
        before = len(reader.calls)
        said, calls = reader.push(piece.text)
        if piece.finish_reason is not None:
            said += reader.finish()
        most = self.assignment.max_calls
        return said, calls if most is None else calls[: max(0, most - before)]

    def _reason(self, index: int, reason: str | None) -> str | None:
        reader = self._readers.get(index)
        has_called = reader is not None and bool(reader.calls) and not self.assignment.is_named_call
        return "tool_calls" if has_called and reason == "stop" else reason

    def _logprobs(self, index: int, tokens: Sequence[Final]) -> dict[str, Any] | None:
        """One entry a token that has text; the end token has none."""
        if self.assignment.num_top_logprobs is None:
            return None
        ends = self.writings[index].order.request.how.end_ids
        content = [
            self._entry(token.token_id, token.logprob)
            | {"top_logprobs": [self._entry(*top) for top in token.top_logprobs[: self.assignment.num_top_logprobs]]}
            for token in tokens
            if token.token_id not in ends
        ]
        return {"content": content, "refusal": None} if content else None

    def _entry(self, token_id: int, logprob: float) -> dict[str, Any]:
        text, raw = self._token(token_id)
        return {"token": text, "logprob": max(logprob, LEAST_LOGPROB), "bytes": list(raw)}


class TextReply(Reply):
    """`text_completion`."""

    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def __init__(self, assignment: Assignment, served: Served, writings: Sequence[Writing]) -> None:
        super().__init__(assignment, served, writings)
        self._scores: dict[int, list[Score]] = {}
        self._offsets: dict[int, int] = {}
        self._begun: set[int] = set()

    def take_scores(self, prompt: int, scores: list[Score]) -> None:
        """How likely the tokens of prompt number `prompt` are."""
        self._scores[prompt] = scores

    def first_pieces(self) -> list[Piece]:
        """Choices that are nothing but their prompts (`max_tokens` 0) are over at once."""
        return [] if self.writings else [Piece(index, finish_reason="length") for index in range(self._num_choices())]

    def _num_choices(self) -> int:
        return len(self.writings) or len(self.assignment.prompts)

    def _prompt(self, index: int) -> int:
        return self.writings[index].order.prompt if self.writings else index

    def _choice(self, index: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        text = self._echo(index) + "".join(piece.text for piece in pieces)
        tokens = [token for piece in pieces for token in piece.tokens]
        logprobs = self._logprobs(index, self._scored(index), tokens)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": pieces[-1].finish_reason}

    def _deltas(self, piece: Piece) -> Iterator[dict[str, Any]]:
        text, scored = piece.text, []
        if piece.index not in self._begun:
            self._begun.add(piece.index)
            text, scored = self._echo(piece.index) + text, self._scored(piece.index)
        logprobs = self._logprobs(piece.index, scored, piece.tokens)
        if text or logprobs or self.assignment.shows_drafts:
            yield {"index": piece.index, "text": text, "logprobs": logprobs, "finish_reason": None, **self._drafted(piece)}
        if piece.finish_reason is not None:
            yield {"index": piece.index, "text": "", "logprobs": None, "finish_reason": piece.finish_reason}

    def _echo(self, index: int) -> str:
        return self.assignment.texts[self._prompt(index)] if self.assignment.echoes else ""

    def _scored(self, index: int) -> list[Score]:
        return self._scores.get(self._prompt(index), []) if self.assignment.echoes else []

    def _logprobs(self, index: int, scored: Sequence[Score], tokens: Sequence[Final]) -> dict[str, Any] | None:
        """OpenAI's older form: parallel lists."""
        if self.assignment.num_top_logprobs is None:
            return None
        ends = self.writings[index].order.request.how.end_ids if self.writings else frozenset()
        rows = [(score.token_id, score.logprob, score.top_logprobs) for score in scored]
        rows += [(token.token_id, token.logprob, token.top_logprobs) for token in tokens if token.token_id not in ends]
        if not rows:
            return None
        return {
            "tokens": [self._token(token_id)[0] for token_id, _, _ in rows],
            "token_logprobs": [_finite(logprob) for _, logprob, _ in rows],
            "top_logprobs": [self._tops(*row) for row in rows] if self.assignment.num_top_logprobs else None,
            "text_offset": [self._offset(index, token_id) for token_id, _, _ in rows],
        }

    def _tops(self, token_id: int, logprob: float | None, tops: tuple[tuple[int, float], ...]) -> dict[str, float | None] | None:
        if logprob is None:
            return None
        wanted = [*tops[: self.assignment.num_top_logprobs], (token_id, logprob)]
        return {self._token(top)[0]: _finite(value) for top, value in wanted}

    def _offset(self, index: int, token_id: int) -> int:
        """Where in the text a token begins, in characters; a special token has none of its own."""
        begin = self._offsets.get(index, 0)
        has_text = bool(self.served.tokenizer.decode([token_id]))
        raw = self._token(token_id)[1] if has_text else b""
        self._offsets[index] = begin + sum(byte & 0xC0 != CONTINUATION for byte in raw)
        return begin


def _finite(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, LEAST_LOGPROB)
