"""Cross-entropy and total variation over a large vocabulary, in chunks of rows: [M, V] logits never exist at once."""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_ELEMENTS = 2**24  # logits alive at a time: 64 MiB in float32


def sum_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """hidden [M, D], head weight [V, D] and bias [V], labels [M] -> the sum of -log softmax at the labels, in nats.

    Gradients are formed chunk by chunk in the forward, so nothing is recomputed and nothing of size M x V is kept.
    """
    return _SumCrossEntropy.apply(hidden, weight, bias, labels)


def sum_cross_entropy_slow(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """The oracle of `sum_cross_entropy`: all logits at once."""
    return F.cross_entropy(F.linear(hidden, weight, bias), labels, reduction="sum")


@torch.no_grad()
def total_variation(left: Tensor, right: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Two sets of hidden rows [M, D] -> TV between their laws [M], in [0, 1]."""
    parts = []
    for begin in range(0, left.shape[0], _chunk_rows(weight)):
        rows = slice(begin, begin + _chunk_rows(weight))
        p, q = (F.linear(hidden[rows], weight, bias).float().softmax(-1) for hidden in (left, right))
        parts.append((p - q).abs().sum(-1) / 2)
    return torch.cat(parts) if parts else left.new_zeros(0)


class _SumCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor
    ) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=hidden.device)
        grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        grad_bias = None if bias is None else torch.zeros_like(bias)
        step = _chunk_rows(weight)
        for begin in range(0, hidden.shape[0], step):
            rows = slice(begin, begin + step)
            logits = F.linear(hidden[rows], weight, bias).to(wide)
            chosen = labels[rows, None]
            log_norm = logits.logsumexp(-1, keepdim=True)
            total += (log_norm - logits.gather(1, chosen)).sum()
            error = (logits - log_norm).exp_()
            error.scatter_add_(1, chosen, torch.full_like(log_norm, -1.0))
            error = error.to(hidden.dtype)
            grad_hidden[rows] = error @ weight
            grad_weight += error.T @ hidden[rows]
            if grad_bias is not None:
                grad_bias += error.sum(0)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        return total

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        scaled = None if grad_bias is None else grad_bias * grad
        return grad_hidden * grad.to(grad_hidden.dtype), grad_weight * grad.to(grad_weight.dtype), scaled, None


def _chunk_rows(weight: Tensor) -> int:
    return max(1, CHUNK_ELEMENTS // weight.shape[0])
