"""Small modules of the residual stream (model.md A1)."""

import torch
from torch import Tensor, nn

from zaya_core.ops.norm import rms_norm


class RmsNorm(nn.Module):
    """Root-mean-square norm with a plain weight; output in the weight's dtype."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return rms_norm(x, self.weight, self.eps)


class ResidualScale(nn.Module):
    """Merges a layer's output into the stream: bias before scale, in both branches (model.md A1.4)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden_states_scale = nn.Parameter(torch.ones(width))
        self.hidden_states_bias = nn.Parameter(torch.zeros(width))
        self.residual_scale = nn.Parameter(torch.ones(width))
        self.residual_bias = nn.Parameter(torch.zeros(width))

    def forward(self, y: Tensor, stream: Tensor) -> Tensor:
        """Both [B, T, D]; the result keeps the stream's dtype (float32 or wider)."""
        y = (y.to(stream.dtype) + self.hidden_states_bias) * self.hidden_states_scale
        return y + (stream + self.residual_bias) * self.residual_scale
