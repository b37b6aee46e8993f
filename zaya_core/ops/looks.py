"""Attention of many rows' steps over their histories on a CPU: each row's queries against its own span of K and V, in place.

The committed history is visible to all slots of a step, so a mask is needed only where a step's slots look at each other. It is
cut from the one visibility rule, and costs nothing that grows with the history. Equal to masked attention over the whole pool.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from zaya_core.layout import CLEAN, Keys, Layout, visible
from zaya_core.ops.norm import widened

_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
HIDDEN = -1e30  # finite, so that a query without visible keys in a look has no nan there
LONG = 256  # clean slots from which a prompt's chunk is looked at causally instead of through a mask


@dataclass(frozen=True)
class Look:
    """Some queries at some keys: all of them (`bias` None), all up to their own (`is_causal`), or through a bias
    [1, 1, queries, keys].

    Queries may have several looks, one after another; the later ones `adds` to the softmax of the first.
    """

    queries: slice
    keys: slice
    bias: Tensor | None = None
    is_causal: bool = False
    adds: bool = False

    def moved(self, queries: int, keys: int) -> "Look":
        """The same look further on."""
        return replace(
            self,
            queries=slice(self.queries.start + queries, self.queries.stop + queries),
            keys=slice(self.keys.start + keys, self.keys.stop + keys),
        )


@dataclass(frozen=True)
class Looks:
    """A view (see ops/attention) over a pool: each look is one kernel call."""

    parts: list[Look]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [1, T, H, N], k and v [1, G, slots, N] -> [1, T, H, N]; scale N^-1/2."""
        return self.attend_heads(q.transpose(1, 2).to(v.dtype), k, v)

    def attend_heads(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The same for q [1, H, T, N] in the dtype of v."""
        outputs: list[tuple[Tensor, Tensor]] = []
        for part in self.parts:
            looked = _attention(
                q[:, :, part.queries], k[:, :, part.keys], v[:, :, part.keys], 0.0, part.is_causal, attn_mask=part.bias
            )
            outputs.append(_merged(outputs.pop(), looked) if part.adds else looked)
        out = outputs[0][0] if len(outputs) == 1 else torch.cat([out for out, _ in outputs], 2)
        return out.transpose(1, 2)


def looks_of(step: Layout, length: int, window: int | None, dtype: torch.dtype) -> Iterator[Look]:
    """The looks of one row's slots (a `layout.template`) over `length` tokens of history and themselves.

    In order of the queries, which have `dtype`. `keys` count from the row's begin; the step's slots stand right after its history.
    """
    slots, num_clean = step.position.shape[1], step.num_clean
    whole = slice(0, length + slots)
    if window is not None and length + slots > window:
        yield _windowed(step, length, window, dtype)
    elif slots == 1:
        yield Look(slice(0, 1), whole)
    elif num_clean >= LONG:
        yield from _chunk(step, length)
    else:
        yield Look(slice(0, slots), whole, _own_bias(step, length, dtype))


def _chunk(step: Layout, length: int) -> Iterator[Look]:
    """A prompt's chunk, causal among itself, and at most one masked block at its end, which sees all of it."""
    slots, num_clean = step.position.shape[1], step.num_clean
    clean = slice(0, num_clean)
    yield Look(clean, slice(length, length + num_clean), is_causal=True)
    if length:
        yield Look(clean, slice(0, length), adds=True)
    if slots > num_clean:
        masks = step.slots_of(slice(num_clean, slots))
        assert bool((masks.start == num_clean).all()), "a long chunk carries the block after it, and no other"
        yield Look(slice(num_clean, slots), slice(0, length + slots))


def _own_bias(step: Layout, length: int, dtype: torch.dtype) -> Tensor:
    """[1, 1, T, length + T]: nothing of the history is hidden."""
    hidden = _hidden_of(step)
    bias = torch.zeros(1, 1, hidden.shape[0], length + hidden.shape[0], dtype=dtype)
    bias[..., length:].masked_fill_(hidden, HIDDEN)
    return bias


@lru_cache(maxsize=1024)
def _hidden_of(step: Layout) -> Tensor:
    """[T, T] bool: which of a step's slots do not see each other."""
    return ~visible(step, Keys(step.position, step.block, step.document))[0]


def _windowed(step: Layout, length: int, window: int, dtype: torch.dtype) -> Look:
    """A layer that sees only the last `window` positions: keys before the first query's window are left out altogether."""
    slots = step.position.shape[1]
    begin = max(0, length - window + 1)
    query = replace(step, position=step.position + length, start=step.start + length)
    position = torch.cat([torch.arange(begin, length)[None], query.position], 1)
    history = torch.full((1, length - begin), CLEAN)
    keys = Keys(position, torch.cat([history, step.block], 1), torch.zeros_like(position))
    sees = visible(query, keys, window)[:, None]
    bias = torch.zeros(sees.shape, dtype=dtype).masked_fill_(~sees, HIDDEN)
    return Look(slice(0, slots), slice(begin, length + slots), bias)


def _merged(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Two softmaxes over disjoint keys as one; (output, log-sum-exp) each."""
    both = torch.logaddexp(left[1], right[1])
    weights = [(norm - both).exp_()[..., None].to(widened(out.dtype)) for out, norm in (left, right)]
    return (left[0] * weights[0] + right[0] * weights[1]).to(left[0].dtype), both
