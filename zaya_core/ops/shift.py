"""The time shifts of CCA: every one is a gather by predecessor, in one path for whole rows, chunks and branches (model.md A2)."""

import torch
from torch import Tensor


def with_history(history: Tensor, x: Tensor) -> Tensor:
    """[B, history, C] and [B, T, C] -> [B, history + T, C], the array that `prev` indexes."""
    return torch.cat([history.to(x.dtype), x], 1)


def gather_slots(x: Tensor, index: Tensor) -> Tensor:
    """[B, S, C] taken at `index` [B, T] -> [B, T, C]."""
    return x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))


def mix_latents(z: Tensor, prev: Tensor, depthwise: tuple[Tensor, Tensor], grouped: tuple[Tensor, Tensor]) -> Tensor:
    """Two causal convolutions of two taps over [history + T] raw latents -> [B, T, C].

    `depthwise`: weight [C, 1, 2], bias [C]; `grouped`: weight [C, N, 2] (one group a head of N), bias [C]. Tap 0 is the older.
    The depthwise outputs of the history are formed from raw latents too, so zeros give its bias, not zero (model.md A2.3).
    """
    older, newer = depthwise[0][:, 0, 0], depthwise[0][:, 0, 1]
    num_past = z.shape[1] - prev.shape[1]
    past = z[:, : num_past - 1] * older + z[:, 1:num_past] * newer + depthwise[1]
    mixed = gather_slots(z, prev) * older + z[:, num_past:] * newer + depthwise[1]
    mixed_prev = gather_slots(torch.cat([past, mixed], 1), prev - 1)  # the oldest time step has no output
    return _per_head(mixed_prev, mixed, *grouped)


def _per_head(older: Tensor, newer: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Both taps of the grouped convolution as one batched product per head."""
    channels, width, _ = weight.shape
    rows, slots, _ = newer.shape
    heads = channels // width
    # [C, N, 2] -> per head [2N, N]: the older tap's inputs, then the newer's.
    matrix = weight.view(heads, width, width, 2).permute(0, 3, 2, 1).reshape(heads, 2 * width, width)
    taps = torch.cat([older.view(rows * slots, heads, width), newer.view(rows * slots, heads, width)], -1)
    return torch.bmm(taps.transpose(0, 1), matrix).transpose(0, 1).reshape(rows, slots, channels) + bias
