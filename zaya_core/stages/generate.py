"""`zaya generate`: continue a prompt with one of the three samplers."""

import secrets
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from zaya_core.assets import BUNDLED
from zaya_core.data.sources import read_prompts
from zaya_core.errors import ConfigError, DataError
from zaya_core.events import Event, Note, Result, Text
from zaya_core.option import check_options, flag_name, option

if TYPE_CHECKING:
    from zaya_core.data.tokenizer import TextTokenizer
    from zaya_core.engine.request import Decoding
    from zaya_core.io.checkpoint import Checkpoint
    from zaya_core.model.decoder import Zaya

EXAMPLE = 'zaya generate --prompt "def main():" --sampler mix --block 16'
AUTO_PROPOSALS = 3
DEFAULT_MIX_WEIGHT = 0.5


@dataclass(frozen=True)
class GenerateConfig:
    """Options of `zaya generate`."""

    model: Path | None = option(None, help="checkpoint directory or Hugging Face id; the bundled model by default", argument=True)
    prompt: str | None = option(
        None, help="text to continue; read from stdin when neither this nor --prompt-file is given", short="p"
    )
    prompt_file: Path | None = option(None, help="file whose text is continued")
    input: Path | None = option(None, help='.jsonl of prompts, one {"prompt": TEXT} a line')
    raw: bool = option(False, help="take the text exactly as given: no BOS, no other special token is added")
    sampler: Literal["lossless", "mix", "ar"] = option("lossless", help="exact drafts, logit mixing, or one token a forward")
    mix_weight: float | None = option(
        None, help="mix: weight of the AR logits, 0.5 by default; 1 is lossless, 0 trusts the draft", minimum=0, maximum=1
    )
    block: int | None = option(None, help="tokens to verify at once, at most the trained block (the default)", minimum=1)
    proposals: str = option("auto", help=f"blocks proposed per forward: auto ({AUTO_PROPOSALS} or --settings), all, or a number")
    settings: Path | None = option(None, help="with --proposals auto: file of `zaya profile --save-settings`")
    max_new_tokens: int = option(256, help="tokens to generate, exactly, unless the text ends before", minimum=1, short="n")
    temperature: float | None = option(None, help="0 is greedy; generation_config.json's or 1 by default", minimum=0)
    top_k: int = option(0, help="keep the k likeliest tokens; 0 keeps all", minimum=0)
    top_p: float = option(1.0, help="keep the likeliest tokens up to this mass", above=0, maximum=1)
    ignore_eos: bool = option(False, help="do not stop at an end-of-text token")
    logprobs: bool = option(False, help="add logprobs and sampled_logprobs to the JSON")
    seed: int | None = option(None, help="seed of the tokens; drawn anew and reported by default", minimum=0, maximum=2**62)
    device: str = option("auto", help="torch device")
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = option("auto", help="dtype of the weights in memory")

    def __post_init__(self) -> None:
        check_options(self)
        given = [name for name in ("prompt", "prompt_file", "input") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigError(f"{' and '.join(flag_name(name) for name in given)} exclude each other")
        if self.proposals not in ("auto", "all") and not self.proposals.isdigit():
            raise ConfigError(f"--proposals is {self.proposals!r}, expected auto, all or a number")


def run(config: GenerateConfig) -> Iterator[Event]:
    """Text events as tokens become final, then one Result in the form of conventions.md."""
    from zaya_core.data.tokenizer import TextTokenizer
    from zaya_core.io.checkpoint import Checkpoint
    from zaya_core.io.hub import checkpoint_path
    from zaya_core.model.load import load_serving
    from zaya_core.runtime import pick_device, pick_dtype
    from zaya_core.stages.tuning import opened_settings, tuned

    checkpoint = Checkpoint.open(checkpoint_path(config.model) if config.model else BUNDLED)
    tokenizer = TextTokenizer(checkpoint.path)
    how = _decoding(config, checkpoint, tokenizer.known_ids)
    settings = opened_settings(config.settings if config.proposals == "auto" else None, how)
    prompts = _read_prompts(config)
    rows = [tokenizer.encode(prompt, special=not config.raw) for prompt in prompts]
    for row in rows:
        _check_room(len(row), config, checkpoint)
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, checkpoint.stored_dtype, device, num_elements=checkpoint.num_parameters)
    model = load_serving(checkpoint, dtype=dtype, device=device)
    yield Note(f"{checkpoint.path.name}: {config.sampler}, {str(dtype).removeprefix('torch.')} on {device}")
    for flag in _idle_flags(config):
        yield Note(f"{flag} has no effect with --sampler {config.sampler}")
    seed = secrets.randbelow(2**31) if config.seed is None else config.seed
    for index, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        described = {"index": index, "prompt": prompt, "seed": seed + index}
        own = tuned(how, settings, batch=1, num_prompt_tokens=len(row))
        yield from _complete(config, model, tokenizer, described, row, own)


