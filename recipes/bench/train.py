"""Training speed: our AR step against transformers' own ZAYA, and our TiDAR step against our AR step.

    python recipes/bench/train.py [--preset mini] [--seq-len 1024] [--batch-size 4] [--dtype float32] [--rounds 5]

Same random weights, rows, dtype (bfloat16 is autocast over float32 master weights in both), clipping and AdamW. Each contender has
a process of its own, with torch's defaults but for what it says; ours keeps freed pages, as its trainer does, and a second line
gives transformers the same. They take turns, `rounds` times each after a warm-up; medians and ratios are printed. Nothing else
may run meanwhile.
"""

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch
from transformers import ZayaConfig, ZayaForCausalLM

from zaya_core.config import ModelConfig, Tidar
from zaya_core.data.packing import Batch
from zaya_core.model.init import random_tensors
from zaya_core.presets import PRESETS
from zaya_core.runtime import keep_freed_pages
from zaya_core.train.objective import Objective, backward
from zaya_core.train.optim import make_optimizer

WARM_UP = 5  # rounds: memory and the libraries' programs settle
RIVAL, RIVAL_KEEPS, OURS, TIDAR = "transformers, AR", "the same, pages kept", "zaya, AR", "zaya, TiDAR"


def main() -> None:
    """Start the contenders, take turns, print."""
    options = parse()
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for name in (RIVAL, RIVAL_KEEPS, OURS, TIDAR):
        pipes[name], theirs_end = context.Pipe()
        processes.append(context.Process(target=contend, args=(name, options, theirs_end), daemon=True))
        processes[-1].start()
    seconds: dict[str, list[float]] = {name: [] for name in pipes}
    for round_number in range(options.rounds + WARM_UP):
        for name, pipe in pipes.items():
            pipe.send(None)
            value = pipe.recv()
            if round_number >= WARM_UP:
                seconds[name].append(value)
    for process in processes:
        process.kill()
    median = {name: statistics.median(values) for name, values in seconds.items()}
    num_tokens, threads = options.batch_size * options.seq_len, torch.get_num_threads()
    print(f"preset {options.preset}, {options.batch_size} x {options.seq_len} tokens, {options.dtype}, {threads} threads")
    for name, value in median.items():
        spread = (max(seconds[name]) - min(seconds[name])) / value
        print(f"  {name:20} {value * 1e3:8.1f} ms  {num_tokens / value:8.0f} clean tokens/s  spread {spread:.0%}")
    print(f"  AR, ours over transformers' tokens/s: {median[RIVAL] / median[OURS]:.2f}")
    print(f"  AR, ours over transformers' with pages kept: {median[RIVAL_KEEPS] / median[OURS]:.2f}")
    print(f"  TiDAR step over AR step: {median[TIDAR] / median[OURS]:.2f}")


def contend(name: str, options: argparse.Namespace, pipe: Connection) -> None:
    """A contender's process: a step and its seconds for every message."""
    if name != RIVAL:
        keep_freed_pages()
    config = PRESETS[options.preset]
    weights = dict(random_tensors(config, seed=0, dtype=torch.float32))
    torch.manual_seed(0)
    token_ids = torch.randint(16, config.vocab_size, (options.batch_size, options.seq_len))
    if name in (RIVAL, RIVAL_KEEPS):
        step = theirs(config, weights, token_ids, options.dtype)
    else:
        step = ours(config, weights, token_ids, options.dtype, "ar" if name == OURS else "tidar")
    while True:
        pipe.recv()
        began = time.perf_counter()
        step()
        pipe.send(time.perf_counter() - began)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="mini", choices=PRESETS)
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def ours(config: ModelConfig, weights: dict, token_ids: torch.Tensor, dtype: str, objective: str) -> Callable[[], None]:
    """One optimizer step of zaya."""
    from zaya_core.model import Zaya

    model = Zaya(config.with_changes(tidar=Tidar(16, 4)))
    missing = model.load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys, missing
    assert set(missing.missing_keys) <= {"lm_head.weight"}, missing
    optimizer = make_optimizer(model, kind="adamw", lr=1e-4, weight_decay=0.1)
    rows, length = token_ids.shape
    position = torch.arange(length).expand(rows, -1)
    batch = Batch(token_ids, torch.zeros_like(token_ids), position, torch.full_like(position, 3), torch.ones(rows, length))
    goal = Objective(objective)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            backward(model, [batch], goal)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def theirs(config: ModelConfig, weights: dict, token_ids: torch.Tensor, dtype: str) -> Callable[[], None]:
    """The same step of transformers' model, with its own loss."""
    values = {key: value for key, value in config.to_json().items() if key not in ("architectures", "model_type")}
    model = ZayaForCausalLM(ZayaConfig(**values))
    missing = model.load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys, missing
    assert set(missing.missing_keys) <= {"lm_head.weight"}, missing
    model.train()
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=True)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = model(input_ids=token_ids, labels=token_ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


if __name__ == "__main__":
    sys.exit(main())
