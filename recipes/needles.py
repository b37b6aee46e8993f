"""Texts to learn looking back from, for recipes/context.sh: needles.py OUT.jsonl TEXTS MOST_SENTENCES | repeats

Needles: a pass key said once in at most MOST_SENTENCES sentences of no interest, and asked for at the end; their number is spread
over its logarithm. Repeats: random words said twice, of which every one of the second time can be known by looking back: on needles
alone nothing learns to copy, because all but a few of their tokens can be guessed without.
"""

import json
import random
import sys
from collections.abc import Iterator

from zaya_core.data.needle import needle_text

SYMBOLS = "abcdefghijklmnopqrstuvwxyz0123456789"


def needles(count: int, most: int) -> Iterator[str]:
    """Keys, places and hay from a seed that no check uses."""
    chance = random.Random("train")
    for _ in range(count):
        text, answer = needle_text(chance, int((most + 1) ** chance.random()) - 1)
        yield text + answer


def repeats(count: int) -> Iterator[str]:
    """Six to sixteen random words of one to four symbols, twice."""
    chance = random.Random("repeats")
    for _ in range(count):
        words = ["".join(chance.choices(SYMBOLS, k=chance.randint(1, 4))) for _ in range(chance.randint(6, 16))]
        yield " ".join(words + words)


def main(out: str, count: str, kind: str) -> None:
    """Write the texts."""
    texts = repeats(int(count)) if kind == "repeats" else needles(int(count), int(kind))
    with open(out, "w", encoding="utf-8") as file:
        for text in texts:
            file.write(json.dumps({"text": text}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
