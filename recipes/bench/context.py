"""Long contexts on a CPU: the peak of memory while a long prompt is read and decoded after, against the size of its K and V.

    python -m recipes.bench.context [MODEL | --preset bench] [--lengths 4096,32768] [--tokens 32]

The text is random ids; lossless with 3 proposals, so that drafts look back over all of it, too. The peak is the resident set's,
above that of the loaded model: what is over besides K and V is the workspace of a prompt's chunk, whatever the length. Linux only.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from recipes.bench.decode import our_model
from zaya_core.assets import BUNDLED
from zaya_core.config import Tidar
from zaya_core.engine.chance import SeededChance
from zaya_core.engine.decode import decode
from zaya_core.engine.draft import Proposals
from zaya_core.engine.request import Decoding
from zaya_core.io.checkpoint import Checkpoint
from zaya_core.model.load import load_serving
from zaya_core.model.serving import ServingModel
from zaya_core.ops.sampling import Sampler
from zaya_core.presets import PRESETS
from zaya_core.runtime import keep_freed_pages


@dataclass(frozen=True)
class Taken:
    """Bytes above `rest` at the peak, bytes of K and V, and seconds of reading and for each token after."""

    peak: int
    keys_and_values: int
    read_seconds: float
    token_seconds: float


def main() -> None:
    """A line for each length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=BUNDLED, type=Path)
    parser.add_argument("--preset", choices=PRESETS)
    parser.add_argument("--lengths", default="4096,32768")
    parser.add_argument("--tokens", type=int, default=32)
    options = parser.parse_args()
    if options.preset:
        keep_freed_pages()
        model = our_model(PRESETS[options.preset].with_changes(tidar=Tidar(16, 4)))
    else:
        checkpoint = Checkpoint.open(options.model)
        model = load_serving(checkpoint, dtype=checkpoint.stored_dtype, device=torch.device("cpu"))
    rest = status("VmRSS")
    print(f"{options.preset or options.model.name}: {model.dtype}, at rest {rest / 1e9:.2f} GB")
    for length in map(int, options.lengths.split(",")):
        one = taken(model, length, tokens=options.tokens, rest=rest)
        sizes = f"peak {one.peak / 1e6:.0f} MB above rest, K and V {one.keys_and_values / 1e6:.0f} MB"
        others = f"besides them {(one.peak - one.keys_and_values) / 1e6:.0f} MB"
        times = f"read in {one.read_seconds:.1f} s, then {one.token_seconds * 1e3:.1f} ms a token"
        print(f"{length} tokens: {sizes}, {others}; {times}", flush=True)


def taken(model: ServingModel, length: int, *, tokens: int, rest: int) -> Taken:
    """Read a prompt of `length` and decode `tokens`; `rest` is the resident set before the first of all."""
    config = model.config
    assert config.tidar is not None, "this measures drafts too"
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(16, config.vocab_size, (length,), generator=generator).tolist()
    block = config.tidar.block_length
    forbidden = (config.tidar.mask_token_id,)
    how = Decoding(tokens, Sampler(1.0), proposals=Proposals(3), block_length=block, forbidden=forbidden)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    began, read = time.perf_counter(), 0.0
    for _ in decode(model, prompt, how, SeededChance(0)):
        read = read or time.perf_counter() - began
    each = (time.perf_counter() - began - read) / max(1, tokens - 1)
    bits = torch.finfo(model.dtype).bits
    kept = 2 * config.num_key_value_heads * config.head_dim * config.num_hidden_layers * (length + tokens) * bits // 8
    return Taken(status("VmHWM") - rest, kept, read, each)


def status(name: str) -> int:
    """Bytes, of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
