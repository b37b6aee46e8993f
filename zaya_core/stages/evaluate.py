"""`zaya eval`: tasks by several samplers side by side, with intervals, paired differences, likelihood and the frontier.

Everything that takes time is kept under --report as it is made, so that a rerun goes on; figures are computed anew from that.
"""

import os
import tempfile
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zaya_core.errors import ConfigError
from zaya_core.events import Event, Note, Result
from zaya_core.option import option
from zaya_core.stages.decoding import DecodingConfig

if TYPE_CHECKING:
    from zaya_core.evaluation.report import Answers
    from zaya_core.evaluation.tasks import Task

EXAMPLE = """
zaya eval --task reasoning-gym:chain_sum --num-problems 50 --sampler ar,lossless,mix:0.5 --report out/
zaya eval tidar/ --task human-eval --allow-code-execution --num-samples 8 --k 1,8 --report out/ --plot frontier.png
zaya eval tidar/ --baseline base/ --task jsonl:questions.jsonl --task likelihood:stdlib --task needle --report out/
"""
MEASURED = ("likelihood", "needle")  # kinds of task that decode nothing
REPORT = "report.json"


@dataclass(frozen=True)
class EvalConfig(DecodingConfig):
    """Options of `zaya eval`."""

    task: tuple[str, ...] = option(
        (),
        help="reasoning-gym:NAME[:key=value,...], human-eval, jsonl:FILE, likelihood:FILES|stdlib, needle[:LENGTH,...]; repeatable",
    )
    sampler: str = option("ar,lossless,mix:0.5", help="side by side: ar, lossless, mix (--mix-weight) or mix:WEIGHT")
    num_problems: int | None = option(
        None, help="of each task; 200 of a generator, 50 needles, all of a file by default", minimum=1
    )
    without: tuple[Path, ...] = option((), help="reasoning-gym: leave out what is in these training rows (.jsonl); repeatable")
    num_samples: int = option(1, help="completions of each problem", minimum=1)
    k: str = option("1", help="report pass@k for these, as in 1,8,32; none above --num-samples")
    seed: int = option(0, help="seed of the tokens: completion i of a task has this + i", minimum=0, maximum=2**62)
    batch_size: int = option(1, help="completions decoded together", minimum=1)
    raw: bool = option(False, help="take prompts exactly as they are: no chat template, no BOS")
    baseline: Path | None = option(None, help="another checkpoint, to compare over the same problems")
    report: Path | None = option(None, help="directory that keeps every completion and score; rerun to go on after a kill")
    overwrite: bool = option(False, help="begin --report anew")
    plot: Path | None = option(None, help="write the quality-speed frontier as a picture; needs zaya[plot]")
    allow_code_execution: bool = option(False, help="run generated programs, each shut in: no network, no other files, limits")
    code_seconds: float = option(5.0, help="CPU time of a generated program; four times as much by the clock", above=0)
    seq_len: int = option(512, help="likelihood: tokens of a row", minimum=2)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.task:
            raise ConfigError("--task is missing", hint="for example --task reasoning-gym:chain_sum")
        for name in ("task", "samplers"):
            given = self.task if name == "task" else [sampler.name for sampler in self.samplers]
            twice = [one for one in given if list(given).count(one) > 1]
            if twice:
                raise ConfigError(f"{twice[0]} is given twice, expected every {name.rstrip('s')} once")
        if max(self.ks) > self.num_samples:
            raise ConfigError(f"--k has {max(self.ks)}, expected at most --num-samples {self.num_samples}", hint="raise it")
        if self.plot is not None and not self.plot.absolute().parent.is_dir():
            raise ConfigError(f"--plot is {self.plot}, expected a file in a directory that exists")
        if self.overwrite and self.report is None:
            raise ConfigError("--overwrite has nothing to write over", hint="give --report DIR")

    @property
    def ks(self) -> list[int]:
        """1, which everything is compared by, and those of --k."""
        parts = [part.strip() for part in self.k.split(",")]
        if not all(part.isascii() and part.isdecimal() and int(part) for part in parts):
            raise ConfigError(f"--k is {self.k!r}, expected whole numbers above 0, as in 1,8,32")
        return sorted({1, *map(int, parts)})

    @property
    def samplers(self) -> "list[NamedSampler]":
        """Those of --sampler, in its order."""
        return [_read_sampler(part.strip(), self.mix_weight) for part in self.sampler.split(",")]


@dataclass(frozen=True)
class NamedSampler:
    """What the user calls it, and what DecodingConfig does."""

    name: str
    kind: str
    mix_weight: float | None


