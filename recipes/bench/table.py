"""AR, lossless and mix side by side on the engine itself: tokens/s, tokens per forward and what a drafting forward costs.

    python -m recipes.bench.table [MODEL] [--batches 1,8,32] [--prompts 64,1024,4096] [--tokens 64] [--rounds 3]
        [--text problems|code] [--also 1:4,2:8]

Prompts are held-out text, problems after solved ones or code; temperature 1. They are read once, timed apart; then the ways take
turns, each decoding from there with all rows in work until `--tokens` tokens a row are made on average; medians over `--rounds`.
`lossless` and `mix` have 3 proposals and the whole block, as a seeded request has; `auto` is lossless as `--proposals auto` would
have it here, by its own measurement; `--also` adds lossless ways as PROPOSALS:BLOCK. "cost" is the seconds of a forward over those
of an AR one.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from recipes.bench.texts import TEXTS
from zaya_core.assets import BUNDLED
from zaya_core.config import Tidar
from zaya_core.data.tokenizer import TextTokenizer
from zaya_core.engine.batch import Engine
from zaya_core.engine.chance import SeededChance
from zaya_core.engine.draft import Proposals, Verifier
from zaya_core.engine.request import Decoding, Request
from zaya_core.io.checkpoint import Checkpoint
from zaya_core.model.load import load_serving
from zaya_core.model.serving import ServingModel
from zaya_core.ops.sampling import Sampler
from zaya_core.runtime import pick_device, pick_dtype
from zaya_core.stages.tuning import measured_ways

TEXTS_EACH = 16  # texts that a way goes on with in a round, at least, for they differ
WARM_UP = 2  # forwards before the clock starts
HEAD = "| batch | prompt | way | tokens/s | of AR | tokens/forward | cost | |\n|---|---|---|---|---|---|---|---|"


@dataclass(frozen=True)
class Speed:
    """What a number of forwards of one way took and made."""

    tokens: int
    forwards: int
    seconds: float


def main(arguments: list[str] | None = None) -> None:
    """Print the table, a cell at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=BUNDLED, type=Path)
    for name, default in (("batches", "1,8,32"), ("prompts", "64,1024,4096")):
        parser.add_argument(f"--{name}", default=default)
    for name, default in (("tokens", 64), ("rounds", 3)):
        parser.add_argument(f"--{name}", default=default, type=int)
    parser.add_argument("--text", default="problems", choices=TEXTS)
    parser.add_argument("--also", default="")
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args(arguments)
    checkpoint, device = Checkpoint.open(options.model), pick_device("auto")
    dtype = pick_dtype(options.dtype, checkpoint.stored_dtype, device, num_elements=checkpoint.num_parameters)
    model = load_serving(checkpoint, dtype=dtype, device=device)
    print(f"{checkpoint.path.name}, {dtype} on {device}, {torch.get_num_threads()} threads\n\n{HEAD}", flush=True)
    for batch in map(int, options.batches.split(",")):
        for length in map(int, options.prompts.split(",")):
            prompts = TEXTS[options.text](TextTokenizer(checkpoint.path), batch * max(1, TEXTS_EACH // batch), length)
            ways = dict(_ways(model, checkpoint, batch, length, tokens=options.tokens, also=options.also))
            read, speeds = measured(model, prompts, ways, batch=batch, tokens=options.tokens, rounds=options.rounds)
            drafting = {name for name, how in ways.items() if how.block_length and how.verifier.mix_weight == 1}
            for line in lines(batch, length, read, speeds, lossless=drafting):
                print(line, flush=True)


def _ways(
    model: ServingModel, checkpoint: Checkpoint, batch: int, length: int, *, tokens: int, also: str
) -> Iterator[tuple[str, Decoding]]:
    """By name. No row can end while the others still run: each may make a whole block of every forward."""
    tidar = checkpoint.config.tidar or Tidar(1, 0)
    own = Decoding((tokens + WARM_UP + 16) * tidar.block_length, Sampler(1.0), forbidden=(tidar.mask_token_id,))
    yield "ar", own
    if checkpoint.config.tidar is None:
        return
    block = tidar.block_length
    drafting = replace(own, proposals=Proposals(3), block_length=block)
    yield "lossless", drafting
    ways, _ = measured_ways(model, drafting, checkpoint, batch=batch, context=length + tokens)
    yield "auto", replace(drafting, ways=ways)
    yield from ways_also(drafting, also)
    yield "mix", replace(drafting, verifier=Verifier(0.5))


def ways_also(drafting: Decoding, also: str) -> Iterator[tuple[str, Decoding]]:
    """Those that `--also` names as PROPOSALS:BLOCK."""
    for pair in filter(None, also.split(",")):
        count, block = map(int, pair.split(":"))
        yield f"lossless {pair}", replace(drafting, proposals=Proposals(count), block_length=block)


def measured(
    model: ServingModel, prompts: list[list[int]], ways: dict[str, Decoding], *, batch: int, tokens: int, rounds: int
) -> tuple[float, dict[str, list[Speed]]]:
    """Prompt tokens read a second, and the rounds of every way: all of them, `batch` at a time, from where they were kept."""
    most = max(len(prompts[0]) + how.max_new_tokens + how.max_step_slots for how in ways.values())
    engine = Engine(model, num_slots=2 * len(prompts) * most, max_rows=batch, keep_prefixes=len(prompts))
    began = time.perf_counter()
    for first in range(0, len(prompts), batch):
        for prompt in prompts[first : first + batch]:
            engine.add(Request(prompt, replace(ways["ar"], max_new_tokens=1), SeededChance(0)))
        while engine.num_rows:
            engine.step()
    read = len(prompts) * len(prompts[0]) / (time.perf_counter() - began)
    speeds: dict[str, list[Speed]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, how in ways.items():
            requests = [Request(prompt, how, SeededChance(number * len(prompts) + at)) for at, prompt in enumerate(prompts)]
            each = [_speed(engine, requests[first : first + batch], tokens) for first in range(0, len(requests), batch)]
            speeds[name].append(Speed(sum(s.tokens for s in each), sum(s.forwards for s in each), sum(s.seconds for s in each)))
    return read, speeds


def _speed(engine: Engine, requests: list[Request], tokens: int) -> Speed:
    """Of decoding with all rows in work."""
    tickets = [engine.add(request) for request in requests]
    begun: set[int] = set()
    while len(begun) < len(tickets):
        begun |= set(engine.step())
    for _ in range(WARM_UP):
        engine.step()
    made = forwards = 0
    began = time.perf_counter()
    while made < tokens * len(requests):
        made += sum(len(committed.finals) for committed in engine.step().values())
        forwards += 1
    seconds = time.perf_counter() - began
    for ticket in tickets:
        engine.cancel(ticket)
    return Speed(made, forwards, seconds)


def lines(batch: int, length: int, read: float, speeds: dict[str, list[Speed]], *, lossless: set[str]) -> Iterator[str]:
    """One for reading the prompts and one for each way; those that are `lossless` and slower than AR are marked."""
    yield f"| {batch} | {length} | *prefill* | {read:.0f} | | | | |"
    rates = {name: statistics.median(one.tokens / one.seconds for one in rounds) for name, rounds in speeds.items()}
    costs = {name: statistics.median(one.seconds / one.forwards for one in rounds) for name, rounds in speeds.items()}
    for name, rounds in speeds.items():
        gain, cost = rates[name] / rates["ar"], costs[name] / costs["ar"]
        per_forward = sum(one.tokens for one in rounds) / sum(one.forwards for one in rounds) / batch
        loses = "loses" if gain < 1 and name in lossless else ""
        yield f"| {batch} | {length} | {name} | {rates[name]:.0f} | {gain:.2f} | {per_forward:.2f} | {cost:.2f} | {loses} |"


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
