"""Partial rotary position embedding, half-split pairs (model.md A4), plain or stretched by YaRN."""

import math

import torch
from torch import Tensor

from zaya_core.config import Rope

FAST, SLOW = 32, 1  # turns within the trained context from which YaRN leaves a dim alone, and up to which it stretches it


def rotary_angles(position: Tensor, head_dim: int, rope: Rope, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """[B, T] -> cos and sin [B, T, 1, R/2] for the R rotated dims; angles in float32 as upstream, result in `dtype`."""
    rotated = int(head_dim * rope.partial_rotary_factor)
    exponent = torch.arange(0, rotated, 2, dtype=torch.float32, device=position.device) / rotated
    wavelength = rope.rope_theta**exponent
    frequency, scale = _stretched(wavelength, rotated, rope) if rope.rope_type == "yarn" else (1.0 / wavelength, 1.0)
    angle = position[..., None].float() * frequency
    return (angle.cos() * scale).to(dtype)[:, :, None], (angle.sin() * scale).to(dtype)[:, :, None]


def _stretched(wavelength: Tensor, rotated: int, rope: Rope) -> tuple[Tensor, float]:
    """YaRN's frequencies [R/2], and what it multiplies cosines and sines with (arXiv 2309.00071, sections 3.2 and 3.4)."""
    assert rope.factor is not None
    assert rope.original_max_position_embeddings is not None

    def dim_of(turns: int) -> float:
        return rotated * math.log(rope.original_max_position_embeddings / (turns * 2 * math.pi)) / (2 * math.log(rope.rope_theta))

    low, high = max(math.floor(dim_of(FAST)), 0), min(math.ceil(dim_of(SLOW)), rotated - 1)
    place = torch.arange(rotated // 2, dtype=torch.float32, device=wavelength.device)
    stretched = ((place - low) / max(high - low, 0.001)).clamp(0, 1)
    frequency = 1.0 / (rope.factor * wavelength) * stretched + 1.0 / wavelength * (1 - stretched)
    return frequency, 0.1 * math.log(rope.factor) + 1


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[B, T, heads, N]: rotate the first R dims as pairs (i, i + R/2), leave the rest."""
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)
