"""Training rows for five tasks of reasoning-gym, every answer worked out: tasks.py OUT.jsonl ROWS

The worked answers are written here from the problem's own text; each ends in a line `Answer: ...`, the generator's own answer. They
are worded for a small model that copies: an outcome stands next to what it follows from, and a name has a space before it, as in
the problem, because at the begin of a line it would be another token.
"""

import json
import re
import sys
from collections import deque
from collections.abc import Callable, Iterator
from itertools import cycle, islice

from reasoning_gym.arithmetic.leg_counting import ANIMALS as LEGS

from zaya_core.evaluation.gym import answer_in, heldout_problems, training_rows

TASKS: dict[str, dict[str, int]] = {
    "chain_sum": {"min_terms": 3, "max_terms": 4, "min_digits": 1, "max_digits": 1},
    "leg_counting": {"min_animals": 1, "max_animals": 3, "min_instances": 1, "max_instances": 9},
    "number_filtering": {"min_numbers": 3, "max_numbers": 6, "min_decimals": 0, "max_decimals": 0},
    "family_relationships": {},
    "needle_haystack": {"min_num_statements": 2, "max_num_statements": 5},
}
ASKED: dict[str, dict[str, int]] = TASKS | {  # by recipes/eval.sh: of two tasks the smaller problems
    "number_filtering": TASKS["number_filtering"] | {"max_numbers": 3},
    "family_relationships": {"min_family_size": 3, "max_family_size": 4},
}
TURNS = ("chain_sum", "leg_counting", "chain_sum", "number_filtering", "chain_sum", "family_relationships", "needle_haystack")
HELDOUT = 200  # problems of a task that recipes/eval.sh asks


def chain_sum(question: str, answer: str) -> str:
    """One operation at a time, from the left."""
    first, *rest = re.findall(r"-?\d+|[+-]", question.split(":")[-1])
    total, lines = int(first), []
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        new = total + int(term) if sign == "+" else total - int(term)
        lines.append(f"{total} {sign} {term} = {new}")
        total = new
    return "\n".join(lines)


def leg_counting(question: str, answer: str) -> str:
    """The legs of each kind, then their sum, digit by digit."""
    lines, totals = [], []
    for number, kind in re.findall(r"(\d+) ([a-z -]+?)(?=[,?])", question.split("if you have")[-1]):
        name = kind if kind in LEGS else kind.removesuffix("s")
        totals.append(int(number) * LEGS[name])
        lines.append(f"A {name} has {LEGS[name]} legs, so {number} {kind} have {number} * {LEGS[name]} = {totals[-1]} legs.")
    total = totals[0]
    for more in totals[1:]:
        lines.append(f"{_by_digits(total, more)}: {total} + {more} = {total + more} legs.")
        total += more
    return "\n".join(lines)


def _by_digits(left: int, right: int) -> str:
    """An addition as two that a small table holds: of the units, and of the tens with what is carried."""
    units, tens = left % 10 + right % 10, left // 10 + right // 10
    carried = " + 1" if units > 9 else ""
    return f"Units {left % 10} + {right % 10} = {units}, tens {left // 10} + {right // 10}{carried} = {tens + units // 10}"


def number_filtering(question: str, answer: str) -> str:
    """What follows from either outcome, then every number is looked at once."""
    relation, limit = re.search(r"(larger|smaller) than (-?[\d.]+)", question).groups()
    fate = ("keep", "remove") if question.startswith("Keep") else ("remove", "keep")
    lines = [f"The limit is {limit}. If {relation}: {fate[0]}. If not: {fate[1]}."]
    for number in re.findall(r"'(-?[\d.]+)'", question):
        holds = float(number) > float(limit) if relation == "larger" else float(number) < float(limit)
        lines.append(f"{number} is {relation}: {fate[0]}." if holds else f"{number} is not: {fate[1]}.")
    return "\n".join(lines)


def family_relationships(question: str, answer: str) -> str:
    """The shortest way from the one person to the other, over marriages and births."""
    links: dict[str, list[tuple[str, str]]] = {}
    for left, right, children in re.findall(
        r"(\w+) is married to (\w+)\. They have (?:a child|children) called ([\w ]+)\.", question
    ):
        pairs = [(left, right, "married to"), (right, left, "married to")]
        for child in children.split(" and "):
            pairs += [(parent, child, "a parent of") for parent in (left, right)]
            pairs += [(child, parent, "a child of") for parent in (left, right)]
        for one, other, link in pairs:
            links.setdefault(one, []).append((other, link))
    one, other = _asked(question, set(links))
    steps = [f"{a} is {link} {b}." for a, link, b in _way(links, one, other)]
    return " ".join(["See:", *steps, f"So {one} is the {answer} of {other}."])


def _asked(question: str, people: set[str]) -> tuple[str, str]:
    """The two people of the last sentence, in the order `X is the ... of Y`."""
    names = [name for name in re.findall(r"\w+", question.split("\n")[-1]) if name in people]
    return names[0], names[-1]


def _way(links: dict[str, list[tuple[str, str]]], start: str, end: str) -> list[tuple[str, str, str]]:
    seen, queue = {start}, deque([(start, [])])
    while queue:
        name, way = queue.popleft()
        if name == end:
            return way
        for other, link in links[name]:
            if other not in seen:
                seen.add(other)
                queue.append((other, [*way, (name, link, other)]))
    return []


def needle_haystack(question: str, answer: str) -> str:
    """The statements as they stand, up to the one that the question is about."""
    text, asked = re.fullmatch(r"(.+) *\nWho (.+)\? Reply.+", question, re.S).groups()
    end = f"{answer} {asked}."
    return f"See: {text[: text.index(end)]}{end} Found."


WORKED: dict[str, Callable[[str, str], str]] = {
    "chain_sum": chain_sum,
    "leg_counting": leg_counting,
    "number_filtering": number_filtering,
    "family_relationships": family_relationships,
    "needle_haystack": needle_haystack,
}


def rows(count: int) -> Iterator[dict[str, str]]:
    """`count` rows, the tasks in `TURNS`: sums are short, and take longest to learn. No row is a problem of `recipes/eval.sh`."""
    turns = list(islice(cycle(TURNS), count))
    each = {task: _not_asked(task, turns.count(task)) for task in TASKS}
    for task in turns:
        row = next(each[task])
        answer = answer_in(row["completion"])
        yield {"prompt": row["prompt"], "completion": f"{WORKED[task](row['prompt'].strip(), answer)}\nAnswer: {answer}"}


def _not_asked(task: str, count: int) -> Iterator[dict[str, str]]:
    asked = {problem.prompt for problem in heldout_problems(task, ASKED[task], HELDOUT)}
    made = training_rows(task, TASKS[task], count + HELDOUT, heldout=HELDOUT)
    return (row for row in made if row["prompt"] not in asked)


def main(out: str, count: str) -> None:
    """Write the rows."""
    with open(out, "w", encoding="utf-8") as file:
        for row in rows(int(count)):
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
