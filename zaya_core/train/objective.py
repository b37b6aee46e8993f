"""What a training step minimises: the AR loss of the clean half, the one-step diffusion loss of the masked half (tidar.md 2).

Sums and counts are returned, never means, so that microbatches and ranks add exactly.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from zaya_core.data.packing import Batch
from zaya_core.layout import packed, training_row
from zaya_core.model.decoder import Zaya
from zaya_core.ops.loss import sum_cross_entropy, total_variation


@dataclass(frozen=True)
class Losses:
    """Sums in nats over a batch, their numbers of labels, and each layer's tokens per expert [2, L, E + 1] (clean, masked)."""

    ar_sum: Tensor
    ar_count: int
    diffusion_sum: Tensor
    diffusion_count: int
    load: Tensor
    overlap: Tensor | None  # [blocks, K - 1]: 1 - TV between the AR law and the mask's law, second mask onward


def ar_losses(model: Zaya, batch: Batch) -> Losses:
    """Next-token cross-entropy on packed rows; no label crosses the end of a document."""
    routing: list[Tensor] = []
    hidden = model(batch.token_ids, packed(batch.document, batch.position), routing=routing)
    total, count = _ar_sum(model, hidden, batch)
    return Losses(total, count, torch.zeros_like(total), 0, _expert_load(model, routing, batch.token_ids.shape[1]), None)


def tidar_losses(model: Zaya, batch: Batch, *, with_overlap: bool) -> Losses:
    """Both losses from one forward over [clean | masked blocks]; `with_overlap` also measures the drafts' acceptance."""
    tidar = model.config.tidar
    assert tidar is not None, "the TiDAR objective needs a converted checkpoint"
    num_clean = batch.token_ids.shape[1]
    layout, target = training_row(batch.document, batch.position, batch.first, tidar.block_length)
    masks = torch.full_like(target, tidar.mask_token_id)
    routing: list[Tensor] = []
    hidden = model(torch.cat([batch.token_ids, masks], 1), layout, routing=routing)
    clean, masked = hidden[:, :num_clean], hidden[:, num_clean:]
    ar_sum, ar_count = _ar_sum(model, clean, batch)
    labelled = target >= 0
    labels = batch.token_ids.gather(1, target.clamp_min(0))[labelled]
    diffusion_sum = sum_cross_entropy(masked[labelled], model.lm_head.weight, model.lm_head.bias, labels)
    overlap = _overlap(model, clean, masked, target) if with_overlap else None
    used = (layout.document >= 0)[:, num_clean:]
    load = _expert_load(model, routing, num_clean, used)
    return Losses(ar_sum, ar_count, diffusion_sum, labels.numel(), load, overlap)


def acceptance_length(overlap: Tensor) -> float:
    """Simulated: mean over blocks of 1 + sum_m prod_{j<=m} (1 - TV_j), the first mask left out because no draft uses it."""
    return float(1 + overlap.cumprod(1).sum(1).mean()) if overlap.numel() else float("nan")


def _ar_sum(model: Zaya, hidden: Tensor, batch: Batch) -> tuple[Tensor, int]:
    same = batch.document[:, 1:] == batch.document[:, :-1]
    labels = batch.token_ids[:, 1:][same]
    rows = hidden[:, : same.shape[1]][same]
    return sum_cross_entropy(rows, model.lm_head.weight, model.lm_head.bias, labels), labels.numel()


@torch.no_grad()
def _overlap(model: Zaya, clean: Tensor, masked: Tensor, target: Tensor) -> Tensor:
    """Whole blocks only: at each mask but the first, 1 - TV(law after the clean token before it, the mask's law)."""
    length = model.config.tidar.block_length
    blocks = target.view(target.shape[0], -1, length)
    whole = (blocks >= 0).all(-1)
    row = torch.arange(target.shape[0], device=target.device)[:, None].expand_as(whole)[whole]
    before = blocks[whole][:, 1:] - 1
    ar_rows = clean[row[:, None], before].flatten(0, 1)
    mask_rows = masked.view(*blocks.shape, masked.shape[-1])[whole][:, 1:].flatten(0, 1)
    distance = total_variation(ar_rows, mask_rows, model.lm_head.weight, model.lm_head.bias)
    return 1 - distance.view(-1, length - 1)


def _expert_load(model: Zaya, routing: list[Tensor], num_clean: int, used: Tensor | None = None) -> Tensor:
    """Tokens that chose each class, per layer: [2, L, E + 1] for clean slots and for the masks in use."""
    classes = model.config.num_experts + 1
    clean = [torch.bincount(choice[:, :num_clean].flatten(), minlength=classes) for choice in routing]
    if used is None:
        masked = [torch.zeros_like(count) for count in clean]
    else:
        masked = [torch.bincount(choice[:, num_clean:][used], minlength=classes) for choice in routing]
    return torch.stack([torch.stack(clean), torch.stack(masked)])
