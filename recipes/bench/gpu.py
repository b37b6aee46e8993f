"""Decoding on a GPU: is it right, and how fast is it? Random weights; one GPU; about two minutes.

    python recipes/bench/gpu.py [--preset bench] [--model DIR] [--only kernels,equal,greedy,seeds,steps,engine,theirs,profile]

In float32 without tf32: `kernels` against their oracles; `equal`: a step run, captured and replayed against the CPU's network;
`greedy`: greedy lossless against greedy ar; `seeds`: a seeded request alone, in company and on the CPU. In bfloat16: `steps`: a
forward with its laws, eager and as a graph, against the time that its bytes and FLOPs need at the rates measured here; `engine`:
whole steps of the engine, whose requests share a prompt that is read once; `theirs`: transformers' own ZAYA; `profile`: where a
step's time goes. A part that fails says so and the others go on. With $OUT set, figures also go to $OUT/gpu.jsonl.
"""

import argparse
import json
import os
import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zaya_core.config import ModelConfig, Tidar
from zaya_core.engine.batch import Engine
from zaya_core.engine.chance import SeededChance
from zaya_core.engine.check import decoded, greedy_difference
from zaya_core.engine.draft import Proposals, Verifier
from zaya_core.engine.request import Decoding, Request
from zaya_core.io.checkpoint import Checkpoint
from zaya_core.layout import side_by_side, template
from zaya_core.model.decoder import Zaya
from zaya_core.model.init import random_tensors
from zaya_core.model.load import load_model, meta_model
from zaya_core.model.serving import ServingModel
from zaya_core.model.static import StaticModel
from zaya_core.ops.sampling import Sampler
from zaya_core.presets import PRESETS
from zaya_core.profile.forward import cost_of
from zaya_core.profile.machine import timed
from zaya_core.profile.measure import Rig, Shape
from zaya_core.profile.roofline import Pace, seconds_of
from zaya_core.profile.routing import Routing
from zaya_core.runtime import pick_device

GPU, CPU = pick_device("auto"), torch.device("cpu")  # without a GPU everything runs, slowly, and proves the script alone
BLOCK, MASK, PROPOSALS = 16, 4, 3
SETTLING = 20  # steps of the engine before those that are timed: most shapes have come twice by then, and are graphs
MOST_TOKENS = (SETTLING + 30) * BLOCK  # so that nobody ends meanwhile
TIDAR = Tidar(BLOCK, MASK)


@dataclass(frozen=True)
class Bench:
    """What is timed, in bfloat16: a preset's random weights, or a checkpoint."""

    preset: str
    path: Path | None
    batches: list[int]
    contexts: list[int]

    @cached_property
    def model(self) -> StaticModel:
        """Laid out for decoding, on the GPU."""
        if self.path is not None:
            return StaticModel(load_model(Checkpoint.open(self.path), dtype=torch.bfloat16, device=GPU))
        config = PRESETS[self.preset].with_changes(tidar=TIDAR)
        return StaticModel(filled(config, dict(random_tensors(config, seed=0, dtype=torch.bfloat16, device=GPU))))


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="bench", choices=PRESETS)
    parser.add_argument("--model", type=Path, help="a checkpoint to time instead of random weights")
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--contexts", default="256,4096")
    parser.add_argument("--only", default=",".join(PARTS))
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    tell("machine", gpu=torch.cuda.get_device_name() if GPU.type == "cuda" else "none", torch=torch.__version__)
    bench = Bench(options.preset, options.model, numbers(options.batches), numbers(options.contexts))
    for name in options.only.split(","):
        began = time.perf_counter()
        try:
            PARTS[name](bench)
        except Exception as error:
            traceback.print_exc()
            tell(name, error=f"{type(error).__name__}: {str(error)[:300]}")
        print(f"-- {name}: {time.perf_counter() - began:.1f} s", flush=True)


def numbers(text: str) -> list[int]:
    """Of an option."""
    return [int(number) for number in text.split(",")]


def tell(part: str, **values: Any) -> None:
    """One line of figures, printed and kept."""
    print(
        part, *(f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in values.items()), flush=True
    )
    if "OUT" in os.environ:
        with (Path(os.environ["OUT"]) / "gpu.jsonl").open("a") as file:
            file.write(json.dumps({"part": part} | values) + "\n")


def filled(config: ModelConfig, tensors: dict[str, Tensor]) -> Zaya:
    """The network with these weights."""
    model = meta_model(config).requires_grad_(False)
    tensors = tensors | ({"lm_head.weight": tensors["model.embed_tokens.weight"]} if config.tie_word_embeddings else {})
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def noisy(config: ModelConfig) -> dict[str, Tensor]:
    """Random weights in float32 with biases and scales that are not the trivial ones, and a skip expert that some choose."""
    generator = torch.Generator().manual_seed(1)
    tensors = dict(random_tensors(config, seed=0, dtype=torch.float32))
    for name, tensor in tensors.items():
        if tensor.dim() == 1:
            tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.1)
        elif "router_mlp" not in name and "conv_qk" not in name:
            tensor.mul_(4)
        if name.endswith("balancing_biases"):
            tensor[-1].add_(1)
    return tensors


