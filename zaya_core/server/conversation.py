"""A chat request's messages to the text that the model reads, through the checkpoint's own template.

A template that has no tools gets them in plain words: the functions in the system turn, calls and their results as text.
"""

import json
from collections.abc import Sequence
from typing import Any

from zaya_core.data.chat import ChatTemplate
from zaya_core.errors import ZayaError
from zaya_core.server.refusal import Refusal
from zaya_core.server.schemas import Function, Message
from zaya_core.server.tools import knows_tools, preamble


def prompt_text(template: ChatTemplate, messages: Sequence[Message], tools: Sequence[Function]) -> str:
    """The conversation up to where the assistant speaks; a template that fails is a Refusal with its own words."""
    try:
        if knows_tools(template.source):
            listed = [{"type": "function", "function": tool.model_dump(exclude_none=True)} for tool in tools]
            return template.render([_native(message) for message in messages], add_generation_prompt=True, tools=listed or None)
        return template.render(_plain(messages, tools), add_generation_prompt=True)
    except ZayaError as error:
        # The template's origin is a path of ours; what it says of the conversation is the client's to read.
        told = error.message.partition(": ")[2] or error.message
        raise Refusal(400, f"messages: the chat template refuses them: {told}", param="messages") from error


def _text(message: Message) -> str:
    if isinstance(message.content, list):
        return "\n".join(part.text for part in message.content)
    return message.content or ""


def _role(message: Message) -> str:
    return "system" if message.role == "developer" else message.role


def _native(message: Message) -> dict[str, Any]:
    """As templates with tools expect it: arguments as values."""
    turn: dict[str, Any] = {"role": _role(message), "content": _text(message)}
    turn |= {key: value for key in ("name", "tool_call_id") if (value := getattr(message, key)) is not None}
    if message.tool_calls:
        turn["tool_calls"] = [_call(call.function.name, call.function.arguments, call.id) for call in message.tool_calls]
    return turn


def _call(name: str, arguments: str, call_id: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": _arguments(arguments)}}


def _arguments(text: str) -> Any:
    try:
        return json.loads(text or "{}")
    except (ValueError, RecursionError):
        raise Refusal(400, "messages: the arguments of a tool call are not JSON", param="messages") from None


def _plain(messages: Sequence[Message], tools: Sequence[Function]) -> list[dict[str, Any]]:
    """Tools, calls and results as text."""
    turns = [{"role": _role(message), "content": _said(message)} for message in messages]
    for turn in turns:
        if turn["role"] == "tool":
            turn |= {"role": "user", "content": f"<tool_response>\n{turn['content']}\n</tool_response>"}
    if not tools:
        return turns
    if turns[0]["role"] == "system":
        head = {"role": "system", "content": f"{turns[0]['content']}\n\n{preamble(tools)}"}
        return [head, *turns[1:]]
    return [{"role": "system", "content": preamble(tools)}, *turns]


def _said(message: Message) -> str:
    calls = [
        json.dumps({"name": call.function.name, "arguments": _arguments(call.function.arguments)}, ensure_ascii=False)
        for call in message.tool_calls or ()
    ]
    return "\n".join([part for part in [_text(message)] if part] + [f"<tool_call>\n{call}\n</tool_call>" for call in calls])
