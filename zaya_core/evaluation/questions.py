"""Problems out of a .jsonl: {"prompt", "answer", "scorer"}, the scorer one of exact (the default), contains, regex, python.

exact: the answer (`gym.answer_in`) equals the row's; contains: the text has it; regex: it is found in the text. python: the row's
answer is a program that sees the strings `prompt` and `completion` (a fenced block's content where the text has one), and the
completion is right if that program reaches its end.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from zaya_core.data.sources import read_jsonl
from zaya_core.errors import DataError
from zaya_core.evaluation.gym import answer_in
from zaya_core.evaluation.human_eval import code_in

SCORERS = ("exact", "contains", "regex", "python")


@dataclass(frozen=True)
class Question:
    """A row."""

    prompt: str
    answer: str
    scorer: str = "exact"

    def is_right(self, text: str) -> bool:
        """By the scorers that run nothing."""
        if self.scorer == "exact":
            return answer_in(text) == self.answer.strip()
        return self.answer in text if self.scorer == "contains" else re.search(self.answer, text) is not None

    def program(self, text: str) -> str:
        """The answer's program with what it sees."""
        return f"prompt = {self.prompt!r}\ncompletion = {code_in(text)!r}\n{self.answer}\n"


def read_questions(path: Path) -> list[Question]:
    """All rows, each of them checked; a DataError with file:line where one is not a question."""
    questions = []
    for place, row in read_jsonl(path, "--task jsonl:"):
        given = {key: row.get(key, "exact" if key == "scorer" else None) for key in ("prompt", "answer", "scorer")}
        wrong = [key for key, value in given.items() if not isinstance(value, str)]
        if wrong:
            raise DataError(f'{place}: expected an object with strings "prompt" and "answer", and "scorer"; {wrong[0]} is none')
        question = Question(**given)
        if question.scorer not in SCORERS:
            raise DataError(f"{place}: the scorer is {question.scorer!r}, expected one of {', '.join(SCORERS)}")
        if question.scorer == "regex":
            _check_pattern(question.answer, place)
        questions.append(question)
    if not questions:
        raise DataError(f"--task jsonl:{path} holds no problem")
    return questions


def _check_pattern(pattern: str, place: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise DataError(f"{place}: the answer {pattern!r} is no regular expression: {error}") from error
