"""Consecutive real text to decode after: windows of the held-out standard library, which no training run here reads."""

from zaya_core.data.sources import standard_library
from zaya_core.data.tokenizer import TextTokenizer


def held_out_ids(tokenizer: TextTokenizer, num_tokens: int) -> list[int]:
    """The first `num_tokens` tokens of the held-out files end to end, from the beginning again where they are too few."""
    # Code tables of encodings/ are near copies of one another, trained siblings included.
    paths = [path for path in standard_library(held_out=True) if path.parent.name != "encodings"]
    ids: list[int] = []
    for path in paths:
        ids += tokenizer.encode(path.read_text(encoding="utf-8", errors="replace"))
        if len(ids) >= num_tokens:
            break
    while len(ids) < num_tokens:
        ids += ids
    return ids[:num_tokens]


def windows(tokenizer: TextTokenizer, count: int, length: int) -> list[list[int]]:
    """`count` prompts of `length` tokens, one after another."""
    ids = held_out_ids(tokenizer, count * length)
    return [ids[number * length : (number + 1) * length] for number in range(count)]
