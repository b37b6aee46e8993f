"""What a training step minimises: the AR loss of the clean half, the one-step diffusion loss of the masked half (tidar.md 2).

Both halves come from one forward and go through the head in one call. Sums and counts are returned, never means, so that
microbatches and ranks add exactly.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from zaya_core.data.packing import Batch
from zaya_core.layout import packed, training_row
from zaya_core.model.decoder import Zaya
from zaya_core.ops.loss import head_loss
from zaya_core.train.context import ContextSplit, spanned, with_borders
from zaya_core.train.ranks import Ranks

ALONE = Ranks()
POSITIONS = (0, *(256 * 2**octave for octave in range(11)))  # where the buckets of positions in a document begin


@dataclass(frozen=True)
class Objective:
    """loss = (ar_weight * AR + draft) / (1 + ar_weight), each a weighted mean; `ar` alone has no masks.

    The draft loss of the mask at `offset` of its block weighs offset_decay^offset, and is (1 - kl_share) * cross-entropy +
    kl_share * KL(law of the AR half, taken as given || law of the mask).
    """

    kind: str
    ar_weight: float = 1.0
    kl_share: float = 0.0
    offset_decay: float = 1.0

    def denominators(self, batches: list[Batch], block_length: int) -> tuple[float, float]:
        """Weight of all AR labels and of all draft labels of a step's batches."""
        ar = sum(float(ar_weights(batch).sum()) for batch in batches)
        return ar, sum(float(self.draft_weights(batch, block_length).sum()) for batch in batches)

    def draft_weights(self, batch: Batch, block_length: int) -> Tensor:
        """Weight of each slot [B, S] as the label of a mask; 0 before its document's first block."""
        since = batch.position - batch.first
        inside = (since >= 0) & (batch.document >= 0)
        return torch.where(inside, batch.weight * self.offset_decay ** (since % block_length).double(), 0.0)


@dataclass(frozen=True)
class Losses:
    """Sums over a batch, by offset in the block [K] where there are masks.

    `objective` is the step's share of the minimised value; `ar_sum` and `nats` are in nats, weighted by the labels' weights
    `ar_weight` and `weight`; `kl` and `overlap` (1 - TV) are over `num_measured` masks; `accepted` is the sum over
    `num_blocks` whole blocks of the expected number of accepted drafts; `load` [2, L, E + 1] counts tokens per expert, clean
    and masked. The AR figures and the acceptance are by position in the document, of the token or of the block's start [P].
    """

    objective: Tensor
    ar_sum: Tensor
    ar_weight: Tensor
    nats: Tensor
    weight: Tensor
    kl: Tensor
    overlap: Tensor
    num_measured: Tensor
    accepted: Tensor
    num_blocks: Tensor
    load: Tensor

    def __add__(self, other: "Losses") -> "Losses":
        return Losses(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Losses)))


def backward(model: Zaya, batches: list[Batch], objective: Objective, *, measure: bool = False, ranks: Ranks = ALONE) -> Losses:
    """Add the gradient of the objective over all batches of a step; `measure` compares drafts and AR laws also without a KL.

    The losses are those of the batches of all `ranks`.
    """
    length = _block_length(model)
    ar, draft = ranks.total_of_rows(list(objective.denominators(batches, length)), model.device)
    losses = None
    for batch in batches:
        loss, part = objective_loss(model, batch, objective, (ar, draft), measure=measure, ranks=ranks)
        loss.backward()
        losses = part if losses is None else losses + part
    assert losses is not None, "a step has at least one batch"
    return ranks.added(losses)


def objective_loss(
    model: Zaya,
    batch: Batch,
    objective: Objective,
    denominators: tuple[float, float],
    *,
    measure: bool,
    ranks: Ranks = ALONE,
) -> tuple[Tensor, Losses]:
    """One batch's share of the objective, whose denominators are the whole step's; and its figures.

    Where rows are split over a context axis, the share and the figures are those of this rank's slots.
    """
    ar_scale, draft_scale = _scales(objective, denominators)
    routing: list[Tensor] = []
    length, own = _block_length(model), ranks.span(batch.token_ids.shape[1])
    hidden, target, used = forward(model, batch, objective, routing, ranks)
    clean, masked = hidden.split([own.stop - own.start, target.shape[1]], 1)

    label_weights = ar_weights(batch)[:, own]
    row, slot = torch.nonzero(label_weights, as_tuple=True)
    draft_weights = objective.draft_weights(batch, length).gather(1, target.clamp_min(0)) * (target >= 0)
    mask_row, mask_slot = torch.nonzero(draft_weights, as_tuple=True)
    label_slot = target[mask_row, mask_slot]
    labels = torch.cat([batch.token_ids[row, own.start + slot + 1], batch.token_ids[mask_row, label_slot]])
    weights = torch.cat([label_weights[row, slot] * ar_scale, draft_weights[mask_row, mask_slot] * draft_scale])
    taught = objective.kind != "ar" and (measure or objective.kl_share > 0)
    teacher = _before(clean, mask_row, label_slot - own.start, length, ranks) if taught else None
    rows = torch.cat([clean[row, slot], masked[mask_row, mask_slot]])
    head = model.lm_head
    result = head_loss(rows, head.weight, head.bias, labels, weights, teacher=teacher, kl_share=objective.kl_share)

    ar_nats, nats = result.nats.split([row.numel(), mask_row.numel()])
    offset, label_weight = mask_slot % length, batch.weight[mask_row, label_slot]
    ones = torch.ones_like(nats)[: result.kl.numel()]
    overlap = torch.zeros_like(target, dtype=nats.dtype)
    overlap[mask_row, mask_slot] = 1 - result.distance if taught else overlap[mask_row, mask_slot]
    starts = batch.position.gather(1, target.clamp_min(0))
    accepted, num_blocks = _accepted(overlap, draft_weights if taught else draft_weights[:, :0], starts, length)
    position = batch.position[:, own]
    by_offset = _summed(offset, length)
    losses = Losses(
        objective=result.total.detach(),
        ar_sum=by_position(position[row, slot], ar_nats * label_weights[row, slot]),
        ar_weight=by_position(position[row, slot], label_weights[row, slot]),
        nats=by_offset(nats * label_weight),
        weight=by_offset(label_weight),
        kl=by_offset(result.kl),
        overlap=by_offset(1 - result.distance),
        num_measured=by_offset(ones),
        accepted=accepted,
        num_blocks=num_blocks,
        load=expert_load(routing, batch.document[:, own] >= 0, used, model.config.num_experts + 1),
    )
    return result.total, losses


