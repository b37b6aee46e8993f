"""Draws what each forward did: with colours the text grows live, its drafts behind it; without, one marked line a forward.

Final text is never redrawn but for the line that it stands in.
"""

from collections.abc import Iterator

from rich.console import Console as Screen
from rich.live import Live
from rich.text import Text as Line

from zaya_core.events import Drafts

# accepted, drawn by the verifier, rejected, drafted ahead
STYLES = {"accepted": "green", "drawn": "bold", "rejected": "red strike", "pre_drafted": "bright_black"}
MARKS = {
    "accepted": ("", ""),
    "drawn": ("‹", "›"),
    "rejected": ("[-", "-]"),
    "pre_drafted": ("{+", "+}"),
}  # as word diffs have them


class DraftView:
    """Shows one completion after the other; `end` leaves its text on the screen, and a line ended."""

    def __init__(self, screen: Screen, *, is_live: bool) -> None:
        self.screen, self.is_live = screen, is_live
        self.index: int | None = None
        self.line = Line()
        self.live: Live | None = None

    def show(self, step: Drafts) -> None:
        """What one more forward did."""
        if step.index != self.index:
            self.end()
            self.index = step.index
        if self.is_live:
            self._grow(step)
        else:
            self.screen.print(marked(step), soft_wrap=True, markup=False, highlight=False)

    def end(self) -> None:
        """No more will come for this completion."""
        if self.live is not None:
            self.live.update(self.line, refresh=True)
            self.live.stop()
        self.index, self.line, self.live = None, Line(), None

    def _grow(self, step: Drafts) -> None:
        if self.live is None:
            self.screen.print(legend())
            self.live = Live(console=self.screen, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
            self.live.start()
        for fate, text in pieces(step, "accepted", "drawn"):
            self.line.append(text, STYLES[fate])
        *whole, self.line = self.line.split("\n", allow_blank=True)
        for line in whole:
            self.screen.print(line, soft_wrap=True)
        shown = self.line.copy()
        for fate, text in pieces(step, "rejected", "pre_drafted"):
            shown.append(on_one_line(text), STYLES[fate])
        self.live.update(shown, refresh=True)


def legend() -> Line:
    """What the colours say."""
    words = {"accepted": "accepted", "drawn": "drawn by the verifier", "rejected": "rejected", "pre_drafted": "drafted ahead"}
    return Line("  ").join(Line(words[fate], style) for fate, style in STYLES.items())


def marked(step: Drafts) -> str:
    """One forward as one line without colours."""
    parts = [f"{MARKS[fate][0]}{text}{MARKS[fate][1]}" for fate, text in pieces(step, *MARKS) if text]
    return on_one_line("".join(parts))


def pieces(step: Drafts, *fates: str) -> Iterator[tuple[str, str]]:
    """(fate, text) of all tokens of each fate."""
    for fate in fates:
        yield fate, "".join(text for _, text in getattr(step, fate))


def on_one_line(text: str) -> str:
    """Its line breaks as signs."""
    return text.replace("\n", "↵")
