"""A model's completions of a task by a sampler, and their scores, kept in files that any kill leaves resumable.

    OUT/NAME.weights.run.json              the weights that everything beside it is of
    OUT/NAME/TASK/SAMPLER.jsonl            completions, as `zaya generate --output` writes them; each problem's samples in a row
    OUT/NAME/TASK/SAMPLER.scores.jsonl     a line for each: problem, score, answer, reason

Invariant: a prompt that does not fit in the context is not decoded and counts as wrong. It knows no figures.
"""

import hashlib
import json
import re
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zaya_core.errors import ConfigError
from zaya_core.events import Event, Note, Progress, Result, Warn
from zaya_core.stages.decoding import DecodingConfig
from zaya_core.stages.evaluate import EvalConfig, NamedSampler
from zaya_core.stages.generate import GenerateConfig, Opened, open_checkpoint
from zaya_core.stages.prompts import Dresser, Prompt
from zaya_core.stages.writing import written

if TYPE_CHECKING:
    from zaya_core.evaluation.report import Answers
    from zaya_core.evaluation.tasks import Task
    from zaya_core.io.checkpoint import Checkpoint
    from zaya_core.model.serving import ServingModel


@dataclass(frozen=True)
class Examinee:
    """A checkpoint under a name; its network is loaded once, when something is to be decoded."""

    config: EvalConfig
    out: Path
    name: str
    path: Path | None
    checkpoint: "Checkpoint"
    samplers: list[NamedSampler]
    load: "Callable[[], ServingModel]"

    @classmethod
    def of(cls, config: EvalConfig, out: Path, name: str, path: Path | None) -> "Examinee":
        """A ConfigError where `out` holds results of other weights, or it cannot draft and is no baseline."""
        from zaya_core.io.results import claim, discard

        samplers = config.samplers
        plain = decoding_of(config, NamedSampler("ar", "ar", None), path)
        opened = open_checkpoint(plain)
        if name == "baseline" and opened.checkpoint.config.tidar is None:
            samplers = [NamedSampler("ar", "ar", None)]
        weights = out.with_name(f"{name}.weights")
        if config.overwrite:
            discard(weights)
        claim(weights, {"sha256": opened.checkpoint.fingerprint()}, flag="--report")
        return cls(config, out, name, path, opened.checkpoint, samplers, cache(lambda: opened.model(plain)))

    def answers(self, tasks: "list[Task]", sampler: NamedSampler) -> Generator[Event, None, list["Answers"]]:
        """Make what is missing of every task by one sampler."""
        if not tasks:
            return []
        opened = open_checkpoint(decoding_of(self.config, sampler, self.path))
        answers = []
        for task in tasks:
            answers.append((yield from self._answered(task, sampler, opened, talks=task is tasks[0])))
        return answers

    def _answered(self, task: "Task", sampler: NamedSampler, opened: Opened, *, talks: bool) -> Generator[Event, None, "Answers"]:
        from zaya_core.evaluation.report import Answers

        n = self.config.num_samples
        place = self.out / slug(task.spec) / f"{slug(sampler.name)}.jsonl"
        how = self._how(task, sampler, place)
        prompts, sizes, numbers = self._fitting(task, how, opened)
        if len(numbers) < len(task.prompts):
            longer = len(task.prompts) - len(numbers)
            yield Warn(f"{task.spec}: {longer} of {len(task.prompts)} prompts do not fit in the context and count as wrong")
        right = [[False] * n for _ in task.prompts]
        if not numbers:
            return Answers(self.name, task.spec, sampler.name, right, [], 0)
        said = written(how, opened, prompts, sizes, load=self.load, flag="--report")
        yield from _shortened(said, f"{self.name}, {task.spec}, {sampler.name}", talks=talks)
        lines = list(read_lines(place))
        scores = yield from self._scored(task, sampler, lines, numbers, place.with_suffix(".scores.jsonl"))
        for line, score in zip(lines, scores, strict=True):
            right[numbers[line["index"] // n]][line["index"] % n] = score["score"] == 1
        num_ended = sum(line["finish_reason"] == "stop" for line in lines)
        return Answers(self.name, task.spec, sampler.name, right, [line["stats"] for line in lines], num_ended)

    def _scored(
        self, task: "Task", sampler: NamedSampler, lines: list[dict[str, Any]], numbers: list[int], path: Path
    ) -> Generator[Event, None, list[dict[str, Any]]]:
        """The score of every line, in order."""
        from zaya_core.io.results import ResultsFile, claim, discard

        if self.config.overwrite:
            discard(path)
        claim(path, {"task": task.spec, "code_seconds": self.config.code_seconds if task.runs_code else None}, flag="--report")
        with ResultsFile(path, total=len(lines)) as file:
            for index in file.missing():
                problem = numbers[index // self.config.num_samples]
                scored = task.score(problem, lines[index]["text"])
                file.write({"index": index, "problem": problem} | {f.name: getattr(scored, f.name) for f in fields(scored)})
                yield Progress(f"scoring {self.name}, {task.spec}, {sampler.name}", file.num_done, file.total, "completions")
            file.finish()
        return list(read_lines(path))

    def _how(self, task: "Task", sampler: NamedSampler, place: Path) -> GenerateConfig:
        """`zaya generate` of this task's prompts."""
        how, config = decoding_of(self.config, sampler, self.path), self.config
        own = {"output": place, "n": config.num_samples, "batch_size": config.batch_size}
        return replace(how, **own, overwrite=config.overwrite, raw=config.raw, stop=(*config.stop, *task.stops))

    def _fitting(self, task: "Task", how: GenerateConfig, opened: Opened) -> tuple[list[Prompt], list[int], list[int]]:
        """Prompts that leave room for the new tokens, their sizes, and the numbers of their problems."""
        dresser = Dresser.of(how, opened.checkpoint, opened.tokenizer)
        prompts = [dresser.text(text, f"{task.spec}, problem {number}") for number, text in enumerate(task.prompts)]
        sizes = [len(prompt.token_ids(opened.tokenizer)) for prompt in prompts]
        if 0 in sizes:
            raise ConfigError(f"{prompts[sizes.index(0)].place}: the prompt has no tokens", hint="leave out --raw")
        room = opened.checkpoint.config.max_position_embeddings - how.max_new_tokens
        kept = [number for number, size in enumerate(sizes) if size <= room]
        return [prompts[number] for number in kept], [sizes[number] for number in kept], kept


def decoding_of(config: EvalConfig, sampler: NamedSampler, path: Path | None) -> GenerateConfig:
    """The shared options as `zaya generate` has them."""
    shared = {item.name: getattr(config, item.name) for item in fields(DecodingConfig)}
    return GenerateConfig(**shared | {"model": path, "sampler": sampler.kind, "mix_weight": sampler.mix_weight})


def slug(text: str) -> str:
    """A file's name of a task's or sampler's: its end where it is long, with a mark of the whole."""
    name = re.sub(r"[^\w.=+-]+", "-", text)
    return name if len(name) <= 80 else f"{name[-60:]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All of a finished file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _shortened(events: Iterator[Event], label: str, *, talks: bool) -> Iterator[Event]:
    """What `generate --output` says, its progress under another label; nothing about its file, and no notes unless it `talks`."""
    for event in events:
        if isinstance(event, Progress):
            yield replace(event, label=label)
        elif not isinstance(event, Result) and (talks or not isinstance(event, Note)):
            yield event
