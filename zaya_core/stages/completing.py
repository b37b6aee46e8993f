"""Many completions through one engine: which run together, what is said of each while it grows, and its result.

Invariant: a completion's result depends on its job alone, unless its `how` has `ways` (engine/ways.py). It knows neither where
prompts come from nor where results go.
"""

import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from zaya_core.events import Drafts, Event, Result, Text
from zaya_core.stages.decoding import DecodingConfig
from zaya_core.stages.prompts import Prompt

if TYPE_CHECKING:
    from torch import Tensor

    from zaya_core.data.stream import TextStream
    from zaya_core.data.tokenizer import TextTokenizer
    from zaya_core.data.transcript import Transcript
    from zaya_core.engine.batch import Engine
    from zaya_core.engine.report import Tally
    from zaya_core.engine.request import Committed, Decoding, Final, Request


@dataclass(frozen=True)
class Job:
    """One completion to make: its number among all, its prompt, its seed and how to decode it."""

    index: int
    prompt: Prompt
    seed: int
    how: "Decoding"
    stops: tuple[str, ...] = ()

    def request(self, tokenizer: "TextTokenizer") -> "Request":
        """As the engine takes it; where the assistant speaks, the tokens that end a turn end the text too."""
        from zaya_core.engine.chance import SeededChance
        from zaya_core.engine.request import Request

        how = self.how
        if self.prompt.is_chat and how.end_ids:
            how = replace(how, end_ids=how.end_ids | tokenizer.ending_ids)
        return Request(self.prompt.token_ids(tokenizer), how, SeededChance(self.seed))


@dataclass(frozen=True)
class Shown:
    """What is wanted of completions besides their text: fields of the result, and the drafts of every forward."""

    sampler: str
    logprobs: bool = False
    return_experts: bool = False
    drafts: bool = False
    batch_size: int = 1

    @classmethod
    def of(cls, config: DecodingConfig, *, drafts: bool, batch_size: int) -> "Shown":
        """As the options say."""
        return cls(config.sampler, config.logprobs, config.return_experts, drafts, batch_size)


def complete(engine: "Engine", jobs: Iterable[Job], tokenizer: "TextTokenizer", *, shown: Shown) -> Generator[Event, None, None]:
    """Text of each job as it becomes certain, and its Result once it is over; as many at once as the engine has room for.

    Closed early, it takes back what it gave to the engine.
    """
    began = time.perf_counter()
    running: dict[int, Completion] = {}
    requests = ((job, job.request(tokenizer)) for job in jobs)
    waiting = next(requests, None)
    try:
        while waiting is not None or running:
            while waiting is not None and engine.has_room(waiting[1]):
                running[engine.add(waiting[1])] = Completion.of(*waiting, tokenizer)
                waiting = next(requests, None)
            assert running, "the engine has no room for a single request"
            grown, errors = [], []
            for ticket, committed in engine.step().items():
                if committed.error is not None:
                    del running[ticket]
                    errors.append(committed.error)
                    continue
                completion = running[ticket]
                grown.append((completion, committed, completion.take(committed)))
                if completion.is_over:
                    del running[ticket]
                    if committed.finish_reason is None:  # a stop string, which the engine does not know of
                        engine.cancel(ticket)
            if errors:
                raise errors[0]
            for completion, committed, text in grown:
                yield Text(text, completion.job.index)
                if shown.drafts:
                    yield completion.drafts(committed, time.perf_counter() - began)
                if completion.is_over:
                    yield Result(completion.values(engine, shown))
    finally:
        for ticket in running:
            engine.cancel(ticket)


def in_order(events: Iterable[Event]) -> Iterator[Event]:
    """The same events, but each Result waits for those of lower index."""
    held: dict[int, Result] = {}
    turn = 0
    for event in events:
        if isinstance(event, Result):
            held[event.values["index"]] = event
        else:
            yield event
        while turn in held:
            yield held.pop(turn)
            turn += 1


