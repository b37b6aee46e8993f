"""Drafts on a screen: live with colours, marked lines without, and nothing of them in JSON."""

import io

import pytest
from rich.console import Console as Screen

from zaya_cli.console import Console
from zaya_cli.drafts import DraftView, marked
from zaya_cli.options import Output
from zaya_core.events import Drafts, Result


def told(*texts):
    return tuple(enumerate(texts))


STEPS = [
    Drafts(0, 0.1, drawn=told("def"), pre_drafted=told(" main", "()")),
    Drafts(0, 0.2, accepted=told(" main"), drawn=told("(x"), rejected=told("()"), pre_drafted=told("):\n", " ret")),
    Drafts(0, 0.3, accepted=told("):\n"), drawn=told(" y")),
    Drafts(1, 0.4, drawn=told("second")),
]


def drawn(steps, width=60):
    """What a colour terminal gets."""
    stream = io.StringIO()
    view = DraftView(Screen(file=stream, force_terminal=True, color_system="standard", width=width), is_live=True)
    for step in steps:
        view.show(step)
    view.end()
    return stream.getvalue()


def screen(written):
    """The plain text of a terminal after these bytes: only what rich's Live uses of its codes."""
    rows, row, column, place = [""], 0, 0, 0
    while place < len(written):
        letter = written[place]
        if letter == "\033" and written[place + 1] == "[":
            end = next(at for at in range(place + 2, len(written)) if written[at].isalpha())
            number, code = written[place + 2 : end], written[end]
            if code == "A":
                row -= int(number or 1)
            elif code == "K":
                rows[row] = "" if number == "2" else rows[row][:column]
            else:
                assert code in "mhl", (number, code)
            place = end
        elif letter == "\n":
            row, column = row + 1, 0
            rows += [""] * (row + 1 - len(rows))
        elif letter == "\r":
            column = 0
        else:
            rows[row] = rows[row][:column].ljust(column) + letter + rows[row][column + 1 :]
            column += 1
        place += 1
    return [line.rstrip() for line in rows]


def test_the_text_alone_stays_on_the_screen():
    lines = [line for line in screen(drawn(STEPS)) if line]
    legend = "accepted  drawn by the verifier  rejected  drafted ahead"
    assert lines == [legend, "def main(x):", " y", legend, "second"]


def test_every_fate_has_its_colour():
    written = drawn(STEPS[:2])
    for code, text in (("32", " main"), ("1", "(x"), ("9;31", "()"), ("90", "):↵ ret"), ("90", " main()")):
        assert f"\033[{code}m{text}\033[0m" in written


def test_a_line_longer_than_the_screen_is_kept_whole():
    words = [f"word{number} " for number in range(30)]
    steps = [Drafts(0, 0.0, drawn=told(word), pre_drafted=told("ahead " * 20)) for word in words]
    lines = screen(drawn([*steps, Drafts(0, 0.0, drawn=told("\nend"))], width=60))
    assert "".join(line.replace(" ", "") for line in lines[1:]) == "".join(words).replace(" ", "") + "end"


def test_without_colours_a_forward_is_a_marked_line(capsys, monkeypatch):
    with Console(Output()) as console:
        for step in STEPS[:2]:
            console.show(step)
    assert capsys.readouterr().out.splitlines() == ["‹def›{+ main()+}", " main‹(x›[-()-]{+):↵ ret+}"]
    assert marked(STEPS[2]) == "):↵‹ y›"


@pytest.mark.parametrize("as_json", [True, False])
def test_json_stays_alone(capsys, as_json):
    with Console(Output(as_json=as_json, quiet=True)) as console:
        console.show(STEPS[0])
        console.show(Result({"index": 0, "stats": {}}))
    out = capsys.readouterr().out
    assert ("‹def›" in out) is not as_json
    assert out.count("\n") == 1
