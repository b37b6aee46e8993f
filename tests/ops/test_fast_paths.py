"""Every fast path beside its slow oracle, in float64, gradients included."""

import pytest
import torch

from zaya_core.layout import HISTORY, Layout, keys_of, packed, training_row, visible
from zaya_core.ops.attention import attend_slow, sights
from zaya_core.ops.experts import _grouped, apply_experts, apply_experts_slow
from zaya_core.ops.flex import flex_view
from zaya_core.ops.loss import head_loss, head_loss_slow
from zaya_core.ops.shift import mix_latents
from zaya_core.ops.tiles import tiles


def randn(*shape: int, grad: bool = True) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=grad)


def same_with_gradients(fast, slow, inputs) -> None:
    """Equal values, and equal gradients of a random projection of them."""
    left, right = fast(), slow()
    assert torch.allclose(left, right, rtol=1e-10, atol=1e-12)
    weight = torch.randn_like(left)
    for a, b in zip(torch.autograd.grad(left, inputs, weight), torch.autograd.grad(right, inputs, weight), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-11)


def doubled_row(length: int) -> Layout:
    """A doubled row of three documents and a causal row of one, as the network sees them."""
    document = torch.zeros(2, length, dtype=torch.int64)
    position = torch.arange(length).expand(2, -1).clone()
    for number, begin in enumerate((length // 3, length // 2), 1):
        document[0, begin:], position[0, begin:] = number, torch.arange(length - begin)
    layout, _ = training_row(document, position, torch.full_like(document, 3), 8)
    return layout


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("length", [20, 150, 300])
@pytest.mark.parametrize("make_view", [sights, tiles])
def test_attention(make_view, length, window):
    layout = doubled_row(length)
    view, mask = make_view(layout, keys_of(layout), window), visible(layout, keys_of(layout), window)
    sees = mask.any(-1)
    slots = mask.shape[1]
    q, k, v = randn(2, slots, 6, 4), randn(2, 3, slots, 4), randn(2, 3, slots, 4)
    same_with_gradients(lambda: view.attend(q, k, v)[sees], lambda: attend_slow(q, k, v, mask)[sees], (q, k, v))
    if length == 300:
        scored = sum(part.mask.numel() for part in view.parts if part.mask is not None)
        assert scored < 0.5 * mask.numel(), "hidden keys are left out"


def test_a_long_causal_row_is_a_few_tiles_without_a_mask():
    position = torch.arange(2100)[None]
    row = packed(torch.zeros_like(position), position)
    parts = tiles(row, keys_of(row), None).parts
    assert [part.is_causal for part in parts] == [True, False, True, False, False, True]
    assert all(part.mask is None for part in parts)
    q, k, v = randn(1, 2100, 2, 4, grad=False), randn(1, 1, 2100, 4, grad=False), randn(1, 1, 2100, 4, grad=False)
    found = tiles(row, keys_of(row), None).attend(q, k, v)
    assert torch.allclose(found, attend_slow(q, k, v, visible(row, keys_of(row))), rtol=1e-10)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("window", [None, 40])
def test_flex_attention_sees_by_the_same_rule(window):
    layout = doubled_row(150)
    mask = visible(layout, keys_of(layout), window)
    sees = mask.any(-1)
    slots = mask.shape[1]
    q, k, v = randn(2, slots, 6, 4, grad=False), randn(2, 3, slots, 4, grad=False), randn(2, 3, slots, 4, grad=False)
    found = flex_view(layout, keys_of(layout), window).attend(q, k, v)
    assert torch.allclose(found[sees], attend_slow(q, k, v, mask)[sees], rtol=1e-9)


@pytest.mark.parametrize("choice", [[0, 1, 2, 3, 4, 0, 2], [4] * 7, [1] * 7, [0, 4, 4, 0, 0, 0, 4]])
def test_experts(choice):
    x, gate_up, down = randn(7, 6), randn(4, 10, 6), randn(4, 6, 5)
    index = torch.tensor(choice)
    fast, slow = apply_experts(x, index, gate_up, down), apply_experts_slow(x, index, gate_up, down)
    assert torch.allclose(fast, slow, rtol=1e-12)
    assert bool((fast[index == 4] == 0).all())
    hit = [i for i in choice if i < 4]
    if hit:
        same_with_gradients(
            lambda: apply_experts(x, index, gate_up, down), lambda: apply_experts_slow(x, index, gate_up, down), (x, gate_up, down)
        )


def test_grouped_experts_of_the_gpu_path():
    x, gate_up, down = randn(40, 8), randn(4, 32, 8), randn(4, 8, 16)
    choice = torch.randint(0, 5, (40,))
    order = torch.argsort(choice, stable=True)
    counts = torch.bincount(choice, minlength=5)[:4].tolist()
    parts = [part.detach().float().requires_grad_(True) for part in (x, gate_up, down)]
    fast = _grouped(parts[0], order[: sum(counts)], counts, *parts[1:])
    slow = apply_experts_slow(x, choice, gate_up, down)
    assert torch.allclose(fast.double(), slow, atol=1e-4)
    weight = torch.randn_like(slow)
    for a, b in zip(
        torch.autograd.grad(fast, parts, weight.float()), torch.autograd.grad(slow, (x, gate_up, down), weight), strict=True
    ):
        assert torch.allclose(a.double(), b, atol=1e-3)


@pytest.mark.parametrize("kl_share", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("num_taught", [0, 9])
@pytest.mark.parametrize("with_bias", [False, True])
def test_the_heads_losses(with_bias, num_taught, kl_share, monkeypatch):
    hidden, weight = randn(23, 6), randn(11, 6)
    bias = randn(11) if with_bias else None
    labels, row_weight = torch.randint(0, 11, (23,)), torch.rand(23, dtype=torch.float64)
    teacher = randn(num_taught, 6, grad=False) if num_taught else None
    given, options = (hidden, weight, bias, labels, row_weight), {"teacher": teacher, "kl_share": kl_share}
    inputs = (hidden, weight, bias) if with_bias else (hidden, weight)
    for rows in (1, 5, 100):
        monkeypatch.setattr("zaya_core.ops.loss.CHUNK_ELEMENTS", 1)
        monkeypatch.setattr("zaya_core.ops.loss.MIN_CHUNK_ROWS", rows)
        same_with_gradients(lambda: head_loss(*given, **options).total, lambda: head_loss_slow(*given, **options).total, inputs)
        for fast, slow in zip(head_loss(*given, **options), head_loss_slow(*given, **options), strict=True):
            assert torch.allclose(fast, slow, rtol=1e-10, atol=1e-12)


def test_a_head_that_nothing_goes_through_has_no_gradient():
    hidden, weight = randn(0, 6), randn(11, 6)
    head_loss(hidden, weight, None, torch.zeros(0, dtype=torch.int64), torch.zeros(0)).total.backward()
    assert weight.grad.abs().max() == 0


def test_shifts_equal_torch_convolutions():
    """On an unbroken row the gathers are the two convolutions of torch, padded once with zeros before both."""
    channels, width, slots = 12, 4, 9
    latents = randn(2, slots, channels)
    depthwise = torch.nn.Conv1d(channels, channels, 2, groups=channels).double()
    grouped = torch.nn.Conv1d(channels, channels, 2, groups=channels // width).double()
    row = packed(torch.zeros(2, slots, dtype=torch.int64), torch.arange(slots).expand(2, -1))
    z = torch.nn.functional.pad(latents, (0, 0, HISTORY, 0))

    def fast() -> torch.Tensor:
        return mix_latents(z, row.prev, (depthwise.weight, depthwise.bias), (grouped.weight, grouped.bias))

    def slow() -> torch.Tensor:
        return grouped(depthwise(z.transpose(1, 2))).transpose(1, 2)

    same_with_gradients(fast, slow, (latents, depthwise.weight, depthwise.bias, grouped.weight, grouped.bias))


def test_padded_experts_in_bfloat16_with_gradients():
    """Training in bfloat16 pads every expert's rows; what it forms is what the oracle forms, to that precision."""
    given = [part.detach().bfloat16().requires_grad_(True) for part in (randn(150, 16), randn(4, 24, 16), randn(4, 16, 12))]
    exact = [part.detach().double().requires_grad_(True) for part in given]
    choice = torch.randint(0, 5, (150,))
    fast, slow = apply_experts(given[0], choice, *given[1:]), apply_experts_slow(exact[0], choice, *exact[1:])
    weight = torch.randn_like(slow)
    pairs = [(fast, slow)]
    pairs += zip(torch.autograd.grad(fast, given, weight.bfloat16()), torch.autograd.grad(slow, exact, weight), strict=True)
    for a, b in pairs:
        assert float((a.detach().double() - b.detach()).norm() / b.detach().norm()) < 2e-2
