"""`zaya profile` as a user runs it: no torch for a preset on a named device, tables, JSON, files, refusals."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from zaya_core.errors import ConfigError
from zaya_core.events import Note, Result, Warn
from zaya_core.settings import read_settings
from zaya_core.stages.profile import ProfileConfig, run

ROOT = Path(__file__).parents[2]
SMALL = {"batch": "1,64", "context": "1024,32768", "proposals": "1,3"}


def results(**options):
    events = list(run(ProfileConfig(**(SMALL | options))))
    return [event.values for event in events if isinstance(event, Result)], events


def table(values, title):
    return next(part["table"] for part in values if part.get("title", "").startswith(title))


@pytest.mark.parametrize(("device", "blocks"), [("mi300x", 3.85), ("mi355x", 4.9)])
def test_the_two_published_numbers(device, blocks):
    values, _ = results(model="zaya1-8b", device=device)
    assert values[0]["max_blocks_per_forward"] == pytest.approx(blocks, abs=0.03)
    assert values[0]["max_proposals"] == pytest.approx(values[0]["max_blocks_per_forward"] - 1)
    assert values[0]["attention_flop_per_byte_per_slot"] == 4


def test_a_preset_needs_neither_torch_nor_weights():
    program = (
        "import sys; from zaya_cli.app import main; code = main(sys.argv[1:]);"
        "print(code, {'torch', 'transformers', 'numpy', 'matplotlib'} & set(sys.modules), file=sys.stderr)"
    )
    command = [sys.executable, "-c", program, "profile", "zaya1-8b", "--device", "mi300x", "--json"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stderr == "0 set()\n"
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert lines[0]["max_blocks_per_forward"] == pytest.approx(3.85, abs=0.01)
    assert len(table(lines, "Best setting")) == 10


def test_settings_are_those_of_the_table(tmp_path):
    path = tmp_path / "s.json"
    values, events = results(model="zaya1-8b", device="mi300x", save_settings=path)
    settings = read_settings(path, block_length=16)
    one = settings.choose(1, 1024)
    assert table(values, "Best setting")[0]["context 1024"] == f"{one.speed_up:.2f}x {one.proposals}p/{one.block}"
    assert any(isinstance(event, Note) and str(path) in event.text for event in events)
    assert (settings.device, settings.acceptance) == ("mi300x", "0.8")


def test_a_made_up_device(tmp_path):
    path = tmp_path / "abacus.yaml"
    path.write_text("flops: 1e12\nbandwidth: 1e12\nmemory_bytes: 1e12\n")
    values, _ = results(model="zaya1-8b", device=str(path))
    assert values[0]["device"] == "abacus"
    assert values[0]["max_blocks_per_forward"] == pytest.approx(1 / 4 / 16)
    assert table(values, "Break-even")[1]["context 1024"] == "never"  # where arithmetic is all, a wide step never pays


def test_a_measured_histogram_counts_like_its_acceptance(tmp_path):
    path = tmp_path / "runs.jsonl"
    counts = [round(1e6 * 0.2 * 0.8**a) for a in range(15)] + [round(1e6 * 0.8**15)]
    lines = [{"stats": {"acceptance_histogram": counts}}, {"stats": {"acceptance_histogram": counts}}]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    measured, _ = results(model="zaya1-8b", device="mi300x", acceptance=str(path))
    assumed, _ = results(model="zaya1-8b", device="mi300x", acceptance="0.8")
    assert table(measured, "Best setting") == table(assumed, "Best setting")


def test_what_is_too_large_is_said():
    values, events = results(model="zaya1-74b", device="rtx4090", focus="1x1024")
    assert {cell for line in table(values, "Best setting") for key, cell in line.items() if key != "batch"} == {"no room"}
    assert any(isinstance(event, Warn) and "does not fit" in event.text for event in events)


def test_knobs_turn():
    def edge(**options):
        values, _ = results(model="zaya1-8b", device="mi300x", **options)
        return float(table(values, "Break-even")[0]["context 1024"])

    plain = edge()
    assert edge(launch_us=0.0) > plain > edge(launch_us=20.0)
    assert edge(correlation=0.9) < plain
    assert edge(acceptance_decay=0.9) > plain
    assert edge(reached=True) != plain


def test_training_stage():
    options = {"model": "zaya1-8b", "device": "mi300x", "stage": "midtrain", "ranks": 1024, "seq_len": 32768, "days": 2.0}
    values, _ = results(**options, tokens="600B")
    assert values[0]["tokens"] == 6e11
    assert values[0]["doubled_row_over_ar"] == pytest.approx(2)
    assert values[0]["fits"]
    assert values[0]["ranks_for_days"] < 1024
    assert table(values, "A rank's memory")[0]["memory of a rank"] == "weights"


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "p.png"
    results(model="tiny", device="h100", context="1024", plot=path)
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "mi30x"}, "did you mean"),
        ({"batch": "1,x"}, "--batch is '1,x'"),
        ({"context": "0"}, "--context is '0'"),
        ({"block": "32"}, "--block is 32, expected at most the trained 16"),
        ({"acceptance": "1.5"}, "--acceptance is 1.5"),
        ({"acceptance": "nowhere.json"}, "neither a number nor a file"),
        ({"focus": "1"}, "--focus is '1'"),
        ({"stage": "sft", "tokens": "many"}, "--tokens is 'many'"),
        ({"stage": "sft", "context_parallel": 3}, "--ranks is 8"),
        ({"plot": Path("x.doc")}, "--plot x.doc cannot be written"),
        ({"save_settings": Path("nowhere/s.json")}, "--save-settings is nowhere/s.json"),
        ({"measure": True}, "expected --device auto, cpu or cuda, got mi300x"),
        ({"trace": Path("t.json")}, "--trace is written by --measure"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ConfigError, match=message):
        results(**({"model": "zaya1-8b", "device": "mi300x"} | options))


def test_a_checkpoint_has_its_own_block():
    values, _ = results(device="mi300x")
    assert values[0]["block_length"] == 16
    with pytest.raises(ConfigError, match="--trained-block is 8"):
        results(device="mi300x", trained_block=8)


def test_this_machine_is_measured():
    values, _ = results(model="tiny", device="cpu", context="256")
    assert values[0]["peak_flops"] > 1e8
    assert values[0]["peak_bandwidth"] > 1e8
    assert "measured here" in values[0]["device_source"]
