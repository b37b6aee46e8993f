"""Tensors between ranks, with gradients: rows to the ranks of their experts and back, slots from the left, slots from all.

Each is its own transpose backward. All are exact: they move numbers, and add only where several ranks read the same one.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from zaya_core.ops.experts import apply_experts

Group = dist.ProcessGroup


def apply_experts_across(x: Tensor, choice: Tensor, gate_up: Tensor, down: Tensor, *, group: Group) -> Tensor:
    """`apply_experts` where each rank of `group` holds E / ranks experts, in order; no row is dropped.

    x [M, D] and choice [M] in 0..E are this rank's own tokens, as many as it has; gate_up and down are its own experts.
    """
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    ranks, per_rank = group.size(), gate_up.shape[0]
    counts = torch.bincount(choice, minlength=ranks * per_rank + 1)[:-1].view(ranks, per_rank)
    order = torch.argsort(choice, stable=True)[: int(counts.sum())]
    theirs = torch.empty_like(counts)
    dist.all_to_all_single(theirs, counts, group=group)
    sent, received = counts.sum(1).tolist(), theirs.sum(1).tolist()
    rows = _Rows.apply(x.index_select(0, order), sent, received, group)
    # They come rank by rank, and from each rank expert by expert.
    own = torch.arange(per_rank, device=x.device).repeat(ranks).repeat_interleave(theirs.flatten())
    back = _Rows.apply(apply_experts(rows, own, gate_up, down), received, sent, group)
    return back.new_zeros(x.shape).index_copy(0, order, back)


def from_left(x: Tensor, *, group: Group) -> Tensor:
    """What the left neighbour in `group` gave; zeros for the first rank."""
    return _Shifted.apply(x, group)


def from_all(x: Tensor, *, group: Group) -> Tensor:
    """Every rank's x, stacked in front: [ranks, ...]."""
    return _Gathered.apply(x, group)


class _Rows(torch.autograd.Function):
    """The first `sent[0]` rows to rank 0, the next `sent[1]` to rank 1, ...; `received` likewise."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, sent: list[int], received: list[int], group: Group) -> Tensor:
        ctx.way = (received, sent, group)
        return _all_to_all(x, sent, received, group)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _all_to_all(grad, *ctx.way), None, None, None


def _all_to_all(x: Tensor, sent: list[int], received: list[int], group: Group) -> Tensor:
    out = x.new_empty(sum(received), x.shape[1])
    dist.all_to_all_single(out, x.contiguous(), received, sent, group=group)
    return out


class _Shifted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _shift(x, 1, group)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _shift(grad, -1, ctx.group), None


def _shift(x: Tensor, step: int, group: Group) -> Tensor:
    """Send to the rank `step` to the right, receive from the one as far to the left; zeros where there is none."""
    x, out = x.contiguous(), torch.zeros_like(x)
    target, source = group.rank() + step, group.rank() - step
    moves = []
    if 0 <= target < group.size():
        moves.append(dist.P2POp(dist.isend, x, group=group, group_peer=target))
    if 0 <= source < group.size():
        moves.append(dist.P2POp(dist.irecv, out, group=group, group_peer=source))
    for work in dist.batch_isend_irecv(moves):
        work.wait()
    return out


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        out = x.new_empty(group.size() * x.numel())
        dist.all_gather_single(out, x.flatten(), group=group)
        return out.view(group.size(), *x.shape)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        out = grad.new_empty(grad[0].numel())
        dist.reduce_scatter_single(out, grad.flatten(), group=ctx.group)
        return out.view(grad.shape[1:]), None
