"""Attention and experts whose lengths live in tensors, against their oracles: in Triton's interpreter where Triton is installed."""

import os

import pytest
import torch

from zaya_core.layout import side_by_side, template
from zaya_core.ops.experts import apply_experts_slow
from zaya_core.ops.spans import PADDED, Spans, attend_spans_slow

os.environ.setdefault("TRITON_INTERPRET", "1")

STEPS = [template(3, (1, 3), 4), template(1), template(2), template(21), template(5, (5,), 4)]
LENGTHS = [0, 70, 5, 1, 190]


def spans(tile, window, pad_slots=3, pad_tiles=2):
    layout = side_by_side(STEPS, LENGTHS)
    counts = [step.position.shape[1] for step in STEPS]
    rows, tiles, first, begin = [], [], 0, 4
    for number, (length, count) in enumerate(zip(LENGTHS, counts, strict=True)):
        rows.append((begin, length, first, count))
        tiles += [(number, at) for at in range(0, count, tile)]
        first, begin = first + count, begin + length + count + 3
    rows.append((begin, 0, 0, 0))
    tiles += [(0, 2**30)] * pad_tiles

    def padded(part, value):
        return torch.cat([part[0], torch.full((pad_slots,), value)])

    parts = (padded(layout.position, 0), padded(layout.start, 0), padded(layout.block, PADDED))
    return Spans(*parts, torch.tensor(rows), torch.tensor(tiles), tile, window), begin


@pytest.mark.parametrize("window", [None, 4, 64])
@pytest.mark.parametrize(("tile", "per_group", "width"), [(1, 4, 16), (16, 2, 16), (4, 3, 8)])
def test_attention_over_spans(tile, per_group, width, window):
    kernels = pytest.importorskip("zaya_core.ops.kernels")
    view, pool_slots = spans(tile, window)
    generator = torch.Generator().manual_seed(0)
    slots = view.position.numel()
    q = torch.randn(2 * per_group, slots, width, generator=generator)
    k, v = (torch.randn(2, pool_slots, width, generator=generator) for _ in range(2))
    wanted = attend_spans_slow(view, q[None], k[None], v[None])[0]
    found = kernels.attend_spans(view, q, k, v)
    assert found.shape == wanted.shape == (slots, 2 * per_group, width)
    torch.testing.assert_close(found, wanted, atol=2e-6, rtol=1e-5)
    assert not found[-3:].any()


@pytest.mark.parametrize("num_tokens", [1, 7, 60, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts_without_counts_on_the_host(num_tokens, dtype):
    kernels = pytest.importorskip("zaya_core.ops.kernels")
    generator = torch.Generator().manual_seed(num_tokens)
    num_experts, width, inner = 3, 40, 24
    x = torch.randn(num_tokens, width, generator=generator).to(dtype)
    choice = torch.randint(0, num_experts + 1, (num_tokens,), generator=generator)
    gate_up = (torch.randn(num_experts, 2 * inner, width, generator=generator) / width**0.5).to(dtype)
    down = (torch.randn(num_experts, width, inner, generator=generator) / inner**0.5).to(dtype)
    found = kernels.apply_experts_static(x, choice, gate_up, down)
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.03, "rtol": 0.03}
    torch.testing.assert_close(found, apply_experts_slow(x, choice, gate_up, down), **tolerance)
    nothing = torch.full_like(choice, num_experts)
    assert not kernels.apply_experts_static(x, nothing, gate_up, down).any()
