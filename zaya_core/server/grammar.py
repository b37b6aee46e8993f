"""Grammars as constraints on decoding: which ids may follow what has been written so far. llguidance does the parsing.

Invariant: `allowed` depends on the ids given alone, so the AR rows and the drafts see the same law. It never raises: a grammar that
runs out of its budget while decoding ends its own text, and no other.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from torch import Tensor

from zaya_core.data.tokenizer import TextTokenizer
from zaya_core.server.refusal import Refusal

MAX_SCHEMA_BYTES = 1 << 16
MAX_SCHEMA_DEPTH = 32
# One way to write white space: a model that may choose tends to write it for ever.
WRITTEN = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False, "lenient": False}


@dataclass(frozen=True)
class Vocabulary:
    """The ids of a model: `usable` [V] may be drawn at all, `end_ids` end a text wherever its grammar may end."""

    size: int
    end_ids: frozenset[int]
    usable: Tensor

    @cached_property
    def ends(self) -> Tensor:
        """Only the end ids [V]."""
        return torch.zeros(self.size, dtype=torch.bool).index_fill(0, torch.tensor(sorted(self.end_ids)), True)


class Constraint:
    """One text's place in its grammar. `allowed` follows the ids that it is given, forward and back.

    `failure` says why the grammar could not be followed to its end; from then on only end ids are allowed.
    """

    def __init__(self, matcher: LLMatcher, vocabulary: Vocabulary) -> None:
        self.failure: str | None = None
        self._matcher, self._vocabulary = matcher, vocabulary
        self._consumed: list[int] = []

    def allowed(self, prefix_ids: Sequence[int]) -> Tensor | None:
        """May an id [V] follow the new ids `prefix_ids`, the prompt's not among them? None after an end or outside the grammar."""
        if not self._go_to(list(prefix_ids)):
            return None if self.failure is None else self._vocabulary.ends
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        mask = np.unpackbits(bits, bitorder="little")[: self._vocabulary.size].view(np.bool_)
        allowed = torch.from_numpy(mask) & self._vocabulary.usable
        if self._has_failed() or not bool(allowed.any()):
            self.failure = self.failure or "no token of the vocabulary can follow"
            return self._vocabulary.ends
        return allowed

    def _go_to(self, prefix: list[int]) -> bool:
        """Stand after `prefix`; False where the grammar does not go."""
        shared = min(len(prefix), len(self._consumed))
        while self._consumed[:shared] != prefix[:shared]:
            shared -= 1
        if shared < len(self._consumed):
            self._matcher.rollback(len(self._consumed) - shared)
            del self._consumed[shared:]
        rest = prefix[shared:]
        if not self._vocabulary.end_ids.isdisjoint(rest):
            return False
        count = self._matcher.try_consume_tokens(rest) if rest else 0
        self._consumed += rest[:count]
        return not self._has_failed() and count == len(rest)

    def _has_failed(self) -> bool:
        if self.failure is None and self._matcher.is_error():
            self.failure = _first_line(self._matcher)
        return self.failure is not None


class Grammar:
    """A compiled grammar, from which each text takes a constraint of its own."""

    def __init__(self, matcher: LLMatcher, vocabulary: Vocabulary) -> None:
        self._matcher, self._vocabulary = matcher, vocabulary

    def constraint(self) -> Constraint:
        """At the beginning of a text."""
        return Constraint(self._matcher.deep_copy(), self._vocabulary)


class Grammars:
    """Compiles what clients send, within bounds of size, depth and work."""

    def __init__(self, tokenizer: TextTokenizer, vocabulary: Vocabulary) -> None:
        self.tokenizer, self.vocabulary = tokenizer, vocabulary

    def json(self, schema: dict[str, Any], param: str) -> Grammar:
        """JSON that fits `schema`; a schema that is too large or says what llguidance cannot is a Refusal naming `param`."""
        check_schema(schema, param)
        return self._compiled(LLMatcher.grammar_from_json_schema(schema, overrides=WRITTEN), param)

    def lark(self, rules: str, param: str) -> Grammar:
        """A grammar in llguidance's Lark."""
        return self._compiled(LLMatcher.grammar_from_lark(rules), param)

    def is_special(self, token: str) -> bool:
        """Is this text one special token, which no grammar can spell by its characters?"""
        index = self.tokenizer.id_of(token)
        return index is not None and self._tokens.is_special_token(index)

    def bytes_of(self, token_id: int) -> bytes:
        """What a token stands for; of a special one, its name."""
        return self._tokens.decode_bytes([token_id])

    @cached_property
    def _tokens(self) -> LLTokenizer:
        """The tokenizer's bytes as llguidance reads them; built on first use."""
        ends = sorted(self.vocabulary.end_ids)
        return LLTokenizer(self.tokenizer.backend.to_str(), n_vocab=self.vocabulary.size, eos_token=ends)

    def _compiled(self, grammar: str, param: str) -> Grammar:
        limits = LLParserLimits(max_grammar_size=100_000, max_lexer_states=50_000, verbose_errors=False)
        matcher = LLMatcher(self._tokens, grammar, log_level=0, limits=limits)
        matcher.compute_bitmask()  # the first one builds the lexer: here, not in the engine's thread
        if matcher.is_error():
            message = f"{param}: the schema cannot be used: {_first_line(matcher)}"
            raise Refusal(400, message, param=param, code="invalid_schema")
        return Grammar(matcher, self.vocabulary)


def _first_line(matcher: LLMatcher) -> str:
    return matcher.get_error().splitlines()[0][:300]


def check_schema(schema: dict[str, Any], param: str) -> None:
    """Refuse what is too large or too deep to compile in bounded time."""
    size, depth = len(json.dumps(schema)), _depth(schema)
    if size > MAX_SCHEMA_BYTES:
        raise Refusal(400, f"{param}: the schema has {size} bytes, expected at most {MAX_SCHEMA_BYTES}", param=param)
    if depth > MAX_SCHEMA_DEPTH:
        raise Refusal(400, f"{param}: the schema is {depth} deep, expected at most {MAX_SCHEMA_DEPTH}", param=param)


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max((_depth(part) for part in inner), default=0)
