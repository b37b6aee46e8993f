"""What a user would pick instead: drafters of speculative decoding, from their published acceptance and their own cost here.

Tokens per forward are the publications'; the cost of drafting and verifying is counted on the model and device at hand, with
the drafter as one decoder layer of this model and a vocabulary of its own. The published speed-up stands beside it.
"""

from dataclasses import dataclass, replace
from typing import Any

from zaya_core.profile.forward import Step, ar_step
from zaya_core.profile.roofline import significant, total
from zaya_core.profile.sweep import Cell, Scene

EAGER_LAUNCH_SECONDS = 5e-6  # assumed: what a kernel costs that python launches


@dataclass(frozen=True)
class Rival:
    """`passes` of the drafter over `width` slots each, then one forward of the model over `verified` slots."""

    name: str
    tokens_per_forward: float
    verified: int
    passes: int
    width: int
    draft_vocabulary: int | None
    published: str
    source: str


RIVALS = (
    Rival(
        "MTP, 1 layer, 1 draft",
        tokens_per_forward=1.875,
        verified=2,
        passes=1,
        width=1,
        draft_vocabulary=None,
        published="1.8x",
        source="DeepSeek-V3, arXiv 2412.19437, 5.4.3: second token accepted 85-90 %",
    ),
    Rival(
        "EAGLE-3, tree of 60",
        tokens_per_forward=4.65,
        verified=60,
        passes=7,
        width=10,
        draft_vocabulary=32000,
        published="1.75-2.35x",
        source="4.4-4.9 tokens a forward, dense 8B, H100, batch 1: TiDAR, arXiv 2511.08923; the tree is assumed",
    ),
)
TIDAR_PUBLISHED = "5.91x"
TIDAR_SOURCE = "8.25 tokens a forward, dense 8B, H100, batch 1, block 16, every level: arXiv 2511.08923"


def rival_seconds(scene: Scene, batch: int, context: int, rival: Rival) -> float:
    """Of one round: drafting and verifying, both counted like any forward of the scene."""
    vocabulary = min(rival.draft_vocabulary or scene.config.vocab_size, scene.config.vocab_size)
    layer = scene.config.with_changes(num_hidden_layers=1, vocab_size=vocabulary, tidar=None)
    draft = replace(scene, config=layer).seconds(Step(batch, context, slots=rival.width, logit_rows=rival.width))
    verify = scene.seconds(Step(batch, context, slots=rival.verified, logit_rows=rival.verified))
    return rival.passes * draft + verify


def compared(scene: Scene, chosen: Cell) -> list[dict[str, Any]]:
    """A line for AR as the scene launches it and eager, for the TiDAR setting `chosen` and each rival, at its batch and context."""
    ar, batch, context = chosen.ar_seconds, chosen.batch, chosen.context
    kernels = total(scene.parts(ar_step(batch, context))).kernels
    eager = ar + kernels * max(0.0, EAGER_LAUNCH_SECONDS - scene.pace.launch_seconds)
    tidar = f"tidar, block {chosen.block}, {chosen.proposals} proposals"
    tokens = chosen.tokens_per_forward
    rounds = [
        ("ar", 1.0, ar, ""),
        # A looping engine's launches are eager already.
        *([] if scene.loops else [(f"ar, eager, {EAGER_LAUNCH_SECONDS * 1e6:g} us a launch", 1.0, eager, "")]),
        (tidar, tokens, tokens * ar / chosen.speed_up, TIDAR_PUBLISHED),
        *((one.name, one.tokens_per_forward, rival_seconds(scene, batch, context, one), one.published) for one in RIVALS),
    ]
    return [
        {
            "batch": batch,
            "context": context,
            "method": name,
            "tokens/forward": significant(tokens),
            "ms": significant(seconds * 1e3),
            "step ratio": significant(seconds / ar),
            "speed-up": significant(tokens * ar / seconds),
            "tok/s": significant(batch * tokens / seconds),
            "published": published,
        }
        for name, tokens, seconds, published in rounds
    ]


def sources() -> dict[str, str]:
    """Where the published figures come from."""
    return {one.name: one.source for one in RIVALS} | {"tidar": TIDAR_SOURCE}
