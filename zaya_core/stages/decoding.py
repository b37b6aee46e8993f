"""How to decode, as options, and what they come to for a checkpoint. It knows neither prompts nor where the text goes."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from zaya_core.errors import ConfigError
from zaya_core.option import check_options, option

if TYPE_CHECKING:
    from zaya_core.data.tokenizer import TextTokenizer
    from zaya_core.engine.request import Decoding
    from zaya_core.io.checkpoint import Checkpoint

AUTO_PROPOSALS = 3  # of a seeded request without --settings: no timing may decide what it draws
DEFAULT_MIX_WEIGHT = 0.5


@dataclass(frozen=True)
class DecodingConfig:
    """Which model continues a prompt, and by which law."""

    model: Path | None = option(None, help="checkpoint directory or Hugging Face id; the bundled model by default", argument=True)
    sampler: Literal["lossless", "mix", "ar"] = option("lossless", help="exact drafts, logit mixing, or one token a forward")
    mix_weight: float | None = option(
        None, help="mix: weight of the AR logits, 0.5 by default; 1 is lossless, 0 trusts the draft", minimum=0, maximum=1
    )
    block: int | None = option(
        None, help="masks of a block, and tokens verified at once: at most the trained block (the default)", minimum=1
    )
    proposals: str = option("auto", help="blocks proposed per forward: auto (what pays here), all, or a number")
    draft_temperature: float | None = option(
        None, help="temperature of the drafts of a text that is not greedy, by default the text's own; changes no law", minimum=0
    )
    settings: Path | None = option(None, help="with --proposals auto: file of `zaya profile --save-settings`")
    max_new_tokens: int = option(256, help="tokens to generate, exactly, unless the text ends before", minimum=1, short="n")
    temperature: float | None = option(None, help="0 is greedy; generation_config.json's or 1 by default", minimum=0)
    top_k: int = option(0, help="keep the k likeliest tokens; 0 keeps all", minimum=0)
    top_p: float = option(1.0, help="keep the likeliest tokens up to this mass", above=0, maximum=1)
    min_p: float = option(0.0, help="drop tokens below this share of the likeliest one's probability", minimum=0, maximum=1)
    repetition_penalty: float = option(1.0, help="above 1: make tokens that the text already has less likely", above=0)
    stop: tuple[str, ...] = option((), help="end the text before this string; may be repeated")
    ignore_eos: bool = option(False, help="do not stop at an end-of-text token")
    logprobs: bool = option(False, help="add logprobs and sampled_logprobs to the JSON")
    return_experts: bool = option(False, help="add to the JSON which expert each layer chose for each token read, prompt included")
    seed: int | None = option(None, help="seed of the tokens; drawn anew and reported by default", minimum=0, maximum=2**62)
    device: str = option("auto", help="torch device")
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = option("auto", help="dtype of the weights in memory")

    def __post_init__(self) -> None:
        check_options(self)
        if self.proposals not in ("auto", "all") and not (self.proposals.isascii() and self.proposals.isdecimal()):
            raise ConfigError(f"--proposals is {self.proposals!r}, expected auto, all or a number")
        if self.settings is not None and self.proposals != "auto":
            raise ConfigError(f"--settings chooses where --proposals is auto, got {self.proposals}", hint="leave one of them out")
        if not all(self.stop):
            raise ConfigError("--stop is empty, expected some text")


def decoding(config: DecodingConfig, checkpoint: "Checkpoint", tokenizer: "TextTokenizer") -> "Decoding":
    """The options as the engine takes them; a ConfigError where the checkpoint cannot do what they ask."""
    from zaya_core.engine.draft import Proposals, Verifier
    from zaya_core.engine.request import Decoding

    tidar = checkpoint.config.tidar
    forbidden = set(range(checkpoint.config.vocab_size)) - tokenizer.known_ids
    if tidar is not None:
        forbidden.add(tidar.mask_token_id)
    common = {
        "max_new_tokens": config.max_new_tokens,
        "sampler": _sampler(config, checkpoint.generation_config()),
        "end_ids": frozenset() if config.ignore_eos else _end_ids(checkpoint),
        "forbidden": tuple(sorted(forbidden)),
        "return_experts": config.return_experts,
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
        block_length=config.block or tidar.block_length,
        draft_temperature=config.draft_temperature,
    )


def idle_flags(config: DecodingConfig) -> list[str]:
    """Options given that this sampler does not read; accepted, so that a script can compare samplers with one set of flags."""
    given = {
        "--mix-weight": config.mix_weight is not None and config.sampler != "mix",
        "--block": config.block is not None and config.sampler == "ar",
        "--proposals": config.proposals != "auto" and config.sampler == "ar",
        "--draft-temperature": config.draft_temperature is not None and config.sampler == "ar",
        "--settings": config.settings is not None and config.sampler == "ar",
    }
    return [flag for flag, is_idle in given.items() if is_idle]


def _sampler(config: DecodingConfig, generation: dict[str, Any]) -> Any:
    from zaya_core.ops.sampling import Sampler

    temperature = config.temperature
    if temperature is None:
        temperature = 1.0 if generation.get("temperature") is None else float(generation["temperature"])
    return Sampler(
        temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        min_p=config.min_p,
        repetition_penalty=config.repetition_penalty,
    )


def _end_ids(checkpoint: "Checkpoint") -> frozenset[int]:
    ends = checkpoint.generation_config().get("eos_token_id")
    return frozenset(checkpoint.config.eos_token_ids if ends is None else ends if isinstance(ends, list) else [ends])


def _mix_weight(config: DecodingConfig) -> float:
    if config.sampler == "lossless":
        return 1.0
    return DEFAULT_MIX_WEIGHT if config.mix_weight is None else config.mix_weight


def _proposal_count(text: str) -> int | None:
    if text == "all":
        return None
    return AUTO_PROPOSALS if text == "auto" else int(text)
