"""`--proposals auto`: drafts stop where a text rejects them, go on where it accepts them, and are tried again later."""

from itertools import pairwise

import pytest

from tests.models import TINY, random_ids, random_model
from zaya_core.config import Tidar
from zaya_core.engine.batch import Engine
from zaya_core.engine.chance import SeededChance
from zaya_core.engine.decode import decode
from zaya_core.engine.draft import Proposals, Verifier
from zaya_core.engine.request import Decoding, Request
from zaya_core.engine.ways import Watch, Way, Ways
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


def test_the_nearest_chance_decides():
    assert [WAYS.at(chance) for chance in (0.0, 0.47, 0.48, 0.72, 0.73, 1.0)] == [AR, AR, SHORT, SHORT, LONG, LONG]


def test_a_watch_begins_with_the_guess_and_comes_to_what_it_sees():
    watch = Watch(WAYS)
    assert watch.chance == pytest.approx(0.8)
    for _ in range(200):
        watch.saw(4, 2)  # one of two judged was accepted
    assert watch.chance == pytest.approx(0.5, abs=0.01)
    for _ in range(4000):
        watch.saw(1, 1)  # AR steps judge nothing
    assert watch.chance == pytest.approx(0.8, abs=0.01)


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
    """A guess below what pays is believed, for nothing is judged where nothing is drafted; one just above it is put to the test."""
    assert set(lengths(model, drafting(0.0, guess=0.3))[1:]) == {1}
    assert max(lengths(model, drafting(0.0, guess=0.5))) == 4


def test_the_choice_does_not_hear_the_others(model):
    """Adaptive requests in company have the tokens that they have alone."""
    prompts = [random_ids(model.config, 1, 5 + index, seed=index)[0].tolist() for index in range(5)]
    requests = [Request(prompt, drafting(index % 2, 40), SeededChance(index)) for index, prompt in enumerate(prompts)]
    engine = Engine(model, num_slots=2000, max_rows=5)
    tickets, made = [engine.add(request) for request in requests], {}
    while engine.num_rows:
        for ticket, part in engine.step().items():
            made.setdefault(ticket, []).extend(final.token_id for final in part.finals)
    for index, (prompt, ticket) in enumerate(zip(prompts, tickets, strict=True)):
        alone = decode(model, prompt, requests[index].how, SeededChance(index))
        assert made[ticket] == [final.token_id for part in alone for final in part.finals]
