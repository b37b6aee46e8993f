"""`zaya generate`: continue prompts with one of the three samplers, talk, show drafts, or check that lossless is lossless."""

import secrets
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from zaya_core.assets import BUNDLED
from zaya_core.errors import ConfigError
from zaya_core.events import Drafts, Event, Note, Text
from zaya_core.option import flag_name, option
from zaya_core.stages.decoding import AUTO_PROPOSALS, DecodingConfig, decoding, idle_flags
from zaya_core.stages.prompts import Dresser, Prompt, PromptConfig, check_room, read_all
from zaya_core.stages.tuning import measured_ways, opened_settings, tuned

if TYPE_CHECKING:
    from zaya_core.data.tokenizer import TextTokenizer
    from zaya_core.engine.request import Decoding
    from zaya_core.io.checkpoint import Checkpoint
    from zaya_core.model.serving import ServingModel
    from zaya_core.settings import Settings
    from zaya_core.stages.completing import Job

EXAMPLE = """
zaya generate --prompt "def main():" --sampler mix --block 16
zaya generate --input prompts.jsonl --output out.jsonl --n 8 --batch-size 32
zaya generate --chat --sampler lossless
"""


EXCLUDES = {
    "output": ("chat", "replay", "check_lossless", "show_drafts", "trace"),
    "chat": ("check_lossless", "trace", "n", "batch_size"),
    "check_lossless": ("replay", "show_drafts", "trace", "n", "batch_size"),
    "replay": ("trace", "n", "batch_size"),
}


@dataclass(frozen=True)
class GenerateConfig(DecodingConfig, PromptConfig):
    """Options of `zaya generate`."""

    output: Path | None = option(
        None, help=".jsonl to write, a line per completion in the input's order; rerun to go on after a kill"
    )
    overwrite: bool = option(False, help="begin --output anew")
    n: int = option(1, help="completions of each prompt", minimum=1)
    batch_size: int = option(1, help="completions decoded together", minimum=1)
    chat: bool = option(False, help="talk in the terminal; /help lists what else can be said")
    show_drafts: bool = option(False, help="show what each forward accepted, rejected and drafted ahead")
    trace: Path | None = option(None, help=".jsonl to write with the drafts of every forward")
    replay: Path | None = option(None, help="show a --trace again; needs no model")
    check_lossless: bool = option(False, help="decode with and without drafts and report the first difference")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_one_source("chat", "replay")
        given = {item.name for item in fields(self) if getattr(self, item.name) != item.default}
        for name, others in EXCLUDES.items():
            for other in others:
                if {name, other} <= given:
                    raise ConfigError(f"{flag_name(name)} and {flag_name(other)} exclude each other")
        if self.show_drafts and self.batch_size > 1:
            raise ConfigError(f"--batch-size is {self.batch_size}, expected 1 with --show-drafts: one text is shown at a time")
        if self.overwrite and self.output is None:
            raise ConfigError("--overwrite has nothing to write over", hint="give --output FILE.jsonl")


@dataclass(frozen=True)
class Opened:
    """A checkpoint, its tokenizer, and what the options come to for it."""

    checkpoint: "Checkpoint"
    tokenizer: "TextTokenizer"
    how: "Decoding"
    settings: "Settings | None" = None

    def model(self, config: DecodingConfig) -> "ServingModel":
        """Its network on the device and in the dtype that the options name."""
        from zaya_core.model.load import load_serving
        from zaya_core.runtime import pick_device, pick_dtype

        device = pick_device(config.device)
        dtype = pick_dtype(config.dtype, self.checkpoint.stored_dtype, device, num_elements=self.checkpoint.num_parameters)
        return load_serving(self.checkpoint, dtype=dtype, device=device)

    def described(self, config: DecodingConfig, model: "ServingModel") -> Iterator[Event]:
        """What runs, and which of its options do nothing."""
        dtype = str(model.dtype).removeprefix("torch.")
        yield Note(f"{self.checkpoint.path.name}: {config.sampler}, {dtype} on {model.device}")
        if model.remark:
            yield Note(model.remark)
        for flag in idle_flags(config):
            yield Note(f"{flag} has no effect with --sampler {config.sampler}")

    def settled(
        self, config: DecodingConfig, model: "ServingModel", *, batch: int, context: int
    ) -> Generator[Event, None, "Opened"]:
        """Say what runs; returns itself with what `--proposals auto` comes to on this machine, at this batch and context."""
        yield from self.described(config, model)
        if config.proposals != "auto" or self.how.block_length < 2 or self.settings is not None:
            return self
        if config.seed is not None:
            yield Note(f"proposals auto: {AUTO_PROPOSALS}, as for every seeded request without --settings")
            return self
        ways, says = measured_ways(model, self.how, self.checkpoint, batch=batch, context=context)
        yield Note(f"proposals auto: {says}")
        return replace(self, how=replace(self.how, ways=ways))


