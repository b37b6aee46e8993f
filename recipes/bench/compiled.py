"""Would compiled layers pay? One stretch of small operations between two products, as it stands and through torch.compile.

    OMP_NUM_THREADS=1 python recipes/bench/compiled.py [SLOTS]

The stretch merges an expert's output into the stream and norms it, with serving's own code. `cold`: after 32 MB of other
memory has gone through the cache, as weights do between two such stretches. The first call of the compiled one is its compilation.
"""

import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from zaya_core.model.layers import ResidualScale, RmsNorm
from zaya_core.model.serving import Merge, Norm

WIDTH = 1024


def main() -> None:
    """Print microseconds a call."""
    slots = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    merge, norm = Merge(ResidualScale(WIDTH)), Norm(RmsNorm(WIDTH, 1e-5))

    def stretch(stream: Tensor, output: Tensor, probability: Tensor) -> tuple[Tensor, Tensor]:
        stream = merge(output * probability, stream)
        return stream, norm(stream).to(torch.bfloat16)

    given = torch.randn(slots, WIDTH), torch.randn(slots, WIDTH).bfloat16(), torch.rand(slots, 1)
    compiled = torch.compile(stretch, dynamic=False, fullgraph=True)
    began = time.perf_counter()
    compiled(*given)
    print(f"{slots} slots: compiled in {time.perf_counter() - began:.1f} s")
    for name, run in (("as it stands", stretch), ("compiled", compiled)):
        warm, cold = warm_us(lambda run=run: run(*given)), cold_us(lambda run=run: run(*given))
        print(f"{name}: {warm:.0f} us warm, {cold:.0f} us cold")


def warm_us(run: Callable[[], object]) -> float:
    """One call of many."""
    for _ in range(100):
        run()
    began = time.perf_counter()
    for _ in range(2000):
        run()
    return (time.perf_counter() - began) / 2000 * 1e6


def cold_us(run: Callable[[], object]) -> float:
    """One call, each after the cache was filled with something else."""
    other, taken = torch.ones(2**23), 0.0
    for _ in range(60):
        other.mul_(1.0)
        began = time.perf_counter()
        run()
        taken += time.perf_counter() - began
    return taken / 60 * 1e6


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
