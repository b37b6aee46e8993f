"""Grouped-query attention under a boolean mask, without repeating K and V."""

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """q [B, T, H, N], k and v [B, G, S, N], mask [B, T, S] bool -> [B, T, H, N]; scale N^-1/2.

    A query that sees nothing gets a meaningless finite row: only padding slots do, and nobody reads them.
    """
    q = q.transpose(1, 2).to(v.dtype)
    return F.scaled_dot_product_attention(q, k, v, mask[:, None], enable_gqa=True).transpose(1, 2)


def attend_slow(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """The oracle of `attend`: explicit scores, explicit softmax."""
    rows, slots, heads, width = q.shape
    groups = k.shape[1]
    grouped = q.view(rows, slots, groups, heads // groups, width)
    scores = torch.einsum("btgin,bgsn->bgits", grouped, k) * width**-0.5
    weights = scores.masked_fill(~mask[:, None, None], float("-inf")).softmax(-1)
    return torch.einsum("bgits,bgsn->btgin", weights, v).reshape(rows, slots, heads, width)