def run(config: GenerateConfig) -> Iterator[Event]:
    """Text events as tokens become final and a Result for each completion (conventions.md), or what was asked for instead."""
    if config.replay is not None:
        from zaya_core.stages.tracing import replayed

        yield from replayed(config.replay)
        return
    opened = open_checkpoint(config)
    dresser = Dresser.of(config, opened.checkpoint, opened.tokenizer)
    if config.chat:
        from zaya_core.stages.chatting import converse

        yield from converse(config, opened, dresser)
        return
    prompts = read_all(dresser)
    sizes = [len(prompt.token_ids(opened.tokenizer)) for prompt in prompts]
    for prompt, size in zip(prompts, sizes, strict=True):
        check_room(size, config.max_new_tokens, opened.checkpoint.config.max_position_embeddings, place=prompt.place)
    if config.check_lossless:
        from zaya_core.stages.comparing import compared

        yield from compared(config, opened, prompts)
    elif config.output is not None:
        from zaya_core.stages.writing import written

        yield from written(config, opened, prompts, sizes)
    else:
        yield from _shown(config, opened, prompts, sizes)


def open_checkpoint(config: DecodingConfig) -> Opened:
    """Everything of a checkpoint but its weights."""
    from zaya_core.data.tokenizer import TextTokenizer
    from zaya_core.io.checkpoint import Checkpoint
    from zaya_core.io.hub import checkpoint_path

    checkpoint = Checkpoint.open(checkpoint_path(config.model) if config.model else BUNDLED)
    tokenizer = TextTokenizer(checkpoint.path)
    how = decoding(config, checkpoint, tokenizer)
    return Opened(checkpoint, tokenizer, how, opened_settings(config.settings, how, checkpoint))


def drawn_seed(config: DecodingConfig) -> int:
    """The seed given, or one drawn anew; completion i has that + i."""
    return secrets.randbelow(2**31) if config.seed is None else config.seed


def jobs_of(config: GenerateConfig, opened: Opened, prompts: list[Prompt], indices: Iterable[int], *, seed: int) -> "Iterator[Job]":
    """Completions by their number among all: each prompt has `config.n` in a row."""
    from zaya_core.stages.completing import Job

    for index in indices:
        prompt = prompts[index // config.n]
        size = len(prompt.token_ids(opened.tokenizer))
        how = tuned(opened.how, opened.settings, batch=config.batch_size, num_prompt_tokens=size)
        yield Job(index, prompt, seed + index, how, config.stop)


def engine_slots(config: GenerateConfig, opened: Opened, sizes: list[int]) -> int:
    """Places for the K and V of the longest prompts that may come together, each with its new tokens and a step's slots."""
    together = sorted((size for size in sizes for _ in range(config.n)), reverse=True)[: config.batch_size]
    return sum(together) + len(together) * (config.max_new_tokens + opened.how.max_step_slots)


def _shown(config: GenerateConfig, opened: Opened, prompts: list[Prompt], sizes: list[int]) -> Iterator[Event]:
    """Everything as events, in the order of the input."""
    from zaya_core.engine.batch import Engine
    from zaya_core.stages.completing import Shown, complete, in_order
    from zaya_core.stages.tracing import traced

    model, seed, total = opened.model(config), drawn_seed(config), len(prompts) * config.n
    opened = yield from opened.settled(config, model, batch=config.batch_size, context=max(sizes) + config.max_new_tokens)
    rows = min(config.batch_size, total)
    engine = Engine(model, num_slots=engine_slots(config, opened, sizes), max_rows=rows)
    shown = Shown.of(config, drafts=config.show_drafts or config.trace is not None, batch_size=rows)
    jobs = jobs_of(config, opened, prompts, range(total), seed=seed)
    events = in_order(complete(engine, jobs, opened.tokenizer, shown=shown))
    unwanted = Text if config.show_drafts else Drafts  # both say the same tokens
    for event in traced(config.trace, events) if config.trace else events:
        if not isinstance(event, unwanted):
            yield event
