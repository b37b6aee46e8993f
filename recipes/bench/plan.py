"""The memory that `--dry-run` plans for a training run, against what the run really takes.

    python recipes/bench/plan.py                                             every case
    python recipes/bench/plan.py OBJECTIVE CHECKPOINTING DTYPE RANKS [SAVE_EVERY]     one

Each case trains for three steps in processes of its own; measured is the highest sum of anonymous and shared pages of any rank
(not the pages of files, which the kernel drops at will), looked at every 5 ms. With saves, what a save holds is planned too.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from zaya_core.assets import BUNDLED
from zaya_core.config import Tidar
from zaya_core.data.tokenizer import TextTokenizer
from zaya_core.io.checkpoint import write_checkpoint
from zaya_core.model.init import random_tensors
from zaya_core.presets import PRESETS
from zaya_core.train.plan import Work, memory_of

CONFIG = PRESETS["mini"].with_changes(
    hidden_size=512, moe_intermediate_size=512, vocab_size=16384, head_dim=64, router_hidden_size=128, tidar=Tidar(16, 4)
)
STEPS, SEQ_LEN, ROWS, NO_SAVES = 3, 1024, 2, 1000
CASES = (
    ("tidar", "none", "float32", 1, NO_SAVES),
    ("tidar", "none", "bfloat16", 1, NO_SAVES),
    ("tidar", "selective", "bfloat16", 1, NO_SAVES),
    ("tidar", "full", "float32", 1, NO_SAVES),
    ("tidar", "full", "bfloat16", 1, NO_SAVES),
    ("ar", "none", "float32", 1, NO_SAVES),
    ("ar", "none", "bfloat16", 1, NO_SAVES),
    ("ar", "full", "bfloat16", 1, NO_SAVES),
    ("tidar", "none", "float32", 2, NO_SAVES),
    ("tidar", "full", "bfloat16", 2, NO_SAVES),
    ("ar", "none", "bfloat16", 2, NO_SAVES),
    ("tidar", "full", "float32", 1, 1),
    ("tidar", "none", "bfloat16", 2, 1),
)


def main(cases: tuple[tuple[str, str, str, int, int], ...]) -> None:
    """One JSON line a case."""
    with tempfile.TemporaryDirectory() as work:
        model = written_model(Path(work))
        for case in cases:
            planned, found = planned_bytes(*case), measured_bytes(model, Path(work), *case)
            line = {"case": case, "planned_gb": round(planned / 1e9, 3), "measured_gb": round(found / 1e9, 3)}
            print(json.dumps(line | {"ratio": round(planned / found, 3)}), flush=True)


def written_model(work: Path) -> Path:
    """A random checkpoint in `work`, and text.txt beside it to train on."""
    model = work / "model"
    model.mkdir()
    tensors = random_tensors(CONFIG, seed=0, dtype=torch.float32)
    write_checkpoint(model, config=CONFIG, tensors=tensors, dtype=torch.float32, certificate={"stage": "init"}, generation={})
    TextTokenizer(BUNDLED).copy_to(model)
    (work / "text.txt").write_text(" ".join(str(number * number) for number in range(20_000)))
    return model


def planned_bytes(objective: str, checkpointing: str, dtype: str, ranks: int, save_every: int) -> float:
    """Of the rank that needs most."""
    parts = memory_of(CONFIG, Work(objective, SEQ_LEN, ROWS // ranks, 1, STEPS, dtype, "adamw", checkpointing, world=ranks))
    return parts["total_bytes"] + (parts["save_bytes"] if save_every < STEPS else 0)


def measured_bytes(model: Path, work: Path, objective: str, checkpointing: str, dtype: str, ranks: int, save_every: int) -> int:
    """Of a run's hungriest process."""
    launch = ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"] if ranks > 1 else []
    out = work / "-".join((objective, checkpointing, dtype, str(ranks), str(save_every)))
    options = {
        "objective": objective,
        "gradient-checkpointing": checkpointing,
        "dtype": dtype,
        "data": work / "text.txt",
        "seq-len": SEQ_LEN,
        "batch-size": ROWS // ranks,
        "max-steps": STEPS,
        "save-every": save_every,
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    process = subprocess.Popen(
        [sys.executable, "-m", *launch, "zaya_cli", "midtrain", str(model), str(out), *flags, "-q"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    peak = 0
    while process.poll() is None:
        peak = max([peak, *map(own_bytes, (process.pid, *children(process.pid)))])
        time.sleep(0.005)
    if process.returncode:
        raise SystemExit(process.stderr.read().decode())
    return peak


def children(pid: int) -> list[int]:
    """A torchrun's workers."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def own_bytes(pid: int) -> int:
    """Anonymous and shared pages of a process that may have ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon:", "RssShmem:")))


if __name__ == "__main__":
    given = sys.argv[1:]
    main(((*given[:3], int(given[3]), int((given[4:] or [NO_SAVES])[0])),) if given else CASES)
