"""A step's branches are separate sequences; a training row's blocks are the step's; any accepted prefix leaves the right cache."""

import pytest
import torch

from tests.models import BIASED, MANY_HEADS, ONE_GROUP, SLIDING, TINY, random_ids, random_model
from zaya_core.config import Tidar
from zaya_core.layout import causal, packed, step, training_row
from zaya_core.model import Zaya

MASK, BLOCK = 4, 4
CONFIGS = {"plain": TINY, "sliding": SLIDING, "bias": BIASED, "one_group": ONE_GROUP, "many_heads": MANY_HEADS}


@pytest.fixture(params=CONFIGS)
def model(request) -> Zaya:
    return random_model(CONFIGS[request.param].with_changes(tidar=Tidar(BLOCK, MASK)), dtype=torch.float64)


def close(left: torch.Tensor, right: torch.Tensor) -> bool:
    return torch.allclose(left, right, rtol=1e-9, atol=1e-9)


def zeros(rows: int) -> torch.Tensor:
    return torch.zeros(rows, dtype=torch.int64)


def prefilled(model: Zaya, ids: torch.Tensor):
    cache = model.new_cache(ids.shape[0])
    if ids.shape[1]:
        model(ids, causal(cache.lengths, ids.shape[1]), cache)
        cache.commit(ids.shape[1])
    return cache


def masked(rows: int, count: int) -> torch.Tensor:
    return torch.full((rows, count), MASK)


@torch.no_grad()
@pytest.mark.parametrize("prefix", [0, 1, 2, 7])
@pytest.mark.parametrize("levels", [(1, 2, 3, 4), (1,), (2, 4), (3,), ()])
def test_branches_equal_separate_sequences(model, prefix, levels):
    ids, draft = random_ids(model.config, 1, prefix), random_ids(model.config, 1, 4, seed=9)
    cache = prefilled(model, ids)
    slots = torch.cat([draft, masked(1, BLOCK * len(levels))], 1)
    hidden = model(slots, step(cache.lengths, 4, levels, BLOCK), cache)

    row = torch.cat([ids, draft], 1)
    whole = model(row, causal(zeros(1), row.shape[1]))
    assert close(hidden[:, :4], whole[:, prefix:])
    for index, level in enumerate(levels):
        branch = torch.cat([ids, draft[:, :level], masked(1, BLOCK)], 1)
        alone = model(branch, causal(zeros(1), prefix + level, BLOCK))
        begin = 4 + index * BLOCK
        assert close(hidden[:, begin : begin + BLOCK], alone[:, -BLOCK:]), f"level {level}"


@torch.no_grad()
def test_blocks_read_nothing_but_their_prefix(model):
    """Later draft tokens and other blocks may change; a block's output may not."""
    ids = random_ids(model.config, 1, 5)
    one, other = random_ids(model.config, 1, 4, seed=1), random_ids(model.config, 1, 4, seed=2)
    other[:, :2] = one[:, :2]
    blocks = []
    for draft in (one, other):
        cache = prefilled(model, ids)
        hidden = model(torch.cat([draft, masked(1, 2 * BLOCK)], 1), step(cache.lengths, 4, (2, 4), BLOCK), cache)
        blocks.append(hidden[:, 4:])
    assert close(blocks[0][:, :BLOCK], blocks[1][:, :BLOCK])
    assert not close(blocks[0][:, BLOCK:], blocks[1][:, BLOCK:])


@torch.no_grad()
@pytest.mark.parametrize("first", [1, 2, 3, 4])
def test_training_row_equals_decode_steps(model, first):
    """Every mask block of a doubled row sees what a decode step after the same prefix sees, in every document of the row."""
    ids = random_ids(model.config, 1, 18)
    document = torch.tensor([[0] * 11 + [1] * 7])
    position = torch.cat([torch.arange(11), torch.arange(7)])[None]
    layout, target = training_row(document, position, torch.full_like(document, first), BLOCK)
    hidden = model(torch.cat([ids, torch.full_like(target, MASK)], 1), layout)
    assert close(hidden[:, :18], model(ids, packed(document, position)))

    blocks = target.view(-1, BLOCK)
    checked = 0
    for index, slots in enumerate(blocks):
        begin, end = int(slots[0]), 11 if slots[0] < 11 else 18
        assert slots.tolist() == [s if s < end else -1 for s in range(begin, begin + BLOCK)]
        prefix = ids[:, (0 if begin < 11 else 11) : begin]
        cache = prefilled(model, prefix[:, :-1])
        alone = model(torch.cat([prefix[:, -1:], masked(1, BLOCK)], 1), step(cache.lengths, 1, (1,), BLOCK), cache)
        assert close(hidden[:, 18 + index * BLOCK :][:, :BLOCK], alone[:, 1:]), f"block at slot {begin}"
        checked += 1
    assert checked == len(range(first, 11, BLOCK)) + len(range(first, 7, BLOCK))


@torch.no_grad()
def test_documents_do_not_see_each_other(model):
    ids = random_ids(model.config, 1, 12)
    document, position = torch.tensor([[0] * 5 + [1] * 7]), torch.cat([torch.arange(5), torch.arange(7)])[None]
    together = model(ids, packed(document, position))
    assert close(together[:, 5:], model(ids[:, 5:], causal(zeros(1), 7)))
    assert close(together[:, :5], model(ids[:, :5], causal(zeros(1), 5)))


@torch.no_grad()
@pytest.mark.parametrize("accepted", [1, 2, 3, 4])
def test_cache_after_accepting_equals_a_fresh_prefill(model, accepted):
    """Rejected tokens and masks leave no trace: the next forward is that of a prefill of the accepted tokens."""
    ids, draft = random_ids(model.config, 1, 6), random_ids(model.config, 1, 4, seed=3)
    cache = prefilled(model, ids)
    for _ in range(3):
        model(torch.cat([draft, masked(1, 2 * BLOCK)], 1), step(cache.lengths, 4, (1, 3), BLOCK), cache)
        cache.commit(accepted)
        ids = torch.cat([ids, draft[:, :accepted]], 1)
    fresh = prefilled(model, ids)
    nxt = random_ids(model.config, 1, 3, seed=4)
    layout = step(cache.lengths, 3, (2,), BLOCK)
    slots = torch.cat([nxt, masked(1, BLOCK)], 1)
    assert close(model(slots, layout, cache), model(slots, layout, fresh))
    assert cache.longest == ids.shape[1]


@torch.no_grad()
def test_rows_of_a_batch_accept_apart(model):
    """Ragged histories: each row of a batch gives what it gives alone."""
    draft = random_ids(model.config, 3, 4, seed=5)
    first = random_ids(model.config, 3, 5, seed=6)
    cache = prefilled(model, first)
    counts = torch.tensor([1, 4, 2])
    histories = [first[row : row + 1] for row in range(3)]
    for _ in range(2):
        hidden = model(torch.cat([draft, masked(3, BLOCK)], 1), step(cache.lengths, 4, (2,), BLOCK), cache)
        for row in range(3):
            alone = prefilled(model, histories[row])
            slots = torch.cat([draft[row : row + 1], masked(1, BLOCK)], 1)
            assert close(hidden[row : row + 1], model(slots, step(alone.lengths, 4, (2,), BLOCK), alone)), f"row {row}"
            histories[row] = torch.cat([histories[row], draft[row : row + 1, : counts[row]]], 1)
        cache.commit(counts)
    assert cache.lengths.tolist() == [7, 13, 9]
