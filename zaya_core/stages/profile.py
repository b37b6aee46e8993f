"""`zaya profile`: where block diffusion pays, for a model on a device: by arithmetic, and with --measure by running it.

A preset on a named device needs no weights, no GPU and no torch. Every assumption is printed and one flag away.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from zaya_core.errors import ConfigError
from zaya_core.events import Event, Note, Result, Warn
from zaya_core.option import check_options, flag_name, option

if TYPE_CHECKING:
    from zaya_core.config import ModelConfig
    from zaya_core.devices import Device
    from zaya_core.io.checkpoint import Checkpoint
    from zaya_core.profile.acceptance import Acceptance
    from zaya_core.profile.report import Grid
    from zaya_core.profile.sweep import Scene

EXAMPLE = """
zaya profile zaya1-8b --device mi300x --plot mi300x.png
zaya profile zaya1-8b --device mi355x --acceptance 0.85 --save-settings mi355x.json
zaya profile zaya1-8b --device mi300x --stage midtrain --tokens 600B --ranks 1024 --seq-len 32768
"""
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
CONTEXTS = (1024, 4096, 16384, 32768, 65536, 131072)
PROPOSALS = (1, 2, 3, 4, 5, 6, 8, 12, 16)
MEASURED_BATCHES, MEASURED_CONTEXTS, MEASURED_PROPOSALS = (1, 4, 16), (128, 1024, 4096), (1, 3)
HERE = ("auto", "cpu", "cuda")
UNITS = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


@dataclass(frozen=True)
class ProfileConfig:
    """Options of `zaya profile`."""

    model: str | None = option(None, help="preset, directory or Hugging Face id; the bundled model by default", argument=True)
    device: str = option("auto", help="hardware sheet by name, FILE.yaml, or this machine as measured: auto, cpu, cuda")
    stage: Literal["decode", "midtrain", "extend-context", "sft"] = option("decode", help="what to profile")
    dtype: Literal["auto", "bfloat16", "float32"] = option("auto", help="of weights and K/V; auto: bfloat16 on a named device")
    batch: str = option("auto", help="sequences decoded together, 1,8,64; auto: powers of two to 512")
    context: str = option("auto", help="tokens of history, 4096,32768; auto: 1k to 128k as the model allows")
    block: str = option(
        "auto", help="masks of a block and tokens verified at once, 8,16; auto: a quarter, half and all of the trained block"
    )
    proposals: str = option("auto", help="blocks proposed per forward, 1,3,5; auto: 1 to the trained block")
    trained_block: int | None = option(None, help="block length of a model that has none yet (16)", minimum=2)
    acceptance: str = option("0.8", help="chance of each draft token, or a JSON file with acceptance_histogram (generate --json)")
    acceptance_decay: float = option(1.0, help="each mask's chance over that of the mask before it", above=0, maximum=1)
    correlation: float = option(0.0, help="chance that a slot repeats another's expert; 0: independent", minimum=0, maximum=1)
    reached: bool = option(False, help="use the best measured FLOP/s and bytes/s where the sheet has them, not the peaks")
    launch_us: float | None = option(None, help="microseconds that each kernel adds; the sheet's by default", minimum=0)
    focus: str = option("auto", help="BATCHxCONTEXT,...: cells shown beside other methods and part by part, 1x4096,32x32768")
    measure: bool = option(False, help="run the model on this machine: --device is then auto, cpu or cuda")
    measure_seconds: float = option(2.0, help="measure: rounds of a shape until they are steady, or so long", above=0)
    prompts: Path | None = option(
        None, help='measure: .jsonl of {"prompt": TEXT} for acceptance and routing; a few of ours by default'
    )
    prompt_tokens: int = option(64, help="measure: tokens to generate from each prompt", minimum=2)
    trace: Path | None = option(None, help="measure: write the last shape's steps as a chrome trace")
    cells: bool = option(False, help="also list every cell of the sweep")
    save_settings: Path | None = option(None, help="write the best cells for `generate --proposals auto --settings FILE`")
    plot: Path | None = option(None, help="write roofline, speed-up map and break-even curve as a picture; needs zaya[plot]")
    tokens: str = option("600B", help="training: clean tokens in all, as in 600B")
    ranks: int = option(8, help="training: devices", minimum=1)
    days: float | None = option(None, help="training: also say how many devices finish in so many days", above=0)
    utilisation: float | None = option(None, help="training: share of the peak FLOP/s; the plan's by default", above=0, maximum=1)
    seq_len: int = option(32768, help="training: clean tokens in a row", minimum=2)
    batch_size: int = option(1, help="training: rows of a rank", minimum=1)
    gradient_checkpointing: Literal["none", "selective", "full"] = option("full", help="training: activations computed twice")
    optimizer: Literal["adamw", "muon"] = option("muon", help="training: of the matrices")
    expert_parallel: int = option(1, help="training: ranks that share out the experts", minimum=1)
    context_parallel: int = option(1, help="training: ranks that share out a row", minimum=1)

    def __post_init__(self) -> None:
        check_options(self)
        if self.measure and (self.device not in HERE or self.stage != "decode"):
            raise ConfigError(f"--measure runs decoding here, expected --device auto, cpu or cuda, got {self.device}, {self.stage}")
        for name in ("save_settings", "plot", "trace"):
            path = getattr(self, name)
            if path is not None and not path.absolute().parent.is_dir():
                raise ConfigError(f"{flag_name(name)} is {path}, expected a file in a directory that exists")
        if self.trace is not None and not self.measure:
            raise ConfigError("--trace is written by --measure", hint="add --measure")


def run(config: ProfileConfig) -> Iterator[Event]:
    """Results: a summary, then tables."""
    name, model = _model(config)
    device, dtype = _device(config)
    if config.stage != "decode":
        yield from _training(config, name, model, device)
        return
    yield from _decoding(config, name, model, device, dtype)


def _decoding(config: ProfileConfig, name: str, model: "ModelConfig", device: "Device", dtype: str) -> Iterator[Event]:
    from zaya_core.profile.report import (
        assumptions,
        best_cells,
        break_even_table,
        cell_table,
        settings_from,
        speed_table,
        summary,
    )
    from zaya_core.profile.variants import variant_table

    scene, grid = _scene(config, model, device, dtype), _grid(config, model)
    yield from _warnings(config, device, dtype)
    yield Result({"model": name, "dtype": dtype} | summary(scene, device))
    accepted = _acceptance_text(config)
    if config.measure:
        before = scene.acceptance
        scene = yield from _measured(config, model, scene, grid, dtype)
        accepted = accepted if scene.acceptance is before else "measured here, mask by mask"
    yield Result({"assumed": assumptions(scene, device, accepted)})
    variants = variant_table(
        model, device, width=scene.width, block_length=scene.block_length, context=grid.contexts[len(grid.contexts) // 2]
    )
    yield _table("Attention: blocks under the ridge, the verify block included", variants)
    best = best_cells(scene, grid)
    yield _table("Best setting: speed-up over AR, proposals/block", speed_table(best, grid))
    edges = break_even_table(scene, grid, lambda alpha: _constant(config, scene.block_length, alpha))
    yield _table("Break-even: the acceptance from which diffusion wins", edges)
    yield from _focus(config, scene, grid)
    if config.cells:
        yield _table("Every cell", cell_table(scene, grid))
    if config.save_settings is not None:
        from zaya_core.io.files import write_json

        settings = settings_from(best, scene, model=name, device=device.name, dtype=dtype, acceptance=accepted)
        write_json(config.save_settings, settings.to_json())
        yield Note(f"wrote {config.save_settings}: {len(settings.cells)} cells")
    if config.plot is not None:
        from zaya_core.profile.plots import save_plot

        save_plot(config.plot, scene, grid, best, edges, title=f"{name} on {device.name}, {dtype}, acceptance {accepted}")
        yield Note(f"wrote {config.plot}")


def _measured(config: ProfileConfig, model: "ModelConfig", scene: "Scene", grid: "Grid", dtype: str) -> Iterator[Event]:
    """Run the model; returns the scene as it was found."""
    from zaya_core.model.init import random_serving
    from zaya_core.model.load import load_serving
    from zaya_core.profile.measure import Shape
    from zaya_core.runtime import DTYPES, pick_device
    from zaya_core.stages.measuring import Plan, measured

    device = pick_device(config.device)
    counts = [0, *sorted({setting.proposals for setting in grid.settings})]
    shapes = [Shape(batch, context, count) for batch in grid.batches for context in grid.contexts for count in counts]
    checkpoint = _checkpoint(config)
    prompts: list[list[int]] = []
    if checkpoint is None:
        yield Note("a preset: random weights, no prompts")
        network = random_serving(model, dtype=DTYPES[dtype], device=device)
    else:
        network = load_serving(checkpoint, dtype=DTYPES[dtype], device=device)
        prompts = _prompts(config, checkpoint) if model.tidar else []
    plan = Plan(shapes, config.measure_seconds, prompts, config.prompt_tokens, config.trace)
    return (yield from measured(plan, network, scene))


def _prompts(config: ProfileConfig, checkpoint: "Checkpoint") -> list[list[int]]:
    """Token ids of the prompts in --prompts, or of ours."""
    from zaya_core.data.tokenizer import TextTokenizer
    from zaya_core.model.parity import PROMPTS
    from zaya_core.stages.prompts import Dresser, PromptConfig, read_all

    tokenizer = TextTokenizer(checkpoint.path)
    if config.prompts is None:
        return [tokenizer.encode(text) for text in PROMPTS]
    dresser = Dresser.of(PromptConfig(input=config.prompts), checkpoint, tokenizer)
    return [prompt.token_ids(tokenizer) for prompt in read_all(dresser)]


def _focus(config: ProfileConfig, scene: "Scene", grid: "Grid") -> Iterator[Event]:
    """TiDAR beside its rivals, and both steps part by part, at each --focus cell that fits."""
    from zaya_core.profile.report import part_table
    from zaya_core.profile.rivals import compared, sources
    from zaya_core.profile.sweep import Setting, cell

    methods, parts = [], []
    for batch, context in _places(config.focus, grid):
        drafting = [one for one in (cell(scene, batch, context, setting) for setting in grid.settings) if one.fits]
        if not drafting:
            yield Warn(f"batch {batch} at context {context} does not fit the device's memory")
            continue
        chosen = max(drafting, key=lambda one: one.speed_up)
        methods += compared(scene, chosen)
        parts += part_table(scene, batch, context, Setting(chosen.block, chosen.proposals))
    if methods:
        yield _table("Beside what one would pick instead", methods)
        yield Result({"published by": sources()})
        yield _table("Where a step's time goes", parts)


def _training(config: ProfileConfig, name: str, model: "ModelConfig", device: "Device") -> Iterator[Event]:
    from zaya_core.profile.training import Goal, memory_table, training_figures
    from zaya_core.train.plan import ASSUMED_UTILISATION, Work

    if config.ranks % (config.expert_parallel * config.context_parallel):
        raise ConfigError(
            f"--ranks is {config.ranks}, expected a multiple of --expert-parallel x --context-parallel "
            f"({config.expert_parallel} x {config.context_parallel})"
        )
    work = Work(
        objective="tidar",
        seq_len=config.seq_len,
        batch_size=config.batch_size,
        gradient_accumulation_steps=1,
        max_steps=1,
        dtype="bfloat16",
        optimizer=config.optimizer,
        gradient_checkpointing=config.gradient_checkpointing,
        world=config.ranks,
        expert=config.expert_parallel,
        context=config.context_parallel,
    )
    goal = Goal(_count("--tokens", config.tokens), config.utilisation or ASSUMED_UTILISATION, config.days)
    if config.stage == "sft":
        yield Note("sft: masks stand over answers only; the figures are for rows that are all answer")
    figures = training_figures(model, work, device, goal)
    yield Result({"model": name, "stage": config.stage, "device": device.name, "device_source": device.source} | figures)
    yield _table("A rank's memory", memory_table(model, work))


def _table(title: str, rows: list[dict[str, Any]]) -> Result:
    return Result({"title": title, "table": rows})


def _model(config: ProfileConfig) -> tuple[str, "ModelConfig"]:
    """Name and shape."""
    from zaya_core.presets import PRESETS

    checkpoint = _checkpoint(config)
    if checkpoint is None:
        return str(config.model), PRESETS[str(config.model)]
    return checkpoint.path.name, checkpoint.config


def _checkpoint(config: ProfileConfig) -> "Checkpoint | None":
    """None for a preset; a directory of a preset's name wins over it."""
    from zaya_core.presets import PRESETS

    if config.model in PRESETS and not Path(config.model).exists():
        return None
    from zaya_core.assets import BUNDLED
    from zaya_core.io.hub import checkpoint_path
    from zaya_core.model.load import open_source

    return open_source(BUNDLED if config.model is None else checkpoint_path(Path(config.model))).checkpoint


