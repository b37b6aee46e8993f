"""Top-1 experts: tokens sorted by expert, one pair of matrix products for each expert that was hit (model.md A8)."""

import torch
import torch.nn.functional as F
from torch import Tensor

PAD = 64  # rows, training in bfloat16: oneDNN builds and keeps a program for every shape it meets, so let them be few


def apply_experts(x: Tensor, choice: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """x [M, D], choice [M] in 0..E (E is the skip expert and gives zeros), gate_up [E, 2F, D], down [E, D, F] -> [M, D].

    The products follow autocast. Gradients are formed by hand: one pass over the sorted rows, no copies of the weights.
    """
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, gate_up, down = x.to(dtype), gate_up.to(dtype), down.to(dtype)
    order = torch.argsort(choice, stable=True)
    counts = torch.bincount(choice, minlength=gate_up.shape[0] + 1)[: gate_up.shape[0]].tolist()
    order = order[: sum(counts)]
    if x.is_cuda:
        return _grouped(x, order, counts, gate_up, down)
    # A decode step has too few rows to pad, and float32 does not go through oneDNN.
    pad = PAD if torch.is_grad_enabled() and x.dtype == torch.bfloat16 else 1
    return _SortedExperts.apply(x, order, counts, pad, gate_up, down)


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


def _grouped(x: Tensor, order: Tensor, counts: list[int], gate_up: Tensor, down: Tensor) -> Tensor:
    """The GPU's path: one grouped product for all experts; it wants widths that are multiples of 8 in bfloat16."""
    ends = torch.tensor(counts, dtype=torch.int32, device=x.device).cumsum(0, dtype=torch.int32)
    gate, up = F.grouped_mm(x.index_select(0, order), gate_up.transpose(1, 2), offs=ends).chunk(2, -1)
    rows = F.grouped_mm(F.silu(gate) * up, down.transpose(1, 2), offs=ends)
    return x.new_zeros(x.shape).index_copy(0, order, rows)


class _SortedExperts(torch.autograd.Function):
    """Tokens laid expert by expert, the `counts` rows of each padded with zeros to a multiple of `pad`."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x: Tensor,
        order: Tensor,
        counts: list[int],
        pad: int,
        gate_up: Tensor,
        down: Tensor,
    ) -> Tensor:
        spans, place = _placed(order, counts, pad, x.shape[0])
        rows = _laid(x, place, spans)
        gates = rows.new_empty(rows.shape[0], gate_up.shape[1])
        for index, part in spans:
            torch.mm(rows[part], gate_up[index].T, out=gates[part])
        inner, out = _activate(gates), torch.empty_like(rows)
        for index, part in spans:
            torch.mm(inner[part], down[index].T, out=out[part])
        ctx.save_for_backward(rows, gates, place, gate_up, down)
        ctx.spans = spans
        return _taken(out, place)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, gates, place, gate_up, down = ctx.saved_tensors
        grad = _laid(grad, place, ctx.spans)
        inner = _activate(gates)
        grad_inner, grad_rows = torch.empty_like(inner), torch.empty_like(rows)
        # An expert that no token chose has a gradient of zero.
        grad_gate_up, grad_down = torch.zeros_like(gate_up), torch.zeros_like(down)
        for index, part in ctx.spans:
            torch.mm(grad[part], down[index], out=grad_inner[part])
            torch.mm(grad[part].T, inner[part], out=grad_down[index])
        grad_gates = _activate_backward(grad_inner, gates)
        for index, part in ctx.spans:
            torch.mm(grad_gates[part], gate_up[index], out=grad_rows[part])
            torch.mm(grad_gates[part].T, rows[part], out=grad_gate_up[index])
        return _taken(grad_rows, place), None, None, None, grad_gate_up, grad_down


def _placed(order: Tensor, counts: list[int], pad: int, num_rows: int) -> tuple[list[tuple[int, slice]], Tensor]:
    """(expert, its rows) for every expert that was hit, and each token's row [M]: the one after all spans if it has no expert."""
    spans, end, starts = [], 0, []
    for index, count in enumerate(counts):
        starts.append(end)
        if count:
            spans.append((index, slice(end, end + -(-count // pad) * pad)))
            end = spans[-1][1].stop
    number = torch.tensor(counts)
    first = torch.tensor(starts) - (number.cumsum(0) - number)
    place = torch.full((num_rows,), end)
    place[order] = torch.arange(order.numel()) + first.repeat_interleave(number)
    return spans, place


def _laid(x: Tensor, place: Tensor, spans: list[tuple[int, slice]]) -> Tensor:
    """Tokens [M, D] at their rows; zeros between, and one row more for the tokens without an expert, which nobody reads."""
    return x.new_zeros((spans[-1][1].stop if spans else 0) + 1, x.shape[1]).index_copy_(0, place, x)


def _taken(rows: Tensor, place: Tensor) -> Tensor:
    """Tokens [M, D] from their rows; zeros for those without an expert."""
    rows[-1] = 0
    return rows.index_select(0, place)


def _activate(gates: Tensor) -> Tensor:
    gate, up = gates.chunk(2, -1)
    return F.silu(gate).mul_(up)


def _activate_backward(grad: Tensor, gates: Tensor) -> Tensor:
    gate, up = gates.chunk(2, -1)
    grad_gates = torch.empty_like(gates)
    torch.mul(grad, F.silu(gate), out=grad_gates[:, gate.shape[1] :])
    grad_gates[:, : gate.shape[1]] = torch.ops.aten.silu_backward(grad * up, gate)
    return grad_gates
