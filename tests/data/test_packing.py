"""Rows out of documents: every token once an epoch, in order, and each row a function of its index alone."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from zaya_core.data.documents import Documents, Example
from zaya_core.data.packing import MixedRows, PackedRows
from zaya_core.errors import DataError

SEQ_LEN, BLOCK = 12, 5


def make_documents():
    """Ids 1000 * document + place, so that every token says where it came from; lengths from 1 to several rows."""
    lengths = [1, 2, 40, 7, 12, 24, 3, 1, 90, 5, 11, 13]
    return [[1000 * (number + 1) + place for place in range(length)] for number, length in enumerate(lengths)]


def make_rows(seed=0, documents=None, **changes):
    options = {"seq_len": SEQ_LEN, "block_length": BLOCK, "seed": seed} | changes
    return PackedRows(Documents.of(Example(ids) for ids in documents or make_documents()), **options)


def epoch(rows, number=0):
    return rows.batch(range(number * rows.rows_per_epoch, (number + 1) * rows.rows_per_epoch))


@pytest.mark.parametrize("number", [0, 1, 5])
def test_every_token_at_most_once_and_in_document_order(number):
    rows = make_rows()
    ids = epoch(rows, number).token_ids.flatten().tolist()
    assert rows.rows_per_epoch == 209 // SEQ_LEN
    assert len(ids) == len(set(ids)) == rows.rows_per_epoch * SEQ_LEN
    assert set(ids) <= {token for document in make_documents() for token in document}
    assert 209 - len(ids) < SEQ_LEN, "only what does not fill a row is left out"
    # Laid end to end, a document's tokens are neighbours: each is followed by the next, or by another document's first.
    for left, right in pairwise(ids):
        assert right == left + 1 or right % 1000 == 0


def test_positions_and_document_numbers_restart():
    batch = epoch(make_rows())
    for ids, document, position in zip(batch.token_ids, batch.document, batch.position, strict=True):
        assert (document[0], position[0]) == (0, 0)
        for slot in range(1, SEQ_LEN):
            is_same = ids[slot] // 1000 == ids[slot - 1] // 1000
            assert document[slot] == document[slot - 1] + (not is_same)
            assert position[slot] == (position[slot - 1] + 1 if is_same else 0)
    cut = (batch.token_ids[:, 0] % 1000 > 0) & (batch.position[:, 0] == 0)
    assert cut.any(), "some document must go on in a new row, as one of its own"


def test_first_is_a_phase_of_each_document():
    rows, seen = make_rows(), set()
    for number in range(20):
        batch = epoch(rows, number)
        assert int(batch.first.min()) >= 1
        assert int(batch.first.max()) <= BLOCK
        for first, document in zip(batch.first, batch.document, strict=True):
            for index in document.unique():
                phases = set(first[document == index].tolist())
                assert len(phases) == 1
                seen |= phases
    assert seen == set(range(1, BLOCK + 1))


def test_the_phase_changes_with_the_epoch_where_the_row_does_not():
    rows = make_rows(documents=[list(range(SEQ_LEN))])
    assert rows.rows_per_epoch == 1
    assert len(set(rows.batch(range(40)).first[:, 0].tolist())) == BLOCK


def test_a_row_depends_on_data_seed_and_index_alone():
    whole = epoch(make_rows())
    asked = make_rows()
    for index in [3, 16, 0, 3, 11]:
        one = asked.batch(range(index, index + 1))
        asked.batch(range(40, 45))  # other epochs in between
        for name in ("token_ids", "document", "position", "first"):
            assert torch.equal(getattr(one, name)[0], getattr(whole, name)[index])


def test_epochs_and_seeds_differ():
    rows = make_rows()
    assert not torch.equal(epoch(rows, 0).token_ids, epoch(rows, 1).token_ids)
    assert not torch.equal(epoch(rows, 0).first, epoch(rows, 1).first)
    assert not torch.equal(epoch(rows).token_ids, epoch(make_rows(seed=1)).token_ids)
    assert not torch.equal(epoch(rows).first, epoch(make_rows(seed=1)).first)


def test_two_sets_of_rows_do_not_share_their_order():
    first, other = make_rows(), make_rows(documents=make_documents()[:9])
    expected = epoch(make_rows(documents=make_documents()[:9])).token_ids
    epoch(first)
    assert torch.equal(epoch(other).token_ids, expected)


def test_everything_weighs_one_in_text():
    assert bool((epoch(make_rows()).weight == 1).all())


def test_exactly_enough_and_too_little():
    one = make_rows(documents=[[1, 2, 3], [4, 5]], seq_len=5)
    assert sorted(one.batch(range(1)).token_ids[0].tolist()) == [1, 2, 3, 4, 5]
    assert one.batch(range(7, 9)).token_ids.shape == (2, 5)
    with pytest.raises(DataError, match="the data has 5 tokens, expected at least one row of --seq-len 6"):
        make_rows(documents=[[1, 2, 3], [4, 5]], seq_len=6)


def test_large_ids_survive():
    largest = np.iinfo(np.int32).max
    assert make_rows(documents=[[largest] * SEQ_LEN]).batch(range(1)).token_ids.max() == largest


def whole_rows(lengths, **changes):
    examples = [Example([1000 * (n + 1) + i for i in range(size)], [0.0] + [1.0] * (size - 1)) for n, size in enumerate(lengths)]
    options = {"seq_len": SEQ_LEN, "block_length": BLOCK, "seed": 0} | changes
    return PackedRows(Documents.of(examples), **options, whole=True)


def test_whole_examples_are_never_cut():
    lengths = [12, 7, 5, 6, 3, 3, 9, 2, 1]
    rows = whole_rows(lengths)
    assert rows.rows_per_epoch == 4, "48 tokens in four rows of 12: best fit, longest first, leaves no hole here"
    found = []
    for batch in (rows.batch(range(4)), rows.batch(range(4, 8))):
        ids = batch.token_ids[batch.document >= 0].tolist()
        assert sorted(ids) == sorted(1000 * (n + 1) + i for n, size in enumerate(lengths) for i in range(size))
        assert bool(((batch.position == 0) == (batch.token_ids % 1000 == 0)).all())
        assert bool(((batch.weight == 0) == (batch.position == 0)).all())
        found.append(ids)
    assert found[0] != found[1], "another order in the next epoch"


def test_padding_holds_nothing():
    batch = whole_rows([5, 9]).batch(range(2))
    empty = batch.document < 0
    assert int(empty.sum()) == 24 - 14
    assert batch.weight[empty].abs().sum() == 0


def test_a_mixture_has_its_shares_in_every_thousand_rows():
    parts = [make_rows(), whole_rows([12, 12]), make_rows(documents=[[7] * 50])]
    mixed = MixedRows(parts, [0.7, 0.2, 0.1], seed=3)
    assert mixed.counts.tolist() == [700, 200, 100]
    ids = mixed.batch(range(1000)).token_ids
    assert int((ids == 7).all(1).sum()) == 100
    # Each source's rows come in its own order, whatever lies between: the period's last place is as good as its first.
    again = [mixed.row(index)[0].tolist() for index in range(999, -1, -1)][::-1]
    assert again == ids.tolist()
    assert mixed.row(1500)[0].tolist() == MixedRows(parts, [7, 2, 1], seed=3).row(1500)[0].tolist()