def _complete(
    config: GenerateConfig,
    model: "Zaya",
    tokenizer: "TextTokenizer",
    described: dict[str, Any],
    prompt_ids: list[int],
    how: "Decoding",
) -> Iterator[Event]:
    """Text as it becomes final, then the Result of one prompt; `described` has its index, prompt and seed."""
    from zaya_core.data.stream import TextStream
    from zaya_core.engine.chance import SeededChance
    from zaya_core.engine.decode import decode
    from zaya_core.engine.report import Tally

    index, tally, stream, finals = described["index"], Tally(), TextStream(tokenizer), []
    began = first_at = time.perf_counter()
    for committed in decode(model, prompt_ids, how, SeededChance(described["seed"])):
        first_at = first_at if finals else time.perf_counter()
        tally.add(committed)
        finals += committed.finals
        yield Text(stream.push([final.token_id for final in committed.finals]), index)
    decode_seconds = time.perf_counter() - first_at
    yield Text(stream.finish(), index)
    counted = tally.stats(block_length=how.verify_length, prefill_seconds=first_at - began, decode_seconds=decode_seconds)
    values = described | {
        "text": stream.text,
        "token_ids": [final.token_id for final in finals],
        "finish_reason": committed.finish_reason,
    }
    if config.logprobs:
        values |= {"logprobs": [f.logprob for f in finals], "sampled_logprobs": [f.sampled_logprob for f in finals]}
    stats = {"sampler": config.sampler, "num_prompt_tokens": len(prompt_ids)} | counted | _machine(model)
    yield Result(values | {"stats": stats})


def _machine(model: "Zaya") -> dict[str, Any]:
    from zaya_core.runtime import peak_memory_bytes

    dtype = str(model.dtype).removeprefix("torch.")
    return {"batch_size": 1, "dtype": dtype, "device": str(model.device), "peak_memory_bytes": peak_memory_bytes(model.device)}


def _decoding(config: GenerateConfig, checkpoint: "Checkpoint", known_ids: frozenset[int]) -> "Decoding":
    from zaya_core.engine.draft import Proposals, Verifier
    from zaya_core.engine.request import Decoding
    from zaya_core.ops.sampling import Sampler

    generation = checkpoint.generation_config()
    ends = generation.get("eos_token_id")
    ends = frozenset(checkpoint.config.eos_token_ids if ends is None else ends if isinstance(ends, list) else [ends])
    temperature = config.temperature
    if temperature is None:
        temperature = 1.0 if generation.get("temperature") is None else float(generation["temperature"])
    tidar = checkpoint.config.tidar
    forbidden = set(range(checkpoint.config.vocab_size)) - known_ids
    if tidar is not None:
        forbidden.add(tidar.mask_token_id)
    common = {
        "max_new_tokens": config.max_new_tokens,
        "sampler": Sampler(temperature, config.top_k, config.top_p),
        "end_ids": frozenset() if config.ignore_eos else ends,
        "forbidden": tuple(sorted(forbidden)),
    }
    if tidar is not None and config.block is not None and config.block > tidar.block_length:
        raise ConfigError(f"--block is {config.block}, expected at most the trained {tidar.block_length}")
    if config.sampler == "ar":
        return Decoding(**common)
    if tidar is None:
        raise ConfigError(f"{checkpoint.path} is autoregressive and cannot draft", hint="--sampler ar, or run zaya convert first")
    return Decoding(
        **common,
        verifier=Verifier(_mix_weight(config)),
        proposals=Proposals(_proposal_count(config.proposals)),
        block_length=tidar.block_length,
        verify_length=config.block or tidar.block_length,
    )


def _idle_flags(config: GenerateConfig) -> list[str]:
    """Options given that this sampler does not read; accepted, so that a script can compare samplers with one set of flags."""
    given = {
        "--mix-weight": config.mix_weight is not None and config.sampler != "mix",
        "--block": config.block is not None and config.sampler == "ar",
        "--proposals": config.proposals != "auto" and config.sampler == "ar",
    }
    return [flag for flag, is_idle in given.items() if is_idle]


def _mix_weight(config: GenerateConfig) -> float:
    if config.sampler == "lossless":
        return 1.0
    return DEFAULT_MIX_WEIGHT if config.mix_weight is None else config.mix_weight


def _proposal_count(text: str) -> int | None:
    if text == "all":
        return None
    return AUTO_PROPOSALS if text == "auto" else int(text)


def _read_prompts(config: GenerateConfig) -> list[str]:
    if config.prompt is not None:
        return [config.prompt]
    if config.input is not None:
        return list(read_prompts(config.input))
    try:
        if config.prompt_file is not None:
            return [config.prompt_file.read_text(encoding="utf-8")]
        return [sys.stdin.read()]
    except (OSError, UnicodeDecodeError) as error:
        source = f"--prompt-file {config.prompt_file}" if config.prompt_file else "stdin"
        raise DataError(f"{source} cannot be read: {error}") from error


def _check_room(num_prompt_tokens: int, config: GenerateConfig, checkpoint: "Checkpoint") -> None:
    if num_prompt_tokens == 0:
        raise DataError("the prompt has no tokens", hint="give some text, or leave out --raw so that BOS is added")
    context = checkpoint.config.max_position_embeddings
    if num_prompt_tokens + config.max_new_tokens > context:
        raise DataError(
            f"the prompt has {num_prompt_tokens} tokens and --max-new-tokens is {config.max_new_tokens}, "
            f"expected at most {context} together, the model's context",
            hint="shorten the prompt or lower --max-new-tokens",
        )
