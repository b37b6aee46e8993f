"""What every training stage shares: its options, and the run from a parent checkpoint to a published one.

A stage says which rows it trains on and under which objective; starting, resuming, saving, evaluating and publishing are here.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from zaya_core.errors import ConfigError
from zaya_core.events import Event, Metrics, Note, Result, Warn
from zaya_core.option import check_options, option, resolved

if TYPE_CHECKING:
    import torch

    from zaya_core.data.packing import PackedRows
    from zaya_core.io.checkpoint import Checkpoint
    from zaya_core.train.loop import FitOptions
    from zaya_core.train.run import Run
    from zaya_core.train.state import TrainState

NOT_THE_RUN = (
    "out",
    "resume",
    "overwrite",
    "dry_run",
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
    batch_size: int = option(8, help="rows in a batch", minimum=1)
    gradient_accumulation_steps: int = option(1, help="batches in a step", minimum=1)
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
    dry_run: bool = option(False, help="say what would be trained, and touch nothing")

    def __post_init__(self) -> None:
        check_options(self)
        if not self.data:
            raise ConfigError("--data is missing", hint="for example --data stdlib")


@dataclass(frozen=True)
class Rows:
    """What a stage trains on, what it is measured on (None: nothing held out), and what the certificate says of it."""

    train: "PackedRows"
    held_out: "PackedRows | None"
    record: dict[str, Any]


def run_training(
    config: TrainConfig, stage: str, read_rows: "Callable[[Checkpoint], Iterator[Event]]", *, lora_rank: int = 0
) -> Iterator[Event]:
    """Train, save, publish; yields a Metrics event per step and ends with a Result. `read_rows` is a generator returning Rows."""
    from zaya_core.data.inspect import inspected
    from zaya_core.io.checkpoint import Checkpoint
    from zaya_core.io.hub import checkpoint_path
    from zaya_core.train.run import Run

    parent = Checkpoint.open(checkpoint_path(config.model))
    _check(config, parent)
    rows = yield from read_rows(parent)
    if config.inspect:
        yield from inspected(rows.train, parent, config.inspect)
        return
    wanted = config.max_steps * config.batch_size * config.gradient_accumulation_steps
    yield Note(f"{rows.train.describe()}; {wanted / rows.train.rows_per_epoch:.2f} epochs")
    yield Note(_expected_start(config, parent))
    options = {key: value for key, value in resolved(config).items() if key not in NOT_THE_RUN}
    inputs = {"data_sha256": rows.record["data_sha256"], "parent_sha256": parent.fingerprint()}
    training = Run(config.out, options | inputs)
    point = training.resume_point(resume=config.resume, overwrite=config.overwrite)
    if config.dry_run:
        yield Result(_plan(config, parent, rows.train))
        return
    if training.is_finished and config.resume != "never":
        yield Note(f"{config.out} is finished with these options; nothing to do")
        yield Result({"path": str(config.out), "steps": config.max_steps, "resumed": True})
        return
    state = yield from _new_state(config, parent, lora_rank)
    if point is not None:
        state.read(point)
        yield Note(f"resuming {config.out} after step {state.step}")
    training.start(point)
    yield from _train(config, training, parent, state, rows, stage)


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


def _plan(config: TrainConfig, parent: "Checkpoint", rows: "PackedRows") -> dict[str, Any]:
    tokens = config.max_steps * config.batch_size * config.gradient_accumulation_steps * config.seq_len
    return {
        "dry_run": True,
        "path": str(config.out),
        "num_parameters": parent.num_parameters,
        "clean_tokens": tokens,
        "epochs": tokens / rows.num_tokens,
        "state_bytes": parent.num_parameters * 16,  # float32 weights, gradients and two moments
    }


def _new_state(config: TrainConfig, parent: "Checkpoint", lora_rank: int) -> "Iterator[Event]":
    """The state before the first step; returns it."""
    import torch

    from zaya_core.model.load import load_model
    from zaya_core.runtime import pick_device
    from zaya_core.train.lora import add_adapters
    from zaya_core.train.memory import checkpoint_activations, keep_freed_pages
    from zaya_core.train.optim import RouterBalance, make_optimizer
    from zaya_core.train.probe import choose_attention
    from zaya_core.train.state import TrainState

    keep_freed_pages()
    # Clones, because a float32 checkpoint is mapped from the parent's file and training writes in place.
    model = load_model(parent, dtype=torch.float32, device=pick_device(config.device)).requires_grad_(True)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    torch.manual_seed(config.seed)  # adapters start at random
    if lora_rank:
        add_adapters(model, rank=lora_rank)
    yield Note(choose_attention(model))
    checkpoint_activations(model, config.gradient_checkpointing)
    optimizer = make_optimizer(model, kind=config.optimizer, lr=config.lr, weight_decay=config.weight_decay)
    balance_lr = 0.0 if lora_rank else config.router_balance_lr  # adapters leave the router as it is
    return TrainState(model, optimizer, RouterBalance(model, lr=balance_lr))


def _train(
    config: TrainConfig, training: "Run", parent: "Checkpoint", state: "TrainState", rows: Rows, stage: str
) -> Iterator[Event]:
    from zaya_core.io.checkpoint import certificate
    from zaya_core.train.board import board
    from zaya_core.train.interrupt import InterruptFlag
    from zaya_core.train.loop import evaluate, fit

    paper = certificate(stage, parent=parent, options=resolved(config), metrics={}) | rows.record
    figures, options = training.last_figures(), _fit_options(config)

    def write_save(directory: Path) -> None:
        _write(directory, parent, state, dtype=state.model.dtype, paper=paper | {"metrics": figures})
        state.write(directory)

    with InterruptFlag() as flag, board(config.report_to, config.out) as show:
        for step_figures in fit(state, rows.train, options):
            figures = step_figures
            saves = state.step % config.save_every == 0 or state.step == config.max_steps
            if rows.held_out is not None and saves:
                figures |= evaluate(state.model, rows.held_out, num_rows=config.eval_rows, options=options)
            training.log(figures)
            show(figures)
            yield Metrics(figures, config.max_steps)
            if state.step in (config.log_every, config.max_steps) and figures["num_dead_experts"]:
                yield Warn(f"step {state.step}: {figures['num_dead_experts']} experts got no token; raise --router-balance-lr")
            if saves or flag.is_set:
                training.save(state.step, write_save, keep=config.save_total_limit)
            flag.raise_if_set(f"stopped after step {state.step}; rerun the same command to go on")
        with training.result() as directory:
            _write(directory, parent, state, dtype=parent.stored_dtype, paper=paper | {"metrics": figures})
    shown = ("loss", "ar_loss", "diffusion_loss", "acceptance_length", "eval_acceptance_length", "tokens_seen")
    yield Result({"path": str(config.out), "steps": state.step} | {key: figures[key] for key in shown if key in figures})


def _write(directory: Path, parent: "Checkpoint", state: "TrainState", *, dtype: "torch.dtype", paper: dict[str, Any]) -> None:
    """Fill a checkpoint directory with the state's weights and the parent's tokenizer."""
    from zaya_core.data.chat import write_template
    from zaya_core.data.tokenizer import TextTokenizer
    from zaya_core.io.checkpoint import write_checkpoint
    from zaya_core.train.lora import merged_tensors

    write_checkpoint(
        directory,
        config=state.model.config,
        tensors=merged_tensors(state.model),
        dtype=dtype,
        certificate=paper,
        generation=parent.generation_config(),
    )
    TextTokenizer(parent.path).copy_to(directory)
    if paper.get("chat"):
        write_template(directory)


def _fit_options(config: TrainConfig) -> "FitOptions":
    from zaya_core.runtime import DTYPES
    from zaya_core.train.loop import FitOptions
    from zaya_core.train.objective import Objective

    share = {"ce": 0.0, "kl": 1.0, "ce+kl": config.kl_share}[config.draft_loss]
    objective = Objective(config.objective, config.ar_weight, share, config.offset_decay)
    same = {f.name: getattr(config, f.name) for f in fields(FitOptions) if f.name not in ("dtype", "objective")}
    return FitOptions(**same, dtype=DTYPES[config.dtype], objective=objective)
