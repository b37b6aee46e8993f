"""Rows that complete code, for recipes/tiny.sh: code.py OUT.jsonl

Pieces of the standard library's files; the last three quarters of their lines are asked for.
"""

import json
import sys
from collections.abc import Iterator

from zaya_core.data.sources import STDLIB, read_documents

CHARACTERS = 1200  # of a piece: some 400 tokens


def rows() -> Iterator[dict[str, str]]:
    """Prompt and completion both end at a line's end."""
    for text in read_documents(STDLIB):
        for piece in _pieces(text.splitlines(keepends=True)):
            given = max(1, len(piece) // 4)
            yield {"prompt": "".join(piece[:given]), "completion": "".join(piece[given:])}


def _pieces(lines: list[str]) -> Iterator[list[str]]:
    """Runs of lines of about CHARACTERS; a shorter rest is left out."""
    piece: list[str] = []
    for line in lines:
        piece.append(line)
        if sum(map(len, piece)) >= CHARACTERS:
            if len(piece) > 1:
                yield piece
            piece = []


def main(out: str) -> None:
    """Write the rows."""
    with open(out, "w", encoding="utf-8") as file:
        for row in rows():
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
