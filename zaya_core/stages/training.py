"""What every training stage shares: its options, and the run from a parent checkpoint to a published one.

A stage says which rows it trains on and under which objective; starting, resuming, saving, evaluating and publishing are here.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from zaya_core.errors import ConfigError
from zaya_core.events import Event, Metrics, Note, Result, Warn
from zaya_core.option import check_options, option, resolved

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from zaya_core.config import ModelConfig
    from zaya_core.data.packing import PackedRows
    from zaya_core.io.checkpoint import Checkpoint
    from zaya_core.model.decoder import Zaya
    from zaya_core.train.loop import FitOptions
    from zaya_core.train.ranks import Ranks
    from zaya_core.train.run import Run
    from zaya_core.train.state import TrainState

    ReadRows = Callable[[Checkpoint], Iterator[Event]]
    Report = Callable[..., Iterator[Event]]

NOT_THE_RUN = (  # may change when a run goes on; of the batch sizes only what they make together, `rows_per_step`, may not
    "out",
    "batch_size",
    "gradient_accumulation_steps",
    "expert_parallel",
    "context_parallel",
    "resume",
    "overwrite",
    "dry_run",
    "plan_for",
    "inspect",
    "device",
    "log_every",
    "save_every",
    "save_total_limit",
    "report_to",
)


@dataclass(frozen=True)
class TrainConfig:
    """Options of every training stage."""

    model: Path = option(help="checkpoint to start from", argument=True, metavar="IN")
    out: Path = option(help="directory of the run and of its result", argument=True)
    objective: Literal["tidar", "ar"] = option("tidar", help="joint AR + one-step diffusion, or AR alone")
    data: tuple[str, ...] = option((), help="rows to train on, PATH[:WEIGHT]: file, folder, stdlib or a dataset's id; repeatable")
    max_steps: int = option(1000, help="optimizer steps in all", minimum=1)
    seq_len: int = option(512, help="clean tokens in a row", minimum=2)
    batch_size: int = option(8, help="rows in a batch; under torchrun, in a batch of each rank", minimum=1)
    gradient_accumulation_steps: int = option(1, help="batches in a step", minimum=1)
    expert_parallel: int = option(1, help="under torchrun: ranks that share out the experts of each layer", minimum=1)
    context_parallel: int = option(1, help="under torchrun: ranks that share out the tokens of each row", minimum=1)
    gradient_checkpointing: Literal["none", "selective", "full"] = option("none", help="activations computed twice, not kept")
    optimizer: Literal["adamw", "muon"] = option("adamw", help="of the matrices; the rest is AdamW's")
    lr: float = option(1e-3, help="peak learning rate", above=0)
    min_lr_ratio: float = option(0.1, help="final learning rate over the peak", minimum=0, maximum=1)
    lr_scheduler: Literal["cosine", "wsd", "constant"] = option("cosine", help="shape after the warm-up")
    warmup_ratio: float = option(0.05, help="share of the steps that warm up", minimum=0, maximum=1)
    weight_decay: float = option(0.1, help="the optimizer's decay of matrices", minimum=0)
    max_grad_norm: float = option(1.0, help="gradients are clipped to this norm", above=0)
    router_balance_lr: float = option(5e-3, help="step of the router's balancing biases", minimum=0)
    ar_weight: float = option(1.0, help="alpha: weight of the AR loss beside the draft loss", minimum=0)
    draft_loss: Literal["ce", "kl", "ce+kl"] = option("ce", help="of the masks: cross-entropy, KL from the AR half's law, or both")
    kl_share: float = option(0.7, help="share of the KL in ce+kl", minimum=0, maximum=1)
    offset_decay: float = option(1.0, help="the mask at offset m of its block weighs this to the m", above=0, maximum=1)
    block: int | None = option(None, help="block length; must be the checkpoint's", minimum=2)
    dtype: Literal["float32", "bfloat16"] = option("float32", help="dtype of matrix products; master weights are float32")
    device: str = option("auto", help="torch device")
    seed: int = option(0, help="seed of data order and block phase", minimum=0)
    eval_rows: int = option(0, help="rows of held-out documents to measure at every save, for BEST; 0 holds nothing out", minimum=0)
    save_every: int = option(200, help="steps between saves", minimum=1)
    save_total_limit: int = option(2, help="saves to keep beside BEST", minimum=1)
    log_every: int = option(10, help="steps between measurements of simulated acceptance", minimum=1)
    report_to: Literal["none", "tensorboard"] = option("none", help="also write the figures for this viewer, under OUT/tensorboard")
    inspect: int = option(0, help="print so many rows as the model will see them, and train nothing", minimum=0)
    resume: str = option("auto", help="auto, never, or the path of a saved step")
    overwrite: bool = option(False, help="write into a directory that is not empty")
    dry_run: bool = option(False, help="say what would be trained, in which memory and time, and touch nothing; IN may be a preset")
    plan_for: tuple[str, ...] = option((), help="with --dry-run: COUNTxDEVICE such as 8xmi300x; repeatable")

    def __post_init__(self) -> None:
        check_options(self)
        if not self.data and not self.dry_run:
            raise ConfigError("--data is missing", hint="for example --data stdlib")


@dataclass(frozen=True)
class Rows:
    """What a stage trains on, what it is measured on (None: nothing held out), and what the certificate says of it."""

    train: "PackedRows"
    held_out: "PackedRows | None"
    record: dict[str, Any]


def run_training(
    config: TrainConfig,
    stage: str,
    read_rows: "ReadRows",
    *,
    lora_rank: int = 0,
    changed: "Callable[[ModelConfig], ModelConfig]" = lambda config: config,
    report: "Report | None" = None,
) -> Iterator[Event]:
    """Train, save, publish; yields a Metrics event per step and ends with a Result. `read_rows` is a generator returning Rows.

    The network trained is the parent's with its config `changed`. A `report` measures it before, as the parent is, and after;
    both lie in OUT. Under torchrun every rank yields the same events; only the first writes.
    """
    from zaya_core.io.checkpoint import Checkpoint
    from zaya_core.io.hub import checkpoint_path
    from zaya_core.runtime import pick_device
    from zaya_core.train.ranks import joined_ranks

    if config.dry_run:
        yield from _dry_run(config, changed)
        return
    parent = Checkpoint.open(checkpoint_path(config.model))
    original = parent.config
    parent = replace(parent, config=changed(original))
    _check(config, parent)
    device = pick_device(config.device)
    with joined_ranks(device, expert=config.expert_parallel, context=config.context_parallel) as ranks:
        _check_ranks(config, parent, ranks, lora_rank)
        with ranks.first_of_machine():
            rows = yield from read_rows(parent)
        measure = None if report is None else partial(report, parent=parent, original=original, rows=rows)
        yield from _run(config, stage, parent, rows, ranks, lora_rank, measure)


def _run(
    config: TrainConfig,
    stage: str,
    parent: "Checkpoint",
    rows: Rows,
    ranks: "Ranks",
    lora_rank: int,
    measure: "Callable[..., Iterator[Event]] | None",
) -> Iterator[Event]:
    from zaya_core.data.inspect import inspected
    from zaya_core.train.run import Run

    if config.inspect:
        yield from inspected(rows.train, parent, config.inspect)
        return
    rows_per_step = config.batch_size * config.gradient_accumulation_steps * ranks.row_groups
    yield Note(f"{rows.train.describe()}; {config.max_steps * rows_per_step / rows.train.rows_per_epoch:.2f} epochs")
    yield Note(_expected_start(config, parent))
    options = {key: value for key, value in resolved(config).items() if key not in NOT_THE_RUN}
    inputs = {"data_sha256": rows.record["data_sha256"], "parent_sha256": parent.fingerprint(), "rows_per_step": rows_per_step}
    training = Run(config.out, options | inputs)
    point, is_finished = None, False
    if ranks.is_first:
        point = training.resume_point(resume=config.resume, overwrite=config.overwrite)
        is_finished = training.is_finished and config.resume != "never"
    point, is_finished = ranks.first_says((point, is_finished))
    if is_finished:
        yield Note(f"{config.out} is finished with these options; nothing to do")
        yield Result({"path": str(config.out), "steps": config.max_steps, "resumed": True})
        return
    if ranks.world > 1:
        yield Note(f"{ranks.world} ranks: data {ranks.data} x expert {ranks.expert} x context {ranks.context}")
    state = yield from _new_state(config, parent, ranks, lora_rank)
    if point is not None:
        state.read(point)
        yield Note(f"resuming {config.out} after step {state.step}")
    if ranks.is_first:
        training.start(point)
    ranks.wait()
    if measure is not None:
        yield from measure(state, is_before=True)
    yield from _train(config, training, parent, state, rows, stage, measure)


def _check_ranks(config: TrainConfig, parent: "Checkpoint", ranks: "Ranks", lora_rank: int) -> None:
    """What a number of ranks asks of the model and of the rows."""
    if lora_rank and ranks.world > 1:
        raise ConfigError(f"--lora-rank trains on one rank, got {ranks.world}", hint="start it without torchrun")
    if parent.config.num_experts % ranks.expert:
        raise ConfigError(f"--expert-parallel is {ranks.expert}, expected a divisor of the {parent.config.num_experts} experts")
    block = parent.config.tidar.block_length if parent.config.tidar else 2
    if config.seq_len % ranks.context or config.seq_len // ranks.context < block:
        expected = f"expected a multiple of --context-parallel {ranks.context}, and {block} or more tokens for each rank"
        raise ConfigError(f"--seq-len is {config.seq_len}, {expected}")


def _check(config: TrainConfig, parent: "Checkpoint") -> None:
    if config.objective == "tidar":
        parent.require_tidar()
        trained = parent.config.tidar.block_length
        if config.block not in (None, trained):
            raise ConfigError(f"--block is {config.block}, expected the checkpoint's {trained}")
    out = config.out.resolve()
    for used in (config.model, *map(Path, config.data)):
        if used.exists() and out in (used.resolve(), *used.resolve().parents):
            raise ConfigError(f"OUT is {config.out}, which holds {used} that this run reads", hint="choose another OUT")
    limit = parent.config.max_position_embeddings
    if config.seq_len > limit:
        raise ConfigError(f"--seq-len is {config.seq_len}, expected at most the checkpoint's context of {limit}")


def _expected_start(config: TrainConfig, parent: "Checkpoint") -> str:
    """What the first losses should be; far above it something is wrong with the data or the checkpoint."""
    uniform = f"ln V = {math.log(parent.config.vocab_size):.2f} if untrained"
    drafts = f"; diffusion_loss at most about {uniform}" if config.objective == "tidar" else ""
    return f"expected at step 1: ar_loss that of the parent, {uniform}{drafts}"


def _dry_run(config: TrainConfig, changed: "Callable[[ModelConfig], ModelConfig]") -> Iterator[Event]:
    """Every check that needs no data, and the plan."""
    from zaya_core.config import Tidar
    from zaya_core.io.checkpoint import RUN_IN_PROGRESS, Checkpoint
    from zaya_core.io.hub import checkpoint_path
    from zaya_core.presets import PRESETS
    from zaya_core.stages.planning import planned
    from zaya_core.train.run import Run

    preset = PRESETS.get(str(config.model))
    if preset is not None and not config.model.exists():
        yield from planned(config, changed(preset.with_changes(tidar=Tidar(config.block or 16, 4))))
        return
    parent = Checkpoint.open(checkpoint_path(config.model))
    parent = replace(parent, config=changed(parent.config))
    _check(config, parent)
    if not (config.out / RUN_IN_PROGRESS).exists():
        Run(config.out, {}).resume_point(resume=config.resume, overwrite=config.overwrite)
    yield from planned(config, parent.config)


def _new_state(config: TrainConfig, parent: "Checkpoint", ranks: "Ranks", lora_rank: int) -> "Iterator[Event]":
    """The state before the first step; returns it."""
    import torch

    from zaya_core.runtime import DTYPES, keep_few_programs, keep_freed_pages
    from zaya_core.train.lora import add_adapters
    from zaya_core.train.memory import checkpoint_activations
    from zaya_core.train.optim import RouterBalance, make_optimizer
    from zaya_core.train.probe import choose_attention
    from zaya_core.train.state import TrainState

    keep_freed_pages()
    keep_few_programs()
    model = _model(config, parent, ranks)
    torch.manual_seed(config.seed)  # adapters start at random
    if lora_rank:
        add_adapters(model, rank=lora_rank)
    yield Note(choose_attention(model))
    checkpoint_activations(model, config.gradient_checkpointing)
    optimizer = make_optimizer(
        model, kind=config.optimizer, lr=config.lr, weight_decay=config.weight_decay, dtype=DTYPES[config.dtype]
    )
    balance_lr = 0.0 if lora_rank else config.router_balance_lr  # adapters leave the router as it is
    return TrainState(model, optimizer, RouterBalance(model, lr=balance_lr), ranks)


def _model(config: TrainConfig, parent: "Checkpoint", ranks: "Ranks") -> "Zaya":
    """The parent's network to train, in float32; of several ranks, this one's part, which is all that it reads."""
    import torch

    from zaya_core.model.load import load_model, meta_model
    from zaya_core.runtime import DTYPES, pick_device
    from zaya_core.train.parallel import shard_model
    from zaya_core.train.state import copy_weights

    device = pick_device(config.device)
    if ranks.world > 1:
        model = meta_model(parent.config).eval()
        shard_model(model, ranks, dtype=DTYPES[config.dtype])
        copy_weights(model.to_empty(device=device), parent, ranks)
        return model
    # Clones, because a float32 checkpoint is mapped from the parent's file and training writes in place.
    model = load_model(parent, dtype=torch.float32, device=device).requires_grad_(True)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    return model


def _train(
    config: TrainConfig,
    training: "Run",
    parent: "Checkpoint",
    state: "TrainState",
    rows: Rows,
    stage: str,
    measure: "Callable[..., Iterator[Event]] | None",
) -> Iterator[Event]:
    from zaya_core.io.checkpoint import certificate
    from zaya_core.train.board import board
    from zaya_core.train.interrupt import InterruptFlag
    from zaya_core.train.loop import evaluate, fit
    from zaya_core.train.saving import Saver

    paper = certificate(stage, parent=parent, options=resolved(config), metrics={}) | rows.record
    figures, options, ranks = training.last_figures(), fit_options(config), state.ranks

    def save() -> None:
        snapshot, written = state.snapshot(), paper | {"metrics": figures}

        def write(directory: Path) -> None:
            _write(directory, parent, state.model.config, snapshot.weights.items(), dtype=state.model.dtype, paper=written)
            snapshot.write(directory)

        if ranks.is_first:
            saver.save(state.step, write)

    with (
        Saver(training, keep=config.save_total_limit) as saver,
        InterruptFlag() as flag,
        board(config.report_to if ranks.is_first else "none", config.out) as show,
    ):
        for step_figures in fit(state, rows.train, options):
            figures = step_figures
            saves = state.step % config.save_every == 0 or state.step == config.max_steps
            if rows.held_out is not None and saves:
                figures |= evaluate(state.model, rows.held_out, num_rows=config.eval_rows, options=options, ranks=ranks)
            if ranks.is_first:
                training.log(figures)
            show(figures)
            yield Metrics(figures, config.max_steps)
            if state.step in (config.log_every, config.max_steps) and figures["num_dead_experts"]:
                yield Warn(f"step {state.step}: {figures['num_dead_experts']} experts got no token; raise --router-balance-lr")
            stops = ranks.any(flag.is_set, state.model.device)
            saver.check()
            if saves or stops:
                save()
            if stops:
                saver.wait()
                ranks.wait()  # a rank that leaves takes the others with it, the one that writes too
                flag.stop(f"stopped after step {state.step}; rerun the same command to go on")
        if measure is not None:
            yield from measure(state, is_before=False)
        saver.wait()
        if ranks.is_first:
            written = paper | {"metrics": figures}
            with training.result() as directory:
                _write(directory, parent, state.model.config, state.weights(), dtype=parent.stored_dtype, paper=written)
        else:
            for _ in state.weights():  # the first rank's need this one's part
                pass
        ranks.wait()
    shown = ("loss", "ar_loss", "diffusion_loss", "acceptance_length", "eval_acceptance_length", "tokens_seen")
    yield Result({"path": str(config.out), "steps": state.step} | {key: figures[key] for key in shown if key in figures})


def _write(
    directory: Path,
    parent: "Checkpoint",
    config: "ModelConfig",
    weights: "Iterable[tuple[str, Tensor]]",
    *,
    dtype: "torch.dtype",
    paper: dict[str, Any],
) -> None:
    """Fill a checkpoint directory with trained weights and the parent's tokenizer."""
    from zaya_core.data.chat import write_template
    from zaya_core.data.tokenizer import TextTokenizer
    from zaya_core.io.checkpoint import write_checkpoint

    write_checkpoint(
        directory,
        config=config,
        tensors=weights,
        dtype=dtype,
        certificate=paper,
        generation=parent.generation_config(),
    )
    TextTokenizer(parent.path).copy_to(directory)
    if paper.get("chat"):
        write_template(directory)


def fit_options(config: TrainConfig) -> "FitOptions":
    from zaya_core.runtime import DTYPES
    from zaya_core.train.loop import FitOptions
    from zaya_core.train.objective import Objective

    share = {"ce": 0.0, "kl": 1.0, "ce+kl": config.kl_share}[config.draft_loss]
    objective = Objective(config.objective, config.ar_weight, share, config.offset_decay)
    same = {f.name: getattr(config, f.name) for f in fields(FitOptions) if f.name not in ("dtype", "objective")}
    return FitOptions(**same, dtype=DTYPES[config.dtype], objective=objective)
