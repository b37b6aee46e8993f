"""The learning-rate schedule, the router's balancing, and the simulated acceptance length, against what they must be."""

import math

import pytest
import torch

from tests.models import TINY, random_model
from zaya_core.errors import ConfigError
from zaya_core.train.objective import acceptance_length
from zaya_core.train.optim import RouterBalance, learning_rate, load_balance


def rates(schedule: str) -> list[float]:
    return [learning_rate(step, peak=2.0, final_ratio=0.1, total=100, warmup=10, schedule=schedule) for step in range(100)]


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_warm_up_then_schedule(schedule):
    values = rates(schedule)
    assert values[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert values[10] == pytest.approx(2.0)
    assert max(values) <= 2.0 + 1e-12


def test_shapes_of_the_schedules():
    cosine, wsd, constant = rates("cosine"), rates("wsd"), rates("constant")
    assert cosine[55] == pytest.approx(2.0 * (0.1 + 0.9 * (1 + math.cos(math.pi / 2)) / 2))
    assert 0.2 < cosine[99] < 0.21
    assert set(constant[10:]) == {2.0}
    assert set(wsd[10:82]) == {2.0}
    assert wsd[99] < 0.35
    with pytest.raises(ConfigError, match="linear"):
        rates("linear")


def test_balancing_pushes_tokens_off_a_crowded_expert_and_leaves_the_skip_class():
    model = random_model(TINY)
    for layer in model.model.layers:
        layer.mlp.gate.balancing_biases.zero_()
        layer.mlp.gate.balancing_biases[-1] = -1.0
    balance = RouterBalance(model, lr=0.01)
    load = torch.zeros(2, 3, 5)
    load[0, :, 0], load[0, :, 1] = 90, 10  # clean slots crowd expert 0
    load[1, :, 1], load[1, :, 4] = 100, 50  # masks crowd expert 1; the skip class takes no part
    balance.update(load, 0)
    for layer in model.model.layers:
        bias = layer.mlp.gate.balancing_biases
        assert float(bias[-1]) == -1.0
        assert (bias[:4] > 0).tolist() == [False, False, True, True]
        assert float(bias[:4].sum()) == pytest.approx(0, abs=1e-6)


def test_balance_is_one_when_even_and_zero_when_collapsed():
    assert load_balance(torch.tensor([[5, 5, 5, 5, 0]])) == pytest.approx(1)
    assert load_balance(torch.tensor([[9, 0, 0, 0, 3]])) == pytest.approx(0)


def test_acceptance_length_by_hand():
    """Two blocks of four: 1 + .5 + .5*.4 + .5*.4*1, and 1 + 0."""
    overlap = torch.tensor([[0.5, 0.4, 1.0], [0.0, 1.0, 1.0]])
    assert acceptance_length(overlap) == pytest.approx((1.9 + 1.0) / 2)
