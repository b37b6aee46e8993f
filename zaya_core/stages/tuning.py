"""`--proposals auto`: how much is drafted, by a settings file or, without one, by a short measurement of steps.

With a file a request's way is fixed by its own size before it starts, so that a seeded request decodes the same whatever runs
beside it (tidar.md section 3). What is measured is for requests whose seed nobody gave: they go on by what their text accepts.
"""

import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from zaya_core.engine.request import Decoding
    from zaya_core.engine.ways import Way, Ways
    from zaya_core.io.checkpoint import Checkpoint
    from zaya_core.model.serving import ServingModel
    from zaya_core.settings import Settings

TRIED = (1, 2, 3)  # proposals
SETTLING = 4  # steps before them, the prompts' included
PASSES = 2  # over all of them, the better one counts: others may disturb one
ROUNDS = 6  # steps of each, of which the median counts
GRID = 25  # steps between the chances 0 and 1 that ways are chosen for
BUDGET_SECONDS = 6.0  # after which nothing more is tried
LONGEST = 8192  # tokens of history that steps are timed after: more would take longer than it can save
SAMPLE = """The engine reads a prompt once, then goes on with it word by word. def main(path: str) -> int:
    with open(path) as file:
        return sum(1 for line in file if line.strip())
"""  # that timed steps go on with: a text that repeats itself would meet few experts
TYPICAL = 0.7  # chance of a draft token where the checkpoint's certificate says nothing


def opened_settings(path: Path | None, how: "Decoding", checkpoint: "Checkpoint") -> "Settings | None":
    """The file of --settings for a checkpoint; None without one, and for the AR sampler, which proposes nothing."""
    from zaya_core.settings import read_settings

    return None if path is None or not how.block_length else read_settings(path, block_length=_trained(checkpoint))


def tuned(how: "Decoding", settings: "Settings | None", *, batch: int, num_prompt_tokens: int) -> "Decoding":
    """`how` with the setting of the nearest cell; where that is plain AR decoding, nothing is drafted. --block is a limit."""
    from zaya_core.engine.draft import Proposals

    if settings is None:
        return how
    cell = settings.choose(batch, num_prompt_tokens + how.max_new_tokens)
    if cell.proposals == 0:
        return replace(how, proposals=Proposals(0), block_length=0)
    return replace(how, proposals=Proposals(cell.proposals), block_length=min(cell.block, how.block_length))


class Timed(NamedTuple):
    """A way's step here: the median of its seconds, and the slots that it had a row on average."""

    seconds: float
    slots: float


def measured_ways(
    model: "ServingModel", how: "Decoding", checkpoint: "Checkpoint", *, batch: int, context: int
) -> "tuple[Ways, str]":
    """Time an AR step and steps with drafts here; the fastest for every chance of a draft token, and a sentence that says so."""
    from zaya_core.data.tokenizer import TextTokenizer
    from zaya_core.engine.ways import Ways

    clock = _Clock(model, how, TextTokenizer(checkpoint.path).encode(SAMPLE), batch=batch, context=context)
    timed = _timed(clock, how.block_length)
    speeds = [_speeds(timed, index / GRID) for index in range(GRID + 1)]
    guess = _mixed(_chance_seen(checkpoint), how.verifier.mix_weight)
    ways = Ways(tuple(max(speed, key=speed.__getitem__) for speed in speeds), guess)
    return ways, _said(ways, speeds[round(guess * GRID)])


