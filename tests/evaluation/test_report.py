"""Tables out of scores: pooled over tasks, paired by problem, acceptance by offset."""

import pytest

from zaya_core.evaluation.report import POOLED, Answers, acceptance_rows, paired_rows, quality_rows

STATS = {
    "num_tokens": 9,
    "num_forwards": 4,
    "decode_seconds": 2.0,
    "judged_by_offset": [4, 2, 0],
    "accepted_by_offset": [2, 1, 0],
}


def answers(task, sampler, right, model="model"):
    num_samples = len(right[0])
    return Answers(model, task, sampler, right, [STATS] * (len(right) * num_samples), 1)


FIRST = [[True, False], [True, True], [False, False], [False, False]]
SECOND = [[True, True]] * 4


def test_quality():
    rows = quality_rows([answers("a", "ar", FIRST), answers("b", "ar", SECOND)], [1, 2])
    assert [row["task"] for row in rows] == ["a", "b", POOLED]
    assert [row["pass@1"] for row in rows] == [0.375, 1.0, 0.6875]
    assert [row["pass@2"] for row in rows] == [0.5, 1.0, 0.75]
    assert rows[0]["pass@1_95%"][0] < 0.375 < rows[0]["pass@1_95%"][1]
    assert (rows[2]["problems"], rows[2]["samples"], rows[2]["tokens"], rows[2]["ended"]) == (8, 2, 9, 0.125)
    assert (rows[0]["tokens/forward"], rows[0]["tokens/s"]) == (2.0, 4.0)


def test_a_text_that_was_cut_to_nothing_counts_no_tokens():
    nothing = Answers("model", "a", "ar", [[False], [False]], [STATS | {"num_tokens": 0, "num_forwards": 0}, STATS], 0)
    assert quality_rows([nothing], [1])[0]["tokens/forward"] == 2.0


def test_problems_that_were_not_decoded_count_as_wrong():
    (row,) = quality_rows([Answers("model", "a", "ar", [[False], [False]], [], 0)], [1])
    assert (row["pass@1"], row["tokens/forward"], row["tokens/s"], row["ended"]) == (0, None, None, None)


def test_differences_are_by_problem():
    """The same problems solved leave no doubt where equally many others leave some."""
    half = [[number < 20] for number in range(40)]
    other = [[number >= 20] for number in range(40)]
    same = paired_rows([(answers("a", "lossless", half), answers("a", "ar", half))])[0]
    crossed = paired_rows([(answers("a", "lossless", other), answers("a", "ar", half))])[0]
    assert (same["difference"], crossed["difference"]) == (0, 0)
    assert same["half_width"] < 0.1 < 0.25 < crossed["half_width"]
    assert same["says"] == f"no systematic difference, ±{100 * same['half_width']:.1f} points"


def test_differences_are_judged_and_pooled():
    bad, good = [[False]] * 30, [[True]] * 30
    pairs = [(answers(task, "mix", bad), answers(task, "ar", good)) for task in "ab"]
    rows = paired_rows(pairs)
    assert [(row["task"], row["difference"]) for row in rows] == [("a", -1), ("b", -1), (POOLED, -1)]
    assert rows[2]["says"].startswith("worse by 100.0 ±")
    (row,) = paired_rows([(answers("a", "ar", good), answers("a", "ar", bad, model="baseline"))])
    assert (row["sampler"], row["against"], row["says"][:6]) == ("model ar", "baseline ar", "better")


def test_acceptance_is_summed_before_it_is_divided():
    short = Answers("model", "b", "lossless", [[True]], [STATS | {"judged_by_offset": [4], "accepted_by_offset": [4]}], 0)
    (row,) = acceptance_rows([Answers("model", "a", "lossless", [[True]], [STATS], 0), short])
    assert row["acceptance"] == [pytest.approx(6 / 8), 0.5, None]
    assert row["judged"] == [8, 2, 0]
    assert acceptance_rows([Answers("model", "a", "ar", [[True]], [STATS | {"judged_by_offset": []}], 0)]) == []
