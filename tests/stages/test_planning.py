"""`--dry-run` of a training stage: what it says of memory and time, and that it reads no weights."""

import json
from dataclasses import replace

import pytest

from recipes.bench.plan import CASES, measured_bytes, planned_bytes, written_model
from zaya_cli.app import main
from zaya_core.devices import find_device
from zaya_core.errors import ConfigError
from zaya_core.model.load import meta_model
from zaya_core.presets import PRESETS
from zaya_core.train.plan import Work, cure, flops_of, hours_of, memory_of, sizes_of

MI300X = find_device("mi300x")
WORK = Work("tidar", 32768, 1, 1, 1000, "bfloat16", "adamw", "full", world=8)
PLACES = ["--plan-for", "8xmi300x", "--plan-for", "1024xmi300x"]


def planned(capsys, *command: str) -> tuple[dict[str, dict[str, str]], str]:
    """The table's columns by place, and what was said beside it."""
    assert main([*command, "--dry-run", "--json"]) == 0
    said = capsys.readouterr()
    table = next(line["table"] for line in map(json.loads, said.out.splitlines()) if "table" in line)
    return {place: {row["of one rank"]: row[place] for row in table} for place in list(table[0])[1:]}, said.err


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_are_counted_from_the_config(name):
    counted = sum(parameter.numel() for parameter in meta_model(PRESETS[name]).parameters())
    assert sizes_of(PRESETS[name]).total == pytest.approx(counted, rel=1e-3)


def test_a_preset_is_planned_without_weights_for_several_places(tmp_path, capsys):
    size = ["--seq-len", "32768", "--batch-size", "1", "--dtype", "bfloat16", "--gradient-checkpointing", "full"]
    columns, _ = planned(capsys, "midtrain", "zaya1-8b", str(tmp_path / "out"), *size, *PLACES)
    few, many = columns["8xmi300x"], columns["1024xmi300x"]
    assert few["weights GB"] == few["gradients GB"] == "4.42", "8.84e9 parameters of 4 bytes on 8 ranks"
    assert float(many["weights GB"]) == pytest.approx(4.42 / 128, rel=1e-2)
    assert few["fits"] == many["fits"] == "yes"
    assert few["hours of the run"] == many["hours of the run"], "ranks bring rows of their own"
    assert not (tmp_path / "out").exists()


def test_what_does_not_fit_names_a_cure_that_does(tmp_path, capsys):
    model, room = PRESETS["zaya1-8b"], MI300X.memory_bytes
    columns, said = planned(
        capsys, "midtrain", "zaya1-8b", str(tmp_path / "out"), "--seq-len", "131072", "--batch-size", "2", *PLACES
    )
    assert columns["8xmi300x"]["fits"] == "no"
    assert "8xmi300x: will not fit: set --gradient-checkpointing full --batch-size 1 --context-parallel" in " ".join(said.split())
    work = replace(WORK, seq_len=131072, batch_size=2, dtype="float32", gradient_checkpointing="none")
    knobs = cure(model, work, room).split()
    cured = replace(work, gradient_checkpointing="full", batch_size=1, context=int(knobs[-1]))
    assert (
        memory_of(model, cured)["total_bytes"] <= room < memory_of(model, replace(cured, context=cured.context // 2))["total_bytes"]
    )
    assert cure(PRESETS["zaya1-74b"], replace(work, world=2), room) == "more ranks"


def test_a_checkpoint_is_planned_here_and_its_weights_are_not_opened(tmp_path, capsys):
    model = written_model(tmp_path)
    for path in model.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1_000_000].ljust(path.stat().st_size, b"?"))
    columns, _ = planned(capsys, "midtrain", str(model), str(tmp_path / "out"))
    assert list(columns) == ["1 here"]
    assert columns["1 here"]["hours of the run"] == "-"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--plan-for", "mi300x"], "--plan-for is 'mi300x', expected COUNTxDEVICE such as 8xmi300x"),
        (["--plan-for", "8xmi300"], "no hardware sheet is called 'mi300'"),
        (["--plan-for", "8xmi300x", "--context-parallel", "3"], "does not divide 8 ranks"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(tmp_path, capsys, flags, message):
    assert main(["midtrain", "tiny", str(tmp_path / "out"), "--dry-run", *flags]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_every_knob_of_the_plan_turns_the_right_way():
    model = PRESETS["zaya1-8b"]
    memory = memory_of(model, WORK)
    changes = {"seq_len": 65536, "gradient_checkpointing": "selective", "world": 4, "batch_size": 2}
    for name, value in changes.items():
        assert memory_of(model, replace(WORK, **{name: value}))["total_bytes"] > memory["total_bytes"], name
    for change in ({"objective": "ar"}, {"context": 2}, {"expert": 2}, {"optimizer": "muon"}):
        assert memory_of(model, replace(WORK, **change))["total_bytes"] < memory["total_bytes"], change
    assert memory["save_bytes"] == pytest.approx(12 * sizes_of(model).total)
    flops = flops_of(model, WORK)
    assert flops_of(model, replace(WORK, objective="ar")) == flops / 2
    assert hours_of(flops, WORK, MI300X.flops) == pytest.approx(flops / (8 * 1307.4e12 * 0.35) / 3600)


def test_a_device_that_nobody_knows_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="mi355x"):
        find_device("mi355")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", [CASES[0], CASES[4], CASES[6], CASES[9], CASES[11]], ids=str)
def test_the_planned_memory_is_what_a_run_takes(tmp_path, case):
    assert planned_bytes(*case) == pytest.approx(measured_bytes(written_model(tmp_path), tmp_path, *case), rel=0.15)
