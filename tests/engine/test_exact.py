"""Losslessness by enumeration: over a tiny vocabulary every draw and every acceptance is followed, with its probability.

The decode loop is the real one, over a real random network; only chance is replaced, by one that walks all outcomes. The joint law
of the generated tokens must be the product of the AR rows, for all levels, sparse levels with shift, and shortened drafts.
"""

import itertools
from collections import defaultdict

import pytest
import torch

from tests.models import TINY, random_model
from zaya_core.config import Tidar
from zaya_core.engine import ways
from zaya_core.engine.chance import SeededChance
from zaya_core.engine.decode import decode
from zaya_core.engine.draft import Draft, Proposals, Verifier
from zaya_core.engine.request import Decoding
from zaya_core.engine.ways import Way, Ways
from zaya_core.layout import causal
from zaya_core.model.serving import ServingModel
from zaya_core.ops.sampling import Sampler, forbid

SMALL = TINY.with_changes(num_hidden_layers=1, hidden_size=16, head_dim=4, moe_intermediate_size=8, router_hidden_size=8)


class Walk:
    """A Chance that follows a given list of choices and takes the first one beyond it, recording the odds of what it took."""

    def __init__(self, path: list[int]) -> None:
        self.path, self.weight, self.branches = path, 1.0, []

    def points(self, laws):
        """The middle of what the chosen id has of each law."""
        points = []
        for law in (laws / laws.sum(-1, keepdim=True)).tolist():
            index = self._choose(law)
            points.append(sum(law[:index]) + law[index] / 2)
        return points

    def accept(self, probability):
        return self._choose([probability, 1 - probability]) == 0

    def _choose(self, odds):
        possible = [index for index, p in enumerate(odds) if p > 0]
        place = len(self.branches)
        choice = self.path[place] if place < len(self.path) else possible[0]
        self.branches.append((choice, possible))
        self.weight *= odds[choice]
        return choice


def enumerate_law(model, prompt, how) -> dict[tuple[int, ...], float]:
    """The exact law of the generated ids: depth first through every choice."""
    law, path, leaves = defaultdict(float), [], 0
    while path is not None:
        walk = Walk(path)
        ids = tuple(final.token_id for committed in decode(model, prompt, how, walk) for final in committed.finals)
        law[ids] += walk.weight
        leaves += 1
        path = next_path(walk.branches)
    assert leaves >= len(law) > 4
    assert abs(sum(law.values()) - 1) < 1e-9
    return law


def next_path(branches) -> list[int] | None:
    for place in range(len(branches) - 1, -1, -1):
        choice, possible = branches[place]
        later = [index for index in possible if index > choice]
        if later:
            return [branch[0] for branch in branches[:place]] + [later[0]]
    return None


def ar_law(model, prompt, how) -> dict[tuple[int, ...], float]:
    """Products of AR rows, from whole forwards without a cache; each row penalises and constrains what its own prefix says."""
    law, forbidden = {}, torch.tensor(how.forbidden, dtype=torch.int64)
    allowed = [index for index in range(model.config.vocab_size) if index not in how.forbidden]
    with torch.no_grad():
        for ids in itertools.product(allowed, repeat=how.max_new_tokens):
            row = torch.tensor([prompt + list(ids)])
            hidden = model(row, causal(torch.zeros(1, dtype=torch.int64), row.shape[1]))[0, len(prompt) - 1 : -1]
            law[ids] = 1.0
            for place, logits in enumerate(model.logits(hidden)):
                may_come = how.constraint.allowed(ids[:place]) if how.constraint else None
                masked = logits if may_come is None else logits.masked_fill(~may_come, float("-inf"))
                seen = torch.zeros(1, model.config.vocab_size, dtype=torch.bool)
                seen[0, prompt + list(ids[:place])] = True
                law[ids] *= float(how.sampler.law(forbid(masked[None], forbidden), seen)[0, ids[place]])
    return law


def total_variation(left, right) -> float:
    return sum(abs(left.get(key, 0.0) - right.get(key, 0.0)) for key in set(left) | set(right)) / 2


class Fixed:
    """A proposal policy that always asks for the same levels, as far as the draft reaches."""

    looks = False

    def __init__(self, *levels: int) -> None:
        self.wanted = levels

    def levels(self, draft: Draft, block_length: int) -> tuple[int, ...]:
        return tuple(level for level in self.wanted if level <= len(draft))


