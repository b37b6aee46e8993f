"""`--proposals auto`: a request's block and proposals, fixed before it starts: by a settings file, or by a short measurement.

With a file nothing but a request's own size is looked at, so that a seeded request decodes the same whatever runs beside it
(tidar.md section 3). What is measured is for requests whose seed nobody gave.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zaya_core.engine.request import Decoding
    from zaya_core.io.checkpoint import Checkpoint
    from zaya_core.model.serving import ServingModel
    from zaya_core.settings import Settings

TRIED = (1, 2, 3, 5)  # proposals
ROUNDS = 6  # steps of each, of which the fastest counts: others may have been disturbed
BUDGET_SECONDS = 3.0  # after which nothing more is tried
LONGEST = 2048  # tokens of history measured at: more would take longer than it can save
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


def measured_settings(
    model: "ServingModel", how: "Decoding", checkpoint: "Checkpoint", *, batch: int, context: int
) -> "tuple[Settings, str]":
    """Time an AR step and steps with drafts here, weigh them with the acceptance that training saw; the best, and why."""
    from zaya_core.profile.acceptance import Acceptance, expected
    from zaya_core.settings import Settings, Tuned

    chance = _mixed(_chance_seen(checkpoint, how.block_length), how.verifier.mix_weight)
    acceptance = Acceptance.constant(chance, how.block_length)
    plain = _step_seconds(model, 1, 0, batch=batch, context=context)
    cells = [Tuned(batch, context, 1, 0, 1.0)]
    blocks = sorted({min(how.block_length, block) for block in (4, 8, how.block_length)})
    began = time.perf_counter()
    for proposals in TRIED:
        for block in blocks:
            if proposals <= block and (len(cells) == 1 or time.perf_counter() - began < BUDGET_SECONDS):
                seconds = _step_seconds(model, block, proposals, batch=batch, context=context)
                tokens = expected(acceptance.cut(block), proposals=proposals).tokens_per_forward
                cells.append(Tuned(batch, context, block, proposals, tokens * plain / seconds))
    best = max(cells, key=lambda cell: cell.speed_up)
    tried = max((cell for cell in cells if cell.proposals), key=lambda cell: cell.speed_up)
    expectation = f"about {tried.speed_up:.2f}x of AR, if {chance:.0%} of drafts are accepted"
    if best.proposals == 0:
        says = f"none, plain AR steps: at best drafts would give {expectation}"
    else:
        says = f"{best.proposals} of {best.block}: {expectation}"
    dtype = str(model.dtype).removeprefix("torch.")
    settings = Settings(checkpoint.path.name, str(model.device), dtype, f"{chance:.3f}", how.block_length, (best,))
    return settings, says


def _step_seconds(model: "ServingModel", block: int, proposals: int, *, batch: int, context: int) -> float:
    """Seconds of a forward of `batch` rows and its rows of logits, after as many tokens as `context` and LONGEST allow."""
    import torch

    from zaya_core.layout import template

    levels = tuple(round((index + 1) * block / proposals) for index in range(proposals))
    step, history = template(block, levels, block if levels else 0), min(context, LONGEST)
    slots = step.position.shape[1]
    pool = model.new_pool(batch * (history + slots), max_rows=batch)
    rows = [pool.open(history + slots) for _ in range(batch)]
    generator, seconds = torch.Generator().manual_seed(0), []
    for row in rows:
        row.length = history  # of zeros: a step's time does not depend on what it attends to
    for _ in range(ROUNDS):
        began = time.perf_counter()
        ids = torch.randint(model.config.vocab_size, (batch, slots), generator=generator)
        ids[:, block:] = model.config.tidar.mask_token_id if model.config.tidar else 0
        hidden = model(ids.view(1, -1), pool.layout([(row, step) for row in rows]), pool)[0]
        laws = model.logits(hidden.view(batch, slots, -1)[:, : 2 * block - 1].flatten(0, 1)).softmax(-1)
        float(laws[0, 0])  # an accelerator works on after the call
        seconds.append(time.perf_counter() - began)
    return min(seconds)


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
