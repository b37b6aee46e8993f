"""`--proposals auto`: how much is drafted, by a settings file or, without one, by a short measurement of steps.

With a file a request's way is fixed by its own size before it starts, so that a seeded request decodes the same whatever runs
beside it (tidar.md section 3). What is measured is for requests whose seed nobody gave: they go on by what their text accepts.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zaya_core.engine.request import Decoding
    from zaya_core.engine.ways import Way, Ways
    from zaya_core.io.checkpoint import Checkpoint
    from zaya_core.model.serving import ServingModel
    from zaya_core.settings import Settings

TRIED = (1, 2, 3, 5)  # proposals
ROUNDS, MOST_ROUNDS = 6, 18  # steps of each with a whole draft, of which the fastest counts: others may have been disturbed
GRID = 25  # steps between the chances 0 and 1 that ways are chosen for
BUDGET_SECONDS = 3.0  # after which nothing more is tried
LONGEST = 2048  # tokens of history measured at: more would take longer than it can save
ANY_TOKEN = 100.0  # a temperature
TYPICAL = 0.7  # chance of a draft token where the checkpoint's certificate says nothing


def opened_settings(path: Path | None, how: "Decoding") -> "Settings | None":
    """The file of --settings for the model that `how` decodes; None without one, and for the AR sampler, which proposes nothing."""
    from zaya_core.settings import read_settings

    return None if path is None or not how.block_length else read_settings(path, block_length=how.block_length)


def tuned(how: "Decoding", settings: "Settings | None", *, batch: int, num_prompt_tokens: int) -> "Decoding":
    """`how` with the setting of the nearest cell; where that is plain AR decoding, nothing is drafted. --block is a limit."""
    from zaya_core.engine.draft import Proposals

    if settings is None:
        return how
    cell = settings.choose(batch, num_prompt_tokens + how.max_new_tokens)
    if cell.proposals == 0:
        return replace(how, proposals=Proposals(0), block_length=0)
    return replace(how, proposals=Proposals(cell.proposals), block_length=min(cell.block, how.block_length))


def measured_ways(
    model: "ServingModel", how: "Decoding", checkpoint: "Checkpoint", *, batch: int, context: int
) -> "tuple[Ways, str]":
    """Time an AR step and steps with drafts here; the fastest for every chance of a draft token, and a sentence that says so."""
    from zaya_core.engine.ways import Way, Ways

    guess = _mixed(_chance_seen(checkpoint, how.block_length), how.verifier.mix_weight)
    seconds = {Way(0, 0): _step_seconds(model, how, Way(0, 0), batch=batch, context=context)}
    began = time.perf_counter()
    for way in _tried(how.block_length):
        if len(seconds) == 1 or time.perf_counter() - began < BUDGET_SECONDS:
            seconds[way] = _step_seconds(model, how, way, batch=batch, context=context)
    speeds = [_speeds(seconds, index / GRID) for index in range(GRID + 1)]
    ways = Ways(tuple(max(speed, key=speed.__getitem__) for speed in speeds), guess)
    return ways, _said(ways, speeds[round(guess * GRID)])


def _tried(block_length: int) -> "list[Way]":
    from zaya_core.engine.ways import Way

    blocks = sorted({min(block_length, block) for block in (2, 4, 8, block_length)})
    return [Way(proposals, block) for proposals in TRIED for block in blocks if proposals <= block]


def _speeds(seconds: "dict[Way, float]", chance: float) -> "dict[Way, float]":
    """Tokens a second of AR's, in the long run. A step with a shifted draft or fewer proposals is counted by its slots."""
    from zaya_core.profile.acceptance import Acceptance, expected

    (plain, ar), *drafting = seconds.items()
    speeds = {plain: 1.0}
    for way, whole in drafting:
        means = expected(Acceptance.constant(chance, way.block), proposals=way.proposals)
        share = (means.clean + means.proposals * way.block - 1) / (way.block + way.proposals * way.block - 1)
        speeds[way] = means.tokens_per_forward * ar / (ar + share * (whole - ar))
    return speeds


def _said(ways: "Ways", speeds: "dict[Way, float]") -> str:
    """What is chosen at first, and where drafts stop."""
    drafting = {way: speed for way, speed in speeds.items() if way.proposals}
    best = max(drafting, key=drafting.__getitem__)
    expectation = f"about {drafting[best]:.2f}x of AR if {ways.guess:.0%} of drafts are accepted"
    paying = [index / GRID for index, way in enumerate(ways.fastest) if way.proposals]
    if not paying:
        return f"none, plain AR steps: at best drafts would give {expectation}"
    way = ways.at(ways.guess)
    first = f"{way.proposals} of {way.block} at first, {expectation}" if way.proposals else "none at first"
    return f"{first}; what the text accepts decides, plain AR steps below {min(paying):.0%}"


def _step_seconds(model: "ServingModel", how: "Decoding", way: "Way", *, batch: int, context: int) -> float:
    """Seconds of a step of the engine for `batch` rows, after as many tokens as `context` and LONGEST allow."""
    import torch

    from zaya_core.engine.batch import Engine
    from zaya_core.engine.chance import SeededChance
    from zaya_core.engine.draft import Proposals
    from zaya_core.engine.request import Request

    history, generator = min(context, LONGEST), torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (batch,), generator=generator)
    # Any token at all, as a text has many: one that repeats itself would meet few experts.
    sampler = replace(how.sampler, temperature=ANY_TOKEN if how.sampler.temperature else 0)
    drafting = replace(
        how, sampler=sampler, proposals=Proposals(way.proposals), block_length=way.block, ways=None, end_ids=frozenset()
    )
    drafting = replace(drafting, max_new_tokens=history + (MOST_ROUNDS + 1) * max(1, way.block), constraint=None)
    requests = [Request([index], drafting, SeededChance(index)) for index in ids.tolist()]
    engine = Engine(model, num_slots=sum(request.num_slots for request in requests), max_rows=batch)
    for request in requests:
        engine.add(request)
    engine.step()
    for part in engine.pool.parts:
        part.row.length += history  # of zeros: a step's time does not depend on what it attends to
    whole, others = list[float](), list[float]()
    while len(whole) < ROUNDS and len(whole) + len(others) < MOST_ROUNDS:
        began = time.perf_counter()
        committed = engine.step()
        seconds = time.perf_counter() - began
        is_whole = all(len(one.drafted) == max(1, way.block) for one in committed.values())
        (whole if is_whole else others).append(seconds)
    return min(whole or others)


def _chance_seen(checkpoint: "Checkpoint", block_length: int) -> float:
    """The constant chance of a draft token that makes the simulated acceptance length of the checkpoint's training."""
    metrics = (checkpoint.certificate() or {}).get("metrics", {})
    length = metrics.get("eval_acceptance_length", metrics.get("acceptance_length"))
    if length is None:
        return TYPICAL
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(middle**m for m in range(block_length)) < length else (low, middle)
    return low


def _mixed(chance: float, mix_weight: float) -> float:
    """What mixing makes of it, about (tidar.md section 3)."""
    return 1 - mix_weight * (1 - chance)
