"""`zaya midtrain`: train a checkpoint on text, with the AR objective or the joint AR + one-step diffusion one (TiDAR)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from zaya_core.errors import ConfigError, DataError
from zaya_core.events import Event, Metrics, Note, Result
from zaya_core.option import check_options, option, resolved

if TYPE_CHECKING:
    import torch

    from zaya_core.data.packing import PackedRows
    from zaya_core.io.checkpoint import Checkpoint
    from zaya_core.train.loop import FitOptions
    from zaya_core.train.run import Run
    from zaya_core.train.state import TrainState

EXAMPLE = "zaya midtrain tidar/ out/ --data stdlib --max-steps 1000 --seq-len 512 --batch-size 8"
NOT_THE_RUN = ("out", "resume", "overwrite", "dry_run", "device", "log_every", "save_every", "save_total_limit")


@dataclass(frozen=True)
class MidtrainConfig:
    """Options of `zaya midtrain`."""

    model: Path = option(help="checkpoint to start from", argument=True, metavar="IN")
    out: Path = option(help="directory of the run and of its result", argument=True)
    objective: Literal["tidar", "ar"] = option("tidar", help="joint AR + one-step diffusion, or AR alone")
    data: tuple[str, ...] = option((), help="text: file, folder, .jsonl, stdlib or stdlib-held-out; repeatable")
    max_steps: int = option(1000, help="optimizer steps in all", minimum=1)
    seq_len: int = option(512, help="clean tokens in a row", minimum=2)
    batch_size: int = option(8, help="rows in a batch", minimum=1)
    gradient_accumulation_steps: int = option(1, help="batches in a step", minimum=1)
    lr: float = option(1e-3, help="peak learning rate", above=0)
    min_lr_ratio: float = option(0.1, help="final learning rate over the peak", minimum=0, maximum=1)
    lr_scheduler: Literal["cosine", "wsd", "constant"] = option("cosine", help="shape after the warm-up")
    warmup_ratio: float = option(0.05, help="share of the steps that warm up", minimum=0, maximum=1)
    weight_decay: float = option(0.1, help="AdamW's decay of matrices", minimum=0)
    max_grad_norm: float = option(1.0, help="gradients are clipped to this norm", above=0)
    router_balance_lr: float = option(5e-3, help="step of the router's balancing biases", minimum=0)
    ar_weight: float = option(1.0, help="alpha: weight of the AR loss beside the diffusion loss", minimum=0)
    block: int | None = option(None, help="block length; must be the checkpoint's", minimum=2)
    dtype: Literal["float32", "bfloat16"] = option("float32", help="dtype of matrix products; master weights are float32")
    device: str = option("auto", help="torch device")
    seed: int = option(0, help="seed of data order and block phase", minimum=0)
    save_every: int = option(200, help="steps between saves", minimum=1)
    save_total_limit: int = option(2, help="saves to keep", minimum=1)
    log_every: int = option(10, help="steps between measurements of simulated acceptance", minimum=1)
    resume: str = option("auto", help="auto, never, or the path of a saved step")
    overwrite: bool = option(False, help="write into a directory that is not empty")
    dry_run: bool = option(False, help="say what would be trained, and touch nothing")

    def __post_init__(self) -> None:
        check_options(self)
        if not self.data:
            raise ConfigError("--data is missing", hint="for example --data stdlib")


def run(config: MidtrainConfig) -> Iterator[Event]:
    """Train, save, publish; yields a Metrics event per step and ends with a Result."""
    from zaya_core.io.checkpoint import Checkpoint
    from zaya_core.io.hub import checkpoint_path
    from zaya_core.train.run import Run

    parent = Checkpoint.open(checkpoint_path(config.model))
    _check(config, parent)
    rows = yield from _read_rows(config, parent)
    options = {key: value for key, value in resolved(config).items() if key not in NOT_THE_RUN}
    inputs = {"data_sha256": rows.sha256(), "parent_sha256": parent.fingerprint()}
    training = Run(config.out, options | inputs)
    point = training.resume_point(resume=config.resume, overwrite=config.overwrite)
    if config.dry_run:
        yield Result(_plan(config, parent, rows))
        return
    if training.is_finished and config.resume != "never":
        yield Note(f"{config.out} is finished with these options; nothing to do")
        yield Result({"path": str(config.out), "steps": config.max_steps, "resumed": True})
        return
    state = _new_state(config, parent)
    if point is not None:
        state.read(point)
        yield Note(f"resuming {config.out} after step {state.step}")
    training.start(point)
    yield from _train(config, training, parent, state, rows)


def _check(config: MidtrainConfig, parent: "Checkpoint") -> None:
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


def _read_rows(config: MidtrainConfig, parent: "Checkpoint") -> "Iterator[Event]":
    from zaya_core.data.packing import PackedRows
    from zaya_core.data.sources import read_documents
    from zaya_core.data.tokenizer import TextTokenizer

    tokenizer = TextTokenizer(parent.path)
    if tokenizer.num_ids > parent.config.vocab_size:
        raise ConfigError(f"the tokenizer has {tokenizer.num_ids} ids, the embedding {parent.config.vocab_size} rows")
    texts = [text for source in config.data for text in read_documents(source) if text]
    if not texts:
        raise DataError(f"--data {' '.join(config.data)} holds no text")
    block = parent.config.tidar.block_length if parent.config.tidar else 16
    documents = tokenizer.encode_documents(texts)
    rows = PackedRows(documents, seq_len=config.seq_len, block_length=block, seed=config.seed)
    wanted = config.max_steps * config.batch_size * config.gradient_accumulation_steps
    epochs = wanted / rows.rows_per_epoch
    yield Note(f"{len(texts):,} documents, {rows.num_tokens:,} tokens, {rows.rows_per_epoch:,} rows; {epochs:.2f} epochs")
    return rows


def _plan(config: MidtrainConfig, parent: "Checkpoint", rows: "PackedRows") -> dict[str, Any]:
    tokens = config.max_steps * config.batch_size * config.gradient_accumulation_steps * config.seq_len
    return {
        "dry_run": True,
        "path": str(config.out),
        "num_parameters": parent.num_parameters,
        "clean_tokens": tokens,
        "epochs": tokens / rows.num_tokens,
        "state_bytes": parent.num_parameters * 16,  # float32 weights, gradients and two moments
    }


def _new_state(config: MidtrainConfig, parent: "Checkpoint") -> "TrainState":
    import torch

    from zaya_core.model.load import load_model
    from zaya_core.runtime import pick_device
    from zaya_core.train.optim import RouterBalance, make_optimizer
    from zaya_core.train.state import TrainState

    # Clones, because a float32 checkpoint is mapped from the parent's file and training writes in place.
    model = load_model(parent, dtype=torch.float32, device=pick_device(config.device)).requires_grad_(True)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    optimizer = make_optimizer(model, lr=config.lr, weight_decay=config.weight_decay)
    return TrainState(model, optimizer, RouterBalance(model, lr=config.router_balance_lr))


def _train(
    config: MidtrainConfig, training: "Run", parent: "Checkpoint", state: "TrainState", rows: "PackedRows"
) -> Iterator[Event]:
    from zaya_core.io.checkpoint import certificate
    from zaya_core.train.interrupt import InterruptFlag
    from zaya_core.train.loop import fit

    paper = certificate(f"midtrain-{config.objective}", parent=parent, options=resolved(config), metrics={})
    paper |= {"data_sha256": rows.sha256()}
    figures = training.last_figures()

    def write_save(directory: Path) -> None:
        _write(directory, parent, state, dtype=state.model.dtype, paper=paper | {"metrics": figures})
        state.write(directory)

    with InterruptFlag() as flag:
        for figures in fit(state, rows, _fit_options(config)):
            training.log(figures)
            yield Metrics(figures, config.max_steps)
            if state.step % config.save_every == 0 or flag.is_set:
                training.save(state.step, write_save, keep=config.save_total_limit)
            flag.raise_if_set(f"stopped after step {state.step}; rerun the same command to go on")
        with training.result() as directory:
            _write(directory, parent, state, dtype=parent.stored_dtype, paper=paper | {"metrics": figures})
    shown = ("loss", "ar_loss", "diffusion_loss", "acceptance_length", "tokens_seen")
    yield Result({"path": str(config.out), "steps": state.step} | {key: figures[key] for key in shown if key in figures})


def _write(directory: Path, parent: "Checkpoint", state: "TrainState", *, dtype: "torch.dtype", paper: dict[str, Any]) -> None:
    """Fill a checkpoint directory with the state's weights and the parent's tokenizer."""
    from zaya_core.data.tokenizer import TextTokenizer
    from zaya_core.io.checkpoint import stored_tensors, write_checkpoint

    write_checkpoint(
        directory,
        config=state.model.config,
        tensors=stored_tensors(state.model),
        dtype=dtype,
        certificate=paper,
        generation=parent.generation_config(),
    )
    TextTokenizer(parent.path).copy_to(directory)


def _fit_options(config: MidtrainConfig) -> "FitOptions":
    from dataclasses import fields

    from zaya_core.runtime import DTYPES
    from zaya_core.train.loop import FitOptions

    same = {item.name: getattr(config, item.name) for item in fields(FitOptions) if item.name != "dtype"}
    return FitOptions(**same, dtype=DTYPES[config.dtype])
