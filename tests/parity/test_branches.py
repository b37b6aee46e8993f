"""A step's branches are separate sequences; a training row's blocks are the step's; any accepted prefix leaves the right history.

All of it for the plain network and for its two forms for serving, over one pool.
"""

import pytest
import torch

from tests.models import BIASED, MANY_HEADS, ONE_GROUP, SLIDING, TINY, UNTIED, random_ids, random_model
from tests.sequences import Sequence
from zaya_core.config import Tidar
from zaya_core.errors import ConfigError
from zaya_core.layout import causal, packed, template, training_row
from zaya_core.model import Zaya
from zaya_core.model.load import meta_model
from zaya_core.model.serving import ServingModel
from zaya_core.model.static import StaticModel

MASK, BLOCK = 4, 4
CONFIGS = {
    "plain": TINY,
    "sliding": SLIDING,
    "bias": BIASED,
    "one_group": ONE_GROUP,
    "many_heads": MANY_HEADS,
    "skips_through": UNTIED.with_changes(skip_expert_output="identity"),
}


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param].with_changes(tidar=Tidar(BLOCK, MASK))


@pytest.fixture
def model(config) -> Zaya:
    return random_model(config, dtype=torch.float64)


@pytest.fixture(params=["as it is", ServingModel, StaticModel])
def network(request, model, config):
    return model if request.param == "as it is" else request.param(random_model(config, dtype=torch.float64))


def close(left: torch.Tensor, right: torch.Tensor) -> bool:
    return torch.allclose(left, right, rtol=1e-9, atol=1e-9)


def zeros(rows: int) -> torch.Tensor:
    return torch.zeros(rows, dtype=torch.int64)


def masked(rows: int, count: int) -> torch.Tensor:
    return torch.full((rows, count), MASK)


@torch.no_grad()
@pytest.mark.parametrize("prefix", [0, 1, 2, 7])
@pytest.mark.parametrize("levels", [(1, 2, 3, 4), (1,), (2, 4), (3,), ()])
def test_branches_equal_separate_sequences(model, network, prefix, levels):
    ids, draft = random_ids(model.config, 1, prefix), random_ids(model.config, 1, 4, seed=9)
    slots = torch.cat([draft, masked(1, BLOCK * len(levels))], 1)
    hidden = Sequence(network, ids).step(slots, 4, levels, BLOCK)

    row = torch.cat([ids, draft], 1)
    whole = model(row, causal(zeros(1), row.shape[1]))
    assert close(hidden[:, :4], whole[:, prefix:])
    for index, level in enumerate(levels):
        branch = torch.cat([ids, draft[:, :level], masked(1, BLOCK)], 1)
        alone = model(branch, causal(zeros(1), prefix + level, BLOCK))
        begin = 4 + index * BLOCK
        assert close(hidden[:, begin : begin + BLOCK], alone[:, -BLOCK:]), f"level {level}"


@torch.no_grad()
def test_blocks_read_nothing_but_their_prefix(network):
    """Later draft tokens and other blocks may change; a block's output may not."""
    ids = random_ids(network.config, 1, 5)
    one, other = random_ids(network.config, 1, 4, seed=1), random_ids(network.config, 1, 4, seed=2)
    other[:, :2] = one[:, :2]
    blocks = []
    for draft in (one, other):
        hidden = Sequence(network, ids).step(torch.cat([draft, masked(1, 2 * BLOCK)], 1), 4, (2, 4), BLOCK)
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
        alone = Sequence(model, prefix[:, :-1]).step(torch.cat([prefix[:, -1:], masked(1, BLOCK)], 1), 1, (1,), BLOCK)
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
def test_history_after_accepting_equals_a_fresh_prefill(network, accepted):
    """Rejected tokens and masks leave no trace: the next forward is that of a prefill of the accepted tokens."""
    ids, draft = random_ids(network.config, 1, 6), random_ids(network.config, 1, 4, seed=3)
    sequence = Sequence(network, ids)
    for _ in range(3):
        sequence.step(torch.cat([draft, masked(1, 2 * BLOCK)], 1), 4, (1, 3), BLOCK)
        sequence.commit(accepted)
        ids = torch.cat([ids, draft[:, :accepted]], 1)
    slots = torch.cat([random_ids(network.config, 1, 3, seed=4), masked(1, BLOCK)], 1)
    assert close(sequence.step(slots, 3, (2,), BLOCK), Sequence(network, ids).step(slots, 3, (2,), BLOCK))
    assert sequence.row.length == ids.shape[1]


@torch.no_grad()
def test_rows_side_by_side_are_rows_alone(network):
    """Ragged histories, drafts and blocks, rows that leave and come in their place: each gives what it gives alone."""
    pool = network.new_pool(150, max_rows=3)
    lengths, histories = [9, 1, 17], []
    rows = [pool.open(50) for _ in lengths]
    prompts = [random_ids(network.config, 1, length, seed=length) for length in lengths]
    network(torch.cat(prompts, 1), pool.layout([(row, template(n)) for row, n in zip(rows, lengths, strict=True)]), pool)
    pool.commit(lengths)
    histories = list(prompts)
    shapes, counts = [(4, (1, 3)), (2, (2,)), (1, ())], [3, 1, 1]
    for turn in range(4):
        if turn == 2:
            pool.close(rows[1])
            rows[1], histories[1] = pool.open(40), prompts[1][:, :0]
        drafts = [random_ids(network.config, 1, n, seed=10 * turn + n) for n, _ in shapes]
        slots = [torch.cat([draft, masked(1, BLOCK * len(levels))], 1) for draft, (_, levels) in zip(drafts, shapes, strict=True)]
        steps = [(row, template(n, levels, BLOCK)) for row, (n, levels) in zip(rows, shapes, strict=True)]
        hidden = network(torch.cat(slots, 1), pool.layout(steps), pool).split([part.shape[1] for part in slots], 1)
        for index, (n, levels) in enumerate(shapes):
            alone = Sequence(network, histories[index]).step(slots[index], n, levels, BLOCK)
            assert close(hidden[index], alone), (turn, index)
            histories[index] = torch.cat([histories[index], drafts[index][:, : counts[index]]], 1)
        pool.commit(counts)
        shapes, counts, rows, histories = (part[1:] + part[:1] for part in (shapes, counts, rows, histories))


@torch.no_grad()
def test_long_chunks_are_short_chunks(model, network):
    """A prompt's chunk of hundreds of tokens takes another way through attention; a block may follow the last."""
    ids = random_ids(model.config, 1, 620)
    long = Sequence(network, ids[:, :300], capacity=700)
    hidden = long.step(torch.cat([ids[:, 300:], masked(1, BLOCK)], 1), 320, (320,), BLOCK)
    whole = model(torch.cat([ids, masked(1, BLOCK)], 1), causal(zeros(1), 620, BLOCK))
    assert close(hidden, whole[:, 300:])


def test_off_the_cpu_a_network_decodes_in_its_form_for_serving_only(config):
    with pytest.raises(ConfigError, match="this network is on meta, expected the CPU"):
        meta_model(config).new_pool(10)
