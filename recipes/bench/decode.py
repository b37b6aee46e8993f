"""Decoding speed: our forwards against transformers' own ZAYA with the same weights, dtype and threads, and against the roofline.

    python recipes/bench/decode.py [--preset bench] [--rounds 5] [--only ar,step,prefill,flat,memory]

`ar`: ms a token at temperature 1 after a prompt of 256. `step`: 16 draft tokens and three blocks of 16 masks after 256 tokens, and
their forward of 64 tokens on a cache; with the mask id, which routes to few experts, and with random ids. `prefill`: 4096 tokens.
`flat`: ms a token of ours early and late in one long text, less the time in attention. `memory`: anonymous and shared memory at
its peak, over the weights. Contenders take turns; medians. The roofline is bytes of touched weights and K/V over the measured
copy bandwidth, plus FLOPs over the measured bfloat16 product rate. Nothing else may run meanwhile.
"""

import argparse
import copy
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from zaya_core.config import ModelConfig, Tidar
from zaya_core.engine.batch import Engine
from zaya_core.engine.chance import SeededChance
from zaya_core.engine.decode import decode
from zaya_core.engine.request import Decoding, Request
from zaya_core.layout import template
from zaya_core.model.forms import for_serving
from zaya_core.model.init import random_tensors
from zaya_core.model.load import meta_model
from zaya_core.model.serving import ServingModel
from zaya_core.ops.sampling import Sampler
from zaya_core.presets import PRESETS
from zaya_core.runtime import keep_freed_pages

PROMPT, DRAFT, BLOCK, LEVELS, MASK = 256, 16, 16, (4, 8, 16), 4
SLOTS = DRAFT + BLOCK * len(LEVELS)
PARTS = ("ar", "step", "prefill", "flat", "memory")


def main() -> None:
    """Measure what is asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="bench", choices=PRESETS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default=",".join(PARTS))
    options = parser.parse_args()
    parts = options.only.split(",")
    config = PRESETS[options.preset].with_changes(tidar=Tidar(BLOCK, MASK))
    if "memory" in parts:
        measure_memory(config, options.preset)
    keep_freed_pages()
    bandwidth, flops = machine()
    rates = f"copy {bandwidth / 1e9:.1f} GB/s, products {flops / 1e12:.2f} TFLOP/s"
    print(f"{options.preset}: bfloat16, {torch.get_num_threads()} threads; {rates}")
    ours, theirs = our_model(config), their_model(config)
    torch.manual_seed(0)
    token_ids = torch.randint(16, config.vocab_size, (1, 4096))
    if "ar" in parts:
        measure_ar(ours, theirs, token_ids[:, :PROMPT], options.rounds, bandwidth)
    if "step" in parts:
        masked = torch.cat([token_ids[:, :DRAFT], torch.full((1, SLOTS - DRAFT), MASK)], 1)
        for name, slots in (("masks", masked), ("random ids", token_ids[:, -SLOTS:])):
            measure_step(name, ours, theirs, token_ids[:, :PROMPT], slots, options.rounds, bandwidth, flops)
    if "prefill" in parts:
        measure_prefill(ours, theirs, token_ids, options.rounds)
    if "flat" in parts:
        measure_flatness(ours, token_ids[:, :64])


def machine() -> tuple[float, float]:
    """Bytes/s of a copy of 1 GB, read and written, and FLOP/s of a bfloat16 product."""
    source = torch.ones(2**28)
    target = torch.empty_like(source)
    square = torch.randn(2048, 2048).bfloat16()
    copying, product = median(lambda: target.copy_(source), 5), median(lambda: square @ square, 5)
    return 2 * source.nbytes / copying, 2 * 2048**3 / product


def median(run: Callable[[], object], rounds: int) -> float:
    """Seconds, after one run to warm up."""
    run()
    return statistics.median(timed(run) for _ in range(rounds))


def timed(run: Callable[[], object]) -> float:
    """Seconds of one run."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def in_turns(one: Callable[[], object], other: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median seconds of both, taking turns."""
    one(), other()
    pairs = [(timed(one), timed(other)) for _ in range(rounds)]
    return statistics.median(pair[0] for pair in pairs), statistics.median(pair[1] for pair in pairs)


def our_model(config: ModelConfig) -> ServingModel:
    """The preset's random weights, laid out for decoding."""
    model = meta_model(config)
    model.load_state_dict(dict(random_tensors(config, seed=0, dtype=torch.bfloat16)), assign=True, strict=False)
    model.lm_head.weight = model.model.embed_tokens.weight
    return for_serving(model)


