"""A conversation in a real pseudo-terminal, and the same through a pipe."""

import json
import os
import pty
import re
import select
import signal
import sys
import time

import pytest

from tests.checkpoints import NUM_IDS, write_random
from tests.models import TINY
from zaya_cli.app import main
from zaya_core.config import Tidar
from zaya_core.events import Ask, Note, Result, Text, Warn
from zaya_core.io.checkpoint import CERTIFICATE
from zaya_core.stages.chatting import transcript
from zaya_core.stages.generate import GenerateConfig, run


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Tuned for chat, by its certificate; a context that a few exchanges fill."""
    path = tmp_path_factory.mktemp("models") / "chat"
    write_random(path, TINY.with_changes(vocab_size=NUM_IDS + 28, tidar=Tidar(4, 4), max_position_embeddings=400), skip_bias=-1.0)
    (path / CERTIFICATE).write_text(json.dumps({"chat": True}))
    return path


def talk(model, lines, **options):
    """The events of a conversation that says these lines."""
    given = {"max_new_tokens": 6, "seed": 1, "dtype": "float64", "ignore_eos": True} | options
    events = run(GenerateConfig(model=model, chat=True, **given))
    told, reply, lines = [], None, iter(lines)
    try:
        while True:
            told.append(events.send(reply))
            reply = next(lines, None) if isinstance(told[-1], Ask) else None
    except StopIteration:
        return told


def prompts(events):
    return [event.values["prompt"] for event in events if isinstance(event, Result)]


def said(events, kind):
    return [event.text for event in events if isinstance(event, kind)]


def test_the_history_is_in_the_next_prompt(model):
    events = talk(model, ["hi", "  ", "and now?"])
    first, second = prompts(events)
    answer = next(event.values["text"] for event in events if isinstance(event, Result))
    assert first == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert second == first + answer.strip() + "<|im_end|>\n<|im_start|>user\nand now?<|im_end|>\n<|im_start|>assistant\n"
    assert [event.values["seed"] for event in events if isinstance(event, Result)] == [1, 2]


def test_commands(model):
    lines = ["hi", "/again", "/clear", "hi", "/system be kind", "hi", "/system", "hi", "/exit", "never read"]
    asked = prompts(talk(model, lines))
    assert asked[0] == asked[1] == asked[2] == asked[4]
    assert asked[3] == "<|im_start|>system\nbe kind<|im_end|>\n" + asked[0]
    assert len(asked) == 5


def test_options_can_be_set_and_wrong_ones_change_nothing(model):
    lines = ["/sampler", "/sampler ar", "hi", "/sampler none", "/temperature -1", "/block 99", "/max-new-tokens 3", "hi", "/helo"]
    events = talk(model, lines)
    stats = [
        (event.values["stats"]["sampler"], event.values["stats"]["num_tokens"]) for event in events if isinstance(event, Result)
    ]
    assert stats == [("ar", 6), ("ar", 3)]
    assert "sampler is lossless" in said(events, Note)
    wrong = said(events, Warn)
    assert [re.search(r"^\S+ is \S+", line)[0] for line in wrong] == [
        "/sampler is 'none',", "--temperature is -1.0,", "--block is 99,", "/helo is no",
    ]  # fmt: skip
    assert "did you mean help?" in wrong[-1]


def test_a_full_context_leaves_the_oldest_out(model):
    events = talk(model, [f"question {number} " + "x " * 40 for number in range(6)], max_new_tokens=20)
    last = prompts(events)[-1]
    assert "question 5" in last
    assert "question 0" not in last
    assert any("oldest" in note for note in said(events, Note))
    events = talk(model, ["x " * 500, "hi"])
    assert "expected at most 400 together" in said(events, Warn)[0]
    assert len(prompts(events)) == 1, "what did not fit is forgotten"


def test_a_base_model_continues_a_transcript(tmp_path):
    path = tmp_path / "base"
    write_random(path, TINY.with_changes(vocab_size=NUM_IDS + 28, tidar=Tidar(4, 4)), skip_bias=-1.0)
    events = talk(path, ["hi", "so?"], system_prompt="Be kind.")
    assert "not tuned for chat" in said(events, Warn)[0]
    first, second = prompts(events)
    assert first == "Be kind.\n\nUser: hi\nAssistant:"
    assert second.startswith("Be kind.\n\nUser: hi\nAssistant: ")
    assert second.endswith("User: so?\nAssistant:")
    assert transcript([], None) == "Assistant:"


def test_an_answer_can_be_stopped_and_the_talk_goes_on(model):
    events = run(GenerateConfig(model=model, chat=True, max_new_tokens=300, ignore_eos=True, seed=1))
    assert any(isinstance(event, Ask) for event in events), "for stops at the first"
    event, parts = events.send("hi"), []
    while not isinstance(event, Ask):
        parts += [event.text] if isinstance(event, Text) else []
        if len(parts) == 3:
            signal.raise_signal(signal.SIGINT)
        event = next(events)
    assert len(parts) <= 4
    event = events.send("/max-new-tokens 2")
    while not isinstance(event, Ask):
        event = next(events)
    event = events.send("go on")
    while not isinstance(event, Result):
        event = next(events)
    assert "".join(parts).strip() + "<|im_end|>" in event.values["prompt"]
    events.close()


def test_through_a_pipe(model, monkeypatch, capsys):
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("hi\n/exit\n"))
    assert main(["generate", str(model), "--chat", "-n", "4", "--seed", "1", "--ignore-eos", "-q"]) == 0
    out = capsys.readouterr().out
    assert out.strip() or out
    assert "> " not in out


class Terminal:
    """`zaya` in a pseudo-terminal of its own."""

    def __init__(self, *arguments):
        self.seen = ""
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # tests in a shell's background inherit that it is ignored
            environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
            os.execve(sys.executable, [sys.executable, "-m", "zaya_cli", *arguments], environment)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is not None:
            os.kill(self.pid, signal.SIGKILL)

    def wait_for(self, pattern, seconds=300):
        """What came up to `pattern`, which is then behind us."""
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self.seen)):
            assert time.monotonic() < deadline, (pattern, self.seen)
            if select.select([self.descriptor], [], [], 0.1)[0]:
                self.seen += os.read(self.descriptor, 65536).decode(errors="replace")
        before, self.seen = self.seen[: found.start()], self.seen[found.end() :]
        return before

    def type(self, text):
        time.sleep(0.2)  # as people do: Ctrl-C flushes what the terminal has not shown yet
        os.write(self.descriptor, text.encode())

    def exit_code(self):
        try:
            while os.read(self.descriptor, 65536):
                pass
        except OSError:  # a terminal whose other end is closed
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


PROMPT = r"\n(\x1b\[\?2004h)?> "


def test_in_a_terminal(tmp_path):
    """Ask, answer, stop an answer with Ctrl-C, drop a line with Ctrl-C, set an option, leave with Ctrl-D."""
    path = tmp_path / "chat"
    write_random(path, TINY.with_changes(vocab_size=NUM_IDS + 28, tidar=Tidar(4, 4), max_position_embeddings=30000), skip_bias=-1.0)
    (path / CERTIFICATE).write_text(json.dumps({"chat": True}))
    with Terminal("generate", str(path), "--chat", "-n", "5", "--seed", "1", "--ignore-eos") as terminal:
        terminal.wait_for("/help lists the commands")
        terminal.wait_for(PROMPT)
        terminal.type("hi\n")
        assert "5 tokens" in terminal.wait_for("tokens/forward")
        terminal.wait_for(PROMPT)
        terminal.type("/max-new-tokens 20000\n")
        terminal.wait_for("max-new-tokens is 20000")
        terminal.wait_for(PROMPT)
        terminal.type("a long one\n")
        terminal.wait_for("a long one")
        terminal.type("\x03")
        assert "tokens/forward" not in terminal.wait_for(PROMPT), "stopped, not done"
        terminal.type("half a line")
        terminal.wait_for("half a line")  # a signal before readline listens waits for the next key
        terminal.type("\x03")
        terminal.wait_for(PROMPT)
        terminal.type("/sampler ar\n")
        terminal.wait_for("sampler is ar")
        terminal.wait_for(PROMPT)
        terminal.type("\x04")
        assert terminal.exit_code() == 0
