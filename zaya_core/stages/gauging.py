"""Tasks of `zaya eval` that decode nothing: likelihood of held-out text, needles found.

What was measured is kept like completions, and measured once.
"""

from collections.abc import Callable, Generator
from functools import cache
from typing import TYPE_CHECKING, Any

from zaya_core.errors import ConfigError
from zaya_core.events import Event, Note
from zaya_core.stages.answering import Examinee, read_lines, slug
from zaya_core.stages.evaluate import EvalConfig, table

if TYPE_CHECKING:
    from zaya_core.model.decoder import Zaya

ROWS, NEEDLES = 200, 50
LONGEST_NEEDLE = 2048  # where no length is given
BY_OFFSET = ("diffusion_bits_per_byte_by_offset", "acceptance_by_offset")


def measured(config: EvalConfig, examinee: Examinee, specs: list[str]) -> Generator[Event, None, list[dict[str, Any]]]:
    """A table for each task, and for likelihood one by offset too."""
    from zaya_core.data.tokenizer import TextTokenizer

    tokenizer, load, tables = TextTokenizer(examinee.checkpoint.path), cache(lambda: _network(config, examinee)), []
    for spec in specs:
        kind, _, rest = spec.partition(":")
        if kind == "needle":
            lengths = _lengths(rest, examinee.checkpoint.config.max_position_embeddings)
            make = lambda lengths=lengths: _needles(config, load(), tokenizer, lengths)  # noqa: E731
            settings = {"lengths": lengths, "num_texts": config.num_problems or NEEDLES}
        else:
            make = lambda rest=rest: _likelihood(config, load(), tokenizer, rest)  # noqa: E731
            settings = {"seq_len": config.seq_len, "num_rows": config.num_problems or ROWS}
        found = yield from _kept(config, examinee, spec, settings, make)
        named = {"model": examinee.name, "task": spec}
        if kind == "needle":
            tables.append(table("needles", "Needles found", [named | row for row in found["needles"]]))
        else:
            tables += _likelihood_tables(named, found)
    return tables


def _likelihood_tables(named: dict[str, Any], found: dict[str, Any]) -> list[dict[str, Any]]:
    flat = {key: found.get(key) for key in (*LIKELIHOOD, "acceptance_length")}
    tables = [table("likelihood", "Likelihood of held-out text", [named | flat])]
    if BY_OFFSET[0] in found:
        bits, accepted = (found[key] for key in BY_OFFSET)
        row = named | {"diffusion_bits_per_byte": bits, "acceptance": accepted}
        tables.append(table("by_offset", "One diffusion step by offset in the block, from 0; its acceptance from 1", [row]))
    return tables


LIKELIHOOD = (
    "num_rows",
    "seq_len",
    "tokens_per_byte",
    "ar_bits_per_byte",
    "ar_bits_per_byte_95%",
    "diffusion_bits_per_byte",
    "diffusion_bits_per_byte_95%",
)


def _kept(
    config: EvalConfig, examinee: Examinee, spec: str, settings: dict[str, Any], make: Callable[[], dict[str, Any]]
) -> Generator[Event, None, dict[str, Any]]:
    """The figures in the report's file, made if they are not there."""
    from zaya_core.io.results import ResultsFile, claim, discard

    path = examinee.out / f"{slug(spec)}.jsonl"
    if config.overwrite:
        discard(path)
    claim(path, {"task": spec, "dtype": config.dtype, "device": config.device} | settings, flag="--report")
    with ResultsFile(path, total=1) as file:
        for index in file.missing():
            yield Note(f"{spec}: measuring")
            file.write({"index": index} | make())
        file.finish()
    return read_lines(path)[0]


def _network(config: EvalConfig, examinee: Examinee) -> "Zaya":
    from zaya_core.model.load import load_model
    from zaya_core.runtime import pick_device, pick_dtype
    from zaya_core.train.probe import choose_attention

    checkpoint, device = examinee.checkpoint, pick_device(config.device)
    dtype = pick_dtype(config.dtype, checkpoint.stored_dtype, device, num_elements=checkpoint.num_parameters)
    model = load_model(checkpoint, dtype=dtype, device=device)
    choose_attention(model)
    return model


def _likelihood(config: EvalConfig, model: "Zaya", tokenizer: Any, rest: str) -> dict[str, Any]:
    from zaya_core.data.sources import STDLIB, STDLIB_HELD_OUT
    from zaya_core.evaluation.likelihood import likelihood

    source = STDLIB_HELD_OUT if rest == STDLIB else rest
    return likelihood(model, tokenizer, source, seq_len=config.seq_len, num_rows=config.num_problems or ROWS)


def _needles(config: EvalConfig, model: "Zaya", tokenizer: Any, lengths: list[int]) -> dict[str, Any]:
    """The answer is right where greedy decoding would give it, token for token."""
    from zaya_core.evaluation.statistics import estimate
    from zaya_core.train.needle import needles_found
    from zaya_core.train.objective import ALONE

    rows, num_texts = [], config.num_problems or NEEDLES
    for length in lengths:
        num_found = round(needles_found(model, tokenizer, length, num_texts=num_texts, ranks=ALONE) * num_texts)
        found = estimate([[1.0] * num_found + [0.0] * (num_texts - num_found)])
        rows.append({"length": length, "texts": num_texts, "found": found.value, "found_95%": [found.low, found.high]})
    return {"needles": rows}


def _lengths(text: str, context: int) -> list[int]:
    """LENGTH,... with k for 1024; by default powers of two up to the context, or LONGEST_NEEDLE."""
    if not text:
        return [length for length in (256, 512, 1024, LONGEST_NEEDLE) if length <= context] or [context]
    parts = [part.strip().lower() for part in text.split(",")]
    if not all(part.removesuffix("k").isdecimal() for part in parts):
        raise ConfigError(f"--task needle:{text}, expected lengths as in needle:2k,8k")
    lengths = [int(part.removesuffix("k")) * (1024 if part.endswith("k") else 1) for part in parts]
    if max(lengths) > context:
        raise ConfigError(f"--task needle:{text}: {max(lengths)} tokens, expected at most {context}, the model's context")
    return lengths
