"""`recipes/bench/blocks.py` on the bundled model: a line for each text and block, with shares at the offsets that the block has."""

from recipes.bench.blocks import main, told
from zaya_core.engine.report import Tally


def test_every_block_has_its_offsets(capsys):
    main(["--blocks", "4,2", "--prompts", "2", "--tokens", "8"])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [(row[0], row[1]) for row in rows] == [("code", "4"), ("code", "2"), ("problems", "4"), ("problems", "2")]
    for row in rows:
        assert 1 <= float(row[2]) <= int(row[1])
        assert all(0 <= float(share) <= 1 for share in row[4:] if share)
        assert sum(bool(share) for share in row[4:]) <= int(row[1]) - 1


def test_shares_are_of_those_that_were_judged():
    # Three forwards after the prompt's: all of three drafts accepted, one of three, none.
    tally = Tally(counts=[1, 4, 2, 1], drafted=[0, 4, 4, 4], accepted=[0, 4, 2, 1])
    assert told([tally], 4) == ["2.33", "6", "0.67", "0.50", "1.00", "", "", "", ""]
