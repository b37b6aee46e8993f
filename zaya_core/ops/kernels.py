"""Triton kernels of a decoding step: attention over spans of a pool, and top-1 experts. They read lengths, spans and routing from
device memory, so that a captured graph holds for all of them.

Import it on a GPU only: torch's CPU builds come without Triton. The tests run the kernels in Triton's interpreter where it is
installed.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from zaya_core.ops.spans import PADDED, Spans

HIDDEN = tl.constexpr(-1e30)  # finite, so that a query which has seen nothing yet has no nan
NOTHING = tl.constexpr(PADDED)
KEYS = 64  # keys that a program looks at in one go
MOST_SPLITS = 32  # programs that share one query's keys


def attend_spans(spans: Spans, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q [H, T, N], k and v [G, slots, N] -> [T, H, N] in the dtype of v, which q is rounded to first."""
    (heads, slots, width), groups = q.shape, k.shape[0]
    assert q.is_contiguous(), q.stride()
    assert k.stride() == v.stride() == (k.shape[1] * width, width, 1), (k.stride(), v.stride())
    per_group = heads // groups
    splits = _splits(spans.tiles.shape[0] * groups, q.device)
    partial = torch.empty(splits, heads, slots, width, dtype=torch.float32, device=q.device)
    weight = torch.empty(splits, heads, slots, dtype=torch.float32, device=q.device)
    pad = max(16, triton.next_power_of_2(width))
    _attend[(spans.tiles.shape[0], groups, splits)](
        q, k, v, spans.position, spans.start, spans.block, spans.rows, spans.tiles, partial, weight,
        slots, k.shape[1], spans.window or 0, width**-0.5, splits,
        PER_GROUP=per_group, WIDTH=width, PAD=pad, TILE=spans.tile, QUERIES=max(16, triton.next_power_of_2(per_group * spans.tile)),
        KEYS=KEYS, WINDOWED=spans.window is not None,
        num_warps=4, num_stages=2,
    )  # fmt: skip
    out = torch.empty(slots, heads, width, dtype=v.dtype, device=q.device)
    _merge[(slots, heads)](partial, weight, spans.block, out, slots, heads, WIDTH=width, PAD=pad, SPLITS=splits, num_warps=1)
    return out


