"""A needle in a haystack: a pass key said once in a long text of no interest, and asked for at its end."""

import random

from zaya_core.data.tokenizer import TextTokenizer
from zaya_core.errors import ConfigError

HAY = (
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
    "The river runs to the sea.",
    "A door opens and closes.",
    "Nobody remembers why.",
)
QUESTION = "What is the pass key? The pass key is"
NUM_DIGITS = 4


def needle_text(chance: random.Random, num_sentences: int) -> tuple[str, str]:
    """(text up to the question's end, the answer): the key stands after a random one of `num_sentences` sentences."""
    key = "".join(chance.choice("0123456789") for _ in range(NUM_DIGITS))
    hay = [chance.choice(HAY) for _ in range(num_sentences)]
    hay.insert(chance.randint(0, num_sentences), f"The pass key is {key}. Remember it.")
    return f"{' '.join(hay)} {QUESTION}", f" {key}."


def fits_needle(tokenizer: TextTokenizer, num_tokens: int) -> bool:
    """Has a text of `num_tokens` room for a key and its question?"""
    text, answer = needle_text(random.Random(0), 0)
    return len(tokenizer.encode(text + answer)) < num_tokens


def needle_ids(tokenizer: TextTokenizer, chance: random.Random, num_tokens: int) -> tuple[list[int], int]:
    """A text with its answer as at most `num_tokens` ids, nearly that many, and how many ids at its end are the answer's."""
    sentences = num_tokens // 4
    while True:
        text, answer = needle_text(chance, sentences)
        ids, end = tokenizer.encode(text), tokenizer.backend.encode(answer, add_special_tokens=False).ids
        if len(ids) + len(end) <= num_tokens:
            return ids + end, len(end)
        if sentences == 0:
            raise ConfigError(
                f"a needle needs {len(ids) + len(end)} tokens of this tokenizer, expected a text of that many, not {num_tokens}"
            )
        sentences = int(sentences * 0.95 * num_tokens / (len(ids) + len(end)))
