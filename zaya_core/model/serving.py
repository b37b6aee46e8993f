"""The network laid out for decoding: the same function as `decoder`, which is its oracle, with few and long operations.

Weights are merged and packed once: the projections of q, k and both halves of v into one product, CCA's two convolutions into one
of three taps, rotary pairs side by side so that a rotation is one complex product. It has no gradients and one row of slots.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zaya_core.config import ModelConfig
from zaya_core.layout import HISTORY, Layout
from zaya_core.model.decoder import DecoderLayer, Zaya
from zaya_core.model.layers import ResidualScale, RmsNorm
from zaya_core.model.moe import Experts, Router
from zaya_core.model.pool import LayerPool, Pool, empty_step
from zaya_core.ops.attention import View
from zaya_core.ops.norm import widened
from zaya_core.ops.products import apply_prepared_experts, prepared
from zaya_core.ops.rope import rotary_angles


@dataclass(frozen=True)
class Step:
    """What every layer of a forward shares: `taps` [T * 3] index [history | slots] at two, one and no steps back.

    None where every slot follows its left neighbour: then the three of slot t lie in order from t on, and nothing is gathered.
    """

    taps: Tensor | None
    turns: dict[str, Tensor]  # complex [T, N / 2] by kind of layer
    views: dict[str, View]
    is_idle: Tensor | None = None  # [T] bool: slots that hold nothing, and read no expert


class ServingModel:
    """`model(token_ids, layout, pool, routing) -> hidden`, as `Zaya`, for layouts that a `Pool` made; [1, T] -> [1, T, D]."""

    remark: str | None = None  # what the user should know about how it runs

    def __init__(self, model: Zaya, *, packs: bool = True) -> None:
        """Takes the weights over layer by layer: `model` is empty afterwards. Without `packs` they stay as they lie in memory."""
        self.config, self.dtype, self.device = model.config, model.dtype, model.device
        decoder = model.model
        self.embedding = decoder.embed_tokens.weight
        self.input_bias, self.input_scale = decoder.input_hidden_states_bias, decoder.input_hidden_states_scale
        self.head = prepared(model.lm_head.weight, model.lm_head.bias, packs=packs)
        self.norm = Norm(decoder.norm)
        self.layers = []
        for index, layer in enumerate(decoder.layers):
            self.layers.append(ServingLayer(self.config, layer, self.config.layer_types[index], packs=packs))
            layer.to("meta")
        self.empty = torch.stack([layer.attention.empty for layer in self.layers])

    @torch.inference_mode()
    def __call__(self, token_ids: Tensor, layout: Layout, pool: Pool, routing: list[Tensor] | None = None) -> Tensor:
        """Keys and tails are staged in `pool` until its `commit`; `routing` collects each layer's expert choice [1, T]."""
        views = {kind: pool.view(layout, self.config.window(kind)) for kind in set(self.config.layer_types)}
        taps = None if pool.is_chain else taps_of(layout.prev[0], pool.num_past)
        return self.run(token_ids[0].to(self.device), Step(taps, self.turns(layout.position), views), pool.layers, routing)[None]

    def run(self, token_ids: Tensor, step: Step, past: Sequence[LayerPool], routing: list[Tensor] | None) -> Tensor:
        """Token ids [T] through all layers -> hidden [T, D]."""
        stream = (F.embedding(token_ids, self.embedding) + self.input_bias) * self.input_scale
        stream, carried = stream.to(widened(stream.dtype)), None
        for layer, layer_past in zip(self.layers, past, strict=True):
            stream, carried = layer(stream, carried, step, layer_past, routing)
        return self.norm(stream).to(self.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V], float32 or wider."""
        rows = self.head(hidden)
        return rows.to(widened(rows.dtype))

    def new_pool(self, num_slots: int, *, max_rows: int = 1, marks: bool = False) -> Pool:
        """An empty pool for this model."""
        return Pool(self.config, self.empty, num_slots, max_rows=max_rows, marks=marks)

    def turns(self, position: Tensor) -> dict[str, Tensor]:
        """What rotates the pairs of a head at each position [1, T], by kind of layer: complex [T, N / 2]."""
        turns = {}
        for kind in set(self.config.layer_types):
            cos, sin = rotary_angles(position, self.config.head_dim, self.config.rope_parameters[kind], self.dtype)
            turn = torch.complex(cos[0].to(widened(cos.dtype)), sin[0].to(widened(sin.dtype)))
            turns[kind] = F.pad(turn[:, 0], (0, self.config.head_dim // 2 - turn.shape[-1]), value=1.0)
        return turns


class Norm:
    """RmsNorm on the wide stream, which stays wide; by its vector norm, which is one pass."""

    def __init__(self, norm: RmsNorm) -> None:
        self.weight = norm.weight.to(widened(norm.weight.dtype))
        self.eps = torch.full((), norm.eps, dtype=self.weight.dtype, device=self.weight.device)
        self.share = 1.0 / self.weight.numel()

    def __call__(self, x: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x.mul(torch.addcmul(self.eps, length, length, value=self.share).rsqrt_()).mul_(self.weight)


class Merge:
    """ResidualScale with its two biases made one."""

    def __init__(self, merge: ResidualScale) -> None:
        wide = widened(merge.residual_scale.dtype)
        self.output_scale, self.stream_scale = merge.hidden_states_scale.to(wide), merge.residual_scale.to(wide)
        self.bias = merge.hidden_states_bias.to(wide) * self.output_scale + merge.residual_bias.to(wide) * self.stream_scale

    def __call__(self, output: Tensor, stream: Tensor) -> Tensor:
        """Both [T, D]; the stream's dtype."""
        return torch.addcmul(self.bias, stream, self.stream_scale).addcmul_(output, self.output_scale)


