"""Conversations that are too long lose thoughts, never answers: trimming to a budget as in the ZAYA1-8B report, section III-A."""

import re
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

THOUGHT = re.compile(r"<think>(.*?)</think>\s*", re.DOTALL)


def trimmed(
    messages: list[dict[str, Any]], budget: int, length_of: Callable[[list[dict[str, Any]]], int]
) -> list[dict[str, Any]] | None:
    """The conversation in at most `budget` tokens, or None where answers alone are too long.

    Earlier turns lose their thoughts first, whole; then the last answer's thought loses its tail. `length_of` counts tokens.
    """
    said = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    if not said:
        return None
    shorter = [_without_thought(message) if place in said[:-1] else message for place, message in enumerate(messages)]
    if shorter != messages and length_of(shorter) <= budget:
        return shorter
    thought = THOUGHT.search(messages[said[-1]]["content"])
    if thought is None:
        return None

    def keeping(count: int) -> list[dict[str, Any]]:
        cut = thought.end(1) - len(thought[1]) + count
        content = messages[said[-1]]["content"]
        return [
            {**message, "content": content[:cut] + content[thought.end(1) :]} if place == said[-1] else message
            for place, message in enumerate(shorter)
        ]

    fits = bisect_right(range(len(thought[1]) + 1), budget, key=lambda count: length_of(keeping(count)))
    return keeping(fits - 1) if fits else None


def _without_thought(message: dict[str, Any]) -> dict[str, Any]:
    return {**message, "content": THOUGHT.sub("", message["content"], count=1)}