def two_models(preset: str) -> tuple[ServingModel, StaticModel]:
    """The same noisy float32 weights on the CPU and on the GPU."""
    config = PRESETS[preset].with_changes(tidar=TIDAR)
    tensors = noisy(config)
    on_gpu = {name: tensor.to(GPU) for name, tensor in tensors.items()}
    return ServingModel(filled(config, tensors)), StaticModel(filled(config, on_gpu))


def error_of(found: Tensor, wanted: Tensor) -> float:
    """Norm of the difference over the norm."""
    found, wanted = found.double().cpu(), wanted.double().cpu()
    return float((found - wanted).norm() / wanted.norm())


def check_kernels(bench: Bench) -> None:
    """Attention of ragged rows and the experts, in both dtypes, each against its oracle in float32 on the CPU."""
    from zaya_core.ops.experts import apply_experts_slow
    from zaya_core.ops.kernels import apply_experts_static, attend_spans
    from zaya_core.ops.spans import Spans, attend_spans_slow

    steps = [template(16, (4, 8, 16), BLOCK), template(1), template(2), template(100), template(5, (5,), BLOCK)]
    lengths = [0, 700, 5, 1, 1900]
    layout = side_by_side(steps, lengths)
    rows, first, begin = [], 0, 4
    for length, step in zip(lengths, steps, strict=True):
        rows.append((begin, length, first, step.position.shape[1]))
        first, begin = first + rows[-1][3], begin + length + rows[-1][3] + 3
    for tile, window, width in ((16, None, 64), (16, 64, 128), (1, None, 64)):
        tiles = [(number, slot) for number, row in enumerate(rows) for slot in range(0, row[3], tile)]
        numbers = (layout.position[0], layout.start[0], layout.block[0], torch.tensor(rows), torch.tensor(tiles))
        here, there = (Spans(*(part.to(device) for part in numbers), tile, window) for device in (CPU, GPU))
        for dtype in (torch.float32, torch.bfloat16):
            q = torch.randn(8, first, width).to(dtype)
            k, v = (torch.randn(2, begin, width).to(dtype) for _ in range(2))
            found = attend_spans(there, q.to(GPU), k.to(GPU), v.to(GPU))
            wanted = attend_spans_slow(here, *(part.float()[None] for part in (q, k, v)))[0]
            tell(
                "kernels",
                kernel="attention",
                tile=tile,
                window=window,
                width=width,
                dtype=str(dtype),
                error=error_of(found, wanted),
            )
    for dtype in (torch.float32, torch.bfloat16):
        gate_up, down = (torch.randn(shape).to(dtype) / 16 for shape in ((16, 512, 256), (16, 256, 256)))
        for count in (1, 64, 2048):
            x, choice = torch.randn(count, 256).to(dtype), torch.randint(0, 17 if count > 1 else 16, (count,))
            wanted = apply_experts_slow(x.float(), choice, gate_up.float(), down.float())
            found = apply_experts_static(x.to(GPU), choice.to(GPU), gate_up.to(GPU), down.to(GPU))
            tell("kernels", kernel="experts", tokens=count, dtype=str(dtype), error=error_of(found, wanted))


def check_equal(bench: Bench) -> None:
    """Prompts, then steps of five ragged rows; each shape three times: the first runs, the second captures, the third replays."""
    for preset in ("tiny", "mini"):
        here, there = two_models(preset)
        lengths = [100, 3, 1, 250, 40]
        pools = [network.new_pool(1600, max_rows=5) for network in (here, there)]
        rows = [[pool.open(320) for _ in lengths] for pool in pools]
        generator = torch.Generator().manual_seed(0)
        shapes = [[template(n) for n in lengths]]
        shapes += [
            [template(16, (4, 8, 16), BLOCK)] * 2 + [template(1), template(3, (1, 3), BLOCK), template(16, (16,), BLOCK)]
        ] * 3
        shapes += [[template(1)] * 5] * 3
        for number, steps in enumerate(shapes):
            slots = sum(step.position.shape[1] for step in steps)
            ids = torch.randint(16, here.config.vocab_size, (1, slots), generator=generator)
            hidden = [
                network(ids, pool.layout(list(zip(own, steps, strict=True))), pool)
                for network, pool, own in zip((here, there), pools, rows, strict=True)
            ]
            for pool in pools:
                pool.commit([step.num_clean if number == 0 else 1 for step in steps])
            # A slot that is far off chose another expert somewhere: two that an ulp decides between.
            worst = (hidden[0] - hidden[1].cpu()).abs().amax(-1)[0]
            far = int((worst > 1e-3).sum())
            tell("equal", preset=preset, forward=number, slots=slots, median_error=float(worst.median()), far=far)
        graphs = sum(program.graph is not None for program in pools[1].programs.values())
        tell("equal", preset=preset, shapes=len(pools[1].programs), graphs=graphs)