class ServingLayer:
    """One decoder layer: `(stream [T, D], carried [T, R]) ->` those above it."""

    def __init__(self, config: ModelConfig, layer: DecoderLayer, kind: str, *, packs: bool) -> None:
        self.kind, self.skips_through, self.num_experts = kind, layer.mlp.skips_through, config.num_experts
        self.input_norm, self.post_norm = Norm(layer.input_layernorm), Norm(layer.post_attention_layernorm)
        self.attention_merge = Merge(layer.post_attention_residual_scale)
        self.mlp_merge = Merge(layer.post_mlp_residual_scale)
        self.attention = ServingAttention(config, layer, kind, packs=packs)
        self.router = ServingRouter(layer.mlp.gate, packs=packs)
        self.experts = _experts(layer.mlp.experts, packs=packs)

    def __call__(
        self, stream: Tensor, carried: Tensor | None, step: Step, past: LayerPool, routing: list[Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """Appends the choice [1, T] to `routing` if given."""
        u = self.input_norm(stream).to(self.attention.dtype)
        stream = self.attention_merge(self.attention(u, step, self.kind, past), stream)
        u = self.post_norm(stream).to(self.attention.dtype)
        choice, probability, carried = self.router(u, carried)
        if step.is_idle is not None:
            choice = choice.masked_fill(step.is_idle, self.num_experts)
        if routing is not None:
            routing.append(choice[None])
        y = self.experts(u, choice)
        if self.skips_through:
            y = torch.where((choice == self.num_experts)[:, None], u, y)
        return self.mlp_merge(y * probability, stream), carried


class ServingAttention:
    """CcaAttention: one product in, one convolution of three taps, one rotation, one product out."""

    def __init__(self, config: ModelConfig, layer: DecoderLayer, kind: str, *, packs: bool) -> None:
        attention = layer.self_attn
        projection, order = attention.qkv_proj, _pair_order(config, kind)
        parts = (projection.q_proj, projection.k_proj, projection.v_proj_delayed, projection.v_proj_current)
        weights, biases = [part.weight for part in parts], [part.bias for part in parts]
        for index in (0, 1):
            weights[index] = weights[index].unflatten(0, (-1, config.head_dim))[:, order].flatten(0, 1)
            if config.attention_bias:
                biases[index] = biases[index].unflatten(0, (-1, config.head_dim))[:, order].flatten()
        self.dtype = parts[0].weight.dtype
        self.into = prepared(torch.cat(weights), torch.cat(biases) if config.attention_bias else None, packs=packs)
        self.out = prepared(attention.o_proj.weight, attention.o_proj.bias, packs=packs)
        self.queries, self.groups, self.width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.channels, self.half = config.conv_channels, config.value_half
        self.taps, self.tap_bias = _three_taps(config, projection.conv_qk_depthwise, projection.conv_qk_grouped, order)
        wide = self.tap_bias.dtype
        self.num_heads, self.means = self.queries + self.groups, _means(config, self.tap_bias)
        self.least = torch.finfo(wide).eps
        temperature = torch.cat([torch.ones(self.queries), attention.qk_norm.temp.detach().cpu()]).to(wide)
        self.length = (temperature * self.width**0.5).to(self.tap_bias.device)[:, None, None]
        self.empty = empty_step(config, projection.v_proj_delayed)

    def __call__(self, u: Tensor, step: Step, kind: str, past: LayerPool) -> Tensor:
        """[T, D] -> [T, D]. Heads come first inside."""
        slots, width, row = u.shape[0], self.width, past.joined.shape[1]
        past.fresh.copy_(self.into(u))
        # Of each slot two, one and no steps back, one row after another; the next slot's begin `stride` further.
        reached, stride = (past.joined, row) if step.taps is None else (past.joined.index_select(0, step.taps), 3 * row)
        begin = reached.storage_offset()
        oldest, older, newest = (
            reached.as_strided((self.num_heads, slots, width), (width, stride, 1), begin + back * row) for back in range(3)
        )
        x = torch.baddbmm(self.tap_bias, oldest, self.taps[0]).baddbmm_(older, self.taps[1]).baddbmm_(newest, self.taps[2])
        x.add_(torch.mm(self.means, newest.flatten(1)).view(-1, slots, width))
        x.mul_(self.length / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min_(self.least))
        torch.view_as_complex(x.view(self.num_heads, slots, width // 2, 2)).mul_(step.turns[kind])
        delayed = reached.as_strided((slots, self.half), (stride, 1), begin + row + self.channels)
        current = reached.as_strided((slots, self.half), (stride, 1), begin + 2 * row + self.channels + self.half)
        values = torch.cat([current, delayed], 1).view(slots, -1, width).transpose(0, 1)
        keys, stored = past.stage(x[None, self.queries :], values[None])
        return self.out(step.views[kind].attend_heads(x[None, : self.queries].to(self.dtype), keys, stored)[0].reshape(slots, -1))


class ServingRouter:
    """Router with its small products in the dtype that is fastest for them."""

    def __init__(self, router: Router, *, packs: bool) -> None:
        mlp = router.router_mlp
        self.down = prepared(router.down_proj.weight, router.down_proj.bias, packs=packs)
        self.norm = Norm(mlp.norm)
        self.first, self.second = (prepared(part.weight, part.bias, packs=packs) for part in (mlp.fc1, mlp.fc2))
        self.last = prepared(mlp.out_proj.weight, packs=packs)
        self.dtype = mlp.fc1.weight.dtype
        self.carry = router.router_states_scale.to(widened(self.dtype)) if router.layer_index > 0 else None
        self.biases = router.balancing_biases

    def __call__(self, u: Tensor, carried: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """[T, D] -> choice [T], its probability [T, 1], the state for the next layer [T, R]."""
        state = self.down(u)
        state = state.to(widened(self.dtype)) if self.carry is None else torch.addcmul(state, carried, self.carry)
        logits = self.last(self.second.gelu(self.first.gelu(self.norm(state).to(self.dtype))))
        probabilities = logits.to(widened(logits.dtype)).softmax(-1)
        choice = (probabilities + self.biases).argmax(-1)
        return choice, probabilities.gather(-1, choice[:, None]), state


def _experts(experts: Experts, *, packs: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """`(x [T, D], choice [T]) -> [T, D]`, as `apply_experts`: on a GPU without a look at how many chose whom."""
    if experts.gate_up_proj.is_cuda:
        from zaya_core.ops.kernels import apply_experts_static  # Triton comes with torch's builds for GPUs alone

        return partial(apply_experts_static, gate_up=experts.gate_up_proj, down=experts.down_proj)
    gate_up, down = ([prepared(weight, packs=packs) for weight in part] for part in (experts.gate_up_proj, experts.down_proj))
    return partial(apply_prepared_experts, gate_up=gate_up, down=down)


def taps_of(prev: Tensor, num_past: int) -> Tensor:
    """Where in [history | slots] the slots are that stand two, one and no steps back [T * 3]."""
    older = torch.where(prev >= num_past, prev[(prev - num_past).clamp_min(0)], prev - 1)
    slot = torch.arange(prev.numel(), device=prev.device) + num_past
    return torch.stack([older, prev, slot], -1).flatten()


def _pair_order(config: ModelConfig, kind: str) -> Tensor:
    """Dims of a head with the two of each rotary pair side by side: 0, R/2, 1, R/2 + 1, .., then those that are not rotated.

    Queries and keys are reordered alike, so their products stay what they were.
    """
    count = int(config.head_dim * config.rope_parameters[kind].partial_rotary_factor)
    pairs = torch.arange(count).view(2, -1).T.flatten()
    return torch.cat([pairs, torch.arange(count, config.head_dim)])


def _means(config: ModelConfig, like: Tensor) -> Tensor:
    """Twice the mean residuals of model.md A2.2 as a matrix [heads, heads]: q_i + k of its group; for k their mean."""
    groups, per_group = config.num_key_value_heads, config.num_attention_heads // config.num_key_value_heads
    group_of = torch.eye(groups).repeat_interleave(per_group, 0)  # [queries, groups]
    queries = torch.cat([torch.eye(groups * per_group), group_of], 1).to(like)
    return torch.cat([queries, group_of.T.to(like) @ queries / per_group])


def _three_taps(config: ModelConfig, depthwise: nn.Conv1d, grouped: nn.Conv1d, order: Tensor) -> tuple[list[Tensor], Tensor]:
    """Both convolutions of two taps as one of three, doubled: weights [heads, N, N], oldest first, and bias [heads, 1, N].

    y_t = G0 a_{t-1} + G1 a_t + g with a_t = d0 z_{t-1} + d1 z_t + d, head by head (model.md A2.3).
    """
    assert (config.cca_time0, config.cca_time1, HISTORY) == (2, 2, 2)
    wide = widened(depthwise.weight.dtype)
    heads = (-1, config.head_dim)
    d0, d1 = (depthwise.weight[:, 0, tap].to(wide).view(heads)[:, order] for tap in (0, 1))  # [heads, N]
    d, g = (part.bias.to(wide).view(heads)[:, order] for part in (depthwise, grouped))
    # [C, N, tap] -> [heads, out, in]
    g0, g1 = (grouped.weight[..., tap].to(wide).unflatten(0, heads)[:, order][:, :, order] for tap in (0, 1))
    taps = (g0 * d0[:, None], g0 * d1[:, None] + g1 * d0[:, None], g1 * d1[:, None])  # [heads, out, in]
    bias = torch.einsum("hoi,hi->ho", g0 + g1, d) + g
    return [(2 * tap).transpose(1, 2).contiguous() for tap in taps], (2 * bias)[:, None]
