"""`zaya generate --output`: completions into a file that any kill leaves resumable, shared out over the ranks of a torchrun.

Rank r of w makes completions r, r + w, ...; the ranks never talk, so they may be separate jobs with RANK and WORLD_SIZE set.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zaya_core.errors import ConfigError
from zaya_core.events import Event, Note, Progress, Result
from zaya_core.option import resolved
from zaya_core.stages.generate import GenerateConfig, Opened, drawn_seed, engine_slots, jobs_of
from zaya_core.stages.prompts import Prompt

if TYPE_CHECKING:
    from zaya_core.io.results import ResultsFile
    from zaya_core.model.serving import ServingModel

FREE = ("output", "overwrite", "batch_size", "show_drafts", "trace", "replay", "chat", "check_lossless")  # change no token


def written(
    config: GenerateConfig,
    opened: Opened,
    prompts: list[Prompt],
    sizes: list[int],
    *,
    load: "Callable[[], ServingModel] | None" = None,
    flag: str = "--output",
) -> Iterator[Event]:
    """Make what is missing of --output, say how far it is, and end with a Result about the whole file.

    `load` gives the network where the caller has it already; `flag` is what named the place.
    """
    from zaya_core.io.results import ResultsFile, claim, discard

    assert config.output is not None
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if config.overwrite:
        if world > 1:
            raise ConfigError("--overwrite is for one process", hint="delete --output before you start several")
        discard(config.output)
    free = frozenset({"seed"} if config.seed is None else ())
    settings = claim(config.output, _settings(config, prompts), free=free, flag=flag)
    with ResultsFile(config.output, total=len(prompts) * config.n, rank=rank, world=world) as file:
        indices = list(file.missing())
        if file.num_done:
            yield Note(f"{config.output}: {file.num_done} of {file.total} completions are there")
        made = Made()
        if indices:
            load = load or (lambda: opened.model(config))
            yield from _make(config, opened, prompts, sizes, file, indices, settings["seed"], made, load)
        is_whole = file.finish()
        if not is_whole:
            yield Note(f"{config.output}: rank {rank} is done; the last rank joins the parts")
        yield Result({"path": str(config.output), "num_completions": file.total} | made.figures())


@dataclass
class Made:
    """What this process made of a file."""

    num_tokens: int = 0
    num_forwards: int = 0
    num_completions: int = 0
    seconds: float = 0.0

    def add(self, stats: dict[str, Any]) -> None:
        """One more completion."""
        self.num_tokens += stats["num_tokens"]
        self.num_forwards += stats["num_forwards"]
        self.num_completions += 1

    def figures(self) -> dict[str, Any]:
        """Its size and speed; nothing where it made nothing."""
        if not self.num_completions:
            return {}
        later = self.num_tokens - self.num_completions
        return {
            "num_completions_made": self.num_completions,
            "num_tokens_made": self.num_tokens,
            "tokens_per_forward": later / self.num_forwards if self.num_forwards else None,
            "tokens_per_second": self.num_tokens / self.seconds,
            "took_seconds": self.seconds,
        }


def _make(
    config: GenerateConfig,
    opened: Opened,
    prompts: list[Prompt],
    sizes: list[int],
    file: "ResultsFile",
    indices: list[int],
    seed: int,
    made: Made,
    load: "Callable[[], ServingModel]",
) -> Iterator[Event]:
    from zaya_core.engine.batch import Engine
    from zaya_core.stages.completing import Shown, complete
    from zaya_core.train.interrupt import InterruptFlag

    if file.world > 1:
        _take_own_device()
    model = load()
    opened = yield from opened.settled(config, model, batch=config.batch_size, context=max(sizes) + config.max_new_tokens)
    rows = min(config.batch_size, len(indices))
    engine = Engine(model, num_slots=engine_slots(config, opened, sizes), max_rows=rows)
    jobs = jobs_of(config, opened, prompts, indices, seed=seed)
    began = time.perf_counter()
    with InterruptFlag() as flag:
        for event in complete(engine, jobs, opened.tokenizer, shown=Shown.of(config, drafts=False, batch_size=rows)):
            if isinstance(event, Result):
                file.write(event.values)
                made.add(event.values["stats"])
                yield Progress("generating", file.num_done, file.total, "completions")
            if flag.is_set:
                flag.stop(f"stopped after {file.num_done} of {file.total} completions; rerun the same command to go on")
    made.seconds = time.perf_counter() - began


def _settings(config: GenerateConfig, prompts: list[Prompt]) -> dict[str, Any]:
    """What fixes the completions: the options, and the prompts as the model reads them."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update((prompt.read or prompt.text).encode() + b"\0")
    options = {key: value for key, value in resolved(config).items() if key not in FREE}
    return options | {"seed": drawn_seed(config), "prompts_sha256": digest.hexdigest()}


def _take_own_device() -> None:
    """Several processes of a machine have an accelerator each."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