def their_model(config: ModelConfig) -> torch.nn.Module:
    """The same weights in transformers' network."""
    from transformers import ZayaConfig, ZayaForCausalLM

    values = {key: value for key, value in config.to_json().items() if key not in ("architectures", "model_type", "tidar")}
    model = ZayaForCausalLM(ZayaConfig(**values)).to(torch.bfloat16)
    missing = model.load_state_dict(dict(random_tensors(config, seed=0, dtype=torch.bfloat16)), strict=False)
    assert missing.missing_keys == ["lm_head.weight"], missing
    assert not missing.unexpected_keys, missing
    return model.eval().requires_grad_(False)


class OurSequence:
    """A row of ours with a prompt read; a step stages and commits nothing, so that it can be repeated."""

    def __init__(self, model: ServingModel, prompt: Tensor) -> None:
        self.model, self.pool = model, model.new_pool(8192)
        self.row = self.pool.open(8192)
        self.step(prompt, template(prompt.shape[1]), slice(-1, None))
        self.pool.commit([prompt.shape[1]])

    def step(self, slots: Tensor, step: object, read: slice, routing: list[Tensor] | None = None) -> Tensor:
        """The forward, and the logits of the slots that are read."""
        hidden = self.model(slots, self.pool.layout([(self.row, step)]), self.pool, routing)
        return self.model.logits(hidden[0, read])


def measure_ar(ours: ServingModel, theirs: torch.nn.Module, prompt: Tensor, rounds: int, bandwidth: float) -> None:
    """ms a token, of whole generations less the same with one token."""

    def their_run(tokens: int) -> None:
        theirs.generate(prompt, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=True, temperature=1.0, top_k=0, top_p=1.0)

    def our_run(tokens: int) -> None:
        how = Decoding(tokens, Sampler(1.0), forbidden=(MASK,))
        for _ in decode(ours, prompt[0].tolist(), how, SeededChance(0)):
            pass

    mine, other = in_turns(lambda: our_run(65), lambda: their_run(65), rounds)
    mine_one, other_one = in_turns(lambda: our_run(1), lambda: their_run(1), rounds)
    mine, other = (mine - mine_one) / 64, (other - other_one) / 64
    config = ours.config
    floor = bytes_of(config, config.num_hidden_layers, PROMPT + 32) / bandwidth
    print(f"ar: ours {mine * 1e3:.2f} ms a token, transformers {other * 1e3:.2f}: {other / mine:.2f}x; {reached(floor, mine)}")


def reached(floor: float, seconds: float) -> str:
    """How far from the roofline."""
    return f"roofline {floor * 1e3:.2f} ms, {floor / seconds:.0%} of it reached"


def measure_step(
    name: str,
    ours: ServingModel,
    theirs: torch.nn.Module,
    prompt: Tensor,
    slots: Tensor,
    rounds: int,
    bandwidth: float,
    flops: float,
) -> None:
    """One forward of SLOTS slots after the prompt, all logits, on both."""
    sequence = OurSequence(ours, prompt)
    step = template(DRAFT, LEVELS, BLOCK) if name == "masks" else template(SLOTS)
    cache = theirs(prompt, use_cache=True).past_key_values
    caches = iter([copy.deepcopy(cache) for _ in range(rounds + 1)])
    everything = slice(0, None)
    mine, other = in_turns(
        lambda: sequence.step(slots, step, everything), lambda: theirs(slots, past_key_values=next(caches), use_cache=True), rounds
    )
    routing: list[Tensor] = []
    sequence.step(slots, step, everything, routing)
    union = sum(len(set(choice.flatten().tolist()) - {ours.config.num_experts}) for choice in routing)
    config = ours.config
    active = 6 * config.hidden_size * config.moe_intermediate_size + 2 * (bytes_of(config, 0, 0) / 2 / config.num_hidden_layers)
    floor = bytes_of(config, union, PROMPT) / bandwidth + SLOTS * active * config.num_hidden_layers / flops
    experts = f"{union / config.num_hidden_layers:.1f} of {config.num_experts} experts"
    times = f"ours {mine * 1e3:.1f} ms, transformers {other * 1e3:.1f}: {mine / other:.2f} of it"
    print(f"step of {SLOTS} slots, {name}, {experts}: {times}; {reached(floor, mine)}")


