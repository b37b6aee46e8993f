"""The losses against a slow reading of the recipe: one separate forward per block, one loss per label."""

from dataclasses import replace

import pytest
import torch

from tests.models import SLIDING, TINY, random_ids, random_model
from zaya_core.config import Tidar
from zaya_core.data.packing import Batch
from zaya_core.errors import DeviceError, RunError
from zaya_core.layout import causal
from zaya_core.train.loop import _check, figures_of
from zaya_core.train.memory import knobs_named
from zaya_core.train.objective import Objective, objective_loss

BLOCK, MASK = 4, 4


def batch_of(config) -> Batch:
    """Two rows: two documents (phases 2 and 4), and one (phase 1)."""
    position = torch.stack([torch.cat([torch.arange(9), torch.arange(5)]), torch.arange(14)])
    document = torch.tensor([[0] * 9 + [1] * 5, [0] * 14])
    first = torch.tensor([[2] * 9 + [4] * 5, [1] * 14])
    return Batch(random_ids(config, 2, 14), document, position, first, torch.ones(2, 14))


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
    batch, objective = batch_of(config), Objective("tidar", ar_weight=0.7)
    ar_sum, ar_count, diffusion_sum, diffusion_count, overlaps = slow_losses(model, batch)
    assert objective.denominators([batch], BLOCK) == (ar_count, diffusion_count)
    loss, losses = objective_loss(model, batch, objective, (ar_count, diffusion_count), measure=True)
    slow_loss = (0.7 * ar_sum / ar_count + diffusion_sum / diffusion_count) / 1.7
    assert float(loss.detach()) == pytest.approx(float(slow_loss.detach()), rel=1e-10)
    assert float(losses.ar_sum.sum().detach()) == pytest.approx(float(ar_sum.detach()), rel=1e-10)
    assert float(losses.nats.sum().detach()) == pytest.approx(float(diffusion_sum.detach()), rel=1e-10)
    assert int(losses.num_blocks.sum()) == len(overlaps)
    accepted = sum(float(torch.tensor(row).cumprod(0).sum()) for row in overlaps)
    assert float(losses.accepted.sum()) == pytest.approx(accepted, rel=1e-6)
    assert figures_of(losses, objective)["acceptance_length"] == pytest.approx(1 + accepted / len(overlaps), rel=1e-6)

    parameters = [p for p in model.parameters() if p.requires_grad]
    fast = torch.autograd.grad(loss, parameters)
    slow = torch.autograd.grad(slow_loss, parameters)
    for left, right in zip(fast, slow, strict=True):
        assert torch.allclose(left, right, rtol=1e-8, atol=1e-9)
    # Every parameter learns: the trap of a zero temperature is not here.
    assert all(float(gradient.abs().max()) > 0 for gradient in fast)


def test_the_ar_objective_is_the_clean_half():
    model = random_model(TINY.with_changes(tidar=Tidar(BLOCK, MASK)), dtype=torch.float64)
    batch = batch_of(TINY)
    _, alone = objective_loss(model, batch, Objective("ar"), (1.0, 1.0), measure=False)
    _, joint = objective_loss(model, batch, Objective("tidar"), (1.0, 1.0), measure=False)
    assert float(alone.ar_sum.sum()) == pytest.approx(float(joint.ar_sum.sum()), rel=1e-12)
    assert torch.equal(alone.load[0], joint.load[0])
    assert int(alone.load[1].sum()) == 0
    assert int(joint.load[1].sum()) == 3 * 4 * (2 + 1 + 4)  # layers x block x (blocks of the three documents)


def test_offsets_weigh_and_the_own_ar_half_teaches():
    """Against the formula, mask by mask, from separate forwards; the teacher is taken as given."""
    model = random_model(TINY.with_changes(tidar=Tidar(BLOCK, MASK)), dtype=torch.float64).requires_grad_(True)
    batch, objective = batch_of(TINY), Objective("tidar", ar_weight=0.0, kl_share=0.7, offset_decay=0.8)
    total = weights = 0
    for ids, first in documents(batch):
        laws = log_probabilities(model, ids).detach()
        for begin in range(first, len(ids), BLOCK):
            masked = log_probabilities(model, ids[:begin], BLOCK)[begin:]
            for m in range(min(BLOCK, len(ids) - begin)):
                teacher = laws[begin + m - 1]
                kl = (teacher.exp() * (teacher - masked[m])).sum()
                total = total + 0.8**m * (0.3 * -masked[m, ids[begin + m]] + 0.7 * kl)
                weights += 0.8**m
    assert objective.denominators([batch], BLOCK)[1] == pytest.approx(weights, rel=1e-6)
    loss, _ = objective_loss(model, batch, objective, (1.0, weights), measure=False)
    assert float(loss.detach()) == pytest.approx(float(total.detach()) / weights, rel=1e-6)
    parameters = list(model.parameters())
    for left, right in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(total / weights, parameters), strict=True):
        assert torch.allclose(left, right, rtol=1e-5, atol=1e-7)  # the weights are float32


def test_blocks_without_a_label_are_not_computed_and_change_nothing():
    model = random_model(TINY.with_changes(tidar=Tidar(BLOCK, MASK)), dtype=torch.float64)
    batch = batch_of(TINY)
    weight = torch.zeros(2, 14)
    weight[0, 4:7], weight[1, 12] = 1.0, 0.5  # an answer over two blocks, and half a token
    answers = replace(batch, weight=weight)
    losses = objective_loss(model, answers, Objective("tidar"), (1.0, 1.0), measure=False)[1]
    expected = 0.0
    for row, wanted in ((0, (4, 5, 6)), (1, (12,))):
        ids = batch.token_ids[row][batch.document[row] == 0]
        first = int(batch.first[row, 0])
        for slot in wanted:
            begin = slot - (slot - first) % BLOCK
            masked = log_probabilities(model, ids[:begin], BLOCK)[begin:]
            expected -= float(masked[slot - begin, ids[slot]]) * float(weight[row, slot])
    assert float(losses.nats.sum().detach()) == pytest.approx(expected, rel=1e-6)
    assert float(losses.weight.sum()) == 3.5
    assert int(losses.load[1].sum()) == 3 * 4 * (2 + 1), "two blocks of the first row, one of the second"


def test_a_step_without_a_label_names_itself():
    model = random_model(TINY.with_changes(tidar=Tidar(BLOCK, MASK)), dtype=torch.float64)
    objective = Objective("tidar")
    batch = batch_of(TINY)
    for weight, is_empty in ((torch.zeros(2, 14), True), (batch.weight, False)):
        losses = objective_loss(model, replace(batch, weight=weight), objective, (1.0, 1.0), measure=False)[1]
        figures = figures_of(losses, objective)
        if is_empty:
            with pytest.raises(RunError, match=r"step 5, rows range\(8, 10\): no token carries a loss"):
                _check(figures, losses, range(8, 10), 4)
        else:
            _check(figures, losses, range(8, 10), 4)


def test_an_allocation_that_fails_names_the_knobs():
    with pytest.raises(DeviceError, match=r"out of memory.*--batch-size.*--gradient-checkpointing"), knobs_named():
        torch.empty(2**50)
