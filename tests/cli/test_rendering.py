"""Events as text: what goes to stdout, what to stderr, and how it reads."""

import json
import sys

import pytest

from zaya_cli.console import Completions, Console
from zaya_cli.options import Output
from zaya_cli.render import amount, footer, in_bytes, in_seconds, metrics_line, table_rows
from zaya_core.events import Metrics, Note, Progress, Result, Text, Warn

METRICS = {
    "step": 10,
    "loss": 5.1,
    "ar_loss": 4.25,
    "diffusion_loss": 5.95,
    "acceptance_length": 2.5,
    "lr": 3e-4,
    "grad_norm": 1.0,
    "tokens_per_second": 12345.6,
    "memory_bytes": 3 * 2**30,
    "eta_seconds": 185,
}
STATS = {
    "sampler": "lossless",
    "num_prompt_tokens": 5,
    "num_tokens": 9,
    "num_forwards": 4,
    "tokens_per_forward": 2.0,
    "acceptance_histogram": [2, 1, 0, 1],
    "prefill_seconds": 0.25,
    "decode_seconds": 0.5,
    "tokens_per_second": 18.04,
    "peak_memory_bytes": 3 * 2**20,
    "batch_size": 1,
    "dtype": "bfloat16",
    "device": "cpu",
}
FOOTER = (
    "9 tokens · 18.0 tok/s · first token 0.25 s · 2.00 tokens/forward · acceptance 2.0/4 · peak 3.0 MiB · "
    "batch 1 · bfloat16 · cpu · lossless"
)


@pytest.fixture
def shown(capsys):
    """`shown(events, as_json=True)` -> (stdout, stderr)."""

    def call(*events, as_json=False, quiet=False):
        with Console(Output(as_json=as_json, quiet=quiet)) as console:
            for event in events:
                console.show(event)
        captured = capsys.readouterr()
        return captured.out, captured.err

    return call


def test_metrics_line_holds_every_figure():
    assert metrics_line(METRICS, 200) == (
        "step 10/200 loss 5.1 ar_loss 4.25 diffusion_loss 5.95 acceptance_length 2.5 lr 0.0003 grad_norm 1 "
        "tok/s 12,346 memory 3.0 GiB eta 3m05s"
    )


@pytest.mark.parametrize("missing", METRICS)
def test_metrics_line_does_without_any_figure(missing):
    line = metrics_line({key: value for key, value in METRICS.items() if key != missing}, 200)
    assert line
    assert "None" not in metrics_line({**METRICS, missing: METRICS[missing] if missing == "step" else None}, 200)


def test_metrics_go_to_stderr_as_lines_without_a_terminal(shown):
    assert shown(Metrics(METRICS, 200), Metrics({"step": 11}, 200)) == (
        "",
        metrics_line(METRICS, 200) + "\nstep 11/200\n",
    )


def test_metrics_are_json_lines_on_stdout(shown):
    out, err = shown(Metrics(METRICS, 200), Result({"out": "there"}), as_json=True)
    assert [json.loads(line) for line in out.splitlines()] == [METRICS, {"out": "there"}]
    assert err == ""


def test_json_is_alone_on_stdout(shown):
    events = Note("n [red]x[/red]"), Warn("w"), Progress("p", 1, 2, "B"), Text("text"), Result({"text": "é\n"})
    out, err = shown(*events, as_json=True)
    assert json.loads(out) == {"text": "é\n"}
    assert out.count("\n") == 1
    assert err == "n [red]x[/red]\nwarning: w\n"


def test_quiet_hides_notes_and_progress_but_not_warnings_or_results(shown):
    out, err = shown(Note("n"), Warn("w"), Metrics(METRICS, 200), Result({"a": 1}), quiet=True)
    assert (out, err) == ("a  1\n", "warning: w\n")


def test_a_long_note_stays_one_line(shown):
    assert shown(Note(":smile: " * 50)) == ("", ":smile: " * 50 + "\n")


def test_text_streams_to_stdout_and_the_footer_to_stderr(shown):
    out, err = shown(Text("Hello"), Text(" [b]world[/b]"), Result({"index": 0, "stats": STATS}))
    assert out == "Hello [b]world[/b]\n"
    assert err == FOOTER + "\n"


def test_footer_leaves_out_what_was_not_measured():
    assert footer({"num_tokens": 3, "acceptance_histogram": [3], "sampler": "ar"}) == "3 tokens · ar"
    assert footer({**STATS, "time_to_first_token_seconds": 0.5}).count("first token 0.50 s") == 1


def test_completions_decoded_side_by_side_do_not_mix(shown):
    def done(index):
        return Result({"index": index, "stats": {"num_tokens": index}})

    events = [Text("a1 ", 0), Text("b1 ", 1), Text("a2", 0), Text("b2", 1), done(1), Text(" a3", 0), done(0)]
    out, _ = shown(*events, Text("c", 2), done(2))
    assert out == "a1 a2 a3\nb1 b2\nc\n"


def test_each_prompt_may_count_its_completions_from_0(shown):
    done = Result({"index": 0, "stats": {"num_tokens": 1}})
    assert shown(Text("a"), done, Text("b"), Text("B", 1), Text("b"), done, Result({**done.values, "index": 1}))[0] == (
        "a\nbb\nB\n"
    )


def test_held_text_is_not_lost_when_a_run_breaks(capsys):
    completions = Completions(sys.stdout)
    completions.add(0, "a")
    completions.add(1, "b")
    completions.close()
    assert capsys.readouterr().out == "a\nb\n"


def test_table_of_a_result(shown):
    values = {
        "path": "/a/very/" + "long/" * 40,
        "num_parameters": 8400000,
        "size_bytes": 3 * 2**30,
        "took_seconds": 0.5,
        "is_whole": True,
        "parent": None,
        "ratio": 0.123456789,
        "stops": ["a", "b"],
        "tidar": {"block_length": 16},
        "lineage": [{"stage": "init"}, {"stage": "convert"}],
    }
    out, err = shown(Result(values))
    assert err == ""
    assert out.splitlines() == [
        "path            " + values["path"],
        "num_parameters  8,400,000",
        "size_bytes      3.0 GiB",
        "took_seconds    0.50 s",
        "is_whole        yes",
        "parent          -",
        "ratio           0.123457",
        "stops           a, b",
        "tidar",
        "  block_length  16",
        "lineage[0]",
        "  stage         init",
        "lineage[1]",
        "  stage         convert",
    ]


def test_a_table_after_text_starts_on_its_own_line(shown):
    assert shown(Text("half"), Result({"is_lossless": True}))[0] == "half\nis_lossless  yes\n"


def test_empty_result_has_no_rows():
    assert list(table_rows({})) == []


def test_units():
    assert [in_bytes(size) for size in (512, 2048, 1288490189, 2**41)] == ["512 B", "2.0 KiB", "1.2 GiB", "2.0 TiB"]
    assert [in_seconds(time) for time in (0.314, 185, 3725)] == ["0.31 s", "3m05s", "1h02m"]
    assert amount(2**30, 2**31, "B") == "1.0 GiB / 2.0 GiB"
    assert amount(10, 2000, "steps") == "10 / 2,000 steps"