def bytes_of(config: ModelConfig, num_experts: int, context: int) -> float:
    """Bytes that a forward reads: `num_experts` experts in all layers together, everything else once, and K/V of the context."""
    model = meta_model(config)
    experts = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
    experts /= config.num_hidden_layers * config.num_experts
    rest = sum(p.numel() for n, p in model.named_parameters() if ".experts." not in n)
    kept = 2 * config.num_key_value_heads * config.head_dim * config.num_hidden_layers * context
    return 2 * (num_experts * experts + rest + kept)


def measure_prefill(ours: ServingModel, theirs: torch.nn.Module, token_ids: Tensor, rounds: int) -> None:
    """To the first token, through the engine; theirs the forward with one row of logits."""
    how = Decoding(1, Sampler(1.0), forbidden=(MASK,))
    mine, other = in_turns(
        lambda: list(decode(ours, token_ids[0].tolist(), how, SeededChance(0))),
        lambda: theirs(token_ids, use_cache=True, logits_to_keep=1),
        rounds,
    )
    print(f"prefill of {token_ids.shape[1]}: ours {mine:.2f} s, transformers {other:.2f} s: {other / mine:.2f}x")


def measure_flatness(ours: ServingModel, prompt: Tensor) -> None:
    """One text of 4,100 tokens: the medians of 50 steps early and late, and what attention takes of them by the profiler."""
    from torch.profiler import ProfilerActivity, profile

    engine = Engine(ours, num_slots=4400, max_rows=1)
    engine.add(Request(prompt[0].tolist(), Decoding(4200, Sampler(1.0), forbidden=(MASK,)), SeededChance(0)))
    found = {}
    for number in range(4100):
        if number in (100, 4000):
            seconds = statistics.median(timed(engine.step) for _ in range(50))
            with profile(activities=[ProfilerActivity.CPU]) as profiled:
                for _ in range(10):
                    engine.step()
            attention = sum(e.cpu_time_total for e in profiled.key_averages() if "attention" in e.key) / 10 / 1e6
            found[number] = (seconds, attention)
        engine.step()
    rest = {number: seconds - attention for number, (seconds, attention) in found.items()}
    for number, (seconds, attention) in found.items():
        print(f"token {number}: {seconds * 1e3:.2f} ms, of which attention {attention * 1e3:.2f}")
    print(f"flat: without attention, token 4000 costs {rest[4000] / rest[100]:.2f} of token 100")


def measure_memory(config: ModelConfig, preset: str) -> None:
    """In a process of its own, from a checkpoint on disk."""
    from zaya_core.io.checkpoint import write_checkpoint

    with tempfile.TemporaryDirectory() as directory:
        tensors = random_tensors(config, seed=0, dtype=torch.bfloat16)
        write_checkpoint(Path(directory), config=config, tensors=tensors, dtype=torch.bfloat16, certificate={}, generation={})
        context = multiprocessing.get_context("spawn")
        mine, theirs_end = context.Pipe()
        process = context.Process(target=decode_watched, args=(directory, theirs_end))
        process.start()
        peak, base = 0, mine.recv()
        while not mine.poll():
            peak = max(peak, private_bytes(process.pid))
            time.sleep(0.002)
        weights = mine.recv()
        process.join()
    share = (peak - base) / weights
    print(f"memory: peak {peak / 1e9:.2f} GB, {base / 1e9:.2f} before loading, weights {weights / 1e9:.2f} GB: {share:.2f} of them")


def decode_watched(directory: str, pipe: multiprocessing.connection.Connection) -> None:
    """Load, and decode 32 tokens with drafts; tells memory before loading, and at the end the size of the weights."""
    import os

    from zaya_core.engine.draft import Proposals
    from zaya_core.io.checkpoint import Checkpoint
    from zaya_core.model.load import load_serving

    checkpoint = Checkpoint.open(Path(directory))
    pipe.send(private_bytes(os.getpid()))
    model = load_serving(checkpoint, dtype=torch.bfloat16, device=torch.device("cpu"))
    how = Decoding(32, Sampler(1.0), proposals=Proposals(3), block_length=BLOCK, forbidden=(MASK,))
    for _ in decode(model, list(range(20, 20 + PROMPT)), how, SeededChance(0)):
        pass
    pipe.send(2 * checkpoint.num_parameters)


def private_bytes(pid: int) -> int:
    """RssAnon + RssShmem of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon", "RssShmem")))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
