"""Rows of data to token ids and loss weights: text, conversations, prompts with completions.

Which kind a source holds is told by its first row. Training on every token weighs all tokens 1; otherwise only what the
assistant (or the completion) says is a label, and a tail of end tokens follows, so that drafts past the end are defined.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from zaya_core.data.chat import ChatTemplate
from zaya_core.data.documents import Example
from zaya_core.data.sources import Row
from zaya_core.data.tokenizer import TextTokenizer
from zaya_core.data.trim import trimmed
from zaya_core.errors import DataError

KINDS = {"text": ("text",), "messages": ("messages",), "prompt/completion": ("prompt", "completion")}
TEXTS_AT_ONCE = 64


@dataclass
class Examiner:
    """Encodes rows, and counts what a user should know of them (the data doctor)."""

    tokenizer: TextTokenizer
    template: ChatTemplate
    every_token: bool
    num_tail: int  # end tokens after an answer
    max_length: int | None  # a longer conversation loses thoughts; an example still longer is dropped; None: any length
    mask_text: str | None
    num_unlabelled: int = 0
    num_too_long: int = 0
    num_trimmed: int = 0
    num_mask_texts: int = 0
    kinds: set[str] = field(default_factory=set)

    def examples(self, rows: Iterable[Row]) -> Iterator[Example]:
        """One example a row; a row of another kind than the first, or a bad one, is a DataError that says where."""
        texts: list[str] = []
        kind = None
        for place, row in rows:
            found = kind_of(place, row)
            kind = kind or found
            if found != kind:
                raise DataError(f"{place}: a row of {found} among rows of {kind}")
            self.kinds.add(kind)
            self.num_mask_texts += self.mask_text is not None and self.mask_text in str(row)
            if kind == "text":
                texts.append(row["text"])
                if len(texts) == TEXTS_AT_ONCE:
                    yield from self._texts(texts)
                    texts = []
                continue
            if kind == "messages":
                yield from self._kept([self._whole_or_trimmed(place, row["messages"])])
            else:
                yield from self._kept([self._completion(row)])
        yield from self._texts(texts)

    def found(self) -> dict[str, Any]:
        """Kinds of rows, and findings: warnings, each with its cure."""
        return {"kinds": sorted(self.kinds), "findings": self._findings()}

    def _findings(self) -> list[str]:
        settings = self.tokenizer.settings
        found = []
        if settings.get("pad_token") and settings.get("pad_token") == settings.get("eos_token"):
            found.append("the tokenizer pads with its EOS; rows here are padded apart from any token, so EOS is still learned")
        if self.num_unlabelled:
            found.append(f"{self.num_unlabelled:,} rows have no token with a loss and are left out; is an assistant turn missing?")
        if self.num_trimmed:
            found.append(
                f"{self.num_trimmed:,} conversations are longer than --seq-len {self.max_length} and lose thoughts, not answers"
            )
        if self.num_too_long:
            found.append(f"{self.num_too_long:,} examples are longer than --seq-len {self.max_length} and are left out; raise it")
        if self.num_mask_texts:
            found.append(
                f"{self.num_mask_texts:,} rows spell out {self.mask_text}; masks are slots here, so it stays a token like others"
            )
        return found

    def _kept(self, examples: list[Example]) -> Iterator[Example]:
        for example in examples:
            if example.weights is not None and not any(example.weights):
                self.num_unlabelled += 1
            elif self._is_too_long(example):
                self.num_too_long += 1
            else:
                yield example

    def _is_too_long(self, example: Example) -> bool:
        return self.max_length is not None and len(example.token_ids) > self.max_length

    def _texts(self, texts: list[str]) -> Iterator[Example]:
        """Texts of any length where every token is trained on: rows cut them."""
        examples = [Example(ids) for ids in self.tokenizer.encode_documents([text for text in texts if text])]
        yield from examples if self.every_token else self._kept(examples)

    def _whole_or_trimmed(self, place: str, messages: Any) -> Example:
        """Trimmed if it is too long, where that helps."""
        whole = self._conversation(place, messages)
        if not self._is_too_long(whole):
            return whole
        assert self.max_length is not None
        shorter = trimmed(messages, self.max_length, lambda some: len(self._conversation(place, some).token_ids))
        if shorter is None:
            return whole
        self.num_trimmed += 1
        return self._conversation(place, shorter)

    def _conversation(self, place: str, messages: Any) -> Example:
        check_messages(place, messages)
        try:
            text, spans = self.template.spans(messages)
        except DataError as error:
            raise DataError(f"{place}: {error.message}", hint=error.hint) from error
        encoding = self.tokenizer.backend.encode(text, add_special_tokens=False)
        if self.every_token:
            return Example(list(encoding.ids))
        weights = [0.0] * len(encoding.ids)
        said = [message for message in messages if message["role"] == "assistant"]
        for (begin, end), message in zip(spans, said, strict=True):
            for slot, (start, _) in enumerate(encoding.offsets):
                if begin <= start < end:
                    weights[slot] = float(message.get("weight", 1))
        return self._with_tail(list(encoding.ids), weights)

    def _completion(self, row: dict[str, str]) -> Example:
        """Tokenised apart, as generation sees the prompt."""
        prompt = self.tokenizer.encode(row["prompt"])
        answer = [*self.tokenizer.backend.encode(row["completion"], add_special_tokens=False).ids, self.tokenizer.eos_id]
        if self.every_token:
            return Example(prompt + answer)
        return self._with_tail(prompt + answer, [0.0] * len(prompt) + [1.0] * len(answer))

    def _with_tail(self, token_ids: list[int], weights: list[float]) -> Example:
        """More of the end token after the last answer, whatever white space the template put there left out."""
        last = max((slot for slot, weight in enumerate(weights) if weight), default=None)
        if last is None:
            return Example(token_ids, weights)
        token_ids, weights = token_ids[: last + 1], weights[: last + 1]
        return Example(token_ids + token_ids[-1:] * self.num_tail, weights + weights[-1:] * self.num_tail)


def kind_of(place: str, row: dict[str, Any]) -> str:
    """text, messages or prompt/completion, by the row's keys."""
    for kind, keys in KINDS.items():
        if all(key in row for key in keys):
            wrong = [key for key in keys if key != "messages" and not isinstance(row[key], str)]
            if wrong:
                raise DataError(f"{place}: {wrong[0]!r} is {type(row[wrong[0]]).__name__}, expected a string")
            return kind
    raise DataError(
        f'{place}: expected "text", "messages", or "prompt" and "completion"; got {", ".join(sorted(row)) or "no keys"}'
    )


def check_messages(place: str, messages: Any) -> None:
    """A DataError that starts with `place` unless these are messages with a role and a content each."""
    if not isinstance(messages, list) or not messages:
        raise DataError(f'{place}: "messages" is {type(messages).__name__}, expected a list of messages')
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise DataError(f'{place}: message {number} needs the strings "role" and "content"')
        if not isinstance(message.get("weight", 1), int | float):
            raise DataError(f"{place}: the weight of message {number} is {message['weight']!r}, expected a number")
