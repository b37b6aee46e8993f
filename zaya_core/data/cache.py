"""Tokenised once: documents in a directory that is whole or absent, opened as mapped files.

The key is everything that the ids depend on: the files by path, size and time, the tokenizer, the template, the rules. A cache
that is deleted is made again, bit for bit.
"""

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from zaya_core.data.documents import Documents, Example
from zaya_core.data.sources import STDLIB, STDLIB_HELD_OUT, source_files, standard_library
from zaya_core.data.tokenizer import TextTokenizer
from zaya_core.io.files import publish, read_json, write_json
from zaya_core.runtime import cache_root

FORMAT = 1  # of the directory and of the rules that make it
IDS, WEIGHTS, LENGTHS, META = "token_ids.bin", "weights.bin", "lengths.npy", "meta.json"


def cache_directory(source: str, tokenizer: TextTokenizer, template: str, rules: dict[str, Any]) -> Path:
    """Where the documents of a source lie, in $ZAYA_CACHE or ~/.cache/zaya."""
    is_library = source in (STDLIB, STDLIB_HELD_OUT)
    files = standard_library(held_out=source == STDLIB_HELD_OUT) if is_library else source_files(source) or []
    known = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    digest = hashlib.sha256((tokenizer.directory / "tokenizer.json").read_bytes())
    digest.update(json.dumps([FORMAT, source, known, template, tokenizer.settings, rules], sort_keys=True).encode())
    return cache_root() / "tokens" / digest.hexdigest()[:32]


def write_documents(
    directory: Path, examples: Iterable[Example], found: Callable[[], dict[str, Any]], *, limit: int | None
) -> Iterator[int]:
    """Write examples as they come, holding none, up to about `limit` tokens, and then what was `found` on the way.

    A generator of the tokens written so far, to show progress; it writes only as it is consumed.
    """
    with _alone(directory) as is_written:
        if is_written:
            return
        yield from _written(directory, examples, found, limit)


def _written(directory: Path, examples: Iterable[Example], found: Callable[[], dict[str, Any]], limit: int | None) -> Iterator[int]:
    lengths, total, has_weights = [], 0, False
    with publish(directory, overwrite=True) as aside:
        with open(aside / IDS, "wb") as ids, open(aside / WEIGHTS, "wb") as weights:
            for example in examples:
                ids.write(np.asarray(example.token_ids, dtype=np.int32).tobytes())
                row = example.weights or [1.0] * len(example.token_ids)
                weights.write(np.asarray(row, dtype=np.float16).tobytes())
                has_weights |= example.weights is not None
                lengths.append(len(example.token_ids))
                total += lengths[-1]
                yield total
                if limit is not None and total >= limit:
                    break
        if not has_weights:
            (aside / WEIGHTS).unlink()
        np.save(aside / LENGTHS, np.asarray(lengths, dtype=np.int64))
        write_json(aside / META, found())


@contextmanager
def _alone(directory: Path) -> Iterator[bool]:
    """One process at a time; true for one that waited while another wrote the same documents."""
    locks = directory.parents[1] / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with open(locks / directory.name, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield (directory / META).exists()


def open_documents(directory: Path) -> tuple[Documents, dict[str, Any]] | None:
    """The mapped documents and their meta data; None if they are not there."""
    if not (directory / META).exists():
        return None
    lengths = np.load(directory / LENGTHS)
    ids = np.memmap(directory / IDS, dtype=np.int32, mode="r") if lengths.sum() else np.zeros(0, dtype=np.int32)
    weights = np.memmap(directory / WEIGHTS, dtype=np.float16, mode="r") if (directory / WEIGHTS).exists() else None
    return Documents(ids, weights, np.cumsum(lengths) - lengths, lengths), read_json(directory / META)
