"""reasoning-gym's tasks as rows: one form of prompt and completion for training and for eval, and seeds that never meet.

Entry i of a dataset comes of `seed + i`. Training counts up from TRAIN_SEED, eval from HELDOUT_SEED, and `training_rows` leaves
out what happens to equal one of a task's first HELDOUT held-out problems.

A problem reads "QUESTION\\n" and is answered "Answer: ANSWER", after a rationale and a line's end where there is one. `answer_in`
is the one rule that finds the answer in a completion, also in one that has no such line.
"""

import os
import pickle
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from zaya_core.config import nearest
from zaya_core.errors import ConfigError

TRAIN_SEED, HELDOUT_SEED = 0, 2**30
HELDOUT = 500  # held-out problems of a task that no training row equals
ENTRIES_EACH = 20  # entries looked at for each distinct problem wanted, at most
MARKER = "Answer:"
# Some generators (word_ladder, ransom_note) go by the order of sets, which differs from process to process.
ALWAYS_THE_SAME = """
import os, pickle, sys
out = os.dup(1)
os.dup2(2, 1)  # some generators print
from zaya_core.evaluation.gym import heldout_entries
made = pickle.dumps(heldout_entries(*pickle.load(sys.stdin.buffer)))
with open(out, "wb") as file:
    file.write(made)
"""
OPTION = re.compile(r",(?=\s*\w+=)")  # commas inside of a value do not end it


def row_of(entry: dict[str, Any]) -> dict[str, str]:
    """{"prompt", "completion"} of a reasoning-gym entry; of one that is scored but has no answer the completion ends before it."""
    question, answer, rationale = entry["question"].strip(), (entry["answer"] or "").strip(), rationale_of(entry)
    worked = "" if rationale is None else f"{rationale}\n"
    return {"prompt": f"{question}\n", "completion": f"{worked}{MARKER} {answer}"}


def rationale_of(entry: dict[str, Any]) -> str | None:
    """The worked answer that a generator gives with its answer, less the answer's own line."""
    worked = entry["metadata"].get("answer_cot")
    return None if worked is None else re.sub(r"\n?####.*\Z", "", worked, flags=re.S).strip()


def answer_in(text: str) -> str:
    """What follows the last "Answer:", or the whole text where there is none; without the space around it."""
    return text.rpartition(MARKER)[2].strip()


def training_rows(name: str, options: dict[str, Any], count: int, *, heldout: int = HELDOUT) -> Iterator[dict[str, str]]:
    """At most `count` rows of a task, all distinct; fewer where it has no more than that."""
    held = frozenset(problem.prompt for problem in heldout_problems(name, options, heldout, all_of_them=False))
    distinct = _distinct(name, options, seed=TRAIN_SEED, count=count, without=held)
    return (row for entry, row in distinct if entry["answer"] is not None)


@dataclass(frozen=True)
class GymProblem:
    """A held-out entry and how it reads."""

    entry: dict[str, Any]
    prompt: str
    completion: str


def heldout_problems(
    name: str, options: dict[str, Any], count: int, *, without: frozenset[str] = frozenset(), all_of_them: bool = True
) -> list[GymProblem]:
    """The first `count` distinct held-out problems whose prompts are not among `without`.

    A ConfigError where the task has fewer, unless that will do.
    """
    _dataset(name, options, seed=HELDOUT_SEED, size=1)  # what is wrong is said here
    made = subprocess.run(
        [sys.executable, "-c", ALWAYS_THE_SAME],
        input=pickle.dumps((name, options, count, without)),
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        check=True,
    )
    found = [GymProblem(entry, **row_of(entry)) for entry in pickle.loads(made.stdout)]
    if all_of_them and len(found) < count:
        hint = "lower --num-problems or widen its options"
        raise ConfigError(f"reasoning-gym:{name} has {len(found)} distinct problems, expected {count}", hint=hint)
    return found


def heldout_entries(name: str, options: dict[str, Any], count: int, without: frozenset[str]) -> list[dict[str, Any]]:
    """The first distinct held-out entries as this process makes them: `heldout_problems` asks one that always makes the same."""
    random.seed(HELDOUT_SEED)  # some generators draw from the shared one too
    return [entry for entry, _ in _distinct(name, options, seed=HELDOUT_SEED, count=count, without=without)]


def scorer_of(name: str, options: dict[str, Any]) -> Any:
    """The task's own `score_answer(answer, entry)`: 1 is right, less is partly so."""
    return _dataset(name, options, seed=HELDOUT_SEED, size=1).score_answer


def read_task(text: str) -> tuple[str, dict[str, Any]]:
    """NAME[:key=value,...] -> the name and the options of its dataset; values are YAML."""
    name, _, rest = text.partition(":")
    options = {}
    for part in OPTION.split(rest) if rest else []:
        key, equals, value = part.strip().partition("=")
        if not equals:
            raise ConfigError(f"reasoning-gym:{text} has the option {part!r}, expected key=value")
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"reasoning-gym:{text}: {key} is {value!r}, expected a value of YAML") from error
    return name, options


def _distinct(
    name: str, options: dict[str, Any], *, seed: int, count: int, without: frozenset[str]
) -> Iterator[tuple[dict[str, Any], dict[str, str]]]:
    dataset = _dataset(name, options, seed=seed, size=count * ENTRIES_EACH)
    seen = set(without)
    for index in range(count * ENTRIES_EACH):
        entry = dataset[index]
        row = row_of(entry)
        if row["prompt"] not in seen:
            seen.add(row["prompt"])
            yield entry, row
            count -= 1
        if not count:
            return


def _dataset(name: str, options: dict[str, Any], *, seed: int, size: int) -> Any:
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise ConfigError("reasoning-gym is not installed", hint="pip install 'zaya[eval]'") from error
    if name not in DATASETS:
        raise ConfigError(f"reasoning-gym has no task {name!r}", hint=nearest(name, list(DATASETS)))
    try:
        return reasoning_gym.create_dataset(name, seed=seed, size=size, **options)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"reasoning-gym:{name} does not take {options}: {error}") from error