def _device(config: ProfileConfig) -> tuple["Device", str]:
    """The sheet and the dtype that go together."""
    if config.device not in HERE:
        from zaya_core.devices import find_device

        return find_device(config.device), "bfloat16" if config.dtype == "auto" else config.dtype
    import torch

    from zaya_core.profile.machine import measured_device
    from zaya_core.runtime import DTYPES, pick_device, pick_dtype

    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, torch.bfloat16, device, num_elements=0)
    sheet = measured_device(device, dtype)
    return sheet, next(name for name, one in DTYPES.items() if one == dtype)


def _scene(config: ProfileConfig, model: "ModelConfig", device: "Device", dtype: str) -> "Scene":
    from zaya_core.profile.roofline import pace_of
    from zaya_core.profile.routing import Routing
    from zaya_core.profile.sweep import Scene

    launch = None if config.launch_us is None else config.launch_us * 1e-6
    pace = pace_of(device, reached=config.reached, launch_seconds=launch)
    width = {"bfloat16": 2, "float32": 4}[dtype]
    accepted = _acceptance(config, _trained_block(config, model))
    # Our engine on a CPU takes sequences and experts one after another; on a GPU, and on a sheet, one launch takes all.
    loops = config.device in HERE and "cpu" in device.name
    return Scene(model, pace, device.memory_bytes, width, Routing(config.correlation, config.correlation), accepted, loops)