def _timed(clock: "_Clock", block_length: int) -> "dict[Way, Timed]":
    """AR first; of each way the faster of two, where there was time for all of them twice."""
    from zaya_core.engine.ways import Way

    blocks = sorted({min(block_length, block) for block in (4, 8, block_length)}, reverse=True)
    drafting = [Way(proposals, block) for proposals in TRIED for block in blocks if proposals <= max(1, block // 4)]
    passes: list[dict[Way, Timed]] = []
    began = time.perf_counter()
    for _ in range(PASSES):
        passes.append({})
        for way in (Way(0, 0), *drafting):
            if len(passes[0]) < 2 or time.perf_counter() - began < BUDGET_SECONDS:
                passes[-1][way] = clock.timed(way)
    whole = [one for one in passes if len(one) == len(passes[0])]
    return {way: min((one[way] for one in whole), key=lambda timed: timed.seconds) for way in passes[0]}


def _speeds(timed: "dict[Way, Timed]", chance: float) -> "dict[Way, float]":
    """Tokens a second of AR's, in the long run. A step costs by its slots, between an AR step and the one that was timed."""
    from zaya_core.profile.acceptance import Acceptance, expected

    (plain, ar), *drafting = timed.items()
    speeds = {plain: 1.0}
    for way, step in drafting:
        means = expected(Acceptance.constant(chance, way.block), proposals=way.proposals)
        share = (means.clean + means.proposals * way.block - 1) / (step.slots - 1)
        speeds[way] = means.tokens_per_forward * ar.seconds / (ar.seconds + share * (step.seconds - ar.seconds))
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
    first = f"{way.proposals} of {way.block} at first," if way.proposals else "none at first, drafts would give"
    return f"{first} {expectation}; what the text accepts decides, plain AR steps below {min(paying):.0%}"


class _Clock:
    """Times steps of an engine for `batch` rows going on with a text, after as many tokens as `context` and LONGEST allow.

    One engine for all ways, for on a GPU it keeps what was captured. A step takes as long whatever it attends to, so the tokens
    before the text are zeros, and are not read.
    """

    def __init__(self, model: "ServingModel", how: "Decoding", text_ids: list[int], *, batch: int, context: int) -> None:
        from zaya_core.engine.batch import PREFILL_CHUNK, Engine

        text_ids = text_ids[: max(1, PREFILL_CHUNK // batch)]  # the first step reads all of them
        # No text ends meanwhile.
        self.how = replace(how, ways=None, end_ids=frozenset(), max_new_tokens=(SETTLING + ROUNDS + 1) * how.block_length)
        self.history = min(context, LONGEST)
        turned = [row % len(text_ids) for row in range(batch)]
        self.prompts = [[0] * self.history + text_ids[turn:] + text_ids[:turn] for turn in turned]
        most = len(self.prompts[0]) + self.how.max_new_tokens + self.how.max_step_slots
        self.engine = Engine(model, num_slots=batch * most, max_rows=batch)

    def timed(self, way: "Way") -> Timed:
        """Some steps of a way."""
        from zaya_core.engine.chance import SeededChance
        from zaya_core.engine.draft import Proposals
        from zaya_core.engine.request import Request

        how = replace(self.how, proposals=Proposals(way.proposals), block_length=way.block)
        tickets = [self.engine.add(Request(prompt, how, SeededChance(row))) for row, prompt in enumerate(self.prompts)]
        for row in self.engine.pool.rows:
            row.length = self.history
        for _ in range(SETTLING):
            self._step()
        steps = [self._step() for _ in range(ROUNDS)]
        for ticket in tickets:
            self.engine.cancel(ticket)
        return Timed(statistics.median(step.seconds for step in steps), statistics.mean(step.slots for step in steps))

    def _step(self) -> Timed:
        began = time.perf_counter()
        committed = self.engine.step()
        seconds = time.perf_counter() - began
        for one in committed.values():
            if one.error is not None:
                raise one.error
        return Timed(seconds, statistics.mean(part.step.position.shape[1] for part in self.engine.pool.parts))


def _trained(checkpoint: "Checkpoint") -> int:
    """Its block length."""
    assert checkpoint.config.tidar is not None, "only a checkpoint that drafts is asked"
    return checkpoint.config.tidar.block_length


def _chance_seen(checkpoint: "Checkpoint") -> float:
    """The constant chance of a draft token that makes the simulated acceptance length of the checkpoint's training."""
    metrics = (checkpoint.certificate() or {}).get("metrics", {})
    length = metrics.get("eval_acceptance_length", metrics.get("acceptance_length"))
    if length is None:
        return TYPICAL
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(middle**m for m in range(_trained(checkpoint))) < length else (low, middle)
    return low


def _mixed(chance: float, mix_weight: float) -> float:
    """What mixing makes of it, about (tidar.md section 3)."""
    return 1 - mix_weight * (1 - chance)
