"""`zaya profile --measure`: the model run here, shape by shape; three shapes calibrate the arithmetic, all others test it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from zaya_core.events import Event, Note, Progress, Result, Warn

if TYPE_CHECKING:
    from zaya_core.engine.batch import Network
    from zaya_core.profile.calibration import Timing
    from zaya_core.profile.measure import Shape, Watched
    from zaya_core.profile.sweep import Scene

UNSTEADY = 0.1  # of the rounds disturbed: worth a warning
WITHIN = 0.25


@dataclass(frozen=True)
class Plan:
    """What to run: `shapes`, each for about `seconds`; `num_tokens` after each of `prompts`; `trace`: a file for the last shape."""

    shapes: "list[Shape]"
    seconds: float
    prompts: list[list[int]]
    num_tokens: int
    trace: Path | None


def measured(plan: Plan, model: "Network", scene: "Scene") -> Iterator[Event]:
    """Tables of what was run, predicted beside measured; returns the scene with the pace, routing and acceptance found."""
    from zaya_core.profile.measure import PASSES, Rig, save_trace, timings
    from zaya_core.runtime import peak_memory_bytes

    found: list[Timing] = []
    for done, found in timings(model, plan.shapes, scene.block_length, most_seconds=plan.seconds):  # noqa: B007
        yield Progress("steps", done, PASSES * len(plan.shapes), "shapes")
    scene = yield from _calibrated(scene, found)
    yield _prefills(model, sorted({shape.context for shape in plan.shapes}))
    if plan.prompts:
        scene = yield from _decoded(plan, model, scene)
    if plan.trace is not None:
        save_trace(plan.trace, Rig(model, plan.shapes[-1], scene.block_length))
        yield Note(f"wrote {plan.trace}")
    yield Result({"peak_memory_bytes": peak_memory_bytes(model.device)})
    return scene


def _calibrated(scene: "Scene", timings: "list[Timing]") -> Iterator[Event]:
    """Predicted beside measured; returns the scene at the pace found. Routing, too, is known from the three cells alone."""
    from zaya_core.profile.calibration import calibrated, chosen_cells
    from zaya_core.profile.routing import Seen, fitted

    cells = chosen_cells(timings)
    steps = [(timings[index].step, timings[index].distinct) for index in cells]
    seen = [Seen(step.rows * (step.slots - step.masks), step.rows * step.masks, distinct) for step, distinct in steps]
    roof = replace(scene, routing=fitted(scene.config.num_experts, seen))
    found = replace(roof, pace=calibrated(roof, [timings[index] for index in cells]))
    lines = [_line(roof, found, one, is_given=index in cells) for index, one in enumerate(timings)]
    yield Result({"title": "Steps: measured, at the roofline, and predicted after calibration on the cells marked", "table": lines})
    pace, routing = found.pace, found.routing
    yield Result(
        {
            "calibrated": {
                "flops": pace.flops,
                "bandwidth": pace.bandwidth,
                "us a launch": pace.launch_seconds * 1e6,
                "correlation": routing.correlation,
                "mask_correlation": routing.mask_correlation,
            }
        }
        | _verdict(found, timings, cells)
    )
    lost, rounds = sum(len(one.seconds) - len(one.undisturbed) for one in timings), sum(len(one.seconds) for one in timings)
    if lost > UNSTEADY * rounds:
        yield Warn(f"{lost} of {rounds} rounds were far slower than others of their shape and not counted: is the machine in use?")
    return found


def _line(roof: "Scene", found: "Scene", one: "Timing", *, is_given: bool) -> dict[str, Any]:
    from zaya_core.profile.roofline import significant

    step, best, guess = one.step, roof.seconds(one.step), found.seconds(one.step)
    return {
        "step": "tidar" if step.masks else "ar",
        "batch": step.rows,
        "context": step.context,
        "proposals": round(step.masks / roof.block_length),
        "slots": round(step.rows * step.slots),
        "experts": significant(one.distinct, 3),
        "ms": significant(one.median * 1e3),
        "spread": f"{one.spread:.0%}",
        "rounds": f"{len(one.undisturbed)}/{len(one.seconds)}",
        "roofline ms": significant(best * 1e3),
        "of roofline": f"{best / one.median:.0%}",
        "predicted ms": significant(guess * 1e3),
        "error": f"{guess / one.median - 1:+.0%}",
        "calibrated on": "*" if is_given else "",
    }


def _verdict(found: "Scene", timings: "list[Timing]", cells: list[int]) -> dict[str, Any]:
    errors = [found.seconds(one.step) / one.median - 1 for index, one in enumerate(timings) if index not in cells]
    return {
        "num_calibrated_on": len(cells),
        "num_predicted": len(errors),
        "num_within_25_percent": sum(abs(error) <= WITHIN for error in errors),
        "worst_error": max(errors, key=abs, default=0.0),
    }


def _prefills(model: "Network", lengths: list[int]) -> Result:
    from zaya_core.profile.measure import prefill_seconds
    from zaya_core.profile.roofline import significant

    timed = [(length, prefill_seconds(model, length)) for length in lengths]
    lines = [{"prompt tokens": n, "ms": significant(took * 1e3), "tokens/s": significant(n / took)} for n, took in timed]
    return Result({"title": "Prefill of one prompt in one forward", "table": lines})


def _decoded(plan: Plan, model: "Network", scene: "Scene") -> Iterator[Event]:
    """The prompts with every level, at temperature 1; returns the scene with their acceptance and routing."""
    from zaya_core.profile.acceptance import Acceptance
    from zaya_core.profile.measure import Watched
    from zaya_core.profile.roofline import significant
    from zaya_core.profile.routing import fitted

    watched, lengths = Watched(model), []
    for done, prompt in enumerate(plan.prompts):
        yield Progress("prompts", done, len(plan.prompts), "prompts")
        lengths += _accepted(watched, prompt, plan, scene.block_length, seed=done)
    histogram = [lengths.count(length) for length in range(1, scene.block_length + 1)]
    acceptance = Acceptance.from_histogram(histogram)
    offsets = [{"mask": index, "accepted": significant(chance, 3)} for index, chance in enumerate(acceptance.chances, 2)]
    yield Result({"title": "Acceptance by mask, once those before it were accepted", "table": offsets})
    routing = fitted(scene.config.num_experts, watched.seen, watched.loads())
    yield Result({"acceptance_histogram": histogram, "routing": _routing(watched)})
    return replace(scene, acceptance=acceptance, routing=routing)


def _accepted(watched: "Watched", prompt_ids: list[int], plan: Plan, block_length: int, *, seed: int) -> list[int]:
    """Acceptance lengths of whole drafts: near the end of a text they are shorter, and say less."""
    from zaya_core.engine.chance import SeededChance
    from zaya_core.engine.decode import decode
    from zaya_core.engine.draft import Proposals
    from zaya_core.engine.request import Decoding
    from zaya_core.ops.sampling import Sampler

    assert watched.config.tidar is not None, "an AR model drafts nothing"
    how = Decoding(
        plan.num_tokens,
        Sampler(1.0),
        proposals=Proposals(None),
        block_length=block_length,
        forbidden=(watched.config.tidar.mask_token_id,),
    )
    steps = decode(watched, prompt_ids, how, SeededChance(seed))
    return [step.num_accepted for step in steps if len(step.drafted) == block_length]


def _routing(watched: "Watched") -> dict[str, Any]:
    """Distinct experts of the decoding forwards, and how uneven the loads are: the largest share, averaged over layers."""
    steps = [one for one in watched.seen if one.masks]
    return {
        "num_forwards": len(steps),
        "slots": mean(one.clean + one.masks for one in steps),
        "distinct_experts": mean(one.distinct for one in steps),
        "largest_share": mean(max(layer) for layer in watched.loads()),
    }
