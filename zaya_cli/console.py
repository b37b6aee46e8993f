"""Draws a stage's events: stdout carries the product (text, results, JSON), stderr the talk.

Progress bars only where stderr is a terminal; elsewhere a training step is one plain line. It decides no exit code.
"""

import json
import sys
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console as Screen
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text as Line

from zaya_cli.asking import ask
from zaya_cli.drafts import DraftView
from zaya_cli.options import Output
from zaya_cli.render import amount, bar_figures, cell, document_line, footer, has_color, metrics_line, table_rows, token_runs
from zaya_core.events import Ask, Drafts, Event, Metrics, Note, Progress, Result, Text, Warn

PIPE_WIDTH = 240  # columns of a table that goes to a file


class Console:
    """Shows one run's events; as a context manager it leaves the terminal whole whatever the run ends in."""

    def __init__(self, output: Output) -> None:
        self.output = output
        self.stdout = _screen(sys.stdout)
        self.stderr = _screen(sys.stderr)
        self.completions = Completions(sys.stdout)
        self.drafts = DraftView(self.stdout, is_live=has_color(sys.stdout))
        self.bars = _bars(self.stderr) if self._wants_bars() else None
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop_bars()
        if not isinstance(error, BrokenPipeError):
            self.drafts.end()
            self.completions.close()

    def show(self, event: Event) -> str | None:
        """Draw one event; the user's line where it asks for one."""
        match event:
            case Ask():
                return self._ask(event)
            case Drafts() if not self.output.as_json:
                self._stop_bars()
                self.drafts.show(event)
            case Text():
                self._text(event)
            case Result():
                self._result(event.values)
            case Metrics():
                self._metrics(event)
            case Progress():
                self._advance(event.label, event.done, event.total, amount(event.done, event.total, event.unit))
            case Warn():
                self._say(f"warning: {event.text}", "yellow")
            case Note() if not self.output.quiet:
                self._say(event.text, "dim")
        return None

    def _ask(self, event: Ask) -> str | None:
        self._stop_bars()
        self.drafts.end()
        self.completions.close()
        return ask(event.text)

    def _text(self, event: Text) -> None:
        if not self.output.as_json:
            self._stop_bars()
            self.completions.add(event.index, event.text)

    def _result(self, values: dict[str, Any]) -> None:
        self._stop_bars()
        if self.output.as_json:
            self._json(values)
        elif "stats" in values:
            self.drafts.end()
            self.completions.finish(values.get("index", 0))
            if not self.output.quiet:
                self._say(footer(values["stats"]), "dim")
        elif "table" in values:
            self._grid(values["table"], values.get("title"))
        elif "documents" in values:
            self._row(values)
        else:
            self.completions.close()
            self._table(values)

    def _metrics(self, event: Metrics) -> None:
        if self.output.as_json:
            self._json(event.values)
        if self.bars:
            figures = bar_figures(event.values)
            self._advance("training", event.values.get("step", 0), event.total_steps, figures)
        elif not self.output.as_json and not self.output.quiet:
            self._say(metrics_line(event.values, event.total_steps))

    def _advance(self, label: str, done: float, total: float, figures: str) -> None:
        if self.bars is None:
            return
        if label not in self.tasks:
            self.tasks[label] = self.bars.add_task(label, total=total, figures=figures)
        self.bars.start()
        self.bars.update(self.tasks[label], completed=done, total=total, figures=figures)

    def _stop_bars(self) -> None:
        if self.bars is None:
            return
        self.bars.stop()
        while self.tasks:  # what is drawn stays; a later bar must not draw it again
            self.bars.remove_task(self.tasks.popitem()[1])

    def _wants_bars(self) -> bool:
        # JSON lines and a bar on the same terminal would overwrite each other.
        is_mixed = self.output.as_json and sys.stdout.isatty()
        return sys.stderr.isatty() and not self.stderr.is_dumb_terminal and not self.output.quiet and not is_mixed

    def _say(self, text: str, style: str = "") -> None:
        self.stderr.print(Line(text, style=style), soft_wrap=True)

    def _json(self, values: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(values, default=str) + "\n")
        sys.stdout.flush()

    def _row(self, values: dict[str, Any]) -> None:
        """A training row that was asked to be seen."""
        for number, document in enumerate(values["documents"]):
            self.stdout.print(Line(document_line(values, number), style="cyan"), soft_wrap=True)
            line = Line()
            for text, has_loss in token_runs(document["tokens"]):
                line.append(text if has_loss else f"⟦{text}⟧", style="" if has_loss else "dim")
            self.stdout.print(line, soft_wrap=True)

    def _grid(self, rows: list[dict[str, Any]], title: str | None) -> None:
        """Rows of the same keys under one another."""
        if title:
            self.stdout.print(Line(f"\n{title}", style="bold"), soft_wrap=True)
        grid = Table(*rows[0], box=None, header_style="cyan", pad_edge=False)
        for row in rows:
            grid.add_row(*(cell(key, value) for key, value in row.items()))
        self.stdout.print(grid, soft_wrap=True)

    def _table(self, values: dict[str, Any]) -> None:
        rows = list(table_rows(values))
        width = max((len(key) for key, _ in rows), default=0)
        for key, text in rows:
            line = Line.assemble((key, "cyan"), " " * (width - len(key) + 2), text)
            line.rstrip()
            self.stdout.print(line, soft_wrap=True)


class Completions:
    """Streams completions one after the other: the first unfinished one live, the others once it has ended."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.held: dict[int, list[str]] = {}
        self.finished: set[int] = set()
        self.live: int | None = None
        self.ends_line = True

    def add(self, index: int, text: str) -> None:
        """More text of a completion."""
        if self.live is None:
            self.live = index
        if index == self.live:
            self._write(text)
        else:
            self.held.setdefault(index, []).append(text)

    def finish(self, index: int) -> None:
        """No more text will come for this completion: the next one has the stream."""
        if index == self.live or index in self.held:
            self.finished.add(index)
        while self.live in self.finished:
            self._end_line()
            self.finished.discard(self.live)  # the next prompt may count from 0 again
            self.live = next(iter(self.held), None)
            if self.live is not None:
                self._write("".join(self.held.pop(self.live)))

    def close(self) -> None:
        """Write what is still held, and end the line, so that an error starts on its own."""
        self._end_line()
        for texts in self.held.values():
            self._write("".join(texts))
            self._end_line()
        self.held.clear()

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()
        self.ends_line = text.endswith("\n") if text else self.ends_line

    def _end_line(self) -> None:
        if not self.ends_line:
            self._write("\n")


def _screen(stream: TextIO) -> Screen:
    # Nobody looks at the width of a pipe: what is wide stays whole there.
    width = None if stream.isatty() else PIPE_WIDTH
    return Screen(file=stream, width=width, color_system="auto" if has_color(stream) else None)


def _bars(screen: Screen) -> Bars:
    # stdout stays as it is: what is written there is the product and must not go through stderr's screen.
    return Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[figures]}", markup=False),
        console=screen,
        redirect_stdout=False,
    )