class NoTwice:
    """A grammar: no token follows itself, and 1 comes only after 0."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def allowed(self, new_ids) -> torch.Tensor | None:
        may_come = torch.ones(self.vocab_size, dtype=torch.bool)
        if not new_ids:
            return None
        may_come[new_ids[-1]] = False
        may_come[1] = new_ids[-1] == 0
        return may_come


def tiny(vocab_size: int, block: int, seed: int = 0):
    config = SMALL.with_changes(vocab_size=vocab_size, pad_token_id=None, tidar=Tidar(block, vocab_size - 1))
    return random_model(config, seed, torch.float64)


def decoding(block: int, tokens: int, vocab_size: int, proposals, **changes) -> Decoding:
    sampler = changes.pop("sampler", Sampler(temperature=2.5))
    return Decoding(
        max_new_tokens=tokens,
        sampler=sampler,
        proposals=proposals,
        block_length=changes.pop("block_length", block),
        forbidden=(vocab_size - 1,),
        **changes,
    )


CASES = {
    # name: vocabulary (the last id is the mask), block, new tokens, proposals, other settings
    "vocabulary of 5, block 2, all levels": (6, 2, 3, Proposals(None), {}),
    "block 3, all levels": (3, 3, 6, Proposals(None), {}),
    "block 4, first level only: shifts of 1 to 3": (3, 4, 5, Fixed(1), {}),
    "block 4, levels 1 and 3": (3, 4, 5, Fixed(1, 3), {}),
    "block 3, level 2 only: sometimes no draft": (3, 3, 6, Fixed(2), {}),
    "block 4, two levels by the draft's own odds": (3, 4, 5, Proposals(2), {}),
    "trained for 4, blocks of 2": (3, 4, 6, Proposals(None), {"block_length": 2}),
    "top-k and top-p": (5, 2, 4, Proposals(None), {"sampler": Sampler(4.0, top_k=3, top_p=0.95)}),
    "min-p": (5, 2, 3, Proposals(None), {"sampler": Sampler(6.0, min_p=0.3)}),
    "repetition penalty": (4, 3, 4, Proposals(2), {"sampler": Sampler(2.5, repetition_penalty=1.8)}),
    "drafts of another temperature": (4, 3, 4, Proposals(1), {"draft_temperature": 0.8}),
    "greedy drafts of a warm text": (4, 3, 4, Proposals(1), {"draft_temperature": 0.0}),
    "hot drafts, penalised": (4, 3, 4, Proposals(2), {"draft_temperature": 6.0, "sampler": Sampler(2.5, repetition_penalty=1.8)}),
    "a grammar": (5, 3, 4, Proposals(2), {"constraint": NoTwice(5)}),
}


@pytest.mark.parametrize("name", CASES)
def test_lossless_law_is_the_ar_law(name):
    vocab_size, block, tokens, proposals, changes = CASES[name]
    model, prompt = tiny(vocab_size, block), [0, 1, 0]
    how = decoding(block, tokens, vocab_size, proposals, **changes)
    assert total_variation(enumerate_law(model, prompt, how), ar_law(model, prompt, how)) < 1e-9


def test_ways_that_change_with_what_was_accepted_keep_the_law(monkeypatch):
    """One rejected draft ends drafting, one AR step takes it up again, shorter."""
    monkeypatch.setattr(ways, "QUIET", 1)
    monkeypatch.setattr(ways, "TRIAL", 1)
    fastest = tuple(Way(0, 0) if chance < 13 else Way(1, 2) if chance < 14 else Way(2, 4) for chance in range(21))
    model, prompt = tiny(3, 4), [0, 1, 0]
    how = decoding(4, 6, 3, Proposals(3), ways=Ways(fastest, 0.75))
    seen = {len(part.drafted) for seed in range(20) for part in decode(model, prompt, how, SeededChance(seed))}
    assert seen >= {1, 2, 4}, "every way is taken"
    assert total_variation(enumerate_law(model, prompt, how), ar_law(model, prompt, how)) < 1e-9


def test_the_network_laid_out_for_serving_keeps_the_law():
    model, prompt = tiny(4, 3), [0, 1, 0]
    how = decoding(3, 4, 4, Proposals(2))
    expected = ar_law(model, prompt, how)
    assert total_variation(enumerate_law(ServingModel(tiny(4, 3)), prompt, how), expected) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("proposals", [Fixed(1), Fixed(1, 3), Fixed(2, 4), Proposals(None), Proposals(2)])
def test_longer_texts(proposals):
    """Seven tokens: several steps after a shift."""
    model, prompt = tiny(3, 4, seed=1), [1, 0]
    how = decoding(4, 7, 3, proposals)
    assert total_variation(enumerate_law(model, prompt, how), ar_law(model, prompt, how)) < 1e-9


def test_mixing_is_lossy_and_the_enumeration_sees_it():
    """The check can fail: with a weight of one half the law is another, and the same check says so."""
    model, prompt = tiny(4, 2), [0, 1, 0]
    how = decoding(2, 3, 4, Proposals(None), verifier=Verifier(0.5))
    assert total_variation(enumerate_law(model, prompt, how), ar_law(model, prompt, how)) > 1e-3


def test_one_token_a_forward_is_the_ar_law():
    model, prompt = tiny(4, 2), [0, 1, 0]
    how = Decoding(max_new_tokens=3, sampler=Sampler(), forbidden=(3,))
    law = defaultdict(float)
    path: list[int] | None = []
    while path is not None:
        walk = Walk(path)
        ids = tuple(final.token_id for committed in decode(model, prompt, how, walk) for final in committed.finals)
        law[ids] += walk.weight
        path = next_path(walk.branches)
    assert total_variation(law, ar_law(model, prompt, how)) < 1e-12
