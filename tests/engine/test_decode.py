"""The decode loop on random networks in float64: greedy equality, mixing at weight 1, ends, limits, counts."""

import dataclasses

import pytest
import torch

from tests.models import BIASED, SLIDING, TINY, random_ids, random_model
from zaya_core.config import Tidar
from zaya_core.engine.chance import SeededChance
from zaya_core.engine.decode import decode
from zaya_core.engine.draft import Proposals, Verifier, acceptance_odds
from zaya_core.engine.levels import WORTH, best_levels, draft_worth
from zaya_core.engine.report import Tally
from zaya_core.engine.request import Committed, Decoding, Final
from zaya_core.errors import ConfigError
from zaya_core.ops.sampling import Sampler

BLOCK = 5
CONFIGS = {"plain": TINY, "sliding": SLIDING, "bias": BIASED}


@pytest.fixture(params=CONFIGS)
def model(request):
    return random_model(CONFIGS[request.param].with_changes(tidar=Tidar(BLOCK, 4)), dtype=torch.float64)


def settings(tokens=24, proposals=3, temperature=4.0, weight=1.0, ends=()) -> Decoding:
    return Decoding(
        max_new_tokens=tokens,
        sampler=Sampler(temperature),
        verifier=Verifier(weight),
        proposals=Proposals(proposals),
        block_length=BLOCK,
        end_ids=frozenset(ends),
        forbidden=(4,),
    )


def autoregressive(how: Decoding) -> Decoding:
    return Decoding(how.max_new_tokens, how.sampler, end_ids=how.end_ids, forbidden=how.forbidden)


def generate(model, prompt, how, seed=0):
    return list(decode(model, prompt, how, SeededChance(seed)))


def ids_of(run) -> list[int]:
    return [final.token_id for committed in run for final in committed.finals]


@pytest.mark.parametrize("proposals", [None, 1, 3, 0])
def test_greedy_lossless_equals_greedy_ar(model, proposals):
    for seed in range(4):
        prompt = random_ids(model.config, 1, 3 + 5 * seed, seed)[0].tolist()
        how = settings(temperature=0, proposals=proposals)
        assert ids_of(generate(model, prompt, how)) == ids_of(generate(model, prompt, autoregressive(how)))


class Mixing:
    """Lossless by the arithmetic of mixing, at weight 1."""

    mix_weight = None

    def judge(self, ar_logits: torch.Tensor, draft_logits: torch.Tensor) -> torch.Tensor:
        return 1.0 * ar_logits + 0.0 * draft_logits


def test_mix_of_weight_one_equals_lossless_bit_for_bit(model):
    """Tokens and log-probabilities agree exactly with a verifier that mixes; weight 0 is something else."""
    prompt = random_ids(model.config, 1, 9)[0].tolist()
    for seed in range(3):
        mixed = generate(model, prompt, settings(weight=1.0), seed)
        assert mixed == generate(model, prompt, dataclasses.replace(settings(), verifier=Mixing()), seed)
        assert ids_of(generate(model, prompt, settings(tokens=60, weight=0.0), seed)) != ids_of(mixed)


@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 6, 17])
@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_the_limit_is_exact_and_counts_add_up(model, tokens, weight):
    """Weight 0 accepts every draft, so that limits fall inside blocks."""
    prompt = random_ids(model.config, 1, 4)[0].tolist()
    run = generate(model, prompt, settings(tokens=tokens, weight=weight))
    assert len(ids_of(run)) == tokens
    assert [committed.finish_reason for committed in run] == [None] * (len(run) - 1) + ["length"]
    tally = Tally()
    for committed in run:
        tally.add(committed)
    stats = tally.stats(block_length=BLOCK, prefill_seconds=1.0, decode_seconds=1.0)
    assert stats["num_tokens"] == tokens
    assert stats["num_forwards"] == len(run) - 1 == sum(stats["acceptance_histogram"])
    assert sum(n * count for n, count in enumerate(stats["acceptance_histogram"], 1)) == tokens - 1
    if weight == 0 and tokens == 6:
        assert stats["tokens_per_forward"] == BLOCK
    if weight == 0:
        assert stats["accepted_by_offset"] == stats["judged_by_offset"]


