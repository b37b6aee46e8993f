"""pass@k against every subset; intervals against what they promise."""

from itertools import combinations

import numpy as np
import pytest

from zaya_core.evaluation.statistics import estimate, pass_at_k


@pytest.mark.parametrize("num_samples", [1, 2, 5, 7])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(num_samples):
    for num_right in range(num_samples + 1):
        right = [number < num_right for number in range(num_samples)]
        for k in range(1, num_samples + 1):
            subsets = [any(some) for some in combinations(right, k)]
            assert pass_at_k(num_samples, num_right, k) == pytest.approx(sum(subsets) / len(subsets), abs=1e-12)


def test_intervals_cover_what_they_estimate():
    chance, rate, covered = np.random.default_rng(1), 0.3, 0
    for trial in range(100):
        found = estimate([(chance.random(100) < rate).astype(float)], seed=trial)
        covered += found.low <= rate <= found.high
        assert found.low <= found.value <= found.high
    assert 0.90 <= covered / 100 <= 0.99


def test_tasks_are_resampled_within_themselves():
    """Two tasks that never vary: pooled as one set their mean would vary, by task it cannot."""
    apart = estimate([[0.0] * 50, [1.0] * 50])
    assert (apart.low, apart.value, apart.high) == (0.5, 0.5, 0.5)
    assert estimate([[0.0] * 50 + [1.0] * 50]).half_width == pytest.approx(1.96 * 0.05, rel=0.1)


def test_problems_that_all_agree_still_leave_doubt():
    none = estimate([[0.0] * 200])
    assert (none.value, none.low) == (0, 0)
    assert none.high == pytest.approx(1 - 0.025 ** (1 / 200))
    assert estimate([[1.0] * 200]).low == pytest.approx(1 - none.high)
    same = estimate([[0.0] * 200], is_difference=True)
    assert (same.low, same.high) == (-none.high, none.high)


def test_the_same_scores_give_the_same_interval():
    scores = [0.0, 1.0, 0.5, 1.0]
    assert estimate([scores]) == estimate([scores])
