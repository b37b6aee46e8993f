"""Why CCGQA 4:1: the same layer with other attentions, and how many slots each has for nothing (model.md D12, E).

K/V bytes decide what a long context costs, FLOP per K/V byte and slot how many slots fit under the ridge. GQA 8:1 has the same
cache and half the slots; MHA has slots and eight times the cache; MLA has a small cache and no slots left.
"""

from dataclasses import dataclass
from typing import Any

from zaya_core.config import ModelConfig
from zaya_core.devices import Device
from zaya_core.profile.roofline import significant

MLA_LATENT, MLA_ROPE = 512, 64  # DeepSeek-V2 and V3 (arXiv 2405.04434, 2412.19437)
WIDE = 64  # slots of the wide step shown: a block verified and three proposed


@dataclass(frozen=True)
class Variant:
    """Elements cached per token and layer, and multiply-adds per slot and cached token."""

    name: str
    cached: float
    products: float

    def intensity(self, width: int) -> float:
        """FLOP per cached byte and slot."""
        return 2 * self.products / (self.cached * width)


def variants_of(config: ModelConfig) -> list[Variant]:
    """This model's attention, and others over as many heads as fill its hidden size."""
    n, own, groups = config.head_dim, config.num_attention_heads, config.num_key_value_heads
    heads = max(own, config.hidden_size // n)
    grouped = max(1, heads // 8)
    latent = MLA_LATENT + MLA_ROPE
    return [
        Variant(f"CCGQA {own}:{groups} (this model)", 2 * groups * n, 2 * own * n),
        Variant(f"GQA {heads}:{grouped}", 2 * grouped * n, 2 * heads * n),
        Variant(f"MHA {heads}:{heads}", 2 * heads * n, 2 * heads * n),
        Variant(f"MLA, {heads} heads, latent {latent}", latent, heads * (latent + MLA_LATENT)),
    ]


def variant_table(config: ModelConfig, device: Device, *, width: int, block_length: int, context: int) -> list[dict[str, Any]]:
    """A line for each: the cache, the slots under the ridge in blocks, and the history's time in a narrow and a wide step.

    `max_proposals` is `max_blocks_per_forward` less the verify block.
    """
    lines = []
    for variant in variants_of(config):
        intensity = variant.intensity(width)
        blocks = device.ridge / intensity / block_length
        narrow, wide = (_seconds(config, variant, device, slots, context=context, width=width) for slots in (1, WIDE))
        lines.append(
            {
                "attention": variant.name,
                "KV B/token/layer": round(variant.cached * width),
                "FLOP/B/slot": significant(intensity),
                "max_blocks_per_forward": significant(blocks, 3),
                "max_proposals": significant(max(0.0, blocks - 1), 3),
                f"ms, 1 slot at {context}": significant(narrow * 1e3),
                f"ms, {WIDE} slots": significant(wide * 1e3),
            }
        )
    return lines


def _seconds(config: ModelConfig, variant: Variant, device: Device, slots: int, *, context: int, width: int) -> float:
    """Reading the history of one sequence and scoring `slots` against it, in all layers, at the roofline."""
    seen = sum(min(context, config.window(kind) or context) for kind in config.layer_types)
    return seen * max(variant.cached * width / device.bandwidth, 2 * slots * variant.products / device.flops)