def _trained_block(config: ProfileConfig, model: "ModelConfig") -> int:
    if model.tidar is not None and config.trained_block not in (None, model.tidar.block_length):
        raise ConfigError(f"--trained-block is {config.trained_block}, expected the model's {model.tidar.block_length}")
    return model.tidar.block_length if model.tidar else config.trained_block or 16


def _acceptance(config: ProfileConfig, block_length: int) -> "Acceptance":
    from zaya_core.profile.acceptance import Acceptance
    from zaya_core.profile.histogram import read_histogram

    try:
        alpha = float(config.acceptance)
    except ValueError:
        found = Acceptance.from_histogram(read_histogram(Path(config.acceptance)))
        if found.block_length != block_length:
            raise ConfigError(
                f"--acceptance {config.acceptance} is for blocks of {found.block_length}, expected {block_length}",
                hint="generate with --block and --proposals left out",
            ) from None
        return found
    if not 0 <= alpha <= 1:
        raise ConfigError(f"--acceptance is {alpha}, expected in [0, 1]")
    return _constant(config, block_length, alpha)


def _constant(config: ProfileConfig, block_length: int, alpha: float) -> "Acceptance":
    from zaya_core.profile.acceptance import Acceptance

    return Acceptance.constant(alpha, block_length, config.acceptance_decay)


