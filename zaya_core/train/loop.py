"""One fit for every training stage: it knows steps, gradients and figures, not what the rows are or where saves go."""

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from zaya_core.data.packing import PADDING, Batch, Leg, Rows, leg_at
from zaya_core.errors import RunError
from zaya_core.model.decoder import Zaya
from zaya_core.runtime import peak_memory_bytes
from zaya_core.train.memory import knobs_named
from zaya_core.train.objective import POSITIONS, Losses, Objective, backward, objective_loss
from zaya_core.train.optim import clip_gradients, learning_rate, load_balance
from zaya_core.train.ranks import Ranks
from zaya_core.train.state import TrainState


@dataclass(frozen=True)
class FitOptions:
    """How to train; batch_size is rows, and gradients of `gradient_accumulation_steps` batches make one step."""

    objective: Objective
    max_steps: int
    batch_size: int
    gradient_accumulation_steps: int
    lr: float
    min_lr_ratio: float
    lr_scheduler: str
    warmup_ratio: float
    max_grad_norm: float
    dtype: torch.dtype
    log_every: int


def fit(state: TrainState, rows: Rows, options: FitOptions) -> Iterator[dict[str, Any]]:
    """Train from `state.step` to `max_steps`, yielding each step's figures, of all ranks, after its update."""
    began, first_step = time.perf_counter(), state.step
    while state.step < options.max_steps:
        step_began = time.perf_counter()
        leg = leg_at(rows, state.step)
        batches = _batches(leg, options, state.step, state.model.device, state.ranks)
        measure = state.step % options.log_every == 0 or state.step == options.max_steps - 1
        with knobs_named():
            with autocast(state.model, options.dtype):
                losses = backward(state.model, batches, options.objective, measure=measure, ranks=state.ranks)
            figures = figures_of(losses, options.objective)
            _check(figures, losses, _row_range(leg, options, state.step, state.ranks), state.step)
            figures |= _update(state, options, losses.load)
        counted = float(sum(int((batch.document >= 0).sum()) for batch in batches))
        num_tokens = int(state.ranks.total_of_rows([counted], state.model.device)[0])
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


@torch.no_grad()
def evaluate(model: Zaya, rows: Rows, *, num_rows: int, options: FitOptions, ranks: Ranks) -> dict[str, Any]:
    """Figures of held-out rows, every draft measured, their names prefixed with eval_."""
    total = None
    size = options.batch_size
    for begin in range(0, num_rows, size * ranks.row_groups):
        own = begin + size * ranks.row_group
        # A forward is a meeting of all ranks: one without rows of its own comes with a row that weighs nothing.
        batch = rows.batch(range(own, min(own + size, num_rows)) or range(1)).to(model.device)
        if own >= num_rows:
            batch = replace(batch, weight=torch.zeros_like(batch.weight), document=torch.full_like(batch.document, PADDING))
        with autocast(model, options.dtype):
            _, losses = objective_loss(model, batch, options.objective, (1.0, 1.0), measure=True, ranks=ranks)
        total = losses if total is None else total + losses
    assert total is not None, "an evaluation has rows"
    total = ranks.added(total)
    figures = figures_of(total, options.objective) | figures_by_position(total)
    return {f"eval_{name}": value for name, value in figures.items() if name != "loss"}


def autocast(model: Zaya, dtype: torch.dtype) -> AbstractContextManager:
    """float32 master weights; matrix products in bfloat16 where asked."""
    return torch.autocast(model.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)


def figures_of(losses: Losses, objective: Objective) -> dict[str, Any]:
    """Means of the sums, by offset too where drafts were measured."""
    figures = {"loss": float(losses.objective), "ar_loss": _mean(losses.ar_sum.sum(), losses.ar_weight.sum())}
    if objective.kind == "ar":
        return figures
    figures["diffusion_loss"] = _mean(losses.nats.sum(), losses.weight.sum())
    if float(losses.num_measured.sum()):
        figures["draft_kl"] = _mean(losses.kl.sum(), losses.num_measured.sum())
        figures["loss_by_offset"] = _rounded(losses.nats, losses.weight)
        figures["acceptance_by_offset"] = _rounded(losses.overlap[1:], losses.num_measured[1:])
    if float(losses.num_blocks.sum()):
        figures["acceptance_length"] = 1 + _mean(losses.accepted.sum(), losses.num_blocks.sum())
    return figures


def figures_by_position(losses: Losses) -> dict[str, dict[int, float]]:
    """AR loss and simulated acceptance by where in its document a token, or a block, stands: by its bucket's first position."""
    told = {
        "ar_loss_by_position": (losses.ar_sum, losses.ar_weight, 0),
        "acceptance_by_position": (losses.accepted, losses.num_blocks, 1),
    }
    return {
        name: {
            start: round(base + _mean(total, count), 4) for start, total, count in zip(POSITIONS, *sums, strict=True) if count > 0
        }
        for name, (*sums, base) in told.items()
    }


def _mean(total: Tensor, count: Tensor) -> float:
    return float(total) / max(float(count), 1e-9)


def _rounded(totals: Tensor, counts: Tensor) -> list[float]:
    return [round(value, 4) for value in (totals / counts.clamp_min(1e-9)).tolist()]


def _row_range(leg: Leg, options: FitOptions, step: int, ranks: Ranks) -> range:
    """The step's rows, of all ranks."""
    per_step = leg.factor * options.batch_size * options.gradient_accumulation_steps * ranks.row_groups
    step -= leg.first_step
    return range(step * per_step, (step + 1) * per_step)


def _batches(leg: Leg, options: FitOptions, step: int, device: torch.device, ranks: Ranks) -> list[Batch]:
    """This rank's: the groups of ranks take turns."""
    indices, size = _row_range(leg, options, step, ranks), leg.factor * options.batch_size
    turns = range(ranks.row_group * size, len(indices), size * ranks.row_groups)
    return [leg.rows.batch(indices[at : at + size]).to(device) for at in turns]


def _check(figures: dict[str, Any], losses: Losses, rows: range, step: int) -> None:
    """A loss that is no number, or that nothing contributed to, ends the run and names the step and its rows."""
    where = f"step {step + 1}, rows {rows}"
    if not math.isfinite(figures["loss"]):
        raise RunError(f"{where}: loss is {figures['loss']}", hint="lower --lr, or look at those rows with --inspect")
    if not float(losses.ar_weight.sum() + losses.weight.sum()):
        raise RunError(f"{where}: no token carries a loss", hint="look at those rows with --inspect")


def _update(state: TrainState, options: FitOptions, load: Tensor) -> dict[str, Any]:
    """Clip, step the optimizer and the router's balance, clear the gradients."""
    lr = learning_rate(
        state.step,
        peak=options.lr,
        final_ratio=options.min_lr_ratio,
        total=options.max_steps,
        warmup=math.ceil(options.warmup_ratio * options.max_steps),
        schedule=options.lr_scheduler,
    )
    norm = clip_gradients(state.optimizer.take_gradients(), options.max_grad_norm, state.ranks)
    if not norm.isfinite():
        raise RunError(f"step {state.step + 1}: the gradient's norm is {float(norm)}", hint="lower --lr")
    state.optimizer.set_learning_rate(lr)
    state.optimizer.step()
    state.balance.update(load, state.step)
    figures = {"lr": lr, "grad_norm": float(norm), "expert_balance": load_balance(load[0])}
    figures["num_dead_experts"] = int((load[0, :, :-1] == 0).sum())
    if options.objective.kind != "ar":
        figures["expert_balance_masked"] = load_balance(load[1])
    return figures
