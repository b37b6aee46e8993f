"""Files that are whole or absent: written aside, fsynced, renamed."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from zaya_core.errors import CheckpointError, RunError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or CheckpointError naming the file and the place."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds {type(values).__name__}, expected an object")
    return values


def write_text(path: Path, text: str) -> None:
    """Replace `path` atomically."""
    aside = path.with_name(path.name + ".partial")
    with open(aside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    sync_directory(path.parent)


def write_json(path: Path, values: Any) -> None:
    """Replace `path` atomically with indented JSON."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def check_writable(out: Path, *, overwrite: bool) -> None:
    """Refuse to write over something: a file, or a directory with anything in it but a killed run's *.partial."""
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out} is a file, expected a directory to write")
    if out.is_dir() and any(path.suffix != ".partial" for path in out.iterdir()) and not overwrite:
        raise CheckpointError(f"{out} is not empty", hint="choose another directory or give --overwrite")


@contextmanager
def publish(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield `out.partial` to fill; on success it becomes `out` in one rename, on any error it is removed.

    A kill leaves at most `out.partial`, which nobody opens and the next run clears.
    """
    out = out.absolute()  # "." has no name to put ".partial" behind
    check_writable(out, overwrite=overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(out.name + ".partial")
    _clear(aside)
    aside.mkdir()
    try:
        yield aside
        _sync_tree(aside)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk in a type of its own
        shutil.rmtree(aside, ignore_errors=True)
        reason = getattr(error, "strerror", None) or error
        raise RunError(f"writing {out} failed: {reason}", hint="nothing was left behind") from error
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    _put_in_place(aside, out)


def _put_in_place(new: Path, out: Path) -> None:
    """One rename, or two over something old: between them `out` is absent, never half-written."""
    if out.exists():
        _set_aside(out)
    os.rename(new, out)
    sync_directory(out.parent)
    _clear(_old(out))


def remove(directory: Path) -> None:
    """Delete a directory, which is whole or absent: it is renamed first, so that a kill leaves no half of it under its name."""
    directory = directory.absolute()
    _set_aside(directory)
    _clear(_old(directory))


def _set_aside(directory: Path) -> None:
    _clear(_old(directory))
    os.rename(directory, _old(directory))


def _old(directory: Path) -> Path:
    return directory.with_name(directory.name + ".old.partial")


def _clear(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)


def _sync_tree(root: Path) -> None:
    for path in root.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            sync_directory(path)
    sync_directory(root)


def sync_directory(path: Path) -> None:
    """Make renames inside `path` durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
