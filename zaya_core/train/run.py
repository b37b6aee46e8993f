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
from zaya_core.io.files import check_writable, publish, read_json, remove, sync_directory, write_json, write_text

METRICS, CHECKPOINTS, LATEST, BEST, RESULT = "metrics.jsonl", "checkpoints", "LATEST", "BEST", "result"


@dataclass(frozen=True)
class Run:
    """A training run's directory and the options that made it."""

    out: Path
    options: dict[str, Any]

    @property
    def is_finished(self) -> bool:
        """Is OUT a run of ours, and published?"""
        return (self.out / RUN_IN_PROGRESS).exists() and (self.out / CONFIG).exists()

    def resume_point(self, *, resume: str, overwrite: bool) -> Path | None:
        """The save to resume from, None for a fresh start; touches nothing.

        `resume` is auto, never, or the path of one of this run's saves. Options other than the run's are a ConfigError, an OUT in
        other use a CheckpointError.
        """
        if not (self.out / RUN_IN_PROGRESS).exists() or (resume == "never" and overwrite):
            check_writable(self.out, overwrite=overwrite)
            if resume not in ("auto", "never"):
                raise CheckpointError(f"--resume is {resume}, and {self.out} holds no run", hint="resume a run in its own OUT")
            return None
        if resume == "never":
            raise CheckpointError(f"{self.out} holds a run and --resume is never", hint="give --overwrite, or another OUT")
        self._check_same_options()
        if resume == "auto":
            return self.latest()
        wanted = Path(resume).absolute()
        if wanted not in [path.absolute() for path in self._saves()]:
            names = ", ".join(path.name for path in self._saves()) or "none"
            raise CheckpointError(f"--resume is {resume}, expected one of the saves in {self.out / CHECKPOINTS}: {names}")
        return wanted

    def start(self, point: Path | None) -> None:
        """Make OUT ready: empty for a fresh run, or rewound to the save `point`."""
        if point is None:
            if self.out.exists():
                remove(self.out)
            self.out.mkdir(parents=True)
            write_json(self.out / RUN_IN_PROGRESS, self.options)
            return
        step = _step_number(point)
        for leftover in (self.out / CHECKPOINTS).glob("*.partial"):
            shutil.rmtree(leftover)
        for path in self._saves():
            if _step_number(path) > step:
                remove(path)
        write_text(self.out / CHECKPOINTS / LATEST, point.name + "\n")
        self._trim_log(step)
        (self.out / CHECKPOINTS / BEST).unlink(missing_ok=True)
        self._point_at_best()

    def latest(self) -> Path | None:
        """The newest whole save."""
        saves = self._saves()
        return saves[-1] if saves else None

    def save(self, step: int, write: Callable[[Path], None], *, keep: int) -> None:
        """Publish what `write` fills as checkpoints/step-N, point LATEST at it, and drop all but the newest `keep` and BEST."""
        path = self.out / CHECKPOINTS / f"step-{step}"
        with publish(path) as directory:
            write(directory)
        write_text(self.out / CHECKPOINTS / LATEST, path.name + "\n")
        self._point_at_best()
        for old in self._saves()[:-keep]:
            if old != self.best():
                remove(old)

    def best(self) -> Path | None:
        """The save that BEST points at."""
        pointer = self.out / CHECKPOINTS / BEST
        return self.out / CHECKPOINTS / pointer.read_text().strip() if pointer.exists() else None

    def _point_at_best(self) -> None:
        """BEST is the save whose held-out acceptance is longest, or, without masks, whose held-out AR loss is lowest."""
        saved = {_step_number(path) for path in self._saves()}
        scores = {row["step"]: _score(row) for row in self._rows() if row["step"] in saved and _score(row) is not None}
        if scores:
            best = max(scores, key=lambda step: scores[step])
            write_text(self.out / CHECKPOINTS / BEST, f"step-{best}\n")

    def log(self, figures: dict[str, Any]) -> None:
        """Append one step's line to metrics.jsonl."""
        with open(self.out / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps(figures) + "\n")

    def last_figures(self) -> dict[str, Any]:
        """The latest logged step's, empty before the first."""
        return next(reversed(self._rows()), {})

    def _rows(self) -> list[dict[str, Any]]:
        """Of the whole lines: a save looks at them beside the run that writes them."""
        path = self.out / METRICS
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def _trim_log(self, step: int) -> None:
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
        return sorted(paths, key=_step_number)

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


def _step_number(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _score(row: dict[str, Any]) -> float | None:
    if "eval_acceptance_length" in row:
        return row["eval_acceptance_length"]
    return -row["eval_ar_loss"] if "eval_ar_loss" in row else None


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return float("inf")  # a line cut by a kill
