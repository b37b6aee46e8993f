"""Bytes and FLOPs of one forward, part by part, from the shapes of model.md A.

A part is what runs as one kind of kernel: it is bound by memory or by arithmetic on its own. Counted once: weights touched,
K/V of the history, the state of CCA, what a fused implementation writes and reads between products, and rows of logits. It
knows no device.
"""

from dataclasses import dataclass, replace

from zaya_core.config import ModelConfig
from zaya_core.profile.routing import Routing

LOGIT_BYTES = 12  # float32, written once and read twice: for the maximum and sum, and for the draw
LAYER_KERNELS = {"projections": 5, "attention": 3, "router": 6, "experts": 4, "between": 2}  # launches of a fused layer
HEAD_KERNELS = 4  # norm, product, law, draw


@dataclass(frozen=True)
class Step:
    """A forward of `rows` sequences of `context` tokens: slots of each, `masks` among them, and rows of logits of each."""

    rows: int
    context: int
    slots: float
    logit_rows: float
    head_reads: int = 1
    masks: float = 0.0


@dataclass(frozen=True)
class Cost:
    """What one part moves and computes, and its kernel launches."""

    bytes: float = 0.0
    flops: float = 0.0
    kernels: float = 0.0


def ar_step(rows: int, context: int) -> Step:
    """One token of each sequence."""
    return Step(rows, context, slots=1, logit_rows=1)


def tidar_step(rows: int, context: int, *, clean: float, proposals: float, block_length: int) -> Step:
    """`clean` draft tokens verified and `proposals` blocks proposed; the head is read once to verify and once to draft."""
    drafts = proposals > 0
    return Step(
        rows,
        context,
        slots=clean + proposals * block_length,
        logit_rows=clean + (block_length - 1) * drafts,
        head_reads=1 + drafts,
        masks=proposals * block_length,
    )


@dataclass(frozen=True)
class Weights:
    """Elements of one layer's parts, and of the vocabulary's matrix."""

    attention: int
    router: int
    expert: int
    scales: int
    head: int


def weights_of(config: ModelConfig) -> Weights:
    """Counted from the shapes of model.md A; `expert` is one of them."""
    d, r, c = config.hidden_size, config.router_hidden_size, config.conv_channels
    queries = config.num_attention_heads * config.head_dim
    attention = d * (c + 2 * config.value_half + queries) + c * (config.cca_time0 + 1 + config.head_dim * config.cca_time1 + 1)
    router = d * r + 5 * r + 2 * r * r + r * (config.num_experts + 1)
    scales = 10 * d + config.num_key_value_heads
    return Weights(attention, router, 3 * d * config.moe_intermediate_size, scales, config.vocab_size * d)


def weight_bytes(config: ModelConfig, width: int) -> float:
    """Of the whole model."""
    part = weights_of(config)
    layer = part.attention + part.router + part.scales + config.num_experts * part.expert
    return width * (config.num_hidden_layers * layer + part.head * (1 if config.tie_word_embeddings else 2))


def kv_bytes(config: ModelConfig, context: float, width: int) -> float:
    """K and V of one sequence over all layers; a sliding layer keeps its window."""
    slot = 2 * config.num_key_value_heads * config.head_dim * width
    return sum(slot * min(context, config.window(kind) or context) for kind in config.layer_types)


def state_bytes(config: ModelConfig, width: int) -> float:
    """What CCA's shifts reach back to, of one sequence over all layers: two raw latents and a delayed value (model.md A10)."""
    return config.num_hidden_layers * width * (2 * config.conv_channels + config.value_half)


def cost_of(config: ModelConfig, step: Step, *, routing: Routing, width: int, loops: bool = False) -> dict[str, Cost]:
    """Parts of one forward; `width` is bytes of an element of weights, activations and K/V.

    An engine that `loops` launches attention for each sequence and two products for each expert that is hit, as ours does on a CPU.
    """
    weights, layers, slots = weights_of(config), config.num_hidden_layers, step.rows * step.slots
    d, f, c = config.hidden_size, config.moe_intermediate_size, config.conv_channels
    queries, values = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    masks = step.rows * step.masks
    union = routing.distinct(config.num_experts, slots - masks, masks)
    projected = width * slots * (2 * d + 2 * c + 2 * queries + values)
    per_layer = {
        "projections": (width * weights.attention + projected, 2 * weights.attention * slots),
        "router": (width * (weights.router + slots * (d + 4 * config.router_hidden_size)), 2 * weights.router * slots),
        "experts": (width * (union * weights.expert + slots * (2 * d + 4 * f)), 2 * weights.expert * slots),
        # Two merges: the float32 stream read and written, a layer's output read, a normed copy written.
        "between": (width * weights.scales + slots * d * (16 + 4 * width), 20 * d * slots),
    }
    kernels = LAYER_KERNELS | ({"attention": 1 + 2 * step.rows, "experts": 2 + 2 * union} if loops else {})
    parts = {name: Cost(layers * moved, layers * flops, layers * kernels[name]) for name, (moved, flops) in per_layer.items()}
    parts["attention"] = replace(_attention(config, step, width), kernels=layers * kernels["attention"])
    logits = step.rows * step.logit_rows
    parts["head"] = Cost(
        width * (step.head_reads * weights.head + slots * d) + LOGIT_BYTES * logits * config.vocab_size,
        2 * weights.head * logits,
        HEAD_KERNELS * step.head_reads,
    )
    return parts


def _attention(config: ModelConfig, step: Step, width: int) -> Cost:
    """History read once for all slots of a sequence; a slot is scored against all of its forward's slots, hidden or not."""
    queries, values = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    slot = 2 * values * width
    flops = moved = 0.0
    for kind in config.layer_types:
        seen = min(step.context, config.window(kind) or step.context)
        moved += slot * (seen + 2 * step.slots) + 2 * queries * width * step.slots
        flops += 4 * queries * step.slots * (seen + step.slots)
    moved = step.rows * (moved + 2 * state_bytes(config, width))
    return Cost(moved, step.rows * flops)
