"""Do blocks shorter than the trained one draft as well? Acceptance by offset for blocks of several lengths.

    python -m recipes.bench.blocks [MODEL] [--blocks 16,12,8,4,2] [--prompts 64] [--tokens 96]

A block after every draft token, so that every draft begins whole; prompts of 64 tokens, temperature 1, all in one batch. "at offset
i": the share of the draft's tokens i + 1 that were accepted once those before them were. Counts no seconds.
"""

import argparse
from pathlib import Path

import torch

from recipes.bench.texts import TEXTS
from zaya_core.assets import BUNDLED
from zaya_core.data.tokenizer import TextTokenizer
from zaya_core.engine.batch import Engine
from zaya_core.engine.chance import SeededChance
from zaya_core.engine.draft import Proposals
from zaya_core.engine.report import Tally
from zaya_core.engine.request import Decoding, Request
from zaya_core.io.checkpoint import Checkpoint
from zaya_core.model.load import load_serving
from zaya_core.model.serving import ServingModel
from zaya_core.ops.sampling import Sampler

PROMPT, SHOWN = 64, 7


def main(arguments: list[str] | None = None) -> None:
    """A line for each text and block."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=BUNDLED, type=Path)
    parser.add_argument("--blocks", default="16,12,8,4,2")
    for name, default in (("prompts", 64), ("tokens", 96)):
        parser.add_argument(f"--{name}", default=default, type=int)
    options = parser.parse_args(arguments)
    checkpoint = Checkpoint.open(options.model)
    model = load_serving(checkpoint, dtype=torch.bfloat16, device=torch.device("cpu"))
    offsets = range(1, SHOWN + 1)
    print(f"| text | block | tokens/forward | drafts judged | {' | '.join(f'at offset {offset}' for offset in offsets)} |")
    print("|---" * (4 + SHOWN) + "|", flush=True)
    for name, text in TEXTS.items():
        prompts = text(TextTokenizer(checkpoint.path), options.prompts, PROMPT)
        for block in map(int, options.blocks.split(",")):
            how = Decoding(options.tokens, Sampler(), proposals=Proposals(None), block_length=block)
            print(f"| {name} | {block} | {' | '.join(told(decoded(model, prompts, how), block))} |", flush=True)


def decoded(model: ServingModel, prompts: list[list[int]], how: Decoding) -> list[Tally]:
    """What each text's forwards judged and accepted."""
    requests = [Request(prompt, how, SeededChance(seed)) for seed, prompt in enumerate(prompts)]
    engine = Engine(model, num_slots=sum(request.num_slots for request in requests), max_rows=len(requests))
    tallies = {engine.add(request): Tally() for request in requests}
    while engine.num_rows:
        for ticket, committed in engine.step().items():
            tallies[ticket].add(committed)
    return list(tallies.values())


def told(tallies: list[Tally], block: int) -> list[str]:
    """Tokens per forward, drafts judged, and the share accepted at each offset, over all texts."""
    stats = [tally.stats(block_length=block, prefill_seconds=0, decode_seconds=1) for tally in tallies]
    columns = (zip(*(one[f"{name}_by_offset"] for one in stats), strict=True) for name in ("judged", "accepted"))
    judged, accepted = ([sum(column) for column in each] for each in columns)
    shares = [f"{a / n:.2f}" for a, n in zip(accepted, judged, strict=True) if n]
    forwards, tokens = sum(one["num_forwards"] for one in stats), sum(one["num_tokens"] - 1 for one in stats)
    return [f"{tokens / forwards:.2f}", str(sum(judged)), *shares[:SHOWN], *[""] * (SHOWN - len(shares))]


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
