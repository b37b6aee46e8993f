"""A .jsonl that grows in order while its lines are made out of order, by one process or several, any of which may be killed.

    y.jsonl             lines 0..k - 1, in order
    y.jsonl.run.json    what is being made: written first, compared by every rerun, kept
    y.jsonl.part-R      lines that process R made ahead of their turn; gone when all are in place

Invariant: a line that was written is never made again and never stands twice. A line cut by a kill is no line: it is cut off.
Alone, a process moves lines into place as their turn comes; of several, the last to finish does it. It does not know what a line
says but for its number, "index".
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from zaya_core.errors import ConfigError, RunError
from zaya_core.io.files import read_json, sync_directory

Place = tuple[Path, int, int]  # a line: its file, offset and bytes


class ResultsFile:
    """`total` lines at `path`, made by process `rank` of `world`; a context that holds this process's part."""

    def __init__(self, path: Path, *, total: int, rank: int = 0, world: int = 1) -> None:
        self.path, self.total, self.rank, self.world = path, total, rank, world
        self.run = beside(path, "run.json")
        self.part = beside(path, f"part-{rank}")
        self.num_placed = 0
        self._ahead: dict[int, Place] = {}
        self._file: BinaryIO | None = None

    def __enter__(self) -> "ResultsFile":
        self._file = open(self.part, "ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise RunError(f"{self.path} is being written by another process") from error
        _cut_torn(self.part)
        self._file.seek(0, os.SEEK_END)
        with self._all_locked():
            self._read()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        self._file.close()

    @property
    def num_done(self) -> int:
        """Lines that exist, in place or ahead."""
        return self.num_placed + len(self._ahead)

    def missing(self) -> Iterator[int]:
        """The numbers of the lines that are this process's to make."""
        return (n for n in range(self.num_placed, self.total) if n % self.world == self.rank and n not in self._ahead)

    def write(self, values: dict[str, Any]) -> None:
        """One finished line, by its "index"."""
        assert self._file is not None
        line = json.dumps(values).encode() + b"\n"
        offset = self._file.tell()
        self._file.write(line)
        self._file.flush()
        self._ahead[values["index"]] = (self.part, offset, len(line))
        if self.world == 1:
            self._place()

    def finish(self) -> bool:
        """Put all lines in place if all are there; False while other processes have some to make."""
        with self._all_locked():
            self._read()
            if self.num_done < self.total:
                return False
            self._place()
            with open(self.path, "ab") as file:
                os.fsync(file.fileno())
            for part in self._parts():
                part.unlink(missing_ok=True)
            sync_directory(self.path.absolute().parent)
            return True

    def _place(self) -> None:
        """Move the lines whose turn has come."""
        if self.num_placed not in self._ahead:
            return
        with open(self.path, "ab") as file:
            while self.num_placed in self._ahead:
                file.write(_read_line(*self._ahead.pop(self.num_placed)))
                self.num_placed += 1

    def _read(self) -> None:
        """What is there."""
        self.path.touch()
        _cut_torn(self.path)
        last, self.num_placed = b"", 0
        with open(self.path, "rb") as file:
            for line in file:
                last, self.num_placed = line, self.num_placed + 1
        if last and json.loads(last).get("index") != self.num_placed - 1:
            raise RunError(f"{self.path}:{self.num_placed}: expected index {self.num_placed - 1}; lines were taken out or put in")
        self._ahead = {number: place for part in self._parts() for number, place in _lines(part) if number >= self.num_placed}

    def _parts(self) -> list[Path]:
        return sorted(self.path.absolute().parent.glob(f"{self.path.name}.part-*"))

    @contextmanager
    def _all_locked(self) -> Iterator[None]:
        """No other process reads or moves lines meanwhile."""
        with open(self.run, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def claim(path: Path, settings: dict[str, Any], *, free: frozenset[str] = frozenset(), flag: str = "--output") -> dict[str, Any]:
    """The settings that the lines of `path` are made with: these, or those of the run that began it, which must be the same.

    Where a setting of `free` differs the older one holds; `flag` is what named the place. A file that no run began, and
    other settings, are a ConfigError.
    """
    run = beside(path, "run.json")
    settings = json.loads(json.dumps(settings))
    if not run.exists():
        if path.exists() and path.stat().st_size:
            raise ConfigError(f"{path} exists, and no run of this command began it", hint="choose another or give --overwrite")
        path.parent.mkdir(parents=True, exist_ok=True)
        _create(run, settings)
    begun = read_json(run)
    differing = [key for key in settings | begun if key not in free and settings.get(key) != begun.get(key)]
    if differing:
        shown = "; ".join(f"{key} was {begun.get(key)!r} and is {settings.get(key)!r}" for key in differing)
        raise ConfigError(f"{path} was begun with another config: {shown}", hint=f"choose another {flag} or give --overwrite")
    return settings | {key: begun[key] for key in free if key in begun}


def discard(path: Path) -> None:
    """Delete the lines at `path` and all that belongs to them, what they were made with last."""
    for pattern in ("part-*", "*.partial"):
        for part in path.absolute().parent.glob(f"{path.name}.{pattern}"):
            part.unlink()
    path.unlink(missing_ok=True)
    beside(path, "run.json").unlink(missing_ok=True)


def beside(path: Path, suffix: str) -> Path:
    """`y.jsonl` -> `y.jsonl.SUFFIX`."""
    return path.with_name(f"{path.name}.{suffix}")


def _create(path: Path, values: dict[str, Any]) -> None:
    """Write a file that is whole or absent, and is the first's where several processes try."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.partial")
    aside.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    try:
        os.link(aside, path)
    except FileExistsError:
        pass
    finally:
        aside.unlink()


def _cut_torn(path: Path) -> None:
    """Cut off what stands after the last newline."""
    with open(path, "rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            begin = max(0, end - 2**16)
            file.seek(begin)
            newline = file.read(end - begin).rfind(b"\n")
            if newline >= 0:
                end = begin + newline + 1
                break
            end = begin
        file.truncate(end)


def _lines(part: Path) -> Iterator[tuple[int, Place]]:
    """The whole lines of a part, by number."""
    offset = 0
    with open(part, "rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield json.loads(line)["index"], (part, offset, len(line))
            offset += len(line)


def _read_line(path: Path, offset: int, size: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)
