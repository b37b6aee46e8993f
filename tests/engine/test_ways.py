"""`--proposals auto`: drafts stop where a text rejects them, go on where it accepts them, and are tried again later."""

import dataclasses
from itertools import pairwise

import pytest

from tests.models import TINY, random_model
from zaya_core.config import Tidar
from zaya_core.engine.batch import Engine
from zaya_core.engine.chance import SeededChance
from zaya_core.engine.decode import decode
from zaya_core.engine.draft import Proposals, Verifier
from zaya_core.engine.request import Decoding, Request
from zaya_core.engine.ways import QUIET, TRIAL, Watch, Way, Ways
from zaya_core.ops.sampling import Sampler

BLOCK = 4
AR, SHORT, LONG = Way(0, 0), Way(1, 2), Way(2, 4)
WAYS = Ways((AR,) * 10 + (SHORT,) * 5 + (LONG,) * 6, 0.8)  # AR below .475, LONG from .725 on


@pytest.fixture(scope="module")
def model():
    return random_model(TINY.with_changes(tidar=Tidar(BLOCK, 4)))


def drafting(weight: float, tokens: int = 200, guess: float = 0.8) -> Decoding:
    """With weight 0 the drafts judge themselves and all are accepted; with 1 few are, for the network is random."""
    ways = Ways(WAYS.fastest, guess)
    return Decoding(tokens, Sampler(1.0), Verifier(weight), Proposals(3), BLOCK, ways, forbidden=(4,))


def lengths(model, how: Decoding) -> list[int]:
    """Of the draft that each forward judged."""
    return [len(part.drafted) for part in decode(model, [5, 6, 7], how, SeededChance(0))]


def ids_of(parts) -> list[int]:
    return [final.token_id for part in parts for final in part.finals]


def test_the_nearest_chance_decides():
    assert [WAYS.at(chance) for chance in (0.0, 0.47, 0.48, 0.72, 0.73, 1.0)] == [AR, AR, SHORT, SHORT, LONG, LONG]


def test_a_watch_begins_with_the_guess_and_comes_to_what_it_sees():
    watch = Watch(WAYS)
    assert watch.chance == pytest.approx(0.8)
    for _ in range(200):
        watch.saw(4, 2)  # one of two judged was accepted
    assert watch.chance == pytest.approx(0.5, abs=0.02)
    for _ in range(200):
        watch.saw(4, 4)
    assert watch.chance == pytest.approx(0.98, abs=0.02), "a text changes"


def test_after_a_while_without_drafts_some_are_tried():
    watch = Watch(Ways(WAYS.fastest, 0.3))
    ways = []
    for _ in range(2 * QUIET):
        ways.append(watch.way)
        watch.saw(*(1, 1) if watch.way == AR else (2, 1))  # every draft is rejected
        watch.choose()
    assert set(ways[:QUIET]) == {AR}
    assert ways[QUIET : QUIET + TRIAL] == [SHORT] * TRIAL
    assert set(ways[QUIET + TRIAL :]) == {AR}


def test_a_whole_draft_accepted_is_no_rejection():
    watch = Watch(WAYS)
    for _ in range(50):
        watch.saw(4, 4)
    assert watch.chance > 0.98


def test_drafts_stop_where_they_are_rejected_and_are_tried_again(model):
    judged = lengths(model, drafting(1.0, tokens=600))
    assert max(judged[:3]) == 4
    stops = [place for place, (one, after) in enumerate(pairwise(judged)) if one > 1 and after == 1]
    resumed = [place for place, (one, after) in enumerate(pairwise(judged)) if one == 1 and after > 1]
    assert stops
    assert resumed
    assert min(stops) < 15
    assert judged.count(1) > 0.6 * len(judged)


def test_drafts_stay_where_they_are_accepted(model):
    judged = lengths(model, drafting(0.0))
    assert judged.count(1) < 0.1 * len(judged)
    assert judged.count(2) < len(judged) / 2, "some blocks begin too early, but they are long ones"


def test_a_poor_guess_is_not_the_last_word(model):
    """Below what pays nothing is drafted and so nothing judged, but now and then drafts are tried all the same."""
    judged = lengths(model, drafting(0.0, tokens=1000, guess=0.3))
    assert set(judged[1 : QUIET - 1]) == {1}
    assert judged[QUIET + 10 :].count(1) < 0.1 * len(judged[QUIET + 10 :])
    assert max(lengths(model, drafting(0.0, guess=0.5))) == 4


def test_where_no_chance_pays_nothing_is_tried(model):
    how = dataclasses.replace(drafting(0.0, tokens=2 * QUIET), ways=Ways((AR,) * 3, 0.9))
    assert set(lengths(model, how)[1:]) == {1}


def test_requests_learn_together_and_those_with_their_own_settings_stay_apart(model):
    """What one text showed decides how the next begins; a request without ways has the tokens that it has alone."""
    engine = Engine(model, num_slots=2000, max_rows=3)
    rejecting = Request([5, 6, 7], drafting(1.0, 40), SeededChance(0))
    engine.add(rejecting)
    while engine.num_rows:
        engine.step()
    own = dataclasses.replace(drafting(1.0, 40), ways=None)
    tickets = {engine.add(Request([8, 9], how, SeededChance(1))): how for how in (drafting(1.0, 40), drafting(0.3, 40), own)}
    parts: dict[int, list] = {ticket: [] for ticket in tickets}
    while engine.num_rows:
        for ticket, part in engine.step().items():
            parts[ticket].append(part)
    first, second, apart = parts.values()
    assert [len(run[1].drafted) for run in (first, second)] == [1, 1], "AR steps, as the first text came to"
    alone = list(decode(model, [8, 9], own, SeededChance(1)))
    assert [part.drafted for part in apart] == [part.drafted for part in alone]
    assert ids_of(apart) == ids_of(alone)


def test_rows_of_a_step_draft_alike(model):
    """Ways differ from step to step, never within one: a step is as wide as its widest row."""
    engine = Engine(model, num_slots=4000, max_rows=4)
    for seed in range(4):
        engine.add(Request([5, 6, 7 + seed], drafting(1.0, 150), SeededChance(seed)))
    blocks = []
    while engine.num_rows:
        blocks.append({turn.share.block_length for turn in engine._turns()})
        engine.step()
    assert all(len(each) == 1 for each in blocks)
    assert {LONG.block, AR.block} <= set.union(*blocks)