def way(new_tokens: int, *, temperature: float = 0.0, mix_weight: float | None = 1.0) -> Decoding:
    """`mix_weight` None is ar, 1 lossless."""
    plain = Decoding(new_tokens, Sampler(temperature), forbidden=(MASK,))
    if mix_weight is None:
        return plain
    proposals = Proposals(PROPOSALS)
    return replace(plain, verifier=Verifier(mix_weight), proposals=proposals, block_length=BLOCK)


def prompts(count: int, length: int, vocab_size: int) -> list[list[int]]:
    """Of random tokens."""
    return torch.randint(16, vocab_size, (count, length), generator=torch.Generator().manual_seed(length)).tolist()


def check_greedy(bench: Bench) -> None:
    """Each difference with the margin of its logits: below 1e-5 it says nothing."""
    _, there = two_models("mini")
    for prompt in prompts(4, 50, there.config.vocab_size):
        difference = greedy_difference(there, prompt, way(48))
        tell("greedy", equal=difference is None, margin=None if difference is None else difference.margin)


def check_seeds(bench: Bench) -> None:
    """The tokens of seeded requests: alone and among eight on the GPU, and on the CPU."""
    here, there = two_models("mini")
    some = prompts(8, 30, here.config.vocab_size)
    ways = [way(40, temperature=1.0, mix_weight=(1.0, 0.5, None)[number % 3]) for number in range(8)]
    alone = [decoded(there, Request(some[n], ways[n], SeededChance(n))) for n in range(3)]
    on_cpu = [decoded(here, Request(some[n], ways[n], SeededChance(n))) for n in range(3)]
    engine = Engine(there, num_slots=8 * 400, max_rows=8)
    tickets = [engine.add(Request(some[n], ways[n], SeededChance(n))) for n in range(8)]
    together: dict[int, list[int]] = {ticket: [] for ticket in tickets}
    while engine.num_rows:
        for ticket, committed in engine.step().items():
            if committed.error is not None:
                raise committed.error
            together[ticket] += [final.token_id for final in committed.finals]
    for number in range(3):
        one, cpu = ([final.token_id for final in finals[number]] for finals in (alone, on_cpu))
        tell("seeds", tokens=len(one), company_equal=one == together[tickets[number]], cpu_equal=one == cpu)


