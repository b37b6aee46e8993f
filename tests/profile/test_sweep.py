"""The sweep's choices, the capacity check, the break-even curve, rivals and training figures."""

from dataclasses import replace

import pytest

from zaya_core.devices import find_device
from zaya_core.presets import PRESETS
from zaya_core.profile.acceptance import Acceptance
from zaya_core.profile.forward import ar_step
from zaya_core.profile.rivals import RIVALS, compared
from zaya_core.profile.roofline import pace_of
from zaya_core.profile.routing import Routing
from zaya_core.profile.sweep import Scene, Setting, best_of, break_even, cell, settings_of
from zaya_core.profile.training import Goal, training_figures
from zaya_core.train.plan import Work, flops_of, hours_of

DEVICE = find_device("mi300x")
SCENE = Scene(
    PRESETS["zaya1-8b"],
    pace_of(DEVICE, reached=False),
    DEVICE.memory_bytes,
    2,
    Routing(),
    Acceptance.constant(0.8, 16),
)
SETTINGS = settings_of([8, 16], [1, 3, 16])


def remake(alpha):
    return Acceptance.constant(alpha, 16)


def test_settings_propose_no_more_than_they_verify():
    assert settings_of([2, 4], [1, 3]) == [Setting(2, 1), Setting(4, 1), Setting(4, 3)]


def test_the_best_setting_is_the_fastest_of_all_and_never_slower_than_ar():
    for batch, context in ((1, 1024), (64, 16384), (512, 1024)):
        best = best_of(SCENE, batch, context, SETTINGS)
        assert best.speed_up == max(1, *(cell(SCENE, batch, context, one).speed_up for one in SETTINGS))


def test_a_bad_drafter_leaves_ar():
    best = best_of(replace(SCENE, acceptance=remake(0.05)), 1, 1024, SETTINGS)
    assert (best.proposals, best.speed_up) == (0, 1)


def test_break_even_is_where_the_best_gain_crosses_one():
    edge = break_even(SCENE, 4, 4096, SETTINGS, remake)
    around = [best_of(replace(SCENE, acceptance=remake(edge + by)), 4, 4096, SETTINGS).proposals for by in (-0.021, 0)]
    assert around[0] == 0 < around[1]


def test_what_does_not_fit_is_said_and_not_chosen():
    step = ar_step(512, 131072)
    assert SCENE.held_bytes(step) > 512 * 131072 * 40_960
    assert not best_of(SCENE, 512, 131072, SETTINGS).fits


def test_launches_make_wide_steps_cheap():
    slow = replace(SCENE, pace=replace(SCENE.pace, launch_seconds=1e-4))
    assert cell(slow, 1, 1024, Setting(16, 1)).step_ratio < cell(SCENE, 1, 1024, Setting(16, 1)).step_ratio < 7


def test_rivals_stand_beside_tidar_on_the_same_terms():
    lines = compared(SCENE, cell(SCENE, 1, 4096, Setting(16, 3)))
    assert [line["method"].split(",")[0] for line in lines] == ["ar", "ar", "tidar", "MTP", "EAGLE-3"]
    assert lines[1]["ms"] > lines[0]["ms"]
    assert all(one.source for one in RIVALS)
    mtp = lines[3]
    assert 1 < mtp["step ratio"] < mtp["tokens/forward"]


def test_training_figures_agree_with_the_plan():
    work = Work("tidar", 32768, 1, 1, 1, "bfloat16", "muon", "full", world=1024)
    config, goal = SCENE.config, Goal(6e11, 0.35, 10.0)
    figures = training_figures(config, work, DEVICE, goal)
    whole = replace(work, max_steps=round(figures["steps"]))
    assert figures["days"] * 24 == pytest.approx(hours_of(flops_of(config, whole), whole, DEVICE.flops), rel=1e-3)
    assert figures["doubled_row_over_ar"] == pytest.approx(2)
    assert figures["mfu"] == pytest.approx(0.35 * 3 / 4)
    assert figures["ranks_for_days"] >= 1024 * figures["days"] / 10
