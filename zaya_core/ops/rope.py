"""Partial rotary position embedding, half-split pairs (model.md A4)."""

import torch
from torch import Tensor

from zaya_core.config import Rope


def rotary_angles(position: Tensor, head_dim: int, rope: Rope, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """[B, T] -> cos and sin [B, T, 1, R/2] for the R rotated dims; angles in float32 as upstream, result in `dtype`."""
    rotated = int(head_dim * rope.partial_rotary_factor)
    exponent = torch.arange(0, rotated, 2, dtype=torch.float32, device=position.device) / rotated
    angle = position[..., None].float() * (1.0 / rope.rope_theta**exponent)
    return angle.cos().to(dtype)[:, :, None], angle.sin().to(dtype)[:, :, None]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[B, T, heads, N]: rotate the first R dims as pairs (i, i + R/2), leave the rest."""
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)
