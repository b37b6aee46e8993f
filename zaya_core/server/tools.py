"""Tool calls as the chat template writes them: which dialect it speaks, calls out of a growing text, and a grammar that forces one.

Invariant: text that may still become a call is held back, and text that became none is given out as it was. Two dialects are
known, JSON between tags (Hermes, Qwen) and tagged parameters (ZAYA1, Qwen3-Coder); a template without tools gets the first.
"""

import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from zaya_core.server.grammar import WRITTEN, Grammars
from zaya_core.server.schemas import Function

ANYTHING = {"type": "object"}
WORD = re.compile(r"\btools\b")


@dataclass(frozen=True)
class Call:
    """A call that the model made; `arguments` is JSON text."""

    name: str
    arguments: str

    def sent(self, index: int | None = None) -> dict[str, Any]:
        """In OpenAI's form, under a new id; `index` counts the calls of a stream."""
        place = {} if index is None else {"index": index}
        function = {"name": self.name, "arguments": self.arguments}
        return place | {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


class Dialect(Protocol):
    """How a call is written: it begins with one of `openings`, ends with `closing`, and `trailer` may follow."""

    openings: tuple[str, ...]
    closing: str
    trailer: str

    def read(self, body: str, tools: Sequence[Function]) -> Call | None:
        """The call between opening and closing, both included; None if it is none."""
        ...

    def rule(self, tools: Sequence[Function], grammars: Grammars) -> str:
        """Lark rules `call`, one whole call, and `rest`, one without its opening and the end of line after it."""
        ...


@dataclass(frozen=True)
class JsonCalls:
    """<tool_call> {"name": ..., "arguments": {...}} </tool_call>"""

    openings: tuple[str, ...] = ("<tool_call>",)
    closing: str = "</tool_call>"
    trailer: str = ""

    def read(self, body: str, tools: Sequence[Function]) -> Call | None:
        """The JSON object between the tags."""
        try:
            value = json.loads(body.removeprefix(self.openings[0]).removesuffix(self.closing))
            name, arguments = value["name"], value.get("arguments", value.get("parameters", {}))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        return Call(name, text) if isinstance(name, str) else None

    def rule(self, tools: Sequence[Function], grammars: Grammars) -> str:
        """One alternative a tool."""
        opening, closing = (_symbol(tag, grammars) for tag in (self.openings[0], self.closing))
        bodies = " | ".join(f"%json {json.dumps(self._schema(tool) | {'x-guidance': WRITTEN})}" for tool in tools)
        return f'call: {opening} "\\n" rest\nrest: body "\\n" {closing}\nbody: {bodies}\n'

    def _schema(self, tool: Function) -> dict[str, Any]:
        arguments = dict(tool.parameters or ANYTHING)
        # References count from the root, which is ours here.
        shared = {key: arguments.pop(key) for key in ("$defs", "definitions") if key in arguments}
        fields = {"name": {"const": tool.name}, "arguments": arguments}
        return shared | {"type": "object", "properties": fields, "required": ["name", "arguments"], "additionalProperties": False}


@dataclass(frozen=True)
class TaggedCalls:
    """<function=NAME> <parameter=KEY> VALUE </parameter> ... </function>, in a wrapper that may be special tokens without text."""

    wrapper: str

    @property
    def openings(self) -> tuple[str, ...]:
        """The wrapper or, where it has no text, what follows it."""
        return (f"<{self.wrapper}>", "<function=")

    closing: str = "</function>"

    @property
    def trailer(self) -> str:
        """The wrapper's end."""
        return f"</{self.wrapper}>"

    def read(self, body: str, tools: Sequence[Function]) -> Call | None:
        """Values are JSON, but for parameters that are strings by the schema."""
        found = re.search(r"<function=([^>\n]+)>(.*)</function>$", body, re.DOTALL)
        if found is None:
            return None
        name, inside = found[1].strip(), found[2]
        known = next((tool.parameters or {} for tool in tools if tool.name == name), {})
        values = re.findall(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", inside, re.DOTALL)
        arguments = {key.strip(): _value(text, known.get("properties", {}).get(key.strip(), {})) for key, text in values}
        return Call(name, json.dumps(arguments, ensure_ascii=False))

    def rule(self, tools: Sequence[Function], grammars: Grammars) -> str:
        """Parameters in the schema's order; those that are not required may be left out."""
        opening, closing = (_symbol(tag, grammars) for tag in (f"<{self.wrapper}>", f"</{self.wrapper}>"))
        head = f'call: {opening} "\\n" rest\nrest: body "\\n" {closing}'
        lines = [head, "raw[lazy]: /(.|\\n)*\\n<\\/parameter>\\n/"]
        names = []
        for number, tool in enumerate(tools):
            names.append(f"function_{number}")
            schema, parts = tool.parameters or {}, []
            for place, (key, kind) in enumerate(schema.get("properties", {}).items()):
                rule = f"value_{number}_{place}"
                value = "raw" if _is_text(kind) else f'%json {json.dumps(kind | {"x-guidance": WRITTEN})} "\\n</parameter>\\n"'
                lines.append(f'{rule}: {json.dumps(f"<parameter={key}>")} "\\n" {value}')
                parts.append(rule if key in schema.get("required", ()) else f"{rule}?")
            lines.append(f'function_{number}: {json.dumps(f"<function={tool.name}>")} "\\n" {" ".join(parts)} "</function>"')
        return "\n".join([*lines, f"body: {' | '.join(names)}", ""])


class CallReader:
    """A text as it grows, split into what is said and what is called."""

    def __init__(self, dialect: Dialect, tools: Sequence[Function]) -> None:
        self.dialect, self.tools = dialect, tools
        self.calls: list[Call] = []
        self._held = ""
        self._after_call = False

    def push(self, text: str) -> tuple[str, list[Call]]:
        """More text -> the part that is certainly no call, and the calls that are whole now."""
        self._held += text
        said, before = "", len(self.calls)
        while (part := self._next()) is not None:
            said += part
        return said, self.calls[before:]

    def finish(self) -> str:
        """No more comes: what was held back was no call."""
        rest, self._held = self._held, ""
        return "" if self._after_call and not rest.strip() else rest

    def _next(self) -> str | None:
        """Move past one piece: its text, "" for a call, or None when more must come first."""
        if self._after_call and not self._skip_trailer():
            return None
        found = [at for opening in self.dialect.openings if (at := self._held.find(opening)) >= 0]
        if not found:
            cut = len(self._held) - _overlap(self._held, self.dialect.openings)
            return self._take(cut) if cut else None
        if min(found) > 0:
            return self._take(min(found))
        end = self._held.find(self.dialect.closing)
        if end < 0:
            return None
        body = self._take(end + len(self.dialect.closing))
        call = self.dialect.read(body, self.tools)
        if call is None:
            return body
        self.calls.append(call)
        self._after_call = True
        return ""

    def _skip_trailer(self) -> bool:
        """White space between calls and the wrapper's end are no text; False while they may go on."""
        self._held = self._held.lstrip()
        trailer = self.dialect.trailer
        if trailer and self._held.startswith(trailer):
            self._held = self._held[len(trailer) :].lstrip()
        elif trailer.startswith(self._held):
            return False
        self._after_call = not self._held
        return not self._after_call

    def _take(self, count: int) -> str:
        text, self._held = self._held[:count], self._held[count:]
        return text


def dialect_of(template: str) -> Dialect | None:
    """The dialect of a chat template's source; None where it has tools in one that is not known here."""
    if "<function=" in template:
        return TaggedCalls("zyphra_tool_call" if "<zyphra_tool_call>" in template else "tool_call")
    return JsonCalls() if "<tool_call>" in template or not knows_tools(template) else None


def knows_tools(template: str) -> bool:
    """Does the template write `tools` itself?"""
    return WORD.search(template) is not None


def forced(dialect: Dialect, tools: Sequence[Function], grammars: Grammars, *, many: bool) -> str:
    """A grammar of nothing but calls: one, or with `many` one after the other."""
    return f"start: call{' (' + chr(34) + chr(92) + 'n' + chr(34) + ' call)*' if many else ''}\n" + dialect.rule(tools, grammars)


def voluntary(dialect: Dialect, tools: Sequence[Function], grammars: Grammars) -> str:
    """A grammar of any text in which every call fits its schema (`strict` functions)."""
    opening = dialect.openings[0]
    spelled = re.escape(opening).replace("/", "\\/")
    said = f"SAID: /(.|\\n)*/ & ~/(.|\\n)*{spelled}(.|\\n)*/\n"
    # A lexer takes the longest match: text up to an opening must include it, and end there.
    before = f'before: SAID {opening} "\\n"' if grammars.is_special(opening) else f"before[lazy]: /(.|\\n)*{spelled}\\n/"
    return f"start: (before rest)* SAID\n{said}{before}\n" + dialect.rule(tools, grammars)


def preamble(tools: Sequence[Function]) -> str:
    """What a template without tools says of them, in the system turn."""
    listed = "\n".join(json.dumps({"type": "function", "function": tool.model_dump(exclude_none=True)}) for tool in tools)
    return (
        f"You may call these functions:\n{listed}\n"
        'To call one, write <tool_call>\n{"name": NAME, "arguments": {...}}\n</tool_call> and nothing after it.'
    )


def _symbol(tag: str, grammars: Grammars) -> str:
    return tag if grammars.is_special(tag) else json.dumps(tag)


def _is_text(schema: Any) -> bool:
    return isinstance(schema, dict) and schema.get("type") == "string" and "enum" not in schema


def _value(text: str, schema: Any) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return text if _is_text(schema) and not isinstance(value, str) else value


def _overlap(text: str, openings: Sequence[str]) -> int:
    """The longest end of `text` that an opening begins with."""
    longest = min(len(text), max(map(len, openings)) - 1)
    return next((size for size in range(longest, 0, -1) if any(o.startswith(text[-size:]) for o in openings)), 0)