def expert_load(routing: list[Tensor], clean: Tensor, masked: Tensor, num_classes: int) -> Tensor:
    """Tokens that chose each class, per layer: [2, L, E + 1] for the clean slots and the masks in use, bool [B, S] and [B, M]."""
    num_clean = clean.shape[1]
    halves = [(choice[:, :num_clean][clean], choice[:, num_clean:][masked]) for choice in routing]
    counts = [[torch.bincount(half, minlength=num_classes) for half in both] for both in halves]
    return torch.stack([torch.stack(both) for both in counts], 1)


def _scales(objective: Objective, denominators: tuple[float, float]) -> tuple[float, float]:
    """What one nat of an AR label and of a draft label adds to the objective."""
    ar, draft = (1 / max(total, 1e-9) for total in denominators)
    if objective.kind == "ar":
        return ar, 0.0
    return ar * objective.ar_weight / (1 + objective.ar_weight), draft / (1 + objective.ar_weight)


def forward(model: Zaya, batch: Batch, objective: Objective, routing: list[Tensor], ranks: Ranks) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden [B, S + M, D] over [clean | masked blocks], each mask's target [B, M], and which masks are of a document.

    Of rows split over a context axis: this rank's S clean slots, and the blocks that begin there.
    """
    own = ranks.span(batch.token_ids.shape[1])
    if objective.kind == "ar":
        layout, target = packed(batch.document, batch.position), batch.document[:, :0]
    else:
        tidar = model.config.tidar
        assert tidar is not None, "the TiDAR objective needs a converted checkpoint"
        labelled = batch.weight > 0
        layout, target = training_row(batch.document, batch.position, batch.first, tidar.block_length, labelled, own)
    masks = torch.full_like(target, model.config.tidar.mask_token_id if model.config.tidar else 0)
    used = (layout.document >= 0)[:, batch.token_ids.shape[1] :]
    past = None
    if ranks.context > 1:
        past = ContextSplit(
            layout, own, ranks.group("context"), num_layers=model.config.num_hidden_layers, row_view=model.model.row_view
        )
        layout = spanned(layout, own)
    return model(torch.cat([batch.token_ids[:, own], masks], 1), layout, past, routing), target, used


def _before(clean: Tensor, row: Tensor, slot: Tensor, length: int, ranks: Ranks) -> Tensor:
    """Hidden [M, D] of the clean slots before `slot` of this rank's span: up to `length` - 1 past its end, 1 before its start."""
    if ranks.context == 1:
        return clean[row, slot - 1].detach()
    return with_borders(clean, length - 1, ranks.group("context"))[row, slot]


def ar_weights(batch: Batch) -> Tensor:
    """Weight of each slot's successor [B, S] as its label: 0 at the end of a document and in padding."""
    same = (batch.document[:, 1:] == batch.document[:, :-1]) & (batch.document[:, 1:] >= 0)
    return torch.nn.functional.pad(batch.weight[:, 1:].double() * same, (0, 1))


def by_position(position: Tensor, values: Tensor) -> Tensor:
    """Sums of values [M] by the bucket of their position in the document -> [P]."""
    edges = torch.tensor(POSITIONS[1:], device=position.device)
    return values.new_zeros(len(POSITIONS)).index_add_(0, torch.bucketize(position, edges, right=True), values)


def _accepted(overlap: Tensor, weights: Tensor, position: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Simulated acceptance over blocks whose labels all count: the sum of sum_m prod_{j<=m} (1 - TV_j), and their number.

    By the position of the block's first mask, which is itself left out, because no draft uses it. No weights: no blocks.
    """
    shape = (overlap.shape[0], weights.shape[1] // length, length)
    whole = (weights.view(shape) > 0).all(-1)
    drafts = overlap[:, : weights.shape[1]].view(shape)[whole][:, 1:].cumprod(1).sum(1)
    starts = position[:, : weights.shape[1] : length][whole]
    return by_position(starts, drafts), by_position(starts, torch.ones_like(drafts))


def _summed(offset: Tensor, length: int) -> Callable[[Tensor], Tensor]:
    """Sums of values [M] by offset -> [K]; no values give zeros."""

    def by_offset(values: Tensor) -> Tensor:
        return values.new_zeros(length).index_add_(0, offset[: values.numel()], values)

    return by_offset


def _block_length(model: Zaya) -> int:
    return 1 if model.config.tidar is None else model.config.tidar.block_length
