"""Does a request get in company what it gets alone? Mixed requests through one batched engine, then each alone; token for token.

    OMP_NUM_THREADS=1 python -m recipes.bench.equal [MODEL] [--requests 200] [--rows 12] [--dtype float32] [--seed 0]

Prompts of 1 to 600 held-out tokens, some of them beginning alike; ar, lossless and mix; temperatures of 0 to 1.2 with and without
top-k, top-p, min-p and a penalty; ends, limits and proposals of all kinds; requests enter as others leave. Each one that differs is
followed both ways, and the first place where the two ways part is printed with its margin: of logits, of a draw or of a router.
Exits with 1 where a margin is EXCUSED or more: that is no rounding.
"""

import argparse
import random
import sys
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from recipes.bench.cause import Cause, Story, WatchedChance, WatchedEngine, cause_of
from recipes.bench.texts import held_out_ids
from zaya_core.assets import BUNDLED
from zaya_core.config import Tidar
from zaya_core.data.tokenizer import TextTokenizer
from zaya_core.engine.batch import Engine
from zaya_core.engine.chance import SeededChance
from zaya_core.engine.draft import Proposals, Verifier
from zaya_core.engine.request import Decoding, Final, Request
from zaya_core.io.checkpoint import Checkpoint
from zaya_core.model.load import load_serving
from zaya_core.model.native import NativeModel
from zaya_core.model.serving import ServingModel
from zaya_core.ops.sampling import Sampler
from zaya_core.runtime import DTYPES

EXCUSED = 1e-5
FOLLOWED = 20  # differences at most: their laws are kept in memory
LONGEST = 600
ENGINES = (Engine, WatchedEngine)


@dataclass(frozen=True)
class Difference:
    """Where request `number` parts, counted in new tokens, and why."""

    number: int
    place: int
    cause: Cause | None

    @property
    def is_excused(self) -> bool:
        """Could rounding do it?"""
        return self.cause is not None and self.cause.margin < EXCUSED


def mixed_requests(token_ids: list[int], tidar: Tidar, count: int, *, seed: int = 0, most_tokens: int = 64) -> list[Request]:
    """Prompts are windows of `token_ids`; request i has the seed i."""
    chance, requests = random.Random(seed), []
    begins = [chance.randrange(len(token_ids) - LONGEST) for _ in range(count)]
    for number in range(count):
        begin = begins[number - chance.randint(1, 7) if number % 8 == 7 else number]  # some begin as a recent one does
        prompt = token_ids[begin : begin + chance.randint(1, LONGEST)]
        how = _how(chance, tidar, prompt, sampler=("ar", "lossless", "mix")[number % 3], most_tokens=most_tokens)
        requests.append(Request(prompt, how, SeededChance(number)))
    return requests


def _how(chance: random.Random, tidar: Tidar, prompt: list[int], *, sampler: str, most_tokens: int) -> Decoding:
    law = Sampler(
        chance.choice([0.0, 0.0, 0.3, 0.7, 1.0, 1.2]),
        top_k=chance.choice([0, 0, 40]),
        top_p=chance.choice([1.0, 0.95, 0.8]),
        min_p=chance.choice([0.0, 0.0, 0.05]),
        repetition_penalty=chance.choice([1.0, 1.0, 1.15]),
    )
    ends = frozenset(chance.choices(prompt, k=2)) if chance.random() < 0.3 else frozenset()
    how = Decoding(chance.randint(1, most_tokens), law, end_ids=ends, forbidden=(tidar.mask_token_id,))
    how = replace(how, return_experts=chance.random() < 0.1)
    if sampler == "ar":
        return how
    return replace(
        how,
        verifier=Verifier(1.0 if sampler == "lossless" else 0.5),
        proposals=Proposals(chance.choice([None, 0, 1, 2, 3, 3])),
        block_length=chance.choice([2, 8, tidar.block_length, tidar.block_length]),
        draft_temperature=chance.choice([None, None, 0.7]),
    )


