"""The losses against a slow reading of the recipe: one separate forward per block, one loss per label."""

import pytest
import torch

from tests.models import SLIDING, TINY, random_ids, random_model
from zaya_core.config import Tidar
from zaya_core.data.packing import Batch
from zaya_core.layout import causal
from zaya_core.train.objective import acceptance_length, ar_losses, tidar_losses

BLOCK, MASK = 4, 4


def batch_of(config) -> Batch:
    """Two rows: two documents (phases 2 and 4), and one (phase 1)."""
    position = torch.stack([torch.cat([torch.arange(9), torch.arange(5)]), torch.arange(14)])
    document = torch.tensor([[0] * 9 + [1] * 5, [0] * 14])
    first = torch.tensor([[2] * 9 + [4] * 5, [1] * 14])
    return Batch(random_ids(config, 2, 14), document, position, first)


def documents(batch: Batch):
    """(ids, first) of every document."""
    for row in range(batch.token_ids.shape[0]):
        for number in batch.document[row].unique():
            chosen = batch.document[row] == number
            yield batch.token_ids[row][chosen], int(batch.first[row][chosen][0])


def log_probabilities(model, ids: torch.Tensor, block: int = 0) -> torch.Tensor:
    slots = torch.cat([ids, torch.full((block,), MASK)])[None]
    layout = causal(torch.zeros(1, dtype=torch.int64), ids.numel(), block)
    return model.logits(model(slots, layout))[0].log_softmax(-1)


def slow_losses(model, batch: Batch) -> tuple[torch.Tensor, int, torch.Tensor, int, list]:
    ar, diffusion, overlaps = [], [], []
    for ids, first in documents(batch):
        rows = log_probabilities(model, ids)
        ar += [-rows[at, ids[at + 1]] for at in range(len(ids) - 1)]
        for begin in range(first, len(ids), BLOCK):
            masked = log_probabilities(model, ids[:begin], BLOCK)[begin:]
            whole = begin + BLOCK <= len(ids)
            diffusion += [-masked[m, ids[begin + m]] for m in range(min(BLOCK, len(ids) - begin))]
            if whole:
                laws = [(rows[begin + m - 1].exp(), masked[m].exp()) for m in range(1, BLOCK)]
                overlaps.append([float(torch.minimum(p, q).sum().detach()) for p, q in laws])
    return torch.stack(ar).sum(), len(ar), torch.stack(diffusion).sum(), len(diffusion), overlaps


@pytest.mark.parametrize("config", [TINY, SLIDING], ids=["plain", "sliding"])
def test_losses_and_gradients_equal_the_slow_reading(config):
    model = random_model(config.with_changes(tidar=Tidar(BLOCK, MASK)), dtype=torch.float64).requires_grad_(True)
    batch = batch_of(config)
    losses = tidar_losses(model, batch, with_overlap=True)
    ar_sum, ar_count, diffusion_sum, diffusion_count, overlaps = slow_losses(model, batch)
    assert losses.ar_count == ar_count == batch.num_ar_labels
    assert losses.diffusion_count == diffusion_count == batch.num_diffusion_labels
    assert float(losses.ar_sum.detach()) == pytest.approx(float(ar_sum.detach()), rel=1e-10)
    assert float(losses.diffusion_sum.detach()) == pytest.approx(float(diffusion_sum.detach()), rel=1e-10)
    assert sorted(losses.overlap.tolist()) == [pytest.approx(row, abs=1e-6) for row in sorted(overlaps)]
    assert acceptance_length(losses.overlap) >= 1

    parameters = [p for p in model.parameters() if p.requires_grad]
    fast = torch.autograd.grad(losses.ar_sum + 0.7 * losses.diffusion_sum, parameters)
    slow = torch.autograd.grad(ar_sum + 0.7 * diffusion_sum, parameters)
    for left, right in zip(fast, slow, strict=True):
        assert torch.allclose(left, right, rtol=1e-8, atol=1e-9)
    # Every parameter learns: the trap of a zero temperature is not here.
    assert all(float(gradient.abs().max()) > 0 for gradient in fast)


def test_the_ar_objective_is_the_clean_half():
    model = random_model(TINY.with_changes(tidar=Tidar(BLOCK, MASK)), dtype=torch.float64)
    batch = batch_of(TINY)
    alone, joint = ar_losses(model, batch), tidar_losses(model, batch, with_overlap=False)
    assert float(alone.ar_sum) == pytest.approx(float(joint.ar_sum), rel=1e-12)
    assert torch.equal(alone.load[0], joint.load[0])
    assert int(alone.load[1].sum()) == 0
    assert int(joint.load[1].sum()) == 3 * 4 * (2 + 1 + 4)  # layers x block x (blocks of the three documents)