def run(config: EvalConfig) -> Iterator[Event]:
    """Results: tables of quality, acceptance, paired differences, likelihood and needles, as far as there is something in them."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("zaya eval is one process", hint="start it without torchrun; --batch-size is how it goes faster")
    tasks = _open_tasks(config)
    with ExitStack() as stack:
        out = config.report or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="zaya-eval-")))
        answers, tables = [], []
        for name, path in _models(config):
            made, measured = yield from _evaluated(config, tasks, out, name, path)
            answers += made
            tables += measured
        tables = [*_tables(config, answers), *_merged(tables)]
        yield from map(Result, tables)
        if config.report is not None:
            yield _kept(config, out, tables)
        if config.plot is not None and answers:
            yield _plotted(config, tables[0]["table"])


def _open_tasks(config: EvalConfig) -> "list[Task]":
    """Those that decode; a ConfigError before anything else where one may not run or cannot be had."""
    from zaya_core.evaluation.sandbox import Limits, check_isolation
    from zaya_core.evaluation.tasks import Terms, open_task

    limits = Limits(config.code_seconds)
    terms = Terms(config.num_problems, prompts_of(config.without), limits)
    specs = [spec for spec in config.task if spec.partition(":")[0] not in MEASURED]
    tasks = [open_task(spec, terms) for spec in specs]
    running = [task.spec for task in tasks if task.runs_code]
    if running and not config.allow_code_execution:
        raise ConfigError(f"--task {running[0]} runs generated programs", hint="--allow-code-execution allows it, in a sandbox")
    if running:
        check_isolation(limits)
    return tasks


def prompts_of(paths: tuple[Path, ...]) -> frozenset[str]:
    """Those of training rows; of a row that is one text, each beginning that ends with a line may be one."""
    from zaya_core.data.sources import read_jsonl

    rows = [row for path in paths for _, row in read_jsonl(path, "--without")]
    prompts = {row["prompt"] for row in rows if isinstance(row.get("prompt"), str)}
    for text in (row["text"] for row in rows if isinstance(row.get("text"), str)):
        prompts |= {text[: place + 1] for place, letter in enumerate(text) if letter == "\n"}
    return frozenset(prompts)


def _models(config: EvalConfig) -> list[tuple[str, Path | None]]:
    models = [("model", config.model)]
    return models if config.baseline is None else [*models, ("baseline", config.baseline)]


def _evaluated(
    config: EvalConfig, tasks: "list[Task]", out: Path, name: str, path: Path | None
) -> Generator[Event, None, tuple[list["Answers"], list[dict[str, Any]]]]:
    """One model: its answers, and the figures of tasks that decode nothing."""
    from zaya_core.stages.answering import Examinee
    from zaya_core.stages.gauging import measured

    examinee = Examinee.of(config, out / name, name, path)
    answers = []
    for sampler in examinee.samplers:
        answers += yield from examinee.answers(tasks, sampler)
    figures = yield from measured(config, examinee, [spec for spec in config.task if spec.partition(":")[0] in MEASURED])
    return answers, figures


def _tables(config: EvalConfig, answers: "list[Answers]") -> Iterator[dict[str, Any]]:
    """Of what was decoded."""
    from zaya_core.evaluation.report import acceptance_rows, paired_rows, quality_rows

    if not answers:
        return
    together = f"{config.batch_size} decoded together" if config.batch_size > 1 else "one decoded at a time"
    yield table("quality", f"Quality and speed: {together}, tokens/s of each", quality_rows(answers, config.ks))
    accepted = acceptance_rows(answers)
    if accepted:
        yield table("acceptance", "Acceptance of the draft's tokens, offset 1 and on, each once those before it were", accepted)
    pairs = _pairs(answers)
    if pairs:
        yield table("differences", "Differences of pass@1 over the same problems", paired_rows(pairs))


def _pairs(answers: "list[Answers]") -> "list[tuple[Answers, Answers]]":
    """Every other sampler with the same model's ar, then every sampler with the baseline's same, or its ar."""
    by_key = {(one.model, one.task, one.sampler): one for one in answers}
    own = [(one, by_key.get((one.model, one.task, "ar"))) for one in answers if one.sampler != "ar"]
    across = [
        (one, by_key.get(("baseline", one.task, one.sampler), by_key.get(("baseline", one.task, "ar"))))
        for one in answers
        if one.model == "model"
    ]
    return [(one, other) for one, other in own + across if other is not None]


def _merged(tables: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tables of the same name as one: of several tasks, of the model and the baseline."""
    merged: dict[tuple[str, str], list[Any]] = {}
    for one in tables:
        merged.setdefault((one["name"], one["title"]), []).extend(one["table"])
    return [table(*key, rows) for key, rows in merged.items()]


def table(name: str, title: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A Result's values: the name is for programs, the title for people."""
    return {"name": name, "title": title, "table": rows}


def _kept(config: EvalConfig, out: Path, tables: list[dict[str, Any]]) -> Event:
    from zaya_core.io.files import write_json
    from zaya_core.option import resolved

    write_json(out / REPORT, {"config": resolved(config), "tables": tables})
    return Note(f"{out / REPORT}: these tables; beside it every completion and its score")


def _plotted(config: EvalConfig, rows: list[dict[str, Any]]) -> Event:
    from zaya_core.evaluation.frontier import save_frontier

    assert config.plot is not None
    name = config.model.name if config.model else "the bundled model"
    save_frontier(config.plot, rows, title=f"{name}: quality and speed of the samplers")
    return Note(f"wrote {config.plot}")


def _read_sampler(text: str, mix_weight: float | None) -> NamedSampler:
    kind, colon, number = text.partition(":")
    try:
        weight = float(number) if colon else mix_weight
    except ValueError:
        weight = -1.0
    if kind not in ("ar", "lossless", "mix") or (colon and kind != "mix") or not 0 <= (weight or 0) <= 1:
        raise ConfigError(f"--sampler has {text!r}, expected ar, lossless, mix or mix:WEIGHT with a weight from 0 to 1")
    return NamedSampler(text, kind, weight if kind == "mix" else None)
