"""Normalisations, computed in at least float32 whatever goes in and out (model.md A3, A11)."""

import torch
from torch import Tensor


def widened(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums are taken in: float32, or float64 when the input already is."""
    return torch.promote_types(dtype, torch.float32)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """[..., D] -> [..., D] in the weight's dtype: x / rms(x) * weight."""
    wide = x.to(widened(x.dtype))
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (scaled * weight).to(weight.dtype)


def unit_norm(x: Tensor, scale: Tensor | float) -> Tensor:
    """[..., N] -> x / ||x|| * scale. The clamp is upstream's float32 eps: a zero vector stays zero."""
    wide = x.to(widened(x.dtype))
    return wide * (scale / wide.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(wide.dtype).eps))
