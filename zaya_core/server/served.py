"""What is served: a checkpoint's tokens, texts and defaults, and the bounds that every request is held to. It holds no weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from zaya_core.config import ModelConfig, Tidar
from zaya_core.data.chat import ChatTemplate, chat_template
from zaya_core.data.tokenizer import TextTokenizer
from zaya_core.errors import ConfigError
from zaya_core.io.checkpoint import Checkpoint
from zaya_core.server.grammar import Grammars, Vocabulary
from zaya_core.server.refusal import MAX_QUOTED, Refusal

SEEDS = 2**62


@dataclass(frozen=True)
class Bounds:
    """What one request may ask for: `num_slots` of the K/V pool, `max_model_len` tokens of prompt and answer together."""

    max_model_len: int
    num_slots: int
    default_sampler: str


@dataclass(frozen=True)
class Served:
    """A checkpoint as clients see it. `end_ids` end a text; in a conversation the tokenizer's ends of a turn do too."""

    name: str
    config: ModelConfig
    tokenizer: TextTokenizer
    template: ChatTemplate
    bounds: Bounds
    generation: dict[str, Any]
    end_ids: frozenset[int]
    forbidden: tuple[int, ...]
    grammars: Grammars

    @property
    def turn_ends(self) -> frozenset[int]:
        """What ends the assistant's turn."""
        return self.end_ids | self.tokenizer.ending_ids

    @property
    def tidar(self) -> Tidar | None:
        """None for a plain AR checkpoint, which cannot draft."""
        return self.config.tidar

    def unknown(self, name: str) -> Refusal:
        """Another model was asked for."""
        message = f"the model {name[:MAX_QUOTED]!r} is not served, expected {self.name!r}"
        return Refusal(404, message, param="model", code="model_not_found")

    def decoded(self, token_ids: Sequence[int]) -> str:
        """Ids as they stand, special tokens too."""
        return self.tokenizer.backend.decode(list(token_ids), skip_special_tokens=False)


def pool_slots(config: ModelConfig, dtype: torch.dtype, *, max_rows: int, max_model_len: int, num_bytes: float) -> int:
    """Places of the K/V pool: enough for `max_rows` of the longest, where `num_bytes` hold as many."""
    slot_bytes = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * dtype.itemsize
    block = config.tidar.block_length if config.tidar is not None else 0
    widest = max(1, block) * (1 + block)  # a step's slots when every length is proposed for
    return max(1, min(max_rows * (max_model_len + widest), int(num_bytes / slot_bytes)))


def describe(checkpoint: Checkpoint, bounds: Bounds) -> Served:
    """Read everything but the weights."""
    tokenizer = TextTokenizer(checkpoint.path)
    config, generation = checkpoint.config, checkpoint.generation_config()
    if bounds.default_sampler != "ar" and config.tidar is None:
        raise ConfigError(f"{checkpoint.path} is autoregressive and cannot draft", hint="--sampler ar, or run zaya convert first")
    ends = generation.get("eos_token_id")
    end_ids = frozenset(config.eos_token_ids if ends is None else ends if isinstance(ends, list) else [ends])
    forbidden = set(range(config.vocab_size)) - tokenizer.known_ids
    if config.tidar is not None:
        forbidden.add(config.tidar.mask_token_id)
    usable = torch.ones(config.vocab_size, dtype=torch.bool)
    usable[sorted(forbidden)] = False
    return Served(
        name=checkpoint.path.resolve().name,
        config=config,
        tokenizer=tokenizer,
        template=chat_template(tokenizer),
        bounds=bounds,
        generation=generation,
        end_ids=end_ids,
        forbidden=tuple(sorted(forbidden)),
        grammars=Grammars(tokenizer, Vocabulary(config.vocab_size, end_ids | tokenizer.ending_ids, usable)),
    )
