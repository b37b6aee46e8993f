"""AR, lossless and mix on the problems of recipes/eval.sh: all answers in all, prompts read in between, texts ended by the model.

    python -m recipes.bench.answers [MODEL] [--batches 1,8,32] [--problems 20] [--rounds 5] [--also 1:16,1:8]

`--problems` of each task, through an engine of so many rows that takes the next problem as one ends; temperature 1, at most 256
tokens.
The ways take turns; tokens/s are medians over `--rounds`. `lossless` and `mix` (weight .5) have 3 proposals and the whole block, as
a seeded request has; `auto` is lossless as `--proposals auto` has it here; `--also` adds lossless ways as PROPOSALS:BLOCK.
"cost" is the seconds of a forward over those of an AR one.
"""

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

from recipes.bench.table import ways_also
from recipes.tasks import ASKED
from zaya_core.assets import BUNDLED
from zaya_core.data.tokenizer import TextTokenizer
from zaya_core.engine.batch import Engine
from zaya_core.engine.chance import SeededChance
from zaya_core.engine.draft import Proposals, Verifier
from zaya_core.engine.request import Decoding, Request
from zaya_core.evaluation.gym import heldout_problems
from zaya_core.io.checkpoint import Checkpoint
from zaya_core.model.load import load_serving
from zaya_core.model.serving import ServingModel
from zaya_core.ops.sampling import Sampler
from zaya_core.runtime import pick_device, pick_dtype
from zaya_core.stages.tuning import measured_ways

MAX_NEW = 256


def main(arguments: list[str] | None = None) -> None:
    """Print the table, a batch at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=BUNDLED, type=Path)
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--problems", default=20, type=int)
    parser.add_argument("--rounds", default=5, type=int)
    parser.add_argument("--also", default="")
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args(arguments)
    checkpoint, device = Checkpoint.open(options.model), pick_device("auto")
    dtype = pick_dtype(options.dtype, checkpoint.stored_dtype, device, num_elements=checkpoint.num_parameters)
    model, tokenizer = load_serving(checkpoint, dtype=dtype, device=device), TextTokenizer(checkpoint.path)
    problems = [
        problem.prompt for task, options_ in ASKED.items() for problem in heldout_problems(task, options_, options.problems)
    ]
    prompts = [tokenizer.encode(problem) for problem in problems]
    print(f"{len(prompts)} problems, {dtype} on {device}, {torch.get_num_threads()} threads, {type(model).__name__}\n")
    print("| batch | way | tokens/s | of AR | tokens/forward | cost |\n|---|---|---|---|---|---|", flush=True)
    for batch in map(int, options.batches.split(",")):
        ways = ways_of(checkpoint, tokenizer.eos_id, options.also)
        auto, _ = measured_ways(model, ways["lossless"], checkpoint, batch=batch, context=MAX_NEW)
        ways["auto"] = replace(ways["lossless"], ways=auto)
        spent: dict[str, list[tuple[int, int, float]]] = {name: [] for name in ways}
        for number in range(options.rounds):
            for name, how in ways.items():
                spent[name].append(answered(model, prompts, how, batch=batch, seed=number * len(prompts)))
        for line in lines(batch, len(prompts), spent):
            print(line, flush=True)


def ways_of(checkpoint: Checkpoint, end_id: int, also: str) -> dict[str, Decoding]:
    """By name."""
    tidar = checkpoint.config.tidar
    assert tidar is not None, "a converted checkpoint"
    ar = Decoding(MAX_NEW, Sampler(1.0), forbidden=(tidar.mask_token_id,), end_ids=frozenset([end_id]))
    lossless = replace(ar, proposals=Proposals(3), block_length=tidar.block_length)
    return {"ar": ar, "lossless": lossless, "mix": replace(lossless, verifier=Verifier(0.5)), **dict(ways_also(lossless, also))}


def answered(model: ServingModel, prompts: list[list[int]], how: Decoding, *, batch: int, seed: int) -> tuple[int, int, float]:
    """New tokens, what they took in forwards of single rows after each prompt, and the seconds of all together."""
    most = max(map(len, prompts)) + how.max_new_tokens + how.max_step_slots
    engine, waiting, tokens, steps = Engine(model, num_slots=2 * batch * most, max_rows=batch), list(enumerate(prompts)), 0, 0
    began = time.perf_counter()
    while waiting or engine.num_rows:
        while waiting and engine.num_rows < batch:
            number, prompt = waiting.pop(0)
            engine.add(Request(prompt, how, SeededChance(seed + number)))
        for committed in engine.step().values():
            tokens += len(committed.finals)
            steps += 1
    return tokens, steps - len(prompts), time.perf_counter() - began


def lines(batch: int, num_prompts: int, spent: dict[str, list[tuple[int, int, float]]]) -> list[str]:
    """One for each way. The first token of an answer comes of its prompt's forward."""
    rates = {name: statistics.median(tokens / seconds for tokens, _, seconds in rounds) for name, rounds in spent.items()}
    costs = {name: statistics.median(seconds / steps for _, steps, seconds in rounds) for name, rounds in spent.items()}
    each = {name: [sum(column) for column in zip(*rounds, strict=True)] for name, rounds in spent.items()}
    told = []
    for name, rate in rates.items():
        per_forward = (each[name][0] - num_prompts * len(spent[name])) / each[name][1]
        told.append(
            f"| {batch} | {name} | {rate:.0f} | {rate / rates['ar']:.2f} | {per_forward:.2f} | {costs[name] / costs['ar']:.2f} |"
        )
    return told


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
