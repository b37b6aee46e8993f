"""Compressed convolutional attention (CCA, arXiv 2510.04476; exact form in model.md A2-A5).

Queries and keys are projected to a narrow latent, mixed over time by two short convolutions, added to a mean residual and
normalised; half of the value comes from the previous token.
"""

import torch
from torch import Tensor, nn

from zaya_core.config import ModelConfig
from zaya_core.layout import HISTORY, Layout
from zaya_core.model.past import LayerPast
from zaya_core.ops.attention import View
from zaya_core.ops.norm import unit_norm
from zaya_core.ops.rope import rotate
from zaya_core.ops.shift import gather_slots, mix_latents, with_history


class CcaProjection(nn.Module):
    """Hidden [B, T, D] -> queries, keys, values and what the next forward's shifts need."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        hidden, bias, channels = config.hidden_size, config.attention_bias, config.conv_channels
        self.q_proj = nn.Linear(hidden, config.num_attention_heads * config.head_dim, bias=bias)
        self.k_proj = nn.Linear(hidden, config.num_key_value_heads * config.head_dim, bias=bias)
        self.v_proj_current = nn.Linear(hidden, config.value_half, bias=bias)
        self.v_proj_delayed = nn.Linear(hidden, config.value_half, bias=bias)
        # Parameters only: the convolutions themselves are gathers by predecessor (ops/shift).
        self.conv_qk_depthwise = nn.Conv1d(channels, channels, config.cca_time0, groups=channels)
        self.conv_qk_grouped = nn.Conv1d(
            channels, channels, config.cca_time1, groups=config.num_attention_heads + config.num_key_value_heads
        )

    def forward(self, x: Tensor, layout: Layout, past: LayerPast | None) -> tuple[Tensor, Tensor, Tensor]:
        """-> q [B, T, H, N], k [B, T, G, N], v [B, T, G, N]; stages the tails in `past`."""
        config = self.config
        rows, slots, _ = x.shape
        q_raw, k_raw = self.q_proj(x), self.k_proj(x)
        delayed = self.v_proj_delayed(x)
        latents = torch.cat([q_raw, k_raw], -1)
        empty = self._no_history(latents, delayed)
        if past is None:
            z, past_values = with_history(empty[0], latents), with_history(empty[1], delayed)
        else:
            z, past_values = past.prepend(latents, delayed, empty, layout)
        depthwise, grouped = self.conv_qk_depthwise, self.conv_qk_grouped
        mixed = mix_latents(z, layout.prev, (depthwise.weight, depthwise.bias), (grouped.weight, grouped.bias))
        q_mean, k_mean = _mean_residuals(q_raw, k_raw, config)
        q_mixed, k_mixed = mixed.split([q_raw.shape[-1], k_raw.shape[-1]], -1)
        # The concatenation runs over the whole value width: with two heads, one is all current and one all delayed.
        values = torch.cat([self.v_proj_current(x), gather_slots(past_values, layout.prev)], -1)
        heads = (rows, slots, -1, config.head_dim)
        return q_mixed.reshape(heads) + q_mean, k_mixed.reshape(heads) + k_mean, values.view(heads)

    def _no_history(self, latents: Tensor, delayed: Tensor) -> tuple[Tensor, Tensor]:
        """What stands before a document: zero raw latents, without the bias, and the values of a zero hidden state: its bias."""
        empty_latents, empty_values = (part.new_zeros(part.shape[0], HISTORY, part.shape[2]) for part in (latents, delayed))
        bias = self.v_proj_delayed.bias
        return empty_latents, empty_values if bias is None else empty_values + bias


class QKNorm(nn.Module):
    """The learned key temperature, one per key-value head, used linearly (model.md A3)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.temp = nn.Parameter(torch.ones(config.num_key_value_heads))

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Both to length sqrt(N), keys times their temperature; float32 out."""
        length = q.shape[-1] ** 0.5
        return unit_norm(q, length), unit_norm(k, length) * self.temp[:, None]


class CcaAttention(nn.Module):
    """Projection, norm, rotation, cache, attention, output projection."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.qkv_proj = CcaProjection(config)
        self.qk_norm = QKNorm(config)
        self.o_proj = nn.Linear(config.num_attention_heads * config.head_dim, config.hidden_size, bias=config.attention_bias)

    def forward(self, x: Tensor, layout: Layout, angles: tuple[Tensor, Tensor], view: View, past: LayerPast | None) -> Tensor:
        """[B, T, D] -> [B, T, D]; `view` is over history and this forward's slots."""
        q, k, v = self.qkv_proj(x, layout, past)
        q, k = self.qk_norm(q, k)
        q = rotate(q, *angles)
        k = rotate(k, *angles).to(v.dtype).transpose(1, 2)
        v = v.transpose(1, 2)
        if past is not None:
            k, v = past.stage(k, v)
        return self.o_proj(view.attend(q, k, v).flatten(2))


def _mean_residuals(q: Tensor, k: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Half the sum of each query latent and its group's key latent, and the mean of that over the group (model.md A2.2)."""
    rows, slots, _ = q.shape
    grouped = q.view(rows, slots, config.num_key_value_heads, -1, config.head_dim)
    q_mean = (grouped + k.view(rows, slots, config.num_key_value_heads, 1, config.head_dim)) * 0.5
    return q_mean.flatten(2, 3), q_mean.mean(3)
