"""Trimming of conversations to a budget: thoughts go, answers stay (model.md D6)."""

import pytest

from zaya_core.data.trim import trimmed


def words(messages: list[dict]) -> int:
    return sum(len(message["content"].split()) for message in messages)


def talk(first: str, last: str) -> list[dict]:
    return [
        {"role": "user", "content": "q1"},
        {"role": "assistant", "content": f"<think> {first} </think> a1"},
        {"role": "user", "content": "q2"},
        {"role": "assistant", "content": f"<think> {last} </think> a2"},
    ]


def test_earlier_thoughts_go_whole_before_the_last_is_touched():
    messages = talk("x x x x", "y y y")
    kept = trimmed(messages, 10, words)
    assert [message["content"] for message in kept] == ["q1", "a1", "q2", "<think> y y y </think> a2"]
    assert messages == talk("x x x x", "y y y"), "the row itself is left alone"


@pytest.mark.parametrize("budget", [6, 7, 8])
def test_the_last_thought_loses_its_tail_to_the_budget_and_no_more(budget):
    kept = trimmed(talk("x " * 9, " ".join(f"y{n}" for n in range(9))), budget, words)
    assert words(kept) == budget
    thought, answer = kept[3]["content"].split("</think>")
    assert answer == " a2"
    assert thought.split()[1:] == [f"y{n}"[: len(word)] for n, word in enumerate(thought.split()[1:])], "from its head"


def test_answers_alone_too_long_and_talks_without_an_answer_are_left_out():
    assert trimmed(talk("x", "y"), 3, words) is None
    assert trimmed([{"role": "user", "content": "q"}], 0, words) is None
    assert trimmed([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a b c"}], 3, words) is None
