"""Expected tokens per forward against the closed form, a step-by-step simulation, and every choice of levels."""

import random
from itertools import combinations

import pytest

from zaya_core.engine.levels import best_levels
from zaya_core.errors import ConfigError
from zaya_core.profile.acceptance import Acceptance, expected

FALLING = Acceptance((0.9, 0.85, 0.7, 0.75, 0.5, 0.6, 0.3))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8, 0.95])
def test_every_level_and_constant_acceptance_give_the_closed_form(alpha):
    whole = expected(Acceptance.constant(alpha, 16), proposals=16)
    assert whole.tokens_per_forward == pytest.approx((1 - alpha**16) / (1 - alpha), abs=1e-9)
    assert (whole.clean, whole.proposals) == pytest.approx((16, 16))


def test_no_proposal_is_one_token_a_forward():
    assert expected(FALLING, proposals=0).tokens_per_forward == pytest.approx(1, abs=1e-6)


def test_a_perfect_drafter_fills_every_block():
    assert expected(Acceptance.constant(1.0, 8), proposals=1).tokens_per_forward == pytest.approx(8)


def simulated(acceptance, proposals, *, num_steps, seed):
    """The loop of tidar.md section 3 by drawing: which masks of which block drafted, which were accepted, which block serves."""
    chance = random.Random(seed)
    block_length = acceptance.block_length
    worth = [sum(a * p for a, p in enumerate(acceptance.odds(s), 1)) for s in range(block_length)]
    masks = list(range(2, block_length + 1))  # of the draft's tokens after the first, counted from 1
    tokens = slots = 0
    for _ in range(num_steps):
        shift = masks[0] - 2 if masks else block_length - 1
        levels = best_levels(acceptance.odds(shift), proposals, worth)
        accepted = 1
        for mask in masks:
            if chance.random() >= acceptance.chances[mask - 2]:
                break
            accepted += 1
        tokens += accepted
        slots += len(masks) + 1 + len(levels) * block_length
        below = [level for level in levels if level <= accepted]
        masks = list(range(accepted - below[-1] + 2, block_length + 1)) if below else []
    return tokens / num_steps, slots / num_steps


@pytest.mark.parametrize(("proposals", "block"), [(1, 8), (2, 8), (3, 5), (8, 8), (1, 3)])
@pytest.mark.parametrize("acceptance", [FALLING, Acceptance.constant(0.8, 8)])
def test_equals_simulation(acceptance, proposals, block):
    acceptance = acceptance.cut(block)
    chain = expected(acceptance, proposals=proposals)
    tokens, slots = simulated(acceptance, proposals, num_steps=40_000, seed=1)
    assert chain.tokens_per_forward == pytest.approx(tokens, rel=0.015)
    assert chain.clean + block * chain.proposals == pytest.approx(slots, rel=0.015)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_levels_are_the_best_of_all(count, seed):
    chance = random.Random(seed)
    odds = [chance.random() for _ in range(6)]
    worth = sorted((1 + 3 * chance.random() for _ in range(8)), reverse=True)

    def value(levels):
        served = [max((level for level in levels if level <= a), default=None) for a in range(1, 7)]
        return sum(p * (worth[a - level] if level else worth[-1]) for a, (p, level) in enumerate(zip(odds, served, strict=True), 1))

    chosen = best_levels(odds, count, worth)
    assert len(set(chosen)) == len(chosen) <= count
    assert value(chosen) == pytest.approx(max(value(levels) for levels in combinations(range(1, 7), count)))


def test_more_proposals_never_give_fewer_tokens():
    tokens = [expected(FALLING, proposals=count).tokens_per_forward for count in range(9)]
    assert tokens == sorted(tokens)


def test_histogram_round_trip():
    odds = FALLING.odds(0)
    again = Acceptance.from_histogram([round(1_000_000 * chance) for chance in odds])
    assert again.chances == pytest.approx(FALLING.chances, abs=1e-3)
    assert Acceptance.from_histogram([5, 5, 0, 0]).chances == (0.5, 0.0, 0.0)


@pytest.mark.parametrize("counts", [[], [3], [0, 0, 0]])
def test_an_empty_histogram_is_refused(counts):
    with pytest.raises(ConfigError, match="histogram"):
        Acceptance.from_histogram(counts)
