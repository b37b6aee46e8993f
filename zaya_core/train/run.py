"""A training run in its OUT directory: start or resume, save, and publish when done.

Until the end OUT holds `run.json` (the resolved options), metrics.jsonl and checkpoints/; its own config.json comes last, so an
unfinished run never opens as a checkpoint. metrics.jsonl holds every step once, also after a kill.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zaya_core.errors import CheckpointError, ConfigError
from zaya_core.io.checkpoint import CONFIG, RUN_IN_PROGRESS
from zaya_core.io.files import check_writable, publish, read_json, sync_directory, write_json, write_text

METRICS, CHECKPOINTS, LATEST, RESULT = "metrics.jsonl", "checkpoints", "LATEST", "result"


@dataclass(frozen=True)
class Run:
    """A training run's directory and the options that made it."""

    out: Path
    options: dict[str, Any]

    @property
    def is_finished(self) -> bool:
        """Has OUT been published?"""
        return (self.out / CONFIG).exists()

    def begin(self, *, resume: str, overwrite: bool) -> Path | None:
        """Prepare OUT and return the save to resume from, or None for a fresh start.

        `resume` is auto, never, or the path of a step directory. Options other than the run's are a ConfigError.
        """
        if not (self.out / RUN_IN_PROGRESS).exists() or (resume == "never" and overwrite):
            check_writable(self.out, overwrite=overwrite)
            if self.out.exists():
                shutil.rmtree(self.out)
            self.out.mkdir(parents=True)
            write_json(self.out / RUN_IN_PROGRESS, self.options)
            return _step_directory(resume) if resume not in ("auto", "never") else None
        if resume == "never":
            raise CheckpointError(f"{self.out} holds a run and --resume is never", hint="give --overwrite, or another OUT")
        self._check_same_options()
        return _step_directory(resume) if resume != "auto" else self.latest()

    def latest(self) -> Path | None:
        """The newest whole save."""
        saves = self._saves()
        return saves[-1] if saves else None

    def save(self, step: int, write: Callable[[Path], None], *, keep: int) -> None:
        """Publish what `write` fills as checkpoints/step-N, point LATEST at it, and drop all but the newest `keep`."""
        path = self.out / CHECKPOINTS / f"step-{step}"
        if not path.exists():
            with publish(path) as directory:
                write(directory)
        write_text(self.out / CHECKPOINTS / LATEST, path.name + "\n")
        for old in self._saves()[:-keep]:
            shutil.rmtree(old)

    def log(self, figures: dict[str, Any]) -> None:
        """Append one step's line to metrics.jsonl."""
        with open(self.out / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps(figures) + "\n")

    def trim_log(self, step: int) -> None:
        """Drop the lines past `step`, which a resumed run makes again."""
        path = self.out / METRICS
        if path.exists():
            lines = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
            write_text(path, "".join(line + "\n" for line in lines))

    @contextmanager
    def result(self) -> Iterator[Path]:
        """Yield a directory to fill; its files then move into OUT, config.json last."""
        with publish(self.out / RESULT, overwrite=True) as directory:
            yield directory
        filled = self.out / RESULT
        for name in sorted((p.name for p in filled.iterdir()), key=lambda name: name == CONFIG):
            os.replace(filled / name, self.out / name)
        sync_directory(self.out)
        filled.rmdir()

    def _saves(self) -> list[Path]:
        root = self.out / CHECKPOINTS
        paths = [p for p in root.glob("step-*") if p.name.removeprefix("step-").isdigit()] if root.exists() else []
        return sorted(paths, key=lambda p: int(p.name.removeprefix("step-")))

    def _check_same_options(self) -> None:
        old = read_json(self.out / RUN_IN_PROGRESS)
        changed = [
            f"{key} was {old.get(key)!r}, now {self.options.get(key)!r}"
            for key in sorted(set(old) | set(self.options))
            if old.get(key) != self.options.get(key)
        ]
        if changed:
            hint = "give the same options, another OUT, or --resume never --overwrite"
            raise ConfigError(f"{self.out} holds a run with other options: {'; '.join(changed)}", hint=hint)


def _step_directory(name: str) -> Path:
    path = Path(name)
    if not (path / CONFIG).exists():
        raise CheckpointError(f"--resume {name} is not a saved step", hint="point at OUT/checkpoints/step-N")
    return path


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return float("inf")  # a line cut by a kill