@dataclass
class Completion:
    """One that is growing."""

    job: Job
    request: "Request"
    tokenizer: "TextTokenizer"
    transcript: "Transcript[Final]"
    tally: "Tally"
    pieces: "TextStream"
    began: float
    first_at: float = 0.0
    last_at: float = 0.0
    experts: "list[Tensor]" = field(default_factory=list)

    @classmethod
    def of(cls, job: Job, request: "Request", tokenizer: "TextTokenizer") -> "Completion":
        """One that has just been given to the engine."""
        from zaya_core.data.stream import TextStream
        from zaya_core.data.transcript import Transcript
        from zaya_core.engine.report import Tally

        transcript = Transcript(tokenizer, job.stops)
        return cls(job, request, tokenizer, transcript, Tally(), TextStream(tokenizer), time.perf_counter())

    @property
    def is_over(self) -> bool:
        """Will nothing more come?"""
        return self.transcript.finish_reason is not None

    def take(self, committed: "Committed") -> str:
        """What a forward made final; returns the text that is certain with it."""
        self.last_at = time.perf_counter()
        self.first_at = self.first_at or self.last_at
        self.tally.add(committed)
        if committed.experts is not None:
            self.experts.append(committed.experts)
        return self.transcript.push(committed.finals, committed.finish_reason)

    def drafts(self, committed: "Committed", seconds: float) -> Drafts:
        """The same as pieces of text by their fate."""

        def guessed(token_ids: Iterable[int]) -> tuple[tuple[int, str], ...]:
            return tuple((token_id, self.tokenizer.decode([token_id])) for token_id in token_ids)

        finals = tuple((final.token_id, self.pieces.push([final.token_id])) for final in committed.finals)
        num_kept = min(max(0, committed.num_accepted - 1), len(finals))
        return Drafts(
            index=self.job.index,
            seconds=seconds,
            accepted=finals[:num_kept],
            drawn=finals[num_kept:],
            rejected=guessed(committed.drafted[committed.num_accepted :]),
            pre_drafted=guessed(committed.pre_drafted),
        )

    def values(self, engine: "Engine", shown: Shown) -> dict[str, Any]:
        """The JSON of conventions.md."""
        kept = self.transcript.tokens
        self.tally.trim(len(kept))
        num_prompt = len(self.request.prompt_ids)
        values: dict[str, Any] = {
            "index": self.job.index,
            "prompt": self.job.prompt.text,
            "seed": self.job.seed,
            "text": self.transcript.text,
            "token_ids": [final.token_id for final in kept],
            "finish_reason": self.transcript.finish_reason,
        }
        if shown.logprobs:
            values |= {"logprobs": [f.logprob for f in kept], "sampled_logprobs": [f.sampled_logprob for f in kept]}
        if shown.return_experts:
            # The last token was never read, and so chose none.
            rows = [row for part in self.experts for row in part.tolist()]
            values["experts"] = rows[: num_prompt + max(0, len(kept) - 1)]
        counted = self.tally.stats(
            block_length=self.request.how.block_length,
            prefill_seconds=self.first_at - self.began,
            decode_seconds=self.last_at - self.first_at,
        )
        how = self.job.how
        count = "auto" if how.ways else how.proposals.count  # null: all
        drafts = {"block": how.block_length, "proposals": count if how.block_length else 0}
        stats = {"sampler": shown.sampler, "num_prompt_tokens": num_prompt} | counted | drafts | _machine(engine, shown.batch_size)
        return values | {"stats": stats}


def _machine(engine: "Engine", batch_size: int) -> dict[str, Any]:
    from zaya_core.runtime import peak_memory_bytes

    dtype, device = str(engine.model.dtype).removeprefix("torch."), engine.model.device
    return {"batch_size": batch_size, "dtype": dtype, "device": str(device), "peak_memory_bytes": peak_memory_bytes(device)}
