"""Calibration finds a pace again; measuring runs real steps, counts real experts and writes a real trace."""

import json
from dataclasses import replace

import pytest
import torch

from tests.models import TINY, random_ids, random_model
from zaya_core.config import Tidar
from zaya_core.engine.chance import SeededChance
from zaya_core.engine.decode import decode
from zaya_core.engine.draft import Proposals
from zaya_core.engine.request import Decoding
from zaya_core.events import Note, Result
from zaya_core.model.serving import ServingModel
from zaya_core.ops.sampling import Sampler
from zaya_core.presets import PRESETS
from zaya_core.profile.acceptance import Acceptance
from zaya_core.profile.calibration import Timing, calibrated, chosen_cells
from zaya_core.profile.forward import ar_step, tidar_step
from zaya_core.profile.measure import Rig, Shape, Watched, timings
from zaya_core.profile.roofline import Pace
from zaya_core.profile.routing import Routing
from zaya_core.profile.sweep import Scene
from zaya_core.stages.profile import ProfileConfig, run

SCENE = Scene(PRESETS["bench"], Pace(1e12, 2e10, 5e-6), 1e10, 2, Routing(0.2, 0.9), Acceptance.constant(0.8, 16), loops=True)
STEPS = [ar_step(batch, context) for batch in (1, 16) for context in (128, 4096)]
STEPS += [tidar_step(batch, context, clean=16, proposals=3, block_length=16) for batch in (1, 4, 16) for context in (128, 4096)]


def test_a_pace_is_found_again_from_three_cells():
    truth = replace(SCENE, pace=Pace(4e11, 9e9, 3e-5))
    made = [Timing(step, (truth.seconds(step),) * 3, 1.0) for step in STEPS]
    cells = chosen_cells(made)
    assert len(cells) == 3
    found = replace(SCENE, pace=calibrated(SCENE, [made[index] for index in cells]))
    errors = [found.seconds(one.step) / one.median - 1 for one in made]
    assert max(errors, key=abs) == pytest.approx(0, abs=0.05)


def test_disturbed_rounds_are_counted_not_used():
    timing = Timing(STEPS[0], (1.0, 1.1, 1.05, 9.0, 1.02, 30.0), 1.0)
    assert timing.median == pytest.approx(1.035)
    assert len(timing.seconds) - len(timing.undisturbed) == 2
    assert timing.spread < 0.1


def network(dtype=torch.float32):
    return ServingModel(random_model(TINY.with_changes(tidar=Tidar(4, 4)), dtype=dtype))


def test_a_rig_runs_the_step_that_it_describes():
    model = network()
    for shape, slots in ((Shape(2, 10, 0), 1), (Shape(2, 10, 3), 16), (Shape(1, 0, 4), 20)):
        rig = Rig(model, shape, 4)
        watched = Watched(model)
        rig.model = watched
        rig.step()
        (seen,) = watched.seen
        assert (seen.clean + seen.masks, rig.described().slots) == (shape.batch * slots, slots)
        assert seen.masks == shape.batch * rig.described().masks
        assert rig.distinct() == seen.distinct  # nothing was committed: the step is the same again
        assert all(row.length == shape.context for row in rig.rows)


def test_timings_come_for_every_shape_in_order():
    shapes = [Shape(1, 16, 0), Shape(2, 16, 1)]
    *_, (done, found) = timings(network(), shapes, 4, most_seconds=0.01)
    assert (done, len(found)) == (6, 2)
    assert [one.step.rows for one in found] == [1, 2]
    assert all(len(one.seconds) >= 6 for one in found)


def test_watching_does_not_change_the_tokens():
    model, prompt = network(torch.float64), random_ids(TINY, 1, 9)[0].tolist()
    how = Decoding(12, Sampler(1.0), proposals=Proposals(None), block_length=4, forbidden=(4,))

    def tokens(through):
        return [final.token_id for part in decode(through, prompt, how, SeededChance(5)) for final in part.finals]

    watched = Watched(model)
    assert tokens(watched) == tokens(model)
    assert all(len(layer) == TINY.num_experts and sum(layer) == pytest.approx(1) for layer in watched.loads())
    assert all(0 <= one.distinct <= TINY.num_experts for one in watched.seen)


def test_measure_from_the_command(tmp_path):
    trace, settings = tmp_path / "t.json", tmp_path / "s.json"
    options = {"batch": "1,2", "context": "16,64", "proposals": "1,16", "block": "16", "prompt_tokens": 30}
    config = ProfileConfig(measure=True, device="cpu", measure_seconds=0.05, trace=trace, save_settings=settings, **options)
    events = list(run(config))
    values = [event.values for event in events if isinstance(event, Result)]
    steps = next(part["table"] for part in values if part.get("title", "").startswith("Steps"))
    assert len(steps) == 12
    assert sum(line["calibrated on"] == "*" for line in steps) <= 3
    verdict = next(part for part in values if "num_predicted" in part)
    assert verdict["num_predicted"] + verdict["num_calibrated_on"] == 12
    counted = next(part for part in values if "acceptance_histogram" in part)
    assert len(counted["acceptance_histogram"]) == 16
    assert 1 <= counted["routing"]["distinct_experts"] <= 8
    assert json.loads(trace.read_text())["traceEvents"]
    assert json.loads(settings.read_text())["device"] == values[0]["device"]
    assert any(isinstance(event, Note) and str(trace) in event.text for event in events)


def test_a_preset_is_measured_with_random_weights():
    options = {"batch": "1", "context": "16", "proposals": "1", "dtype": "float32"}
    events = list(run(ProfileConfig("tiny", measure=True, device="cpu", measure_seconds=0.05, **options)))
    assert any(isinstance(event, Note) and "random weights" in event.text for event in events)
    assert not any("acceptance_histogram" in event.values for event in events if isinstance(event, Result))
