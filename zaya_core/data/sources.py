"""Rows out of files: text, folders, JSONL (also .gz, .zst), parquet, a hub's datasets, and the interpreter's own standard library.

A bad row is a DataError that starts with file:line. Order is the sorted order of paths, so it is the same everywhere.
"""

import gzip
import io
import json
import os
import re
import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from zaya_core.errors import DataError

TEXT_SUFFIXES = {".txt", ".md", ".rst", ".py", ".text"}
ROW_SUFFIXES = {".jsonl", ".parquet"}
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(#[\w.-]+)?")
Row = tuple[str, dict[str, Any]]  # where it stands, for errors; and the row
STDLIB, STDLIB_HELD_OUT = "stdlib", "stdlib-held-out"
LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can spell one (\ud800), UTF-8 cannot hold it
HELD_OUT_SHARE = 20  # one file in twenty


def read_rows(source: str) -> Iterator[Row]:
    """Rows of one `--data` value, each with its place: a path, `stdlib` / `stdlib-held-out`, or a dataset's id ORG/NAME[#SPLIT]."""
    if source in (STDLIB, STDLIB_HELD_OUT):
        for path in standard_library(held_out=source == STDLIB_HELD_OUT):
            yield str(path), {"text": path.read_text(encoding="utf-8", errors="replace")}
        return
    files = source_files(source)
    if files is None:
        yield from _read_hub(source)
        return
    for path in files:
        if _suffix(path) in ROW_SUFFIXES:
            yield from _read_parquet(path) if path.suffix == ".parquet" else _read_jsonl(path)
        else:
            yield str(path), {"text": _read_text(path)}


def read_documents(source: str) -> Iterator[str]:
    """The texts of a source that holds nothing else, or its prompts with their completions."""
    for place, row in read_rows(source):
        parts = [row.get(key) for key in (("text",) if "text" in row else ("prompt", "completion"))]
        if not all(isinstance(part, str) for part in parts):
            raise DataError(f'{place}: expected an object with a string "text", or with a "prompt" and a "completion"')
        yield "".join(parts)


def source_files(source: str) -> list[Path] | None:
    """The files of a `--data` value in order; None if it is a dataset's id."""
    path = Path(source)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if _suffix(p) in TEXT_SUFFIXES | ROW_SUFFIXES and p.is_file())
        if not files:
            raise DataError(f"{path} has no {', '.join(sorted(TEXT_SUFFIXES | ROW_SUFFIXES))} file")
        return files
    if path.is_file():
        return [path]
    if HUB_ID.fullmatch(source):
        return None
    raise DataError(f"--data {source} does not exist", hint=f"a file, a folder, {STDLIB}, {STDLIB_HELD_OUT} or a dataset's id")


def weighted(source: str) -> tuple[str, float | None]:
    """PATH:WEIGHT in its parts; a path that exists as it is written has no weight."""
    name, colon, number = source.rpartition(":")
    if not colon or Path(source).exists():
        return source, None
    try:
        weight = float(number)
    except ValueError:
        return source, None
    if not 0 < weight < float("inf"):
        raise DataError(f"--data {source}: the weight is {number}, expected a number above 0")
    return name, weight


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


def read_jsonl(path: Path, flag: str) -> Iterator[Row]:
    """The objects of a .jsonl that an option named `flag` gives."""
    if not path.is_file():
        raise DataError(f"{flag} {path} is not a file")
    return _read_jsonl(path)


def _suffix(path: Path) -> str:
    """The suffix, less that of a compression that we read."""
    return Path(path.stem).suffix if path.suffix in (".gz", ".zst") else path.suffix


def _opened(path: Path) -> BinaryIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    if path.suffix == ".zst":
        return io.BufferedReader(_Unzstd(path))
    return open(path, "rb")


class _Unzstd(io.RawIOBase):
    """A .zst read through; unlike zstandard's own reader it sees that a file is cut."""

    def __init__(self, path: Path) -> None:
        import zstandard

        self._file = open(path, "rb")  # noqa: SIM115
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._ready = b""

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill what fits; 0 at the end of a whole file."""
        while not self._ready:
            packed = self._file.read(2**16)
            if not packed:
                if not self._frame.eof:
                    raise EOFError("the file ends inside a frame")
                return 0
            self._ready = self._frame.decompress(packed)
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def close(self) -> None:
        """And the file under it."""
        self._file.close()
        super().close()


def _read_jsonl(path: Path) -> Iterator[Row]:
    """Objects, line by line, compressed or not."""
    with _opened(path) as file:
        for number, line in enumerate(_lines(path, file), 1):
            if not line.strip():
                continue
            try:
                text = line.decode("utf-8")
                row = json.loads(text)
            except UnicodeDecodeError as error:
                raise DataError(f"{path}:{number}: byte {error.start} of the line is not UTF-8") from error
            except json.JSONDecodeError as error:
                raise DataError(f"{path}:{number}: not JSON: {error.msg}") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}:{number}: {type(row).__name__}, expected an object")
            if "\\ud" in text.lower() and LONE_SURROGATE.search(json.dumps(row, ensure_ascii=False)):
                raise DataError(f"{path}:{number}: the text has half a surrogate pair, which is no character")
            yield f"{path}:{number}", row


def _lines(path: Path, file: BinaryIO) -> Iterator[bytes]:
    try:
        yield from file
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} is damaged or cut: {error}") from error
    except Exception as error:
        if type(error).__module__.startswith("zstandard"):  # imported only where a .zst is read
            raise DataError(f"{path} is damaged or cut: {error}") from error
        raise


def _read_parquet(path: Path) -> Iterator[Row]:
    from datasets import load_dataset

    try:
        rows = load_dataset("parquet", data_files=str(path), split="train", streaming=True)
        yield from ((f"{path}:{number}", row) for number, row in enumerate(rows, 1))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a parquet file: {str(error).splitlines()[0]}") from error


def _read_hub(source: str) -> Iterator[Row]:
    """Streamed, so that nothing is downloaded whole; HF_HUB_OFFLINE and HF_DATASETS_OFFLINE are the library's own."""
    from datasets import load_dataset

    name, _, split = source.partition("#")
    try:
        rows = load_dataset(name, split=split or "train", streaming=True)
    except Exception as error:  # the library raises a type of its own for each way to be out of reach
        hint = "is it a path that does not exist, or is the hub out of reach?"
        raise DataError(f"--data {source} cannot be had: {str(error).splitlines()[0]}", hint=hint) from error
    yield from ((f"{source}:{number}", row) for number, row in enumerate(rows, 1))
