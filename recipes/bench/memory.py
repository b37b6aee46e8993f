"""Peak memory of a TiDAR step: against the same step with all 2S x V logits at once, and over the row's length.

    python recipes/bench/memory.py

Each case is a process of its own; its peak is the resident set's, less what it was before the step. Preset mini, one row, float32.
"""

import resource
import subprocess
import sys

CASES = (("chunked", 262272, 2048), ("full", 262272, 2048), *(("chunked", 4096, 1024 * 2**power) for power in range(4)))


def main() -> None:
    """Run the cases and print a line each."""
    for kind, vocab_size, seq_len in CASES:
        command = [sys.executable, __file__, kind, str(vocab_size), str(seq_len)]
        peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        print(f"{kind:8} V={vocab_size:<7} S={seq_len:<5} {peak}")


def measure(kind: str, vocab_size: int, seq_len: int) -> None:
    """One step with gradients."""
    import torch

    from zaya_core.config import Tidar
    from zaya_core.data.packing import Batch
    from zaya_core.model import Zaya
    from zaya_core.model.init import random_tensors
    from zaya_core.ops.loss import head_loss_slow
    from zaya_core.presets import PRESETS
    from zaya_core.train import objective

    if kind == "full":
        objective.head_loss = head_loss_slow
    config = PRESETS["mini"].with_changes(vocab_size=vocab_size, max_position_embeddings=8192)
    model = Zaya(config.with_changes(tidar=Tidar(16, 4)))
    model.load_state_dict(dict(random_tensors(config, seed=0, dtype=torch.float32)), strict=False)
    token_ids = torch.randint(16, vocab_size, (1, seq_len))
    position = torch.arange(seq_len)[None]
    batch = Batch(token_ids, torch.zeros_like(position), position, torch.full_like(position, 3), torch.ones(1, seq_len))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    objective.backward(model, [batch], objective.Objective("tidar"))
    print(f"{(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6:.2f} GB")


if __name__ == "__main__":
    if len(sys.argv) == 4:
        measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
