"""At which temperature should drafts be drawn? Tokens per forward over the temperatures of drafts, for lossless and mix.

    python -m recipes.bench.draft_temperature [MODEL] [--temperature 1] [--drafts 0.5,0.7,0.85,1.2] [--prompts 20] [--tokens 128]

Prompts are windows of 200 held-out tokens, decoded together; what another temperature changes is compared with the text's own on
the same prompts, with the standard error over prompts. Counts no seconds: any machine and any load will do.
"""

import argparse
import statistics
from dataclasses import replace
from pathlib import Path

import torch

from recipes.bench.blocks import decoded
from recipes.bench.texts import code
from zaya_core.assets import BUNDLED
from zaya_core.data.tokenizer import TextTokenizer
from zaya_core.engine.draft import Proposals, Verifier
from zaya_core.engine.request import Decoding
from zaya_core.io.checkpoint import Checkpoint
from zaya_core.model.load import load_serving
from zaya_core.model.serving import ServingModel
from zaya_core.ops.sampling import Sampler

PROMPT = 200


def main(arguments: list[str] | None = None) -> None:
    """A table, one line for each temperature of drafts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=BUNDLED, type=Path)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--drafts", default="0.5,0.7,0.85,1.2")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=128)
    options = parser.parse_args(arguments)
    checkpoint = Checkpoint.open(options.model)
    model = load_serving(checkpoint, dtype=torch.float32, device=torch.device("cpu"))
    prompts = code(TextTokenizer(checkpoint.path), options.prompts, PROMPT)
    tidar = checkpoint.config.tidar
    own = Decoding(
        options.tokens,
        Sampler(options.temperature),
        proposals=Proposals(3),
        block_length=tidar.block_length,
        forbidden=(tidar.mask_token_id,),
    )
    print("| drafts at | lossless | less the text's own | mix | less the text's own |\n|---|---|---|---|---|")
    ways = [replace(own, verifier=Verifier(weight)) for weight in (1.0, 0.5)]
    bases = [tokens_per_forward(model, prompts, how) for how in ways]
    for temperature in map(float, options.drafts.split(",")):
        cells = []
        for how, base in zip(ways, bases, strict=True):
            found = tokens_per_forward(model, prompts, replace(how, draft_temperature=temperature))
            gains = [one - other for one, other in zip(found, base, strict=True)]
            error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
            cells += [f"{statistics.mean(found):.3f}", f"{statistics.mean(gains):+.3f} ± {error:.3f}"]
        print(f"| {temperature:g} | {' | '.join(cells)} |", flush=True)


def tokens_per_forward(model: ServingModel, prompts: list[list[int]], how: Decoding) -> list[float]:
    """Of each prompt; all of them in one batch, where each gets what it gets alone."""
    return [tally.tokens_per_forward or 0.0 for tally in decoded(model, prompts, how)]


if __name__ == "__main__":
    main()
