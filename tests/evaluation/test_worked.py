"""recipes/tasks.py: every worked answer is right by the task's own scorer, and eval.sh asks the tasks that it makes rows of."""

from itertools import islice
from pathlib import Path

from recipes.tasks import ASKED, HELDOUT, TURNS, rows
from zaya_core.evaluation.gym import answer_in, heldout_problems, read_task

EVAL = Path(__file__).parents[2] / "recipes" / "eval.sh"


def test_worked_answers_end_in_an_answer_of_their_own_reasoning():
    made = list(islice(rows(50), 50))
    assert len({row["prompt"] for row in made}) == 50
    for place, row in enumerate(made):
        worked, answer = row["completion"].rsplit("\n", 1)
        assert answer == f"Answer: {answer_in(row['completion'])}"
        if TURNS[place % len(TURNS)] in ("chain_sum", "leg_counting"):
            number = worked.removesuffix(" legs.").split("= ")[-1]
            assert number == answer_in(answer), "the sum that was worked out is the generator's"
        elif "numbers" in row["prompt"]:
            kept = [line.split()[0] for line in worked.splitlines()[1:] if line.endswith(": keep.")]
            assert str(kept) == answer_in(answer)


def test_eval_asks_these_tasks_and_no_row_is_asked():
    asked = [line.strip() for line in EVAL.read_text().splitlines() if line.strip().startswith("reasoning-gym:")]
    assert dict(read_task(task.removeprefix("reasoning-gym:")) for task in asked) == ASKED
    held = {problem.prompt for name, options in ASKED.items() for problem in heldout_problems(name, options, HELDOUT)}
    assert not held & {row["prompt"] for row in rows(500)}