def test_tokens_are_judged_once_those_before_them_were_accepted():
    """Drafts of 3, 3 and 2 tokens, the first of each final already."""
    tally = Tally()
    for drafted, accepted in ((0, 0), (3, 1), (3, 3), (2, 2)):
        tally.add(Committed([Final(5, 0.0, 0.0)] * max(1, accepted), None, tuple(range(drafted)), accepted))
    stats = tally.stats(block_length=BLOCK, prefill_seconds=1.0, decode_seconds=1.0)
    assert (stats["judged_by_offset"], stats["accepted_by_offset"]) == ([3, 1, 0, 0], [2, 1, 0, 0])


def test_autoregressive_is_one_token_a_forward(model):
    run = generate(model, [5, 6], autoregressive(settings(tokens=7)))
    assert [len(committed.finals) for committed in run] == [1] * 7


@pytest.mark.parametrize("place", [0, 1, 3, 7, 12])
def test_an_end_inside_a_block_ends_everything(model, place):
    """The text up to and with the end id is that of a run which ignores it; nothing after it is kept."""
    prompt = random_ids(model.config, 1, 6)[0].tolist()
    for weight in (1.0, 0.0):
        free = ids_of(generate(model, prompt, settings(tokens=20, weight=weight), seed=5))
        end = free[place]
        run = generate(model, prompt, settings(tokens=20, weight=weight, ends=(end,)), seed=5)
        assert ids_of(run) == free[: free.index(end) + 1]
        assert run[-1].finish_reason == "stop"


def test_forbidden_ids_never_come(model):
    ids = ids_of(generate(model, [5, 6, 7], settings(tokens=200, temperature=50.0)))
    assert 4 not in ids
    assert len(set(ids)) > 40


def test_a_seed_fixes_the_tokens(model):
    run = [ids_of(generate(model, [5, 6, 7], settings(), seed)) for seed in (1, 1, 2)]
    assert run[0] == run[1] != run[2]


def test_logprobs_are_those_of_the_ar_rows(model):
    """`logprob` is the AR row's whatever decided; greedily sampled log-probabilities are zero."""
    prompt = random_ids(model.config, 1, 6)[0].tolist()
    drafted = [f for c in generate(model, prompt, settings(temperature=0)) for f in c.finals]
    plain = [f for c in generate(model, prompt, autoregressive(settings(temperature=0))) for f in c.finals]
    assert [f.logprob for f in drafted] == pytest.approx([f.logprob for f in plain], abs=1e-9)
    assert {f.sampled_logprob for f in drafted} == {0.0}
    sampled = [f for c in generate(model, prompt, settings(temperature=1.0)) for f in c.finals]
    assert [f.sampled_logprob for f in sampled] == pytest.approx([f.logprob for f in sampled], abs=1e-9)


def test_a_long_prompt_is_prefilled_in_chunks(model, monkeypatch):
    prompt = random_ids(model.config, 1, 70)[0].tolist()
    whole = ids_of(generate(model, prompt, settings()))
    monkeypatch.setattr("zaya_core.engine.batch.PREFILL_CHUNK", 16)
    assert ids_of(generate(model, prompt, settings())) == whole


def test_an_empty_prompt_is_an_error(model):
    with pytest.raises(ConfigError, match="no tokens"):
        generate(model, [], settings())


def test_best_levels_are_the_best_of_all_subsets():
    """The dynamic programme against trying every subset."""
    from itertools import combinations

    generator = torch.Generator().manual_seed(0)
    for n, count, block in [(6, 2, 6), (7, 3, 8), (5, 5, 8), (8, 1, 8), (4, 3, 16)]:
        odds = torch.rand(n, generator=generator).softmax(0).tolist()

        def expected(levels, odds=odds, n=n, block=block):
            total = 0.0
            for a in range(1, n + 1):
                usable = [level for level in levels if level <= a]
                if usable:
                    total += odds[a - 1] * sum(WORTH**m for m in range(1, block - (a - usable[-1])))
            return total

        best = max(combinations(range(1, n + 1), count), key=expected)
        assert expected(best_levels(odds, count, draft_worth(block))) == pytest.approx(expected(best), abs=1e-12)


def test_acceptance_odds_sum_to_one():
    from zaya_core.engine.draft import Draft, trust_of

    logits = torch.randn(3, 7, dtype=torch.float64)
    trust = tuple(trust_of(torch.tensor([2, 3, 4]), logits).tolist())
    odds = acceptance_odds(Draft([1, 2, 3, 4], logits.softmax(-1), logits, trust=trust))
    assert len(odds) == 4
    assert sum(odds) == pytest.approx(1)
    assert odds[0] == pytest.approx(1 - float(logits.softmax(-1)[0, 2]))
