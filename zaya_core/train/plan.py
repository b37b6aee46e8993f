"""What a training run will need before it starts: memory per rank, FLOPs, hours. Reads no weights.

Counts what the code keeps: float32 master weights, gradients and moments, sharded over all ranks; what FSDP2 gathers; what
autograd saves per slot and layer; the head's chunk of logits; holes in the heap, measured at about one layer's activations.
`recipes/bench/plan.py` holds it against the peaks of real runs on a CPU, and a test does.
"""

from dataclasses import dataclass, replace

from zaya_core.config import ModelConfig
from zaya_core.ops.loss import CHUNK_ELEMENTS, MIN_CHUNK_ROWS

PROGRAM_BYTES = 0.36e9  # python, torch and its libraries
PRODUCT_BYTES = 0.14e9  # the bfloat16 products' programs and scratch (runtime.py, KEPT_PROGRAMS)
RANKS_BYTES = 0.1e9  # torch.distributed, where there are several ranks
ASSUMED_UTILISATION = 0.35  # of the peak FLOP/s; published figures for MoE models lie between .25 and .45
STEP_OVERHEAD = 10 * 4  # bytes a slot and hidden unit of the backward's temporaries


@dataclass(frozen=True)
class Work:
    """A training run as far as memory and time depend on it; batch_size is rows of a rank, context and world count ranks."""

    objective: str
    seq_len: int
    batch_size: int
    gradient_accumulation_steps: int
    max_steps: int
    dtype: str
    optimizer: str
    gradient_checkpointing: str
    world: int = 1
    expert: int = 1
    context: int = 1

    @property
    def clean_tokens(self) -> int:
        """Of the whole run."""
        rows = self.batch_size * self.gradient_accumulation_steps * self.world // self.context
        return self.max_steps * rows * self.seq_len

    @property
    def slots(self) -> int:
        """Of a rank's batch: clean ones, and as many masks and a block's length where there are masks."""
        clean = self.batch_size * self.seq_len // self.context
        return clean if self.objective == "ar" else 2 * clean


@dataclass(frozen=True)
class Sizes:
    """Parameters: of all experts, of a layer's experts, of a layer without them, of embedding and head, and of all."""

    experts: int
    layer_experts: int
    layer_rest: int
    vocabulary: int
    total: int


def sizes_of(config: ModelConfig) -> Sizes:
    """Counted from the shapes of model.md A."""
    d, r, n = config.hidden_size, config.router_hidden_size, config.head_dim
    queries, groups, c = config.num_attention_heads * n, config.num_key_value_heads, config.conv_channels
    experts = 3 * config.num_experts * d * config.moe_intermediate_size
    attention = d * (c + 2 * config.value_half) + queries * d + c * (config.cca_time0 + 1 + n * config.cca_time1 + 1) + groups
    router = d * r + 5 * r + 2 * r * r + r * (config.num_experts + 1)
    rest = attention + router + 10 * d
    vocabulary = config.vocab_size * d * (1 if config.tie_word_embeddings else 2)
    total = config.num_hidden_layers * (experts + rest) + vocabulary + 3 * d - r  # the first layer carries no router state
    return Sizes(config.num_hidden_layers * experts, experts, rest, vocabulary, total)


