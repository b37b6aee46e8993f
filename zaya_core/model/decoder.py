"""The whole network: embedding, decoder layers on a float32 residual stream, final norm, head (model.md A1).

One forward, no modes: `model(token_ids, layout, past) -> hidden`. The head is a separate call, so that callers project only
the rows they read. Parameter names are transformers' native ZAYA names.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zaya_core.config import ModelConfig
from zaya_core.errors import ConfigError
from zaya_core.layout import Layout, keys_of
from zaya_core.model.cca import CcaAttention
from zaya_core.model.layers import ResidualScale, RmsNorm
from zaya_core.model.moe import MoeLayer
from zaya_core.model.past import LayerPast, Past
from zaya_core.model.pool import Pool, empty_step
from zaya_core.ops.attention import View, row_view
from zaya_core.ops.norm import widened
from zaya_core.ops.rope import rotary_angles


class DecoderLayer(nn.Module):
    """CCA attention and an expert layer, each merged into the stream by its residual scale."""

    def __init__(self, config: ModelConfig, layer_index: int) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = CcaAttention(config)
        self.post_attention_residual_scale = ResidualScale(config.hidden_size)
        self.post_attention_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MoeLayer(config, layer_index)
        self.post_mlp_residual_scale = ResidualScale(config.hidden_size)

    def forward(
        self,
        stream: Tensor,
        carried: Tensor | None,
        layout: Layout,
        angles: tuple[Tensor, Tensor],
        view: View,
        past: LayerPast | None,
        routing: list[Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        """Stream [B, T, D] and router state [B, T, R] of the layer below -> those of this layer."""
        attended = self.self_attn(self.input_layernorm(stream), layout, angles, view, past)
        stream = self.post_attention_residual_scale(attended, stream)
        expert_output, carried = self.mlp(self.post_attention_layernorm(stream), carried, routing)
        return self.post_mlp_residual_scale(expert_output, stream), carried


class Decoder(nn.Module):
    """Token ids to normed hidden states."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.input_hidden_states_scale = nn.Parameter(torch.ones(config.hidden_size))
        self.input_hidden_states_bias = nn.Parameter(torch.zeros(config.hidden_size))
        self.layers = nn.ModuleList(DecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.row_view = row_view  # how whole rows attend; a run whose GPU fails the probe puts `sights` here

    def forward(self, token_ids: Tensor, layout: Layout, past: Past | None, routing: list[Tensor] | None) -> Tensor:
        """[B, T] -> [B, T, D]."""
        stream = (self.embed_tokens(token_ids) + self.input_hidden_states_bias) * self.input_hidden_states_scale
        dtype = stream.dtype
        stream = stream.to(widened(dtype))
        views, angles = {}, {}
        for kind in set(self.config.layer_types):
            window = self.config.window(kind)
            views[kind] = self.row_view(layout, keys_of(layout), window) if past is None else past.view(layout, window)
            rope = self.config.rope_parameters[kind]
            angles[kind] = rotary_angles(layout.position, self.config.head_dim, rope, dtype)
        carried = None
        for index, (kind, layer) in enumerate(zip(self.config.layer_types, self.layers, strict=True)):
            layer_past = None if past is None else past.layers[index]
            stream, carried = layer(stream, carried, layout, angles[kind], views[kind], layer_past, routing)
        return self.norm(stream)


class Zaya(nn.Module):
    """A ZAYA language model: `model(token_ids, layout, past)` gives hidden states, `logits(hidden)` the head's rows."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.lm_head_bias)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, token_ids: Tensor, layout: Layout, past: Past | None = None, routing: list[Tensor] | None = None) -> Tensor:
        """Token ids [B, T] under `layout` -> normed hidden [B, T, D].

        With a `Pool` that made the layout, keys and tails are staged there until its `commit`. `routing` collects each layer's
        expert choice [B, T].
        """
        return self.model(token_ids, layout, past, routing)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V], float32 or wider."""
        rows = F.linear(hidden, self.lm_head.weight, self.lm_head.bias)
        return rows.to(widened(rows.dtype))

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' dtype."""
        return self.model.embed_tokens.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.model.embed_tokens.weight.device

    def new_pool(self, num_slots: int, *, max_rows: int = 1, marks: bool = False) -> Pool:
        """An empty pool for this model, on the CPU; on a GPU its form for serving decodes, and this is a ConfigError."""
        if self.device.type != "cpu":
            raise ConfigError(
                f"this network is on {self.device}, expected the CPU to decode as it is",
                hint="zaya_core.model.forms.for_serving(model) lays it out for the GPU",
            )
        empty = [empty_step(self.config, layer.self_attn.qkv_proj.v_proj_delayed) for layer in self.model.layers]
        return Pool(self.config, torch.stack(empty), num_slots, max_rows=max_rows, marks=marks)
