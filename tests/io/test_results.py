"""A results file after every cut that a kill can make: the rest is made, nothing twice, nothing lost, in order."""

import itertools
import json
import random

import pytest

from zaya_core.errors import ConfigError, RunError
from zaya_core.io.results import ResultsFile, beside, claim, discard

TOTAL = 5
SETTINGS = {"seed": 1, "sampler": "ar"}
WANTED = [{"index": index, "text": "é\u2028" * index} for index in range(TOTAL)]


def begin(path, rank=0, world=1):
    claim(path, SETTINGS)
    return ResultsFile(path, total=TOTAL, rank=rank, world=world)


def make(path, order, rank=0, world=1):
    """A whole run that finishes its lines in this order; returns the numbers it made."""
    made = []
    with begin(path, rank, world) as file:
        missing = set(file.missing())
        for index in order:
            if index in missing:
                file.write(WANTED[index])
                made.append(index)
        file.finish()
    return made


def lines(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def assert_whole(path):
    assert lines(path) == WANTED
    assert sorted(item.name for item in path.parent.iterdir()) == ["y.jsonl", "y.jsonl.run.json"]


@pytest.mark.parametrize("order", list(itertools.permutations(range(TOTAL))))
def test_any_order_of_finishing_gives_the_order_of_the_input(tmp_path, order):
    path = tmp_path / "y.jsonl"
    assert make(path, order) == list(order)
    assert_whole(path)
    assert make(path, order) == [], "a rerun makes nothing"
    assert_whole(path)


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (1, 0, 3, 4, 2)])
def test_a_kill_after_any_byte_of_any_file(tmp_path, order):
    """After every line, and with both files cut anywhere inside their last line."""
    for count in range(TOTAL):
        for cut in range(0, 40, 3):
            for name in ("y.jsonl", "y.jsonl.part-0"):
                path = tmp_path / f"{count}-{cut}-{name}" / "y.jsonl"
                path.parent.mkdir()
                with begin(path) as file:
                    for index in order[:count]:
                        file.write(WANTED[index])
                torn = path.with_name(name)
                whole = torn.read_bytes()
                last = whole[: whole.rstrip(b"\n").rfind(b"\n") + 1]
                torn.write_bytes(max(whole[: len(whole) - cut], last, key=len) if cut else whole)
                again = make(path, order)
                assert set(order[count:]) <= set(again)
                assert len(again) <= TOTAL - count + 1, "at most the torn line is made again"
                assert_whole(path)


def test_what_is_ahead_of_its_turn_is_kept_and_what_has_its_turn_is_in_place(tmp_path):
    path = tmp_path / "y.jsonl"
    with begin(path) as file:
        for index in (1, 2, 4):
            file.write(WANTED[index])
        assert lines(path) == []
        file.write(WANTED[0])
        assert lines(path) == WANTED[:3]
    with begin(path) as file:
        assert list(file.missing()) == [3]
        assert file.num_done == 4


@pytest.mark.parametrize("seed", range(10))
def test_ranks_share_the_lines_and_the_last_joins_them(tmp_path, seed):
    """Two of three ranks are killed on the way; the rerun has another number of ranks."""
    path, chance = tmp_path / "y.jsonl", random.Random(seed)
    for rank in range(3):
        with begin(path, rank, 3) as file:
            mine = list(file.missing())
            assert mine == list(range(rank, TOTAL, 3))
            for index in chance.sample(mine, chance.randint(0, len(mine))):
                file.write(WANTED[index])
    world = chance.choice([1, 2, 4])
    made = [index for rank in range(world) for index in make(path, range(TOTAL), rank, world)]
    assert len(made) == len(set(made))
    assert_whole(path)


def test_a_rank_that_is_not_last_says_so(tmp_path):
    path = tmp_path / "y.jsonl"
    for rank, is_last in ((1, False), (0, True)):
        with begin(path, rank, 2) as file:
            for index in list(file.missing()):
                file.write(WANTED[index])
            assert file.finish() is is_last
    assert_whole(path)


def test_two_processes_do_not_write_the_same_part(tmp_path):
    with (
        begin(tmp_path / "y.jsonl"),
        pytest.raises(RunError, match="being written by another process"),
        begin(tmp_path / "y.jsonl"),
    ):
        pass


def test_another_config_shows_the_difference(tmp_path):
    path = tmp_path / "y.jsonl"
    claim(path, SETTINGS)
    with pytest.raises(ConfigError, match="sampler was 'ar' and is 'mix'"):
        claim(path, SETTINGS | {"sampler": "mix"})
    assert claim(path, SETTINGS | {"seed": 9}, free=frozenset({"seed"})) == SETTINGS


def test_a_file_of_another_kind_is_left_alone(tmp_path):
    path = tmp_path / "y.jsonl"
    path.write_text("mine\n")
    with pytest.raises(ConfigError, match="no run of this command began it"):
        claim(path, SETTINGS)
    assert path.read_text() == "mine\n"
    discard(path)
    assert list(tmp_path.iterdir()) == []


def test_lines_taken_out_by_hand_are_noticed(tmp_path):
    path = tmp_path / "y.jsonl"
    make(path, range(TOTAL))
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))
    with pytest.raises(RunError, match="expected index 3"), begin(path):
        pass
    assert beside(path, "run.json").exists()
