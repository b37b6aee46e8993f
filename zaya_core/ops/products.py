"""Products with weights that no longer change, laid out once for the kernel that will read them.

On a CPU that multiplies bfloat16, oneDNN's packed layout: it reads weights at nearly the speed of memory, where a plain product
of a few rows packs them anew at every call. Everywhere else the weights stay as they are. Equal to the plain product to rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from zaya_core.runtime import has_fast_bfloat16

_packed_product = torch.ops.mkldnn._linear_pointwise.default
FEW = 256  # rows up to which a forward is a step, and more a prompt's chunk
SMALL = 2**15  # elements: below, a float32 product takes less time than oneDNN's bfloat16 one takes to start


@dataclass(frozen=True)
class Product:
    """x -> x W^T + b for one W [O, I]."""

    weight: Tensor
    bias: Tensor | None
    is_packed: bool

    def __call__(self, x: Tensor) -> Tensor:
        """[M, I] -> [M, O], in the dtype of the weight before it was prepared, or wider."""
        if self.is_packed:
            return _packed_product(x, self.weight, self.bias, "none", [], "")
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)

    def gelu(self, x: Tensor) -> Tensor:
        """The exact GELU of the product."""
        if self.is_packed:
            return _packed_product(x, self.weight, self.bias, "gelu", [], "none")
        return F.gelu(self(x))


def prepared(weight: Tensor, bias: Tensor | None = None, *, packs: bool) -> Product:
    """Lay out a weight [O, I]; where it is packed the caller may drop it afterwards."""
    if not packs or weight.device.type != "cpu" or weight.dtype != torch.bfloat16 or not has_fast_bfloat16():
        return Product(weight, bias, is_packed=False)
    if weight.numel() <= SMALL:
        return Product(weight.float(), None if bias is None else bias.float(), is_packed=False)
    return Product(torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None), bias, is_packed=True)


def apply_prepared_experts(x: Tensor, choice: Tensor, gate_up: Sequence[Product], down: Sequence[Product]) -> Tensor:
    """As `ops.experts.apply_experts`, by one product a hit expert: x [M, D], choice [M] in 0..E (E gives zeros) -> [M, D]."""
    if x.shape[0] == 1:
        index = int(choice)
        return down[index](_activated(gate_up[index](x))) if index < len(down) else torch.zeros_like(x)
    hit, taken, place = _laid_out(choice.tolist(), len(down), _least(x))
    if not hit:
        return torch.zeros_like(x)
    sizes = [size for _, size in hit]
    rows = x.index_select(0, torch.tensor(taken, device=x.device)).split(sizes)
    inner = _activated(torch.cat([gate_up[index](part) for (index, _), part in zip(hit, rows, strict=True)]))
    out = [down[index](part) for (index, _), part in zip(hit, inner.split(sizes), strict=True)]
    nothing = out[0].new_zeros(1, out[0].shape[1])
    return torch.cat([*out, nothing]).index_select(0, torch.tensor(place, device=x.device)).to(x.dtype)


def _least(x: Tensor) -> int:
    """The least that an expert's rows come in multiples of; `padded` says the rest.

    oneDNN, which multiplies bfloat16, builds a program for every number of rows that it meets and keeps it: 0.5 ms and 0.8 MB each.
    """
    if x.dtype != torch.bfloat16:
        return 1
    return 8 if x.shape[0] <= FEW else 32


def padded(count: int, least: int) -> int:
    """`count` rounded up: to a multiple of `least` and of a sixteenth of the power of two above it, so by an eighth at most then.

    A prompt's chunk of 4096 meets at most 40 numbers of rows so, instead of 128.
    """
    step = max(least, 1 << max(0, count.bit_length() - 4)) if least > 1 else 1
    return -(-count // step) * step


def _laid_out(choice: list[int], num_experts: int, least: int) -> tuple[list[tuple[int, int]], list[int], list[int]]:
    """(expert, its number of rows) for each that was hit; the token that each row takes; each token's row.

    An expert's last rows repeat its first token, and nobody reads them; tokens without an expert have the row after all.
    """
    tokens: list[list[int]] = [[] for _ in range(num_experts + 1)]
    for token, index in enumerate(choice):
        tokens[index].append(token)
    hit: list[tuple[int, int]] = []
    taken: list[int] = []
    place = [0] * len(choice)
    for index, own in enumerate(tokens):
        for row, token in enumerate(own, len(taken)):
            place[token] = row if index < num_experts else len(taken)
        if own and index < num_experts:
            idle = padded(len(own), least) - len(own)
            hit.append((index, len(own) + idle))
            taken += own + own[:1] * idle
    return hit, taken, place


def _activated(gates: Tensor) -> Tensor:
    gate, up = gates.chunk(2, -1)
    return F.silu(gate).mul_(up)