def pace() -> Pace:
    """bf16 FLOP/s and bytes/s of this GPU, as measured now."""
    source, square = torch.ones(2**29, device=GPU, dtype=torch.bfloat16), torch.randn(8192, 8192, device=GPU, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    copying, product = seconds(lambda: target.copy_(source), 10), seconds(lambda: square @ square, 10)
    return Pace(2 * 8192**3 / product, 2 * source.nbytes / copying, 0.0)


def seconds(run: Callable[[], object], rounds: int) -> float:
    """Median of runs, each waited for, after one to warm up."""
    run()
    return statistics.median(timed(run, GPU) for _ in range(rounds))


class Eager(StaticModel):
    """The same without graphs, over the same weights."""

    captures = False

    def __init__(self, model: StaticModel) -> None:
        self.__dict__ = model.__dict__


def time_steps(bench: Bench) -> None:
    """Nothing is committed; the keys and values are random. Sampling is not in it, but the rows' softmax is."""
    rates = pace()
    tell("machine", copy_bytes_per_second=rates.bandwidth, bf16_flops=rates.flops)
    graphed = bench.model
    for context in bench.contexts:
        for batch in bench.batches:
            for proposals in (0, PROPOSALS):
                shape = Shape(batch, context, proposals)
                rig = Rig(graphed, shape, BLOCK)
                rig.step(), rig.step()
                replayed = seconds(rig.step, 20)
                (program,) = rig.pool.programs.values()
                forward = seconds(program.graph.replay, 20) if program.graph is not None else float("nan")
                parts = cost_of(graphed.config, rig.described(), routing=Exactly(rig.distinct()), width=2)
                plain = seconds(Rig(Eager(graphed), shape, BLOCK).step, 5)
                floor = seconds_of(parts, rates)
                tell(
                    "steps", batch=batch, context=context, proposals=proposals, graph_ms=replayed * 1e3, forward_ms=forward * 1e3,
                    eager_ms=plain * 1e3, roofline_ms=floor * 1e3, of_roofline=floor / replayed, experts=rig.distinct(),
                )  # fmt: skip


class Exactly(Routing):
    """The number of experts that was counted."""

    def __init__(self, count: float) -> None:
        object.__setattr__(self, "count", count)

    def distinct(self, num_experts: int, clean: float, masks: float = 0.0) -> float:
        """As counted."""
        return self.count


def time_engine(bench: Bench) -> None:
    """Whole steps at temperature 1: forward, verification, drafts, events. ms a step and tokens a forward and row."""
    network = bench.model
    for context in bench.contexts:
        for batch in bench.batches:
            for name, weight in (("ar", None), ("lossless", 1.0), ("mix", 0.5)):
                how = way(MOST_TOKENS, temperature=1.0, mix_weight=weight)
                engine = Engine(network, num_slots=batch * (context + MOST_TOKENS + 300), max_rows=batch)
                (prompt,) = prompts(1, context, network.config.vocab_size)
                for number in range(batch):
                    engine.add(Request(prompt, how, SeededChance(number)))
                began = time.perf_counter()
                while any(run.draft is None for run in engine._runs.values()):
                    engine.step()
                prefill = time.perf_counter() - began
                for _ in range(SETTLING):
                    engine.step()
                times, tokens = [], 0
                for _ in range(10):
                    done: list[Any] = []
                    times.append(timed(lambda done=done, engine=engine: done.extend(engine.step().values()), GPU))
                    tokens += sum(len(committed.finals) for committed in done)
                tell(
                    "engine", sampler=name, batch=batch, context=context, step_ms=statistics.median(times) * 1e3,
                    tokens_per_forward=tokens / 10 / batch, tokens_per_second=tokens / sum(times), prefill_seconds=prefill,
                    rows=engine.num_rows,
                )  # fmt: skip


def time_theirs(bench: Bench) -> None:
    """transformers' generate: ms a token, of 40 tokens less those of 8."""
    from transformers import ZayaConfig, ZayaForCausalLM

    config = PRESETS[bench.preset]
    values = {key: value for key, value in config.to_json().items() if key not in ("architectures", "model_type", "tidar")}
    with torch.device("meta"):
        theirs = ZayaForCausalLM(ZayaConfig(**values))
    theirs = theirs.to_empty(device=GPU).to(torch.bfloat16)
    found = theirs.load_state_dict(dict(random_tensors(config, seed=0, dtype=torch.bfloat16, device=GPU)), strict=False)
    theirs.tie_weights()
    for module in theirs.modules():  # rotary buffers are not in the state, and were empty
        if hasattr(module, "inv_freq") or type(module).__name__.endswith("RotaryEmbedding"):
            module.__init__(theirs.config, device=GPU)
    tell("theirs", missing=found.missing_keys[:4], unexpected=found.unexpected_keys[:4])
    theirs = theirs.eval().requires_grad_(False)
    for context in bench.contexts:
        for batch in bench.batches:
            ids = torch.tensor(prompts(batch, context, config.vocab_size), device=GPU)

            def run(tokens: int, ids: Tensor = ids) -> None:
                theirs.generate(
                    ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=True, temperature=1.0, top_k=0, top_p=1.0
                )

            each = (seconds(lambda run=run: run(40), 1) - seconds(lambda run=run: run(8), 1)) / 32
            tell("theirs", batch=batch, context=context, step_ms=each * 1e3, tokens_per_second=batch / each)


def show_profile(bench: Bench) -> None:
    """Kernels of one uncaptured step, and their time on the GPU."""
    from torch.profiler import ProfilerActivity, profile

    for shape in (Shape(1, 256, 0), Shape(1, 4096, PROPOSALS), Shape(32, 256, PROPOSALS)):
        rig = Rig(Eager(bench.model), shape, BLOCK)
        rig.step()
        with profile(activities=[ProfilerActivity.CUDA if GPU.type == "cuda" else ProfilerActivity.CPU]) as profiled:
            rig.step()
            torch.cuda.synchronize()
        events = sorted(profiled.key_averages(), key=lambda event: -event.device_time_total)
        total = sum(event.device_time_total for event in events) / 1e3
        tell("profile", shape=str(shape), kernels=sum(event.count for event in events), total_ms=total)
        for event in events[:14]:
            print(f"   {event.device_time_total / 1e3:8.3f} ms {event.count:5d} x {event.key[:90]}", flush=True)


PARTS = {
    "kernels": check_kernels,
    "equal": check_equal,
    "greedy": check_greedy,
    "seeds": check_seeds,
    "steps": time_steps,
    "engine": time_engine,
    "theirs": time_theirs,
    "profile": show_profile,
}

if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
