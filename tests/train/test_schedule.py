"""The learning-rate schedule, the router's balancing, and the simulated acceptance length, against what they must be."""

import math

import pytest
import torch

from tests.models import TINY, random_model
from zaya_core.errors import ConfigError
from zaya_core.train.optim import RouterBalance, learning_rate, load_balance, make_optimizer, orthogonal


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


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (3, 8, 5)])
def test_orthogonal_is_about_the_polar_factor(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonal(matrix))
    assert bool(((values > 0.4) & (values < 1.4)).all()), values
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    agreement = (orthogonal(matrix) * (u @ v)).sum((-2, -1)) / min(shape[-2:])
    assert bool((agreement > 0.6).all())


def test_muons_direction_in_bfloat16_is_that_of_float32_to_its_rounding():
    matrix = torch.randn(8, 64, 48, generator=torch.Generator().manual_seed(0))
    exact = orthogonal(matrix.double())
    assert float((orthogonal(matrix.bfloat16()).double() - exact).norm() / exact.norm()) < 0.05
    model = random_model(TINY).requires_grad_(True)
    optimizers = make_optimizer(model, kind="muon", lr=1e-3, weight_decay=0.0, dtype=torch.bfloat16)
    sum(p.square().sum() for p in model.parameters()).backward()
    optimizers.step()
    assert all(p.dtype == torch.float32 and bool(p.isfinite().all()) for p in model.parameters())


def test_muon_takes_matrices_and_stacks_and_leaves_the_rest_to_adamw():
    model = random_model(TINY).requires_grad_(True)
    optimizers = make_optimizer(model, kind="muon", lr=1e-3, weight_decay=0.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    sum((p * torch.randn_like(p)).sum() for p in model.parameters()).backward()
    optimizers.step()
    for name, p in model.named_parameters():
        moved = (p.detach() - before[name]).square().mean().sqrt()
        assert 0 < float(moved) < 2e-3, "both move by about the learning rate, whatever the gradient's size"
        is_muon = "momentum" in optimizers.state_of(p)
        assert is_muon == (p.dim() >= 2 and not any(part in name for part in ("embed", "conv_qk")))
