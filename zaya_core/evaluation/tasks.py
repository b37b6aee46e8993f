"""What a model is asked, and what counts as right: tasks as plug-ins, each opened from its spec KIND:REST.

A task holds its prompts and a function from a completion to its score, which runs generated programs only where `runs_code` says
so. It knows no samplers.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zaya_core.config import nearest
from zaya_core.errors import ConfigError
from zaya_core.evaluation.gym import answer_in, heldout_problems, read_task, scorer_of
from zaya_core.evaluation.human_eval import STOPS, program_of, read_human_eval
from zaya_core.evaluation.questions import read_questions
from zaya_core.evaluation.sandbox import Limits, run_program

GENERATED = 200  # problems of a task that makes as many as are wanted


@dataclass(frozen=True)
class Scored:
    """A completion's score: 1 is right. `answer` is what was judged; `reason` says why it failed, where that is known."""

    score: float
    answer: str
    reason: str = ""


@dataclass(frozen=True)
class Task:
    """`spec` as it was given, the prompts, and `score(problem's number, completion)`; the texts that end a plain completion."""

    spec: str
    prompts: list[str]
    score: Callable[[int, str], Scored]
    stops: tuple[str, ...] = ()
    runs_code: bool = False


@dataclass(frozen=True)
class Terms:
    """How many problems (None: all of a file, GENERATED of a generator), prompts not to be made, and the limits of programs."""

    num_problems: int | None = None
    without: frozenset[str] = frozenset()
    limits: Limits = field(default_factory=Limits)


def open_task(spec: str, terms: Terms) -> Task:
    """The task of a spec, with the first of its problems."""
    kind, _, rest = spec.partition(":")
    if kind not in KINDS:
        raise ConfigError(f"--task {spec}: no such kind of task, {nearest(kind, [*KINDS, 'likelihood', 'needle'])}")
    return KINDS[kind](spec, rest, terms)


def _gym(spec: str, rest: str, terms: Terms) -> Task:
    """Right is what reasoning-gym's own scorer gives 1."""
    name, options = read_task(rest)
    problems = heldout_problems(name, options, terms.num_problems or GENERATED, without=terms.without)
    judge = scorer_of(name, options)

    def score(number: int, text: str) -> Scored:
        answer = answer_in(text)
        return Scored(float(judge(answer, problems[number].entry)), answer)

    return Task(spec, [problem.prompt for problem in problems], score)


def _human_eval(spec: str, rest: str, terms: Terms) -> Task:
    """Right is a program that passes its problem's tests."""
    if rest:
        raise ConfigError(f"--task {spec}: human-eval takes no options")
    problems = _first(read_human_eval(), terms.num_problems, spec)

    def score(number: int, text: str) -> Scored:
        return _ran(program_of(problems[number], text), text, terms.limits)

    return Task(spec, [problem["prompt"] for problem in problems], score, STOPS, runs_code=True)


def _questions(spec: str, rest: str, terms: Terms) -> Task:
    """Rows of a file, each with its own way to score."""
    questions = _first(read_questions(Path(rest)), terms.num_problems, spec)

    def score(number: int, text: str) -> Scored:
        question = questions[number]
        if question.scorer == "python":
            return _ran(question.program(text), text, terms.limits)
        return Scored(float(question.is_right(text)), answer_in(text))

    return Task(spec, [q.prompt for q in questions], score, runs_code=any(q.scorer == "python" for q in questions))


def _ran(program: str, text: str, limits: Limits) -> Scored:
    outcome = run_program(program, limits)
    return Scored(float(outcome.passed), text, outcome.reason)


def _first(rows: list[Any], count: int | None, spec: str) -> list[Any]:
    if count is not None and count > len(rows):
        raise ConfigError(f"--num-problems is {count}, expected at most the {len(rows)} of --task {spec}")
    return rows[:count]


KINDS: dict[str, Callable[[str, str, Terms], Task]] = {
    "reasoning-gym": _gym,
    "human-eval": _human_eval,
    "jsonl": _questions,
}
