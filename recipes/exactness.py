"""Is greedy `lossless` greedy `ar`? Token for token on the bundled model, in float64, float32 and bfloat16.

Prompts are windows of held-out standard-library files. A difference is printed with the margin between the AR logits of the two
tokens at that place, read in float64: in low precision a verify forward of many rows and a decode forward of one use other kernels,
and a margin below their rounding may fall either way. Run: python recipes/exactness.py [PROMPTS [TOKENS [DTYPE ...]]]
"""

import sys

import torch

from zaya_core.assets import BUNDLED
from zaya_core.data.sources import standard_library
from zaya_core.data.tokenizer import TextTokenizer
from zaya_core.engine.check import greedy_difference
from zaya_core.engine.draft import Proposals
from zaya_core.engine.request import Decoding
from zaya_core.io.checkpoint import Checkpoint
from zaya_core.model.load import load_model
from zaya_core.ops.sampling import Sampler
from zaya_core.runtime import DTYPES


def held_out_windows(tokenizer: TextTokenizer, count: int, length: int = 40) -> list[list[int]]:
    """`count` prompts of `length` tokens, spread over the held-out files."""
    ids = [tokenizer.encode(path.read_text(encoding="utf-8", errors="replace")) for path in standard_library(held_out=True)]
    rows = [row for row in ids if len(row) > 2 * length]
    windows = []
    for number in range(count):
        row = rows[number % len(rows)]
        begin = (number // len(rows)) * 37 % (len(row) - length)
        windows.append(row[begin : begin + length])
    return windows


def differences(dtype: torch.dtype, count: int, tokens: int) -> list[float]:
    """The margin, read in float64, at the first difference of every prompt that has one; three proposals a forward."""
    checkpoint = Checkpoint.open(BUNDLED)
    model = load_model(checkpoint, dtype=dtype, device=torch.device("cpu"))
    exact = load_model(checkpoint, dtype=torch.float64, device=torch.device("cpu"))
    tidar = checkpoint.config.tidar
    how = Decoding(
        tokens,
        Sampler(0.0),
        proposals=Proposals(3),
        block_length=tidar.block_length,
        forbidden=(tidar.mask_token_id,),
    )
    prompts = held_out_windows(TextTokenizer(checkpoint.path), count)
    found = (greedy_difference(model, prompt, how) for prompt in prompts)
    return [difference.read_by(exact).margin for difference in found if difference is not None]


def main(arguments: list[str]) -> int:
    """Print a line per dtype; exit 1 if float64 differs anywhere."""
    count = int(arguments[0]) if arguments else 200
    tokens = int(arguments[1]) if len(arguments) > 1 else 128
    failed = False
    for name in arguments[2:] or ["float64", "float32", "bfloat16"]:
        margins = sorted(differences(DTYPES[name], count, tokens))
        shown = ", ".join(f"{value:.1e}" for value in margins[:8]) or "none"
        print(f"{name}: {len(margins)} of {count} prompts x {tokens} tokens differ; float64 margins there: {shown}", flush=True)
        failed = failed or (name == "float64" and bool(margins))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