def _splits(programs: int, device: torch.device) -> int:
    """Into how many parts keys are split: a power of two, so that there are about two programs for each multiprocessor."""
    room = 2 * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 8
    return min(MOST_SPLITS, triton.next_power_of_2(max(1, room // programs)))


@triton.jit
def _attend(
    q, k, v, position, start, block, rows, tiles, partial, weight, slots, pool_slots, window, scale, splits,
    PER_GROUP: tl.constexpr, WIDTH: tl.constexpr, PAD: tl.constexpr, TILE: tl.constexpr, QUERIES: tl.constexpr,
    KEYS: tl.constexpr, WINDOWED: tl.constexpr,
):  # fmt: skip
    """One tile of a row's slots, one group of heads and one split of the keys: a softmax of its own, and its log-sum-exp."""
    group, split = tl.program_id(1), tl.program_id(2)
    row = tl.load(tiles + 2 * tl.program_id(0))
    begin_slot = tl.load(tiles + 2 * tl.program_id(0) + 1).to(tl.int32)
    begin = tl.load(rows + 4 * row)
    length = tl.load(rows + 4 * row + 1).to(tl.int32)
    first = tl.load(rows + 4 * row + 2).to(tl.int32)
    count = tl.load(rows + 4 * row + 3).to(tl.int32)
    if begin_slot < count:
        lane = tl.arange(0, QUERIES)
        slot, head = begin_slot + lane % TILE, group * PER_GROUP + lane // TILE
        live = (slot < count) & (lane // TILE < PER_GROUP)
        here = first + slot
        n = tl.arange(0, PAD)
        whole = n < WIDTH
        at = (head * slots + here).to(tl.int64)
        query = tl.load(q + at[:, None] * WIDTH + n[None, :], mask=live[:, None] & whole[None, :], other=0.0)
        query = query.to(k.dtype.element_ty)
        my_start = tl.load(start + here, mask=live, other=0)
        my_block = tl.load(block + here, mask=live, other=NOTHING)
        my_position = tl.load(position + here, mask=live, other=0)
        # A clean slot sees none after itself; a masked one may see all of its block.
        has_masks = tl.max(my_block, 0) >= 0
        end = length + tl.where(has_masks, count, tl.minimum(count, begin_slot + TILE))
        oldest = 0
        if WINDOWED:
            oldest = tl.maximum(0, length - window + 1)
        share = tl.cdiv(tl.cdiv(end - oldest, KEYS), splits) * KEYS
        low = oldest + split * share
        high = tl.minimum(low + share, end)
        top = tl.full([QUERIES], HIDDEN, tl.float32)
        norm = tl.zeros([QUERIES], tl.float32)
        total = tl.zeros([QUERIES, PAD], tl.float32)
        base = group.to(tl.int64) * pool_slots + begin
        for begin_key in range(low, high, KEYS):
            key = begin_key + tl.arange(0, KEYS)
            real, own = key < high, key >= length
            rest = (base + key)[:, None] * WIDTH + n[None, :]
            keys = tl.load(k + rest, mask=real[:, None] & whole[None, :], other=0.0)
            scores = tl.dot(query, tl.trans(keys), input_precision="ieee") * scale
            key_block = tl.load(block + first + key - length, mask=real & own, other=-1)
            key_position = tl.load(position + first + key - length, mask=real & own, other=0)
            key_position = tl.where(own, key_position, key.to(tl.int64))
            before = (key_block[None, :] == -1) & (key_position[None, :] < my_start[:, None])
            sees = before | ((key_block[None, :] >= 0) & (key_block[None, :] == my_block[:, None]))
            sees = sees & real[None, :]
            if WINDOWED:
                sees = sees & (key_position[None, :] > my_position[:, None] - window)
            scores = tl.where(sees, scores, HIDDEN)
            new_top = tl.maximum(top, tl.max(scores, 1))
            weights = tl.where(sees, tl.exp(scores - new_top[:, None]), 0.0)
            shrink = tl.exp(top - new_top)
            norm = norm * shrink + tl.sum(weights, 1)
            values = tl.load(v + rest, mask=real[:, None] & whole[None, :], other=0.0)
            total = total * shrink[:, None] + tl.dot(weights.to(values.dtype), values, input_precision="ieee")
            top = new_top
        seen = norm > 0
        total = total / tl.where(seen, norm, 1.0)[:, None]
        heads = tl.num_programs(1) * PER_GROUP
        place = ((split * heads + head) * slots).to(tl.int64) + here
        tl.store(partial + place[:, None] * WIDTH + n[None, :], total, mask=live[:, None] & whole[None, :])
        tl.store(weight + place, tl.where(seen, top + tl.log(tl.where(seen, norm, 1.0)), HIDDEN), mask=live)


@triton.jit
def _merge(partial, weight, block, out, slots, heads, WIDTH: tl.constexpr, PAD: tl.constexpr, SPLITS: tl.constexpr):
    """The splits of one slot's head as one softmax; zeros for a padded slot, for which there are none."""
    slot, head = tl.program_id(0), tl.program_id(1)
    split, n = tl.arange(0, SPLITS), tl.arange(0, PAD)
    place = ((split * heads + head) * slots + slot).to(tl.int64)
    log_sum = tl.load(weight + place)
    share = tl.exp(log_sum - tl.max(log_sum, 0))
    share = share / tl.sum(share, 0)
    parts = tl.load(partial + place[:, None] * WIDTH + n[None, :], mask=(n < WIDTH)[None, :], other=0.0)
    merged = tl.sum(share[:, None] * parts, 0)
    merged = tl.where(tl.load(block + slot) == NOTHING, 0.0, merged)
    tl.store(out + (slot * heads + head).to(tl.int64) * WIDTH + n, merged.to(out.dtype.element_ty), mask=n < WIDTH)


def apply_experts_static(x: Tensor, choice: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """As `ops.experts.apply_experts`, with the counts of tokens left on the device: no more than two kernels for all experts."""
    num_tokens, (num_experts, width, _) = x.shape[0], down.shape
    inner_width = down.shape[2]
    order = torch.argsort(choice, stable=True)
    number = torch.arange(num_experts, device=choice.device)
    ends = (choice[None, :] <= number[:, None]).sum(1, dtype=torch.int32)
    rows, columns, depth = _block_shape(num_tokens, num_experts, x.element_size())
    # An expert's last block may be nearly empty.
    blocks = min(num_tokens, num_tokens // rows + num_experts)
    shape = {"EXPERTS": num_experts, "EXPERTS_PAD": triton.next_power_of_2(num_experts), "ROWS": rows, "COLUMNS": columns}
    shape |= {"num_warps": 8 if rows > 16 else 4, "num_stages": 3}
    inner = x.new_empty(num_tokens, inner_width)
    _gate_up[(blocks, triton.cdiv(inner_width, columns))](
        x, gate_up, order, ends, inner, x.shape[1], inner_width, DEPTH=depth, **shape
    )  # fmt: skip
    out = x.new_zeros(num_tokens, width)
    _down[(blocks, triton.cdiv(width, columns))](inner, down, order, ends, out, inner_width, width, DEPTH=depth, **shape)
    return out


def _block_shape(num_tokens: int, num_experts: int, item_bytes: int) -> tuple[int, int, int]:
    """Rows, columns and depth of a program's product: few tokens read weights with many programs, many share what is read."""
    if num_tokens <= 8:
        return 16, 16, 512 // item_bytes
    if num_tokens <= 16 * num_experts:
        return 16, 64, 256 // item_bytes
    return 64, 128, 128 // item_bytes


@triton.jit
def _block_of(ends, EXPERTS: tl.constexpr, EXPERTS_PAD: tl.constexpr, ROWS: tl.constexpr):
    """Of this program's block of sorted tokens: its expert (EXPERTS if there is none), its first token and the expert's end."""
    number = tl.arange(0, EXPERTS_PAD)
    end = tl.load(ends + number, mask=number < EXPERTS, other=0)
    begin = tl.load(ends + number - 1, mask=(number > 0) & (number < EXPERTS), other=0)
    blocks = tl.where(number < EXPERTS, (end - begin + ROWS - 1) // ROWS, 0)
    until = tl.cumsum(blocks, 0)
    expert = tl.sum(((until <= tl.program_id(0)) & (number < EXPERTS)).to(tl.int32), 0)
    mine = number == expert
    first = tl.sum(tl.where(mine, begin + (tl.program_id(0) - until + blocks) * ROWS, 0), 0)
    return expert, first, tl.sum(tl.where(mine, end, 0), 0)


@triton.jit
def _gate_up(
    x, gate_up, order, ends, inner, depth, columns,
    EXPERTS: tl.constexpr, EXPERTS_PAD: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """silu(x gate^T) * (x up^T) of one block of an expert's tokens, in sorted order."""
    expert, first, last = _block_of(ends, EXPERTS, EXPERTS_PAD, ROWS)
    if expert < EXPERTS:
        row, column, k = first + tl.arange(0, ROWS), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, DEPTH)
        token = tl.load(order + row, mask=row < last, other=0)
        x_at = x + token[:, None] * depth + k[None, :]
        gate_at = gate_up + (expert.to(tl.int64) * 2 * columns + column)[:, None] * depth + k[None, :]
        up_at = gate_at + columns * depth
        gate, up = tl.zeros([ROWS, COLUMNS], tl.float32), tl.zeros([ROWS, COLUMNS], tl.float32)
        for begin in range(0, depth, DEPTH):
            inside = (begin + k < depth)[None, :]
            tokens = tl.load(x_at + begin, mask=inside & (row < last)[:, None], other=0.0)
            weights = inside & (column < columns)[:, None]
            gate = tl.dot(tokens, tl.trans(tl.load(gate_at + begin, mask=weights, other=0.0)), gate, input_precision="ieee")
            up = tl.dot(tokens, tl.trans(tl.load(up_at + begin, mask=weights, other=0.0)), up, input_precision="ieee")
        out = gate * tl.sigmoid(gate) * up
        at = row.to(tl.int64)[:, None] * columns + column[None, :]
        tl.store(inner + at, out.to(inner.dtype.element_ty), mask=(row < last)[:, None] & (column < columns)[None, :])


@triton.jit
def _down(
    inner, down, order, ends, out, depth, columns,
    EXPERTS: tl.constexpr, EXPERTS_PAD: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """inner down^T of one block of an expert's tokens, each written to its own place."""
    expert, first, last = _block_of(ends, EXPERTS, EXPERTS_PAD, ROWS)
    if expert < EXPERTS:
        row, column, k = first + tl.arange(0, ROWS), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, DEPTH)
        token = tl.load(order + row, mask=row < last, other=0)
        inner_at = inner + row.to(tl.int64)[:, None] * depth + k[None, :]
        down_at = down + (expert.to(tl.int64) * columns + column)[:, None] * depth + k[None, :]
        total = tl.zeros([ROWS, COLUMNS], tl.float32)
        for begin in range(0, depth, DEPTH):
            inside = (begin + k < depth)[None, :]
            rows = tl.load(inner_at + begin, mask=inside & (row < last)[:, None], other=0.0)
            weights = tl.load(down_at + begin, mask=inside & (column < columns)[:, None], other=0.0)
            total = tl.dot(rows, tl.trans(weights), total, input_precision="ieee")
        at = token[:, None] * columns + column[None, :]
        tl.store(out + at, total.to(out.dtype.element_ty), mask=(row < last)[:, None] & (column < columns)[None, :])
