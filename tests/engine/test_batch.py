"""Many requests at once: each gets what it gets alone, whatever runs beside it, whenever it came."""

import dataclasses
import random
from itertools import pairwise

import pytest
import torch

from tests.models import SLIDING, TINY, random_ids, random_model
from tests.sequences import Sequence
from zaya_core.config import Tidar
from zaya_core.engine.batch import Engine, chunks
from zaya_core.engine.chance import SeededChance
from zaya_core.engine.decode import decode
from zaya_core.engine.draft import Proposals, Verifier
from zaya_core.engine.request import Decoding, Request
from zaya_core.errors import ConfigError, RunError
from zaya_core.layout import causal
from zaya_core.model.serving import ServingModel
from zaya_core.model.static import StaticModel
from zaya_core.ops.sampling import Sampler

BLOCK = 5


@pytest.fixture(scope="module", params=[(TINY, ServingModel), (SLIDING, ServingModel), (SLIDING, StaticModel)])
def network(request):
    config, form = request.param
    return form(random_model(config.with_changes(tidar=Tidar(BLOCK, 4)), dtype=torch.float64))


def mixed_requests(config, count: int, seed: int = 0) -> list[Request]:
    """Prompts of 1 to 70 tokens, all samplers, levels, limits and ends."""
    chance, requests = random.Random(seed), []
    for number in range(count):
        sampler = Sampler(
            chance.choice([0.0, 1.0, 4.0]),
            top_k=chance.choice([0, 5]),
            top_p=chance.choice([1.0, 0.8]),
            min_p=chance.choice([0.0, 0.05]),
            repetition_penalty=chance.choice([1.0, 1.3]),
        )
        how = Decoding(chance.randint(1, 24), sampler, end_ids=frozenset({7, 11}), forbidden=(4,))
        if number % 4:
            how = dataclasses.replace(
                how,
                verifier=Verifier(chance.choice([1.0, 0.5])),
                proposals=Proposals(chance.choice([None, 0, 1, 2])),
                block_length=chance.choice([2, BLOCK]),
                draft_temperature=chance.choice([None, 0.7]),
            )
        prompt = random_ids(config, 1, chance.randint(1, 70), seed=number)[0].tolist()
        requests.append(Request(prompt, how, SeededChance(number)))
    return requests


def alone(network, request: Request, seed: int) -> list:
    return [final for part in decode(network, request.prompt_ids, request.how, SeededChance(seed)) for final in part.finals]


def test_a_request_gets_what_it_gets_alone(network):
    """Requests enter whenever there is room, leave when they are done, and some are cancelled on the way."""
    requests = mixed_requests(network.config, 40)
    engine = Engine(network, num_slots=700, max_rows=6)
    waiting, tickets, finals, most = list(enumerate(requests)), {}, {}, 0
    while waiting or engine.num_rows:
        while waiting and engine.has_room(waiting[0][1]):
            number, request = waiting.pop(0)
            tickets[engine.add(request)] = number
            finals[number] = []
        most = max(most, engine.num_rows)
        for ticket, committed in engine.step().items():
            number = tickets[ticket]
            finals[number] += committed.finals
            if number % 9 == 8 and committed.finish_reason is None and len(finals[number]) > 3:
                engine.cancel(ticket)
    assert most > 3
    for number, request in enumerate(requests):
        theirs = alone(network, request, number)
        ours = finals[number]
        assert [final.token_id for final in ours] == [final.token_id for final in theirs][: len(ours)], number
        assert [final.logprob for final in ours] == pytest.approx([final.logprob for final in theirs][: len(ours)], abs=1e-9)
        if number % 9 != 8:
            assert len(ours) == len(theirs)


def test_the_pool_has_only_so_much_room(network):
    (request,) = mixed_requests(network.config, 1)
    engine = Engine(network, num_slots=request.num_slots + 5, max_rows=4)
    engine.add(request)
    assert not engine.has_room(request)
    with pytest.raises(ConfigError, match="no room"):
        engine.add(request)
    engine.cancel(0)
    assert engine.has_room(request)
    assert engine.step() == {}


