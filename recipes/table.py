"""Reads `zaya generate --json` lines from files and prints one row for each: tokens per forward, tokens/s, acceptance.

Tokens per forward is (tokens - 1) / forwards after the prefill, over all prompts together; tokens/s is that of decoding.
Run: python recipes/table.py NAME=FILE ...
"""

import json
import sys
from pathlib import Path


def row(path: Path) -> tuple[float, float, int]:
    """Tokens per forward, tokens per second and the number of completions of one file."""
    stats = [json.loads(line)["stats"] for line in path.read_text(encoding="utf-8").splitlines()]
    later = sum(item["num_tokens"] - 1 for item in stats)
    forwards = sum(item["num_forwards"] for item in stats)
    if forwards == 0:
        sys.exit(f"{path}: every text ended with its first token; there is nothing to measure")
    return later / forwards, later / sum(item["decode_seconds"] for item in stats), len(stats)


def main(arguments: list[str]) -> None:
    """One line a file, the first one's speed as the unit."""
    rows = [(name, *row(Path(path))) for name, path in (argument.rsplit("=", 1) for argument in arguments)]
    print(f"{'model, sampler':28} {'tokens/forward':>14} {'tokens/s':>9} {'speed-up':>8}")
    base = rows[0][2]
    for name, per_forward, per_second, _ in rows:
        base = per_second if name.endswith(" ar") else base
        print(f"{name:28} {per_forward:14.2f} {per_second:9.1f} {per_second / base:7.2f}x")


if __name__ == "__main__":
    main(sys.argv[1:])
