"""Three tasks of reasoning-gym: training rows, held-out problems that training never saw, and the scores of completions.

    python recipes/reasoning.py data WORKDIR [ROWS]                 writes train.jsonl and heldout.jsonl
    python recipes/reasoning.py score WORKDIR NAME=FILE ...         a line for each task of each file of `zaya generate --json`

An answer counts as right where reasoning-gym's own scorer gives it 1. `ended` is the share of texts that the model ended itself.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import reasoning_gym

TASKS: dict[str, dict[str, Any]] = {
    "chain_sum": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1},
    "leg_counting": {"min_animals": 1, "max_animals": 2, "min_instances": 1, "max_instances": 4},
    "family_relationships": {},
}
TRAIN_SEED, HELD_OUT_SEED, HELD_OUT = 1, 2, 100


def problems(task: str, *, seed: int, count: int) -> Iterator[dict[str, str]]:
    """Distinct problems of a task as prompt and completion."""
    seen = set()
    for item in reasoning_gym.create_dataset(task, seed=seed, size=count, **TASKS[task]):
        if item["question"] not in seen:
            seen.add(item["question"])
            yield {"prompt": item["question"].strip() + "\nAnswer:", "completion": " " + item["answer"], "task": task}


def write_data(work: Path, rows: int) -> None:
    """Held-out problems first; whatever equals one of them is left out of the training rows."""
    held_out: list[dict[str, str]] = []
    for task in TASKS:
        held_out += list(problems(task, seed=HELD_OUT_SEED, count=2 * HELD_OUT))[:HELD_OUT]
    prompts = {item["prompt"] for item in held_out}
    train = [item for task in TASKS for item in problems(task, seed=TRAIN_SEED, count=rows) if item["prompt"] not in prompts]
    for name, items in (("heldout", held_out), ("train", train)):
        (work / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")


def score(work: Path, name: str, completions: Path) -> None:
    """One line a task."""
    asked = [json.loads(line) for line in (work / "heldout.jsonl").read_text(encoding="utf-8").splitlines()]
    given = [json.loads(line) for line in completions.read_text(encoding="utf-8").splitlines()]
    for task, options in TASKS.items():
        scorer = reasoning_gym.create_dataset(task, seed=HELD_OUT_SEED, size=1, **options)
        pairs = [(a, g) for a, g in zip(asked, given, strict=True) if a["task"] == task]
        right = sum(
            scorer.score_answer(g["text"].strip(), {"answer": a["completion"].strip(), "metadata": {}}) == 1 for a, g in pairs
        )
        ended = sum(g["finish_reason"] == "stop" for _, g in pairs)
        tokens = sum(g["stats"]["num_tokens"] - 1 for _, g in pairs)
        forwards = max(1, sum(g["stats"]["num_forwards"] for _, g in pairs))
        shares = f"{right / len(pairs):7.0%} {ended / len(pairs):6.0%} {tokens / forwards:15.2f}"
        print(f"{name:20} {task:22} {shares}")


def main(arguments: list[str]) -> None:
    """See the module's docstring."""
    command, work, *rest = arguments
    if command == "data":
        write_data(Path(work), int(rest[0]) if rest else 20000)
        return
    print(f"{'model, sampler':20} {'task':22} {'right':>7} {'ended':>6} {'tokens/forward':>15}")
    for name, path in (part.split("=", 1) for part in rest):
        score(Path(work), name, Path(path))


if __name__ == "__main__":
    main(sys.argv[1:])
