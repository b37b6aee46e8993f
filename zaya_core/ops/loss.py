"""The head's losses over a large vocabulary, in chunks of rows: [M, V] logits never exist at once.

Gradients are formed chunk by chunk in the forward, while a chunk's logits are alive: nothing is recomputed and nothing of size
M x V is kept. The matrix products follow autocast; the softmax and all sums are float32 or wider.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zaya_core.ops.norm import widened

CHUNK_ELEMENTS = 2**21  # logits alive at a time: 8 MiB in float32, which stays in the cache
MIN_CHUNK_ROWS = 512  # fewer rows would read the head and write its gradient for too little work


class HeadLoss(NamedTuple):
    """`total` is to be minimised; the rest are figures of each row [M] without a gradient, in nats and as a probability.

    `kl` (from the teacher's law) and `distance` (total variation to it) cover the last rows, those with a teacher.
    """

    total: Tensor
    nats: Tensor
    kl: Tensor
    distance: Tensor


def head_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    row_weight: Tensor,
    *,
    teacher: Tensor | None = None,
    kl_share: float = 0.0,
) -> HeadLoss:
    """hidden [M, D], head weight [V, D] and bias [V], labels [M], row_weight [M] -> the weighted sum of the rows' losses.

    A row's loss is its cross-entropy. Rows at the end can have a `teacher` [M', D], a hidden state through the same head whose
    law p, taken as given, is mixed in: (1 - kl_share) * cross-entropy + kl_share * KL(p || q).
    """
    return HeadLoss(*_HeadLoss.apply(hidden, weight, bias, labels, row_weight, teacher, kl_share))


def head_loss_slow(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    row_weight: Tensor,
    *,
    teacher: Tensor | None = None,
    kl_share: float = 0.0,
) -> HeadLoss:
    """The oracle of `head_loss`: all logits at once, one formula after the other."""
    log_q = F.linear(hidden, weight, bias).log_softmax(-1)
    nats = -log_q.gather(1, labels[:, None]).squeeze(1)
    if teacher is None:
        empty = nats.new_zeros(0)
        return HeadLoss((row_weight * nats).sum(), nats, empty, empty)
    log_p = F.linear(teacher, weight, bias).log_softmax(-1).detach()
    taught = log_q[-teacher.shape[0] :]
    kl = (log_p.exp() * (log_p - taught)).sum(-1)
    distance = (log_p.exp() - taught.exp()).abs().sum(-1) / 2
    alone = hidden.shape[0] - teacher.shape[0]
    loss = torch.cat([nats[:alone], (1 - kl_share) * nats[alone:] + kl_share * kl])
    return HeadLoss((row_weight * loss).sum(), nats, kl, distance)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        row_weight: Tensor,
        teacher: Tensor | None,
        kl_share: float,
    ) -> tuple[Tensor, ...]:
        given = (hidden.dtype, weight.dtype)
        needs_gradient = hidden.requires_grad or weight.requires_grad
        if torch.is_autocast_enabled(hidden.device.type):
            dtype = torch.get_autocast_dtype(hidden.device.type)
            hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
            teacher = None if teacher is None else teacher.to(dtype)
        wide = widened(hidden.dtype)
        row_weight = row_weight.to(wide)
        num_rows, num_taught = hidden.shape[0], 0 if teacher is None else teacher.shape[0]
        nats = torch.empty(num_rows, dtype=wide, device=hidden.device)
        kl, distance = (torch.empty(num_taught, dtype=wide, device=hidden.device) for _ in range(2))
        grad_hidden = torch.empty_like(hidden, dtype=given[0]) if needs_gradient else None
        grad_weight = None
        grad_bias = None if bias is None or not needs_gradient else torch.zeros_like(bias, dtype=given[1])
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in _chunks(num_rows, num_rows - num_taught, weight.shape[0]):
                log_q = F.linear(hidden[rows], weight, bias).to(wide).log_softmax(-1)
                chosen = labels[rows, None]
                nats[rows] = -log_q.gather(1, chosen).squeeze(1)
                share = 0.0
                if rows.start >= num_rows - num_taught:
                    taught = slice(rows.start - num_rows + num_taught, rows.stop - num_rows + num_taught)
                    log_p = F.linear(teacher[taught], weight, bias).to(wide).log_softmax(-1)
                    p, share = log_p.exp(), kl_share
                    kl[taught] = log_p.sub_(log_q).mul_(p).sum(-1)
                    error = log_q.exp_()
                    distance[taught] = torch.sub(p, error, out=log_p).abs_().sum(-1) / 2
                    if share:
                        error -= p.mul_(share)
                else:
                    error = log_q.exp_()
                if not needs_gradient:
                    continue
                error.scatter_add_(1, chosen, torch.full_like(chosen, share - 1, dtype=wide))
                error = error.mul_(row_weight[rows, None]).to(hidden.dtype)
                grad_hidden[rows] = error @ weight
                part = (error.T @ hidden[rows]).to(given[1])
                grad_weight = part if grad_weight is None else grad_weight.add_(part)
                if grad_bias is not None:
                    grad_bias += error.sum(0)
        if needs_gradient and grad_weight is None:  # no row at all
            grad_weight = torch.zeros_like(weight, dtype=given[1])
        loss = nats.clone()
        if num_taught and kl_share:
            loss[num_rows - num_taught :] = loss[num_rows - num_taught :] * (1 - kl_share) + kl * kl_share
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.mark_non_differentiable(nats, kl, distance)
        return (row_weight * loss).sum(), nats, kl, distance

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor, *figures: Tensor) -> tuple[Tensor | None, ...]:
        if float(grad) == 1:  # as always but in tests: the head's gradient is too large to copy for nothing
            return (*ctx.saved_tensors, None, None, None, None)
        scaled = [None if part is None else part * grad.to(part.dtype) for part in ctx.saved_tensors]
        return (*scaled, None, None, None, None)


def _chunks(num_rows: int, border: int, vocab_size: int) -> list[slice]:
    """Rows in chunks, none of which crosses `border`."""
    step = max(MIN_CHUNK_ROWS, CHUNK_ELEMENTS // vocab_size)
    spans = ((0, border), (border, num_rows))
    return [slice(at, min(at + step, end)) for begin, end in spans for at in range(begin, end, step)]