def _acceptance_text(config: ProfileConfig) -> str:
    return config.acceptance if config.acceptance_decay == 1 else f"{config.acceptance} x {config.acceptance_decay} a mask"


def _grid(config: ProfileConfig, model: "ModelConfig") -> "Grid":
    from zaya_core.profile.report import Grid
    from zaya_core.profile.sweep import settings_of

    trained, limit = _trained_block(config, model), model.max_position_embeddings
    batches = _numbers("--batch", config.batch, list(MEASURED_BATCHES if config.measure else BATCHES))
    sizes = MEASURED_CONTEXTS if config.measure else CONTEXTS
    contexts = _numbers("--context", config.context, [size for size in sizes if size <= limit] or [limit])
    blocks = _numbers("--block", config.block, sorted({max(2, trained // 4), max(2, trained // 2), trained}))
    counts = MEASURED_PROPOSALS if config.measure else PROPOSALS
    proposals = _numbers("--proposals", config.proposals, sorted({*(n for n in counts if n < trained), trained}))
    if max(blocks) > trained:
        raise ConfigError(f"--block is {max(blocks)}, expected at most the trained {trained}")
    settings = settings_of(blocks, proposals)
    if not settings:
        raise ConfigError(f"--proposals {config.proposals} leaves nothing to compare, expected 1 to {max(blocks)}")
    return Grid(batches, contexts, settings)


def _numbers(flag: str, text: str, default: list[int]) -> list[int]:
    if text == "auto":
        return default
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        numbers = [0]
    if numbers[0] < 1:
        raise ConfigError(f"{flag} is {text!r}, expected auto or whole numbers such as 1,8,64")
    return numbers


def _places(text: str, grid: "Grid") -> list[tuple[int, int]]:
    """The cells of --focus; auto: a small one and the middle one."""
    if text == "auto":
        small = grid.batches[0], grid.contexts[min(1, len(grid.contexts) - 1)]
        return [small, (grid.batches[len(grid.batches) // 2], grid.contexts[len(grid.contexts) // 2])]
    try:
        places = [(int(batch), int(context)) for batch, context in (part.split("x") for part in text.split(",") if part)]
    except ValueError:
        places = [(0, 0)]
    if any(min(place) < 1 for place in places):
        raise ConfigError(f"--focus is {text!r}, expected BATCHxCONTEXT,... such as 1x4096,32x32768")
    return places


def _count(flag: str, text: str) -> float:
    unit = UNITS.get(text[-1:].upper())
    try:
        count = float(text[:-1]) * unit if unit else float(text)
    except ValueError:
        count = 0.0
    if not 0 < count < float("inf"):
        raise ConfigError(f"{flag} is {text!r}, expected a count such as 600B")
    return count


def _warnings(config: ProfileConfig, device: "Device", dtype: str) -> Iterator[Event]:
    if config.device not in HERE and dtype != "bfloat16":
        yield Warn(f"--dtype {dtype}: the FLOP/s of {device.name} are those of bfloat16")
    if config.reached and not device.reached_flops:
        yield Warn(f"--reached: nobody's measurement of {device.name} is known here; its peaks are used")
