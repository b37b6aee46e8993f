"""What counts as right: the scorers of files, HumanEval's programs, and specs that name no task."""

import json

import pytest

from zaya_core.errors import ConfigError, DataError
from zaya_core.evaluation.human_eval import code_in, program_of, read_human_eval
from zaya_core.evaluation.questions import Question, read_questions
from zaya_core.evaluation.tasks import Terms, open_task


@pytest.mark.parametrize(
    ("scorer", "answer", "right", "wrong"),
    [
        ("exact", "12", (" 12\n", "so\nAnswer: 12"), ("12.", "Answer: 12 apples", "Answer: 12\nAnswer: 13", "")),
        ("contains", "Paris", ("It is Paris.", "Paris"), ("paris", "")),
        ("regex", r"\b4[0-9]\b", ("it is 42!",), ("it is 142", "")),
    ],
)
def test_scorers(scorer, answer, right, wrong):
    question = Question("?", answer, scorer)
    assert all(question.is_right(text) for text in right)
    assert not any(question.is_right(text) for text in wrong)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, 'x.jsonl:2: expected an object with strings "prompt" and "answer"'),
        ({"prompt": "a", "answer": 3}, "answer is none"),
        ({"prompt": "a", "answer": "b", "scorer": "fuzzy"}, "the scorer is 'fuzzy', expected one of exact, contains"),
        ({"prompt": "a", "answer": "(", "scorer": "regex"}, "is no regular expression"),
    ],
)
def test_bad_rows_name_their_line(tmp_path, row, message):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"prompt": "fine", "answer": "1"}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(DataError, match=message.replace("(", r"\(")):
        read_questions(path)


def test_a_file_without_problems(tmp_path):
    path = tmp_path / "x.jsonl"
    path.touch()
    with pytest.raises(DataError, match="holds no problem"):
        read_questions(path)
    with pytest.raises(DataError, match="is not a file"):
        read_questions(tmp_path / "y.jsonl")


def test_python_questions_are_judged_by_their_program(tmp_path):
    path = tmp_path / "x.jsonl"
    row = {"prompt": "def double(x):", "answer": "exec(prompt + completion)\nassert double(4) == 8", "scorer": "python"}
    path.write_text(json.dumps(row) + "\n")
    task = open_task(f"jsonl:{path}", Terms())
    assert task.runs_code
    assert task.score(0, "\n    return 2 * x\n").score == 1
    assert task.score(0, "```python\n\n    return x + x\n```\nThere.").score == 1
    wrong = task.score(0, "\n    return x\n")
    assert (wrong.score, wrong.reason) == (0, "AssertionError")


def test_human_eval_accepts_its_own_solutions_and_no_others():
    task, problems = open_task("human-eval", Terms(4)), read_human_eval()
    assert (len(problems), len(task.prompts), task.runs_code) == (164, 4, True)
    for number, problem in enumerate(problems[:4]):
        solution = problem["canonical_solution"]
        assert task.score(number, solution).score == 1
        assert task.score(number, f"```python\n{problem['prompt']}{solution}```").score == 1, "a whole function, fenced"
        assert task.score(number, "    return None\n").score == 0
        assert task.score(number, "    import sys; sys.exit(0)\n").score == 0


def test_no_canonical_solution_is_cut_by_a_stop():
    task = open_task("human-eval", Terms())
    for problem in read_human_eval():
        body = problem["canonical_solution"].rstrip()
        assert not any(stop in body for stop in task.stops), problem["task_id"]


def test_fences():
    assert code_in("x = 1") == "x = 1"
    assert code_in("Here:\n```py\nx = 1\n```\n```\ny\n```") == "x = 1\n"
    assert code_in("```\nx = 1") == "x = 1"
    problem = {"prompt": "def f():\n    'd'\n", "entry_point": "f", "test": "T"}
    assert program_of(problem, "    return 1") == "def f():\n    'd'\n    return 1\n\nT\n\ncheck(f)\n"
    assert "    pass\n\ndef f(): return 1" in program_of(problem, "def f(): return 1")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("reasoning_gym:chain_sum", "did you mean reasoning-gym"),
        ("reasoning-gym:chain_summ", "did you mean chain_sum"),
        ("human-eval:x", "takes no options"),
    ],
)
def test_specs_that_name_no_task(spec, message):
    with pytest.raises(ConfigError, match=message):
        open_task(spec, Terms(1))


def test_more_problems_than_there_are():
    with pytest.raises(ConfigError, match="--num-problems is 165, expected at most the 164"):
        open_task("human-eval", Terms(165))


def test_the_gyms_partial_credit_is_kept_but_only_all_of_it_is_right():
    task = open_task("reasoning-gym:gsm_symbolic", Terms(1))
    assert 0 < task.score(0, "Answer: 123456").score < 1