def memory_of(config: ModelConfig, work: Work) -> dict[str, float]:
    """Bytes of one rank at its peak, by what they are for, and beside the total two more that are no part of it.

    `save` is what the first rank's machine holds while a save is written beside the run: the whole state, gathered. `resume` is
    a rank's own peak before the first step: its state, and the largest stored tensor whole.
    """
    sizes, slots, wide = sizes_of(config), work.slots, 4
    narrow = 2 if work.dtype == "bfloat16" else 4
    moments = 2.0 if work.optimizer == "adamw" else 1.0 + sizes.vocabulary / sizes.total
    own = sizes.total / work.world
    parts = {
        "weights_bytes": wide * own,
        "gradients_bytes": wide * own,
        "optimizer_bytes": wide * moments * own,
        "activations_bytes": activations_of(config, work),
    }
    rows = max(MIN_CHUNK_ROWS, CHUNK_ELEMENTS // config.vocab_size)
    logits = 4 * wide * min(rows, slots) * config.vocab_size
    head = (wide + (narrow if narrow < wide else 0)) * config.vocab_size * config.hidden_size
    parts["head_bytes"] = logits + head + (2 * wide + wide / 2) * slots * config.hidden_size
    gathered = 0.0
    if work.world > 1:
        experts = sizes.layer_experts / work.expert
        # Two layers' weights, one's gradients and their float32 way to the ranks; the vocabulary, likewise, for the whole step.
        gathered = 3 * (narrow * experts + wide * sizes.layer_rest) + 2 * wide * experts + 3 * wide * sizes.vocabulary
        gathered += 4 * narrow * config.num_key_value_heads * config.head_dim * work.batch_size * work.seq_len * (work.context > 1)
    parts["gathered_bytes"] = gathered
    parts["program_bytes"] = PROGRAM_BYTES + (PRODUCT_BYTES if narrow < wide else 0) + (RANKS_BYTES if work.world > 1 else 0)
    parts["total_bytes"] = sum(parts.values())
    parts["save_bytes"] = wide * (1 + moments) * sizes.total
    largest = max(sizes.layer_experts * 2 / 3, config.vocab_size * config.hidden_size)
    parts["resume_bytes"] = wide * ((1 + moments) * own + largest) + PROGRAM_BYTES
    return parts


def activations_of(config: ModelConfig, work: Work) -> float:
    """Bytes that autograd keeps for the backward, and the backward's own temporaries."""
    d, slots, layers = config.hidden_size, work.slots, config.num_hidden_layers
    layer, kept = slot_bytes(config, work.dtype) * slots, 4 * (d + config.router_hidden_size) * slots
    if work.dtype == "bfloat16":
        layer += 2 * (sizes_of(config).layer_experts / work.expert * (work.world == 1) + sizes_of(config).layer_rest)
    if work.gradient_checkpointing == "full":
        total = layers * kept + layer
    elif work.gradient_checkpointing == "selective":
        products = config.conv_channels + config.value_half * 2 + d + 4 * config.router_hidden_size
        total = layers * (kept + products * slots * (2 if work.dtype == "bfloat16" else 4)) + layer
    else:
        total = layers * layer
    return total + layer + (12 + STEP_OVERHEAD) * d * slots  # a layer more: holes in the heap


def slot_bytes(config: ModelConfig, dtype: str) -> float:
    """What one decoder layer saves per slot, listed by autograd's saved-tensor hooks: by the width that each tensor has."""
    queries, values = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    widths = (config.hidden_size, config.moe_intermediate_size, config.conv_channels, queries, values, config.router_hidden_size)
    per_width = (46.6, 5.25, 12, 8, 13, 16) if dtype == "bfloat16" else (48, 8, 22, 12, 18, 24)
    scalars = 4 * (4 * config.num_attention_heads + 3 * config.num_key_value_heads + config.num_experts + 8)
    return sum(count * width for count, width in zip(per_width, widths, strict=True)) + scalars


def flops_of(config: ModelConfig, work: Work) -> float:
    """Of the whole run, forward and backward, of all ranks: products, attention over what is visible, the head."""
    sizes = sizes_of(config)
    active = sizes.layer_rest + sizes.layer_experts / config.num_experts
    per_slot = 2 * config.num_hidden_layers * active + 2 * config.vocab_size * config.hidden_size
    for kind in config.layer_types:
        window = config.window(kind) or work.seq_len
        per_slot += 4 * config.num_attention_heads * config.head_dim * min(window, work.seq_len / 2)
    halves = 1 if work.objective == "ar" else 2
    passes = {"none": 3, "selective": 3, "full": 4}[work.gradient_checkpointing]
    return work.clean_tokens * halves * passes * per_slot


def hours_of(flops: float, work: Work, device_flops: float) -> float:
    """At the assumed share of the devices' peak."""
    return flops / (work.world * device_flops * ASSUMED_UTILISATION) / 3600


def cure(config: ModelConfig, work: Work, room: float) -> str:
    """The first knob that makes the run fit into `room` bytes, or what is left to do."""
    tries = [
        ("--gradient-checkpointing full", replace(work, gradient_checkpointing="full")),
        ("--gradient-checkpointing full --batch-size 1", replace(work, gradient_checkpointing="full", batch_size=1)),
    ]
    for context in (2, 4, 8):
        if work.world % (context * work.expert) == 0 and context > work.context:
            knobs = f"--gradient-checkpointing full --batch-size 1 --context-parallel {context}"
            tries.append((knobs, replace(work, gradient_checkpointing="full", batch_size=1, context=context)))
    for knobs, tried in tries:
        parts = memory_of(config, tried)
        if max(parts["total_bytes"], parts["resume_bytes"]) <= room:
            return knobs
    return "more ranks"