def test_long_prompts_leave_room_for_short_ones():
    assert chunks({}, 1000) == {}
    assert chunks({3: 10}, 1000) == {3: 10}
    assert chunks({3: 9000}, 1000) == {3: 1000}
    shared = chunks({3: 9000, 4: 100, 5: 8000, 6: 20}, 1000)
    assert shared == {3: 500, 6: 20, 4: 100, 5: 380}
    assert chunks({3: 9000, 4: 100}, 1000) == {3: 900, 4: 100}
    assert sum(chunks(dict.fromkeys(range(9), 9000), 1000).values()) == 1000


def test_experts_are_those_of_a_whole_forward(network):
    """Router replay: the choices of prompt and text, less the last token, whatever was drafted and rejected on the way."""
    prompt = random_ids(network.config, 1, 40)[0].tolist()
    how = Decoding(20, Sampler(2.0), proposals=Proposals(2), block_length=BLOCK, forbidden=(4,), return_experts=True)
    parts = list(decode(network, prompt, how, SeededChance(1)))
    experts = torch.cat([part.experts for part in parts])
    ids = prompt + [final.token_id for part in parts for final in part.finals]
    routing: list[torch.Tensor] = []
    model = random_model(network.config, dtype=torch.float64)
    model(torch.tensor([ids]), causal(torch.zeros(1, dtype=torch.int64), len(ids)), routing=routing)
    expected = torch.stack(routing, -1)[0]
    assert torch.equal(experts, expected[:-1])


def test_top_logprobs_are_the_likeliest_of_the_ar_row(network):
    prompt = random_ids(network.config, 1, 9)[0].tolist()
    how = Decoding(12, Sampler(), proposals=Proposals(2), block_length=BLOCK, forbidden=(4,), num_top_logprobs=3)
    finals = alone(network, Request(prompt, how, SeededChance(0)), 0)
    ids = prompt + [final.token_id for final in finals]
    hidden = Sequence(network, None).step(torch.tensor([ids]), len(ids))[0, len(prompt) - 1 : -1]
    rows = network.logits(hidden).index_fill(-1, torch.tensor([4]), float("-inf")).log_softmax(-1)
    for final, row in zip(finals, rows, strict=True):
        values, likeliest = row.topk(3)
        assert [token_id for token_id, _ in final.top_logprobs] == likeliest.tolist()
        assert [value for _, value in final.top_logprobs] == pytest.approx(values.tolist(), abs=1e-9)


def test_requests_may_forbid_different_ids(network):
    hows = [
        Decoding(8, Sampler(4.0), proposals=Proposals(2), block_length=BLOCK, forbidden=ids) for ids in ((4,), (), (4, 5), (4, 6))
    ]
    requests = [Request([5, 6, 7], how, SeededChance(number)) for number, how in enumerate(hows)]
    together = served(Engine(network, num_slots=2000, max_rows=4), requests)
    apart = [[final.token_id for final in alone(network, request, number)] for number, request in enumerate(requests)]
    assert together == apart


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("block", [0, BLOCK])
def test_logits_that_are_no_numbers_are_an_error(temperature, block):
    model = random_model(TINY.with_changes(tidar=Tidar(BLOCK, 4)))
    model.model.norm.weight.data.fill_(float("nan"))
    how = Decoding(8, Sampler(temperature), proposals=Proposals(2), block_length=block, forbidden=(4,))
    with pytest.raises(RunError, match="not numbers"):
        list(decode(model, [5, 6, 7], how, SeededChance(0)))


def test_a_seed_below_zero_is_refused():
    with pytest.raises(ConfigError, match="the seed is -1"):
        SeededChance(-1)


def test_drafts_are_told_as_they_are(network):
    """What a forward judged is what the one before drafted; accepted drafts are the text."""
    how = Decoding(30, Sampler(3.0), Verifier(0.3), Proposals(2), BLOCK, forbidden=(4,))
    parts = list(decode(network, [5, 6, 7], how, SeededChance(3)))
    assert parts[0].drafted == ()
    for before, part in pairwise(parts):
        assert part.drafted == (before.finals[-1].token_id, *before.pre_drafted)
        ids = [final.token_id for final in part.finals]
        accepted = part.drafted[1 : part.num_accepted]
        assert tuple(ids[: len(accepted)]) == accepted[: len(ids)]
    assert parts[-1].pre_drafted == ()
    assert sum(part.num_accepted > 1 for part in parts) > 3


