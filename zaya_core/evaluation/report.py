"""Scored completions into tables: quality and speed, acceptance by offset, paired differences. Values only, nothing is shown.

A problem's value is the mean over its samples. Differences are of the same problems, so that how hard they are cancels out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from zaya_core.evaluation.statistics import Estimate, estimate, pass_at_k

POOLED = "all tasks"
Row = dict[str, Any]


@dataclass(frozen=True)
class Answers:
    """One model's completions of a task by one sampler: [problem][sample] is right, and the stats of those that were made."""

    model: str
    task: str
    sampler: str
    right: list[list[bool]]
    stats: list[dict[str, Any]]
    num_ended: int

    def passes(self, k: int) -> list[float]:
        """pass@k of each problem."""
        return [pass_at_k(len(samples), sum(samples), k) for samples in self.right]


def quality_rows(answers: Sequence[Answers], ks: Sequence[int]) -> list[Row]:
    """A row for each task and sampler, then for all tasks together where there are several."""
    tasks = list(dict.fromkeys(one.task for one in answers))
    rows = [_quality([one], one.task, ks) for one in sorted(answers, key=lambda one: tasks.index(one.task))]
    for same in _together(answers):
        if len(same) > 1:
            rows.append(_quality(same, POOLED, ks))
    return rows


def acceptance_rows(answers: Sequence[Answers]) -> list[Row]:
    """How often the draft's token at each offset was accepted once those before it were: a row a sampler, over all tasks."""
    rows = []
    for same in _together(answers):
        stats = [one for some in same for one in some.stats]
        judged, accepted = (_summed([one[f"{name}_by_offset"] for one in stats]) for name in ("judged", "accepted"))
        if sum(judged):
            shares = [round(a / n, 4) if n else None for a, n in zip(accepted, judged, strict=True)]
            rows.append({"model": same[0].model, "sampler": same[0].sampler, "acceptance": shares, "judged": judged})
    return rows


def paired_rows(pairs: Sequence[tuple[Answers, Answers]]) -> list[Row]:
    """pass@1 of the first of each pair less that of the second, for each task and for all tasks together."""
    tasks = list(dict.fromkeys(one.task for one, _ in pairs))
    rows = [_paired([pair], pair[0].task) for pair in sorted(pairs, key=lambda pair: tasks.index(pair[0].task))]
    groups: dict[tuple[str, ...], list[tuple[Answers, Answers]]] = {}
    for one, other in pairs:
        groups.setdefault((one.model, one.sampler, other.model, other.sampler), []).append((one, other))
    return rows + [_paired(group, POOLED) for group in groups.values() if len(group) > 1]


def _quality(same: Sequence[Answers], task: str, ks: Sequence[int]) -> Row:
    stats = [one for some in same for one in some.stats]
    row: Row = {
        "model": same[0].model,
        "task": task,
        "sampler": same[0].sampler,
        "problems": sum(len(some.right) for some in same),
        "samples": len(same[0].right[0]),
    }
    for k in ks:
        row |= _shown(f"pass@{k}", estimate([some.passes(k) for some in same]))
    later, forwards = sum(max(0, one["num_tokens"] - 1) for one in stats), sum(one["num_forwards"] for one in stats)
    seconds = sum(one["decode_seconds"] for one in stats)
    return row | {
        "tokens/forward": round(later / forwards, 3) if forwards else None,
        "tokens/s": round(later / seconds, 1) if seconds else None,
        "tokens": round(sum(one["num_tokens"] for one in stats) / len(stats), 1) if stats else None,
        "ended": round(sum(some.num_ended for some in same) / len(stats), 4) if stats else None,
    }


def _paired(pairs: Sequence[tuple[Answers, Answers]], task: str) -> Row:
    one, other = pairs[0]
    values = [[a - b for a, b in zip(x.passes(1), y.passes(1), strict=True)] for x, y in pairs]
    found = estimate(values, is_difference=True)
    name, against = one.sampler, other.sampler
    if one.model != other.model:
        name, against = f"{one.model} {name}", f"{other.model} {against}"
    row = {"task": task, "sampler": name, "against": against, "problems": sum(len(part) for part in values)}
    return row | _shown("difference", found) | {"half_width": round(found.half_width, 4), "says": _verdict(found)}


def _verdict(found: Estimate) -> str:
    """In words, never without how much it may be off."""
    within = f"±{100 * found.half_width:.1f} points"
    if found.low <= 0 <= found.high:
        return f"no systematic difference, {within}"
    return f"{'better' if found.low > 0 else 'worse'} by {100 * abs(found.value):.1f} {within}"


def _shown(name: str, found: Estimate) -> Row:
    return {name: round(found.value, 4), f"{name}_95%": [round(found.low, 4), round(found.high, 4)]}


def _together(answers: Sequence[Answers]) -> list[list[Answers]]:
    """By model and sampler."""
    groups: dict[tuple[str, str], list[Answers]] = {}
    for one in answers:
        groups.setdefault((one.model, one.sampler), []).append(one)
    return list(groups.values())


def _summed(lists: Sequence[Sequence[int]]) -> list[int]:
    return [sum(values) for values in zip_longest(*lists, fillvalue=0)]  # --settings may have shorter blocks for some prompts
