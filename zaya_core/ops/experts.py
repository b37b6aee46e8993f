"""Top-1 experts: tokens sorted by expert, one pair of matrix products for each expert that was hit (model.md A8)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def apply_experts(x: Tensor, choice: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """x [M, D], choice [M] in 0..E (E is the skip expert and gives zeros), gate_up [E, 2F, D], down [E, D, F] -> [M, D]."""
    num_experts = gate_up.shape[0]
    order = torch.argsort(choice, stable=True)
    counts = torch.bincount(choice, minlength=num_experts + 1).tolist()
    parts = x[order].split(counts)
    outputs = [
        _expert(part, gate_up[index], down[index]) if counts[index] else part for index, part in enumerate(parts[:num_experts])
    ]
    outputs.append(torch.zeros_like(parts[num_experts]))
    joined = torch.cat([part.to(x.dtype) for part in outputs])
    return torch.empty_like(joined).index_copy(0, order, joined)


def apply_experts_slow(x: Tensor, choice: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """The oracle of `apply_experts`: token by token."""
    rows = [
        _expert(row, gate_up[index], down[index]) if index < gate_up.shape[0] else torch.zeros_like(row)
        for row, index in zip(x, choice.tolist(), strict=True)
    ]
    return torch.stack(rows)


def _expert(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = F.linear(x, gate_up).chunk(2, -1)
    return F.linear(F.silu(gate) * up, down)