def served(engine: Engine, requests: list[Request]) -> list[list[int]]:
    """Token ids of each request, all in work together."""
    tickets, ids = [engine.add(request) for request in requests], {}
    while engine.num_rows:
        for ticket, committed in engine.step().items():
            ids.setdefault(ticket, []).extend(final.token_id for final in committed.finals)
    return [ids[ticket] for ticket in tickets]


def drafting(prompt: list[int], seed: int, tokens: int = 20) -> Request:
    how = Decoding(tokens, Sampler(2.0), proposals=Proposals(2), block_length=BLOCK, forbidden=(4,), num_top_logprobs=1)
    return Request(prompt, how, SeededChance(seed))


def test_a_prefix_that_was_read_is_not_read_again(network):
    """The second turn of a conversation, several completions of one prompt, and a prompt that shares only its beginning."""
    first = random_ids(network.config, 1, 200)[0].tolist()
    engine = Engine(network, num_slots=3000, max_rows=4, keep_prefixes=2)
    (answer,) = served(engine, [drafting(first, 0)])
    second = [*first, *answer, *random_ids(network.config, 1, 30, seed=1)[0].tolist()]
    third = [*first[:100], *random_ids(network.config, 1, 90, seed=2)[0].tolist()]
    assert engine.prefixes.num_reused == 0
    turns = served(engine, [drafting(second, 1), drafting(third, 2)])
    assert engine.prefixes.num_reused == 192 + 64
    for ids, prompt, seed in zip(turns, (second, third), (1, 2), strict=True):
        assert ids == [final.token_id for final in alone(network, drafting(prompt, seed), seed)]
    together = served(engine, [drafting(third, seed) for seed in (5, 6, 7, 8)])
    assert engine.prefixes.num_reused == 192 + 64 + 4 * 128
    for ids, seed in zip(together, (5, 6, 7, 8), strict=True):
        assert ids == [final.token_id for final in alone(network, drafting(third, seed), seed)]


def test_completions_of_one_prompt_read_it_once(network):
    prompt = random_ids(network.config, 1, 150, seed=3)[0].tolist()
    engine = Engine(network, num_slots=3000, max_rows=4)
    together = served(engine, [drafting(prompt, seed) for seed in range(4)])
    assert engine.prefixes.num_reused == 3 * 128
    assert together == [[f.token_id for f in alone(network, drafting(prompt, seed), seed)] for seed in range(4)]


def test_kept_prefixes_make_room(network):
    """They hold places only as long as nobody needs them, and the most recently used goes last."""
    prompts = [random_ids(network.config, 1, 100, seed=seed)[0].tolist() for seed in range(3)]
    size = drafting(prompts[0], 0).num_slots
    engine = Engine(network, num_slots=size + 150, max_rows=1, keep_prefixes=5)
    for number, prompt in enumerate(prompts):
        assert engine.has_room(drafting(prompt, number))
        served(engine, [drafting(prompt, number)])
    assert not engine.has_room(drafting(prompts[0] * 5, 0))
    assert engine.has_room(drafting(prompts[2], 2))
    served(engine, [drafting(prompts[2], 2)])
    assert engine.prefixes.num_reused == 64, "the newest is still there: what could not fit has driven nothing out"


def test_a_long_prompt_is_read_once_for_several_completions(network, monkeypatch):
    """Those that wait for the first go on waiting until it has read all that they share."""
    monkeypatch.setattr("zaya_core.engine.batch.PREFILL_CHUNK", 128)
    prompt = random_ids(network.config, 1, 300, seed=9)[0].tolist()
    engine = Engine(network, num_slots=3000, max_rows=4)
    together = served(engine, [drafting(prompt, seed) for seed in range(4)])
    assert engine.prefixes.num_reused == 3 * 256
    assert together == [[f.token_id for f in alone(network, drafting(prompt, seed), seed)] for seed in range(4)]


def test_ids_that_the_model_does_not_have_are_refused_before_anything_runs(network):
    engine = Engine(network, num_slots=3000, max_rows=4)
    with pytest.raises(ConfigError, match="the prompt has the id 97, expected ids below the vocabulary's 97"):
        engine.add(drafting([5, 97], 0))
    assert engine.num_rows == 0
