"""Documents out of files: text, folders of text, JSONL, and the interpreter's own standard library.

A bad row is a DataError that starts with file:line. Order is the sorted order of paths, so it is the same everywhere.
"""

import json
import os
import re
import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path

from zaya_core.errors import DataError

TEXT_SUFFIXES = {".txt", ".md", ".rst", ".py", ".text"}
STDLIB, STDLIB_HELD_OUT = "stdlib", "stdlib-held-out"
LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can spell one (\ud800), UTF-8 cannot hold it
HELD_OUT_SHARE = 20  # one file in twenty


def read_documents(source: str) -> Iterator[str]:
    """Documents of one `--data` value: a path, or `stdlib` / `stdlib-held-out`."""
    if source in (STDLIB, STDLIB_HELD_OUT):
        paths = standard_library(held_out=source == STDLIB_HELD_OUT)
        yield from (path.read_text(encoding="utf-8", errors="replace") for path in paths)
        return
    path = Path(source)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix in TEXT_SUFFIXES | {".jsonl"} and p.is_file())
        if not files:
            raise DataError(f"{path} has no {', '.join(sorted(TEXT_SUFFIXES))} or .jsonl file")
    elif path.is_file():
        files = [path]
    else:
        raise DataError(f"--data {source} does not exist", hint=f"a file, a folder, {STDLIB} or {STDLIB_HELD_OUT}")
    for file in files:
        yield from _read_jsonl(file, "text") if file.suffix == ".jsonl" else [_read_text(file)]


def standard_library(*, held_out: bool) -> list[Path]:
    """This interpreter's standard library without tests and installed packages; one file in twenty is held out, by its name."""
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"test", "tests", "site-packages", "dist-packages", "__pycache__", "lib2to3", "idlelib"}
    paths = []
    for folder, inner, names in os.walk(root):
        inner[:] = [name for name in inner if name not in skipped]
        paths += [Path(folder, name) for name in names if name.endswith(".py")]
    return sorted(path for path in paths if _is_held_out(path.relative_to(root)) == held_out)


def _is_held_out(name: Path) -> bool:
    return zlib.crc32(name.as_posix().encode()) % HELD_OUT_SHARE == 0


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8") from error


def read_prompts(path: Path) -> Iterator[str]:
    """The prompts of a .jsonl of {"prompt": TEXT}."""
    if not path.is_file():
        raise DataError(f"--input {path} is not a file")
    yield from _read_jsonl(path, "prompt")


def _read_jsonl(path: Path, key: str) -> Iterator[str]:
    """The strings under `key`, row by row."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise DataError(f"{path}:{number}: byte {error.start} of the line is not UTF-8") from error
            except json.JSONDecodeError as error:
                raise DataError(f"{path}:{number}: not JSON: {error.msg}") from error
            if not isinstance(row, dict) or not isinstance(row.get(key), str):
                raise DataError(f'{path}:{number}: expected an object with a string "{key}"')
            if LONE_SURROGATE.search(row[key]):
                raise DataError(f"{path}:{number}: the text has half a surrogate pair, which is no character")
            yield row[key]
