"""Writes recipes/data/heldout.jsonl: fifty prompts from standard-library files that no training run here reads.

Made once and committed, so that figures stay comparable; the text is Python's own (PSF licence).
Run: python recipes/heldout_prompts.py
"""

import json
from pathlib import Path

from zaya_core.data.sources import standard_library

OUT = Path(__file__).parent / "data" / "heldout.jsonl"
COUNT, CHARACTERS = 50, 600


def prompts() -> list[str]:
    """Windows of whole lines, spread evenly over the held-out files."""
    # Code tables of encodings/ are near copies of one another, trained siblings included.
    paths = [path for path in standard_library(held_out=True) if path.parent.name != "encodings"]
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in paths]
    long_enough = [text for text in texts if len(text) > 4 * CHARACTERS]
    found = []
    for number in range(COUNT):
        text = long_enough[number % len(long_enough)]
        begin = text.index("\n", (number // len(long_enough)) * len(text) // 4) + 1
        found.append(text[begin : text.index("\n", begin + CHARACTERS) + 1])
    return found


if __name__ == "__main__":
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts()), encoding="utf-8")
