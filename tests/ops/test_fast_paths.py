"""Every fast path beside its slow oracle, in float64, gradients included."""

import pytest
import torch

from zaya_core.layout import HISTORY, Layout, keys_of, packed, training_row, visible
from zaya_core.ops.attention import attend, attend_slow, sights
from zaya_core.ops.experts import apply_experts, apply_experts_slow
from zaya_core.ops.loss import sum_cross_entropy, sum_cross_entropy_slow, total_variation
from zaya_core.ops.shift import mix_latents


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


@pytest.mark.parametrize("length", [20, 150, 300])
def test_attention(length):
    layout = doubled_row(length)
    view, mask = sights(layout, keys_of(layout), 40), visible(layout, keys_of(layout), 40)
    sees = mask.any(-1)
    slots = mask.shape[1]
    q, k, v = randn(2, slots, 6, 4), randn(2, 3, slots, 4), randn(2, 3, slots, 4)
    same_with_gradients(lambda: attend(q, k, v, view)[sees], lambda: attend_slow(q, k, v, mask)[sees], (q, k, v))
    if length == 300:
        scored = sum(part.mask.numel() for part in view)
        assert scored < 0.5 * mask.numel(), "hidden keys are left out"


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


@pytest.mark.parametrize("with_bias", [False, True])
def test_chunked_cross_entropy(with_bias, monkeypatch):
    hidden, weight = randn(23, 6), randn(11, 6)
    bias = randn(11) if with_bias else None
    labels = torch.randint(0, 11, (23,))
    inputs = (hidden, weight, bias) if with_bias else (hidden, weight)
    for elements in (11, 55, 10**6):
        monkeypatch.setattr("zaya_core.ops.loss.CHUNK_ELEMENTS", elements)
        same_with_gradients(
            lambda: sum_cross_entropy(hidden, weight, bias, labels),
            lambda: sum_cross_entropy_slow(hidden, weight, bias, labels),
            inputs,
        )


def test_total_variation(monkeypatch):
    monkeypatch.setattr("zaya_core.ops.loss.CHUNK_ELEMENTS", 22)
    left, right, weight = randn(5, 6, grad=False), randn(5, 6, grad=False), randn(11, 6, grad=False)
    p, q = (left @ weight.T).softmax(-1), (right @ weight.T).softmax(-1)
    expected = torch.maximum(p - q, torch.zeros(())).sum(-1)
    assert torch.allclose(total_variation(left, right, weight, None).double(), expected, atol=1e-6)
    assert total_variation(left, left, weight, None).abs().max() == 0


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
