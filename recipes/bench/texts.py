"""Real text to decode after, which no training run here reads: the held-out standard library, or held-out problems."""

from collections.abc import Callable
from functools import cache
from itertools import cycle

from zaya_core.data.sources import standard_library
from zaya_core.data.tokenizer import TextTokenizer

EACH = 40  # problems of a task


def held_out_ids(tokenizer: TextTokenizer, num_tokens: int) -> list[int]:
    """The first `num_tokens` tokens of the held-out files end to end, from the beginning again where they are too few."""
    # Code tables of encodings/ are near copies of one another, trained siblings included.
    paths = [path for path in standard_library(held_out=True) if path.parent.name != "encodings"]
    ids: list[int] = []
    for path in paths:
        ids += tokenizer.encode(path.read_text(encoding="utf-8", errors="replace"))
        if len(ids) >= num_tokens:
            break
    while len(ids) < num_tokens:
        ids += ids
    return ids[:num_tokens]


def code(tokenizer: TextTokenizer, count: int, length: int) -> list[list[int]]:
    """`count` prompts of `length` tokens, one after another."""
    ids = held_out_ids(tokenizer, count * length)
    return [ids[number * length : (number + 1) * length] for number in range(count)]


def problems(tokenizer: TextTokenizer, count: int, length: int) -> list[list[int]]:
    """`count` prompts of `length` tokens: a problem of recipes/eval.sh, after others that are solved; the first may be cut."""
    solved = [tuple(map(tokenizer.encode, pair)) for pair in _solved()]
    rows, prompts = cycle(solved), list[list[int]]()
    for _ in range(count):
        ids = next(rows)[0]
        while len(ids) < length:
            question, answer = next(rows)
            ids = [*question, *answer, *ids]
        prompts.append(ids[-length:])
    return prompts


@cache
def _solved() -> list[tuple[str, str]]:
    """Problems and worked answers, the tasks in turn."""
    from recipes.tasks import ASKED, WORKED  # reasoning-gym is needed here alone
    from zaya_core.evaluation.gym import answer_in, heldout_problems

    found = list[tuple[str, str]]()
    for entries in zip(*(heldout_problems(task, options, EACH) for task, options in ASKED.items()), strict=True):
        for task, problem in zip(ASKED, entries, strict=True):
            answer = answer_in(problem.completion)
            found.append((problem.prompt, f"{WORKED[task](problem.prompt.strip(), answer)}\nAnswer: {answer}\n"))
    return found


TEXTS: dict[str, Callable[[TextTokenizer, int, int], list[list[int]]]] = {"code": code, "problems": problems}