def together(engine: Engine, requests: list[Request], watched: dict[int, Story] | None = None) -> list[list[Final]]:
    """All of them, each added as soon as there is room; `watched` stories, by number, are told by the engine."""
    finals: list[list[Final]] = [[] for _ in requests]
    tickets, entered = {}, 0
    while entered < len(requests) or engine.num_rows:
        while entered < len(requests) and engine.has_room(requests[entered]):
            ticket = engine.add(requests[entered])
            tickets[ticket] = entered
            if watched and entered in watched:
                engine.stories[ticket] = watched[entered]
            entered += 1
        for ticket, committed in engine.step().items():
            if committed.error is not None:
                raise committed.error
            finals[tickets[ticket]] += committed.finals
    return finals


def again(requests: list[Request], watched: Collection[int] = ()) -> list[Request]:
    """The same with fresh chances."""
    chances = [(WatchedChance if number in watched else SeededChance)(number) for number in range(len(requests))]
    return [replace(request, chance=chance) for request, chance in zip(requests, chances, strict=True)]


def differences(
    model: ServingModel, requests: list[Request], *, rows: int, engines: tuple[type[Engine], type[WatchedEngine]] = ENGINES
) -> list[Difference]:
    """The requests that differ; `engines` run the batch, the second one watched. A test gives faulty ones."""
    size = {"num_slots": rows * max(request.num_slots for request in requests), "max_rows": rows}
    mine = together(engines[0](model, **size), again(requests))
    numbers, places = [], []
    for number, request in enumerate(again(requests)):
        (alone,) = together(Engine(model, num_slots=request.num_slots, max_rows=1), [request])
        ours, theirs = ([final.token_id for final in finals] for finals in (mine[number], alone))
        if ours != theirs:
            numbers.append(number)
            pairs = enumerate(zip(ours, theirs, strict=False))
            places.append(next((at for at, (one, other) in pairs if one != other), min(len(ours), len(theirs))))
    if isinstance(model, NativeModel):  # to the bit the same in any company: a difference is a mistake, and cannot be rounding's
        return [Difference(*each, None) for each in zip(numbers, places, strict=True)]
    causes = _causes(model, requests, numbers, engines[1](model, **size)) if numbers else []
    return [Difference(*each) for each in zip(numbers, places, causes, strict=True)]


def _causes(model: ServingModel, requests: list[Request], numbers: list[int], engine: WatchedEngine) -> list[Cause | None]:
    """The same again, watched: the batch as a whole, and each of some alone."""
    stories = {number: Story() for number in numbers[:FOLLOWED]}
    together(engine, again(requests, stories), stories)
    engine.close()
    causes = []
    for number in stories:
        own = Story()
        engine = WatchedEngine(model, num_slots=requests[number].num_slots, max_rows=1)
        together(engine, [replace(requests[number], chance=WatchedChance(number))], {0: own})
        engine.close()
        causes.append(cause_of(own, stories[number]))
    return causes + [None] * (len(numbers) - len(causes))


def main(arguments: list[str]) -> int:
    """Print what differs; 1 where something really does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=BUNDLED, type=Path)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    checkpoint = Checkpoint.open(options.model)
    if checkpoint.config.tidar is None:
        sys.exit(f"{options.model} is autoregressive, expected a model that drafts")
    model = load_serving(checkpoint, dtype=DTYPES[options.dtype], device=torch.device("cpu"))
    token_ids = held_out_ids(TextTokenizer(checkpoint.path), 60000)
    requests = mixed_requests(token_ids, checkpoint.config.tidar, options.requests, seed=options.seed)
    found = differences(model, requests, rows=options.rows)
    for one in found:
        why = f"{one.cause.kind}, margin {one.cause.margin:.1e}" if one.cause else "not followed"
        print(f"request {one.number}, token {one.place}: {why}{'' if one.is_excused else ', NOT EXCUSED'}")
    real = [one.number for one in found if not one.is_excused]
    print(f"{options.dtype}: {len(found)} of {len(requests)} requests differ, {len(real)} by {EXCUSED:g} or more")
    return int(bool(real))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
