"""Training rows and held-out problems: one form, no problem in both, and one rule that finds the answer."""

from itertools import islice

import pytest

from zaya_core.errors import ConfigError
from zaya_core.evaluation.gym import HELDOUT_SEED, TRAIN_SEED, answer_in, heldout_problems, read_task, scorer_of, training_rows

SMALL = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}


@pytest.mark.parametrize(("name", "options"), [("chain_sum", SMALL), ("gsm_symbolic", {})])
def test_no_problem_is_in_both(name, options):
    held = [problem.prompt for problem in heldout_problems(name, options, 60)]
    rows = list(training_rows(name, options, 300, heldout=60))
    assert len(set(held)) == 60
    assert len({row["prompt"] for row in rows}) == len(rows) > 50
    assert not {row["prompt"] for row in rows} & set(held)


def test_problems_that_training_saw_can_be_left_out():
    """There are others in their place."""
    first = [problem.prompt for problem in heldout_problems("chain_sum", {}, 6)]
    others = [problem.prompt for problem in heldout_problems("chain_sum", {}, 6, without=frozenset(first[1:3]))]
    assert others[:4] == [first[0], *first[3:]]
    assert len(set(others) - set(first)) == 2


def test_held_out_problems_are_the_same_in_every_process():
    """This generator goes by the order of a set, which differs between processes that do not take care."""
    assert heldout_problems("isomorphic_strings", {}, 5) == heldout_problems("isomorphic_strings", {}, 5)


def test_seeds_never_meet():
    import reasoning_gym

    later = reasoning_gym.create_dataset("leg_counting", seed=TRAIN_SEED, size=10)[3]
    assert later["question"] == reasoning_gym.create_dataset("leg_counting", seed=TRAIN_SEED + 3, size=10)[0]["question"]
    assert HELDOUT_SEED - TRAIN_SEED > 10**9


@pytest.mark.parametrize("name", ["chain_sum", "gsm_symbolic"])
def test_the_answer_of_every_training_completion_is_right(name):
    score = scorer_of(name, {})
    for problem in heldout_problems(name, {}, 20):
        assert score(answer_in(problem.completion), problem.entry) == 1
        assert problem.prompt == problem.entry["question"].strip() + "\n"


def test_a_rationale_is_answered_at_its_end():
    row = next(islice(training_rows("gsm_symbolic", {}, 1, heldout=1), 1))
    assert "####" not in row["completion"]
    assert len(row["completion"].split("\nAnswer: ")) == 2


def test_where_the_answer_is():
    assert answer_in(" 12\n") == "12"
    assert answer_in("2 + 2 = 4\nAnswer: 5, no\nAnswer: 4 ") == "4"
    assert answer_in("1 2\n3 4") == "1 2\n3 4"
    assert answer_in("Answer:") == ""


def test_a_task_with_too_few_problems_says_so():
    with pytest.raises(ConfigError, match=r"reasoning-gym:chain_sum has \d+ distinct problems, expected 400"):
        heldout_problems("chain_sum", SMALL, 400)


def test_options_are_read_and_checked():
    assert read_task("chain_sum:min_terms=2,allow_negation=true,words=[1, 2]") == (
        "chain_sum",
        {"min_terms": 2, "allow_negation": True, "words": [1, 2]},
    )
    for text, message in (
        ("chain_sun", "did you mean chain_sum"),
        ("chain_sum:terms=2", "does not take"),
        ("x:y", "key=value"),
        ("x:y=[1", "value of YAML"),
    ):
        with pytest.raises(ConfigError, match=message):
            heldout_problems(*read_task(text), 1)
