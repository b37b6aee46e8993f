"""Weights laid out for decoding: the products of packed and of plain weights, alone and through the whole network."""

import pytest
import torch

from tests.models import TINY, random_ids, random_model
from tests.sequences import Sequence
from zaya_core.config import Tidar
from zaya_core.model.serving import ServingModel
from zaya_core.ops.experts import apply_experts_slow
from zaya_core.ops.products import SMALL, apply_prepared_experts, padded, prepared
from zaya_core.runtime import has_fast_bfloat16


def weights(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape))) / shape[-1] ** 0.5


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> bool:
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max()) < tolerance


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(24, 16), (512, 256)], ids=["small", "large"])
def test_a_prepared_product_is_the_product(rows, dtype, shape):
    weight, bias, x = weights(*shape).to(dtype), weights(shape[0]).to(dtype), weights(rows, shape[1]).to(dtype)
    ours = prepared(weight, bias, packs=True)
    assert ours.is_packed == (dtype == torch.bfloat16 and weight.numel() > SMALL and has_fast_bfloat16())
    exact = x.double() @ weight.double().T + bias.double()
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-2}[dtype]
    assert close(ours(x), exact, tolerance)
    assert close(ours.gelu(x), torch.nn.functional.gelu(exact), 2 * tolerance)


@pytest.mark.parametrize("rows", [1, 2, 50])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("width", [16, 256], ids=["small", "large"])
def test_prepared_experts_are_the_experts(rows, dtype, width):
    """Skipped tokens among them, and experts that nobody chose."""
    gate_up, down, x = weights(5, 2 * width, width).to(dtype), weights(5, width, width).to(dtype), weights(rows, width).to(dtype)
    choice = torch.randint(0, 6, (rows,), generator=torch.Generator().manual_seed(rows))
    choice[choice == 2] = 5
    ours = apply_prepared_experts(x, choice, *([prepared(part, packs=True) for part in stack] for stack in (gate_up, down)))
    theirs = apply_experts_slow(x.double(), choice, gate_up.double(), down.double())
    if theirs.abs().max() == 0:
        assert ours.abs().max() == 0
    else:
        assert close(ours, theirs, 1e-12 if dtype == torch.float64 else 2e-2)


@torch.no_grad()
@pytest.mark.parametrize("packs", [True, False])
def test_bfloat16_for_serving_is_close_to_the_plain_network(packs):
    """Both round, each in its places: as far from float64 as one another."""
    config = TINY.with_changes(hidden_size=192, moe_intermediate_size=256, tidar=Tidar(4, 4))
    ids = random_ids(config, 1, 40)
    exact, plain = (Sequence(random_model(config, dtype=dtype)).step(ids, 40) for dtype in (torch.float64, torch.bfloat16))
    serving = Sequence(ServingModel(random_model(config, dtype=torch.bfloat16), packs=packs)).step(ids, 40)
    error, plain_error = ((part.double() - exact).abs().mean() for part in (serving, plain))
    assert serving.dtype == torch.bfloat16
    assert error < 2 * plain_error


def test_an_experts_rows_come_in_few_numbers():
    assert [padded(count, 1) for count in (1, 33, 1000)] == [1, 33, 1000]
    assert [padded(count, 8) for count in (1, 8, 9, 100, 200)] == [8, 8, 16, 104, 208]
    assert [padded(count, 32) for count in (1, 500, 513, 4095)] == [32, 512, 576, 4096]
    many = range(256, 4097)
    assert all(count <= padded(count, 32) <= 1.125 * count for count in many)
    assert len({padded(count, 32) for count in range(1, 4097)}) == 40
