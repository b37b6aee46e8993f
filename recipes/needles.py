"""Texts with a needle, for `zaya extend-context` to learn from: needles.py OUT.jsonl NUM_TEXTS MIN_TOKENS MAX_TOKENS [MODEL]"""

import json
import random
import sys
from pathlib import Path

from zaya_core.assets import BUNDLED
from zaya_core.data.needle import needle_ids
from zaya_core.data.tokenizer import TextTokenizer


def main(out: str, num_texts: str, shortest: str, longest: str, model: str = str(BUNDLED)) -> None:
    """Lengths are spread evenly over their logarithm; keys, places and hay come from a seed that no check uses."""
    tokenizer, chance = TextTokenizer(Path(model)), random.Random("train")
    with open(out, "w", encoding="utf-8") as file:
        for _ in range(int(num_texts)):
            length = int(int(shortest) * (int(longest) / int(shortest)) ** chance.random())
            ids, _ = needle_ids(tokenizer, chance, length)
            file.write(json.dumps({"text": tokenizer.backend.decode(ids, skip_special_tokens=True)}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
