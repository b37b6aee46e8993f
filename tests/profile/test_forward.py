"""Counts against the real network: parameters, K/V of a cache, experts hit, products as torch counts them."""

import random

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.models import TINY, random_ids, random_model
from zaya_core.devices import DEVICES
from zaya_core.layout import packed
from zaya_core.model.load import meta_model
from zaya_core.presets import PRESETS
from zaya_core.profile.forward import Step, ar_step, cost_of, kv_bytes, state_bytes, tidar_step, weight_bytes, weights_of
from zaya_core.profile.roofline import Pace, attention_intensity, free_slots, seconds_of, total
from zaya_core.profile.routing import Routing, Seen, fitted
from zaya_core.profile.variants import variant_table
from zaya_core.train.plan import sizes_of

BIG = PRESETS["zaya1-8b"]


@pytest.mark.parametrize("preset", PRESETS)
def test_weights_are_the_networks(preset):
    config = PRESETS[preset]
    there = sum(parameter.numel() for parameter in meta_model(config).parameters())
    few = 4 * config.hidden_size  # the stream's entry and exit, and the first layer's missing router scale
    assert weight_bytes(config, 1) == pytest.approx(there, abs=few)
    assert config.num_experts * weights_of(config).expert == sizes_of(config).layer_experts


def test_figures_of_the_8b_model():
    assert kv_bytes(BIG, 1, 2) == 40_960  # model.md A10
    assert state_bytes(BIG, 2) == 40 * 2 * (2560 + 128)
    one = cost_of(BIG, ar_step(1, 0), routing=Routing(), width=2)
    assert sum(part.flops for name, part in one.items() if name in ("projections", "router", "experts")) == pytest.approx(
        1.507e9, rel=0.01
    )
    assert one["head"].flops == pytest.approx(1.074e9, rel=0.01)
    at = cost_of(BIG, ar_step(1, 1000), routing=Routing(), width=2)["attention"].flops
    assert at == pytest.approx(163_840 * 1001)


def test_a_sliding_layer_reads_its_window():
    wide = PRESETS["zaya1-74b"]
    assert kv_bytes(wide, 262_144, 2) == pytest.approx(8.05e9 + 0.126e9, rel=0.01)  # model.md E


def test_products_are_those_that_torch_counts():
    model, ids = random_model(TINY), random_ids(TINY, 1, 24)
    position = torch.arange(24)[None]
    with FlopCounterMode(display=False) as counter:
        model.logits(model(ids, packed(torch.zeros_like(ids), position)))
    skips = 0.15  # of the tokens choose no expert in a random model
    ours = cost_of(TINY, Step(1, 0, slots=24, logit_rows=24), routing=Routing(), width=4)
    products = total({name: part for name, part in ours.items() if name not in ("attention", "between")}).flops
    assert counter.get_total_flops() == pytest.approx(products, rel=skips)


def test_union_is_the_mean_of_random_draws():
    chance = random.Random(0)
    for slots in (1, 7, 40):
        seen = [len({chance.randrange(16) for _ in range(slots)}) for _ in range(4000)]
        assert Routing().distinct(16, slots) == pytest.approx(sum(seen) / len(seen), rel=0.02)
    assert Routing().distinct(16, 64) == pytest.approx(15.7, abs=0.05)  # tidar.md section 4


def test_correlation_makes_fewer_choices_and_is_found_again():
    assert Routing(1.0).distinct(16, 64) == pytest.approx(1)
    truth = Routing(0.35, 0.9)
    seen = [Seen(clean, masks, truth.distinct(8, clean, masks)) for clean, masks in ((1, 0), (8, 0), (8, 8), (8, 64))]
    assert fitted(8, seen) == truth
    uneven = ((0.5, 0.25, 0.125, 0.125),)
    assert Routing(loads=uneven).distinct(4, 8) < Routing().distinct(4, 8)


def test_an_engine_that_loops_launches_more():
    step = tidar_step(8, 64, clean=16, proposals=1, block_length=16)
    fused, loops = (total(cost_of(BIG, step, routing=Routing(), width=2, loops=loops)) for loops in (False, True))
    assert loops.kernels > 2 * fused.kernels
    assert (loops.bytes, loops.flops) == (fused.bytes, fused.flops)


def test_bytes_at_batch_1_are_those_of_the_design():
    weights = {name: part.bytes for name, part in cost_of(BIG, Step(1, 0, 64, 0), routing=Routing(), width=2).items()}
    assert weights["experts"] == pytest.approx(2 * 15.74 / 16 * 8.053e9, rel=0.01)


@pytest.mark.parametrize(("name", "blocks"), [("mi300x", 3.85), ("mi355x", 4.9), ("h100", 4.61), ("mi250x", 1.83)])
def test_blocks_under_the_ridge(name, blocks):
    assert free_slots(DEVICES[name], attention_intensity(BIG, 2)) / 16 == pytest.approx(blocks, abs=0.02)


def test_attention_variants():
    own, gqa, mha, mla = variant_table(BIG, DEVICES["mi300x"], width=2, block_length=16, context=32768)
    assert [line["FLOP/B/slot"] for line in (own, gqa, mha)] == [4, 8, 1]
    assert mla["FLOP/B/slot"] == pytest.approx(2 * 16, rel=0.06)
    assert own["KV B/token/layer"] == gqa["KV B/token/layer"] == mha["KV B/token/layer"] / 8
    assert gqa["max_blocks_per_forward"] == pytest.approx(own["max_blocks_per_forward"] / 2, rel=0.01)


def test_time_is_the_longer_of_memory_and_arithmetic_and_launches_add():
    parts = cost_of(BIG, tidar_step(4, 4096, clean=16, proposals=3, block_length=16), routing=Routing(), width=2)
    free = Pace(flops=1e30, bandwidth=1e12, launch_seconds=0)
    assert seconds_of(parts, free) == pytest.approx(total(parts).bytes / 1e12)
    assert seconds_of(parts, Pace(1e12, 1e30, 0)) == pytest.approx(total(parts).flops / 1e12)
    assert seconds_of(parts, Pace(1e30, 1e30, 1e-6)) == pytest.approx(total(parts).kernels * 1e-6)
