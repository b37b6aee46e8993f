"""Conversations to text by the checkpoint's own Jinja template, and which characters of it the assistant wrote.

A template is a program from a stranger: it runs in Jinja's sandbox, which refuses whatever reaches outside the conversation.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

from jinja2 import TemplateError, Undefined, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from zaya_core.data.tokenizer import CHATML, IM_END, TextTokenizer
from zaya_core.errors import ConfigError, DataError

TEMPLATE = "chat_template.jinja"
BEGIN, END = "\ufdd0", "\ufdd1"  # noncharacters of Unicode, which no text may hold: they mark what the assistant wrote
Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class ChatTemplate:
    """A template's source, where it comes from, and the special tokens that it may name."""

    source: str
    origin: str
    tokens: dict[str, str]

    @property
    def has_markers(self) -> bool:
        """Does it mark the assistant's text itself, with {% generation %}?"""
        return "endgeneration" in self.source

    def render(
        self, messages: Messages, *, add_generation_prompt: bool = False, tools: list[dict[str, Any]] | None = None
    ) -> str:
        """The conversation as the model reads it; a template that fails, or calls out, is a ConfigError naming it.

        `tools` are functions that the model may call, for a template that knows them.
        """
        return self._marked(messages, add_generation_prompt, tools).replace(BEGIN, "").replace(END, "")

    def spans(self, messages: Messages) -> tuple[str, list[tuple[int, int]]]:
        """The conversation's text and, for each assistant message in order, the characters (begin, end) that it wrote.

        The end-of-turn token belongs to the assistant, the white space after it does not. Without markers the spans come from
        prefixes, which are checked for being ones: a template that rewrites earlier turns is a DataError.
        """
        spans = self._marked_spans(messages) if self.has_markers else self._prefix_spans(messages)
        text = self.render(messages)
        return text, [(begin, begin + len(text[begin:end].rstrip())) for begin, end in spans]

    def check(self) -> None:
        """A ConfigError if the template tries to reach outside a conversation; other failures wait for their conversation."""
        try:
            self.render([{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}])
        except ConfigError as error:
            if isinstance(error.__cause__, SecurityError):
                raise

    def _marked(self, messages: Messages, add_generation_prompt: bool, tools: list[dict[str, Any]] | None = None) -> str:
        for message in messages:
            if any(mark in str(message.get("content")) for mark in (BEGIN, END)):
                raise DataError("a message holds U+FDD0 or U+FDD1, which are no characters")
        try:
            template = _environment().from_string(self.source)
            return template.render(messages=messages, add_generation_prompt=add_generation_prompt, tools=tools, **self.tokens)
        except SecurityError as error:
            raise ConfigError(
                f"{self.origin} was stopped: {error}", hint="a chat template may only read the conversation"
            ) from error
        except (TemplateError, TypeError, OverflowError) as error:
            raise ConfigError(f"{self.origin} failed: {error}") from error

    def _marked_spans(self, messages: Messages) -> list[tuple[int, int]]:
        spans, before = [], 0
        head, *pieces = self._marked(messages, add_generation_prompt=False).split(BEGIN)
        before = len(head)
        for piece in pieces:
            inside, _, after = piece.partition(END)
            spans.append((before, before + len(inside)))
            before += len(inside) + len(after)
        wanted = sum(message["role"] == "assistant" for message in messages)
        if len(spans) != wanted:
            raise DataError(f"{self.origin} marks {len(spans)} assistant turns of a conversation with {wanted}")
        return spans

    def _prefix_spans(self, messages: Messages) -> list[tuple[int, int]]:
        whole, spans = self.render(messages), []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.render(messages[:index], add_generation_prompt=True)
            after = self.render(messages[: index + 1])
            if not (after.startswith(before) and whole.startswith(after)):
                hint = "put {% generation %} ... {% endgeneration %} around the assistant's text in the template"
                raise DataError(f"{self.origin} writes message {index + 1} differently once others follow", hint=hint)
            spans.append((len(before), len(after)))
        return spans


def chat_template(tokenizer: TextTokenizer) -> ChatTemplate:
    """The checkpoint's own template, else ChatML."""
    return own_template(tokenizer) or ChatTemplate(default_template(tokenizer), "the built-in ChatML template", _tokens(tokenizer))


def own_template(tokenizer: TextTokenizer) -> ChatTemplate | None:
    """The template in chat_template.jinja or tokenizer_config.json."""
    path = tokenizer.directory / TEMPLATE
    stored = tokenizer.settings.get("chat_template")
    if path.exists():
        return ChatTemplate(path.read_text(encoding="utf-8"), str(path), _tokens(tokenizer))
    if isinstance(stored, str):
        return ChatTemplate(stored, str(tokenizer.directory / "tokenizer_config.json"), _tokens(tokenizer))
    return None


def default_template(tokenizer: TextTokenizer) -> str:
    """ChatML; where the vocabulary has no <|im_end|>, its end-of-text token ends a turn."""
    end = IM_END if tokenizer.id_of(IM_END) is not None else _name(tokenizer.settings.get("eos_token"))
    return CHATML.replace(IM_END, end)


def write_template(directory: Path) -> None:
    """Give the checkpoint in `directory` a template if it has none."""
    tokenizer = TextTokenizer(directory)
    if own_template(tokenizer) is None:
        (directory / TEMPLATE).write_text(default_template(tokenizer), encoding="utf-8")


class _Generation(Extension):
    """{% generation %}: marks its body as the assistant's."""

    tags: ClassVar[set[str]] = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        return f"{BEGIN}{caller()}{END}"


class _Sandbox(ImmutableSandboxedEnvironment):
    """Stops at the first look outside, where Jinja's own would give an empty value."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        raise SecurityError(f"it asks for {attribute!r} of a {type(obj).__name__}")


def _environment() -> _Sandbox:
    extensions = ["jinja2.ext.loopcontrols", _Generation]
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _raise, "strftime_now": _now}
    return environment


def _to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii)


def _raise(message: str) -> str:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _tokens(tokenizer: TextTokenizer) -> dict[str, str]:
    """The special tokens that templates call by name."""
    return {name: _name(tokenizer.settings.get(name)) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}


def _name(token: Any) -> str:
    """A special token's text, which the settings may hold bare or as an object."""
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")
