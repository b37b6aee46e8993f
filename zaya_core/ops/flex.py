"""Attention of whole rows on a GPU: torch's FlexAttention with block masks from the one visibility rule.

For training and its evaluation; decoding has ops/spans. Wrong or slow on some ROCm builds, so train/probe compares it with the
oracle before a run trusts it. Not run on a GPU yet: the tests check the rule and the uncompiled forward on the CPU.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from zaya_core.layout import Keys, Layout, visible


@dataclass(frozen=True)
class Flex:
    """A block mask [B, 1, T, S] and the compiled kernel it goes to (uncompiled on the CPU, which has no backward)."""

    mask: BlockMask

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B, T, H, N], k and v [B, G, S, N] -> [B, T, H, N]; scale N^-1/2."""
        kernel = _compiled() if q.is_cuda else flex_attention
        return kernel(q.transpose(1, 2).to(v.dtype), k, v, block_mask=self.mask, enable_gqa=True).transpose(1, 2)


def flex_view(query: Layout, keys: Keys, window: int | None) -> Flex:
    """The rule as a `mask_mod`: each call looks at single slots, so the layout's integers are all that exists of the mask."""

    def sees(row: Tensor, head: Tensor, q_index: Tensor, k_index: Tensor) -> Tensor:
        return visible(_slot(query, row, q_index), _slot(keys, row, k_index), window)[0, 0, 0]

    rows, slots = query.position.shape
    return Flex(create_block_mask(sees, rows, None, slots, keys.position.shape[1], device=query.position.device))


def _slot(slots: Layout | Keys, row: Tensor, index: Tensor) -> Layout | Keys:
    """One slot as a [1, 1] layout or keys."""
    one = {f.name: getattr(slots, f.name)[row, index][None, None] for f in fields(slots) if f.name != "num_clean"}
    return Layout(**one, num_clean=0) if isinstance(slots, Layout) else Keys(**one)


@cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(flex_attention)
