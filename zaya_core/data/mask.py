"""Which id fills a masked slot: one that the vocabulary already reserves if it can be, a new row only if nothing is free."""

import re
from dataclasses import dataclass

from zaya_core.data.tokenizer import TextTokenizer
from zaya_core.errors import ConfigError

MASK_NAMES = ("<mask>", "<|mask|>", "[MASK]")
RESERVED_NAME = re.compile(r"<unused\d+>|<\|?reserved[_a-z]*\d+\|?>|\[unused\d+\]")
NEW_NAME = "<|mask|>"
ROW_MULTIPLE = 64  # a grown embedding keeps a row count that matrix products like


@dataclass(frozen=True)
class MaskChoice:
    """`token` at `token_id`; `is_new` if the tokenizer must learn it; `vocab_size` rows of the embedding after the choice."""

    token_id: int
    token: str | None
    is_new: bool
    vocab_size: int
    why: str


def choose_mask(tokenizer: TextTokenizer, vocab_size: int) -> MaskChoice:
    """A mask token by name, else a reserved one, else a row that no token uses, else a new row."""
    _check_fit(tokenizer, vocab_size)
    vocabulary = tokenizer.backend.get_vocab(with_added_tokens=True)
    for name in MASK_NAMES:
        if name in vocabulary:
            return MaskChoice(vocabulary[name], name, False, vocab_size, f"the tokenizer has {name}")
    reserved = sorted((index, name) for name, index in vocabulary.items() if RESERVED_NAME.fullmatch(name))
    if reserved:
        index, name = reserved[-1]
        return MaskChoice(index, name, False, vocab_size, f"{name} is reserved and unused")
    new_id = tokenizer.num_ids
    if new_id < vocab_size:
        return MaskChoice(new_id, NEW_NAME, True, vocab_size, f"row {new_id} of the embedding had no token")
    grown = -(-(vocab_size + 1) // ROW_MULTIPLE) * ROW_MULTIPLE
    return MaskChoice(new_id, NEW_NAME, True, grown, f"no id was free: the embedding grew from {vocab_size} to {grown} rows")


def given_mask(token_id: int, tokenizer: TextTokenizer | None, vocab_size: int) -> MaskChoice:
    """The user's choice; an id that the embedding lacks is a ConfigError."""
    if token_id >= vocab_size:
        raise ConfigError(f"--mask-token-id is {token_id}, expected below the vocabulary's {vocab_size}")
    if tokenizer is not None:
        _check_fit(tokenizer, vocab_size)
    token = tokenizer.backend.id_to_token(token_id) if tokenizer else None
    if token is not None and token not in MASK_NAMES and not RESERVED_NAME.fullmatch(token):
        hint = "a conversion would lose its embedding; give an id that no text uses"
        raise ConfigError(f"--mask-token-id is {token_id}, which the tokenizer uses for {token!r}", hint=hint)
    return MaskChoice(token_id, token, False, vocab_size, "--mask-token-id")


def _check_fit(tokenizer: TextTokenizer, vocab_size: int) -> None:
    if tokenizer.num_ids > vocab_size:
        raise ConfigError(f"the tokenizer has {tokenizer.num_ids} ids, the embedding {vocab_size} rows")
