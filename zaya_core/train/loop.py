"""One fit for every training stage: it knows steps, gradients and figures, not what the objective is or where saves go."""

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from zaya_core.data.packing import Batch, PackedRows
from zaya_core.errors import RunError
from zaya_core.model.decoder import Zaya
from zaya_core.runtime import peak_memory_bytes
from zaya_core.train.objective import Losses, acceptance_length, ar_losses, tidar_losses
from zaya_core.train.optim import learning_rate, load_balance
from zaya_core.train.state import TrainState


@dataclass(frozen=True)
class FitOptions:
    """How to train; batch_size is rows, and gradients of `gradient_accumulation_steps` batches make one step."""

    objective: str
    max_steps: int
    batch_size: int
    gradient_accumulation_steps: int
    lr: float
    min_lr_ratio: float
    lr_scheduler: str
    warmup_ratio: float
    max_grad_norm: float
    ar_weight: float
    dtype: torch.dtype
    log_every: int


def fit(state: TrainState, rows: PackedRows, options: FitOptions) -> Iterator[dict[str, Any]]:
    """Train from `state.step` to `max_steps`, yielding each step's figures after its update."""
    began, first_step = time.perf_counter(), state.step
    while state.step < options.max_steps:
        step_began = time.perf_counter()
        batches = _batches(rows, options, state.step, state.model.device)
        measure = state.step % options.log_every == 0 or state.step == options.max_steps - 1
        losses = [_backward(state.model, batch, batches, options, measure) for batch in batches]
        figures = _step_figures(losses, options)
        if not math.isfinite(figures["loss"]):
            raise RunError(
                f"step {state.step + 1}: loss is {figures['loss']} on rows {_row_range(options, state.step)}",
                hint="lower --lr, or look at those rows",
            )
        figures |= _update(state, options, sum(part.load for part in losses))
        num_tokens = sum(batch.token_ids.numel() for batch in batches)
        state.step += 1
        state.tokens_seen += num_tokens
        now = time.perf_counter()
        yield (
            {"step": state.step}
            | figures
            | {
                "tokens_seen": state.tokens_seen,
                "tokens_per_second": num_tokens / (now - step_began),
                "memory_bytes": peak_memory_bytes(state.model.device),
                "eta_seconds": (now - began) / (state.step - first_step) * (options.max_steps - state.step),
            }
        )


def _row_range(options: FitOptions, step: int) -> range:
    per_step = options.batch_size * options.gradient_accumulation_steps
    return range(step * per_step, (step + 1) * per_step)


def _batches(rows: PackedRows, options: FitOptions, step: int, device: torch.device) -> list[Batch]:
    indices = _row_range(options, step)
    size = options.batch_size
    return [rows.batch(indices[at : at + size]).to(device) for at in range(0, len(indices), size)]


def _backward(model: Zaya, batch: Batch, batches: list[Batch], options: FitOptions, measure: bool) -> Losses:
    """Add this batch's share of the step's gradient: sums over the counts of the whole step, so that splitting changes nothing."""
    with _autocast(model, options):
        is_ar = options.objective == "ar"
        losses = ar_losses(model, batch) if is_ar else tidar_losses(model, batch, with_overlap=measure)
    ar_mean = losses.ar_sum / max(1, sum(part.num_ar_labels for part in batches))
    if options.objective == "ar":
        ar_mean.backward()
    else:
        diffusion_mean = losses.diffusion_sum / max(1, sum(part.num_diffusion_labels for part in batches))
        ((options.ar_weight * ar_mean + diffusion_mean) / (1 + options.ar_weight)).backward()
    return losses


def _autocast(model: Zaya, options: FitOptions) -> AbstractContextManager:
    """float32 master weights; matrix products in bfloat16 where asked."""
    return torch.autocast(model.device.type, torch.bfloat16, enabled=options.dtype == torch.bfloat16)


def _step_figures(losses: list[Losses], options: FitOptions) -> dict[str, Any]:
    ar_loss = float(sum(part.ar_sum.detach() for part in losses)) / max(1, sum(part.ar_count for part in losses))
    if options.objective == "ar":
        return {"loss": ar_loss, "ar_loss": ar_loss}
    count = sum(part.diffusion_count for part in losses)
    diffusion_loss = float(sum(part.diffusion_sum.detach() for part in losses)) / max(1, count)
    loss = (options.ar_weight * ar_loss + diffusion_loss) / (1 + options.ar_weight)
    figures = {"loss": loss, "ar_loss": ar_loss, "diffusion_loss": diffusion_loss}
    overlaps = [part.overlap for part in losses if part.overlap is not None and part.overlap.numel()]
    if overlaps:
        overlap = torch.cat(overlaps)
        figures["acceptance_length"] = acceptance_length(overlap)
        figures["acceptance_by_offset"] = [round(value, 4) for value in overlap.mean(0).tolist()]
    return figures


def _update(state: TrainState, options: FitOptions, load: torch.Tensor) -> dict[str, Any]:
    """Clip, step the optimizer and the router's balance, clear the gradients."""
    lr = learning_rate(
        state.step,
        peak=options.lr,
        final_ratio=options.min_lr_ratio,
        total=options.max_steps,
        warmup=math.ceil(options.warmup_ratio * options.max_steps),
        schedule=options.lr_scheduler,
    )
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), options.max_grad_norm)
    if not norm.isfinite():
        raise RunError(f"step {state.step + 1}: the gradient's norm is {float(norm)} on rows {_row_range(options, state.step)}")
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.balance.update(load, state.step)
    figures = {"lr": lr, "grad_norm": float(norm), "expert_balance": load_balance(load[0])}
    if options.objective != "ar":
        figures["expert_balance_masked"] = load_balance(load[1])
    return figures
