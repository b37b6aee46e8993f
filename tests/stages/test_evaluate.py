"""`zaya eval` on small random checkpoints: its tables, what it keeps, kills and reruns, and what it refuses."""

import json
import random
from functools import partial

import pytest

from tests.checkpoints import NUM_IDS, write_random
from tests.models import TINY
from tests.stages.test_output import kill_on_the_way
from zaya_cli.app import main
from zaya_core.config import Tidar
from zaya_core.stages.evaluate import prompts_of

PROBLEMS, SAMPLES = 4, 2
SHAPE = TINY.with_changes(vocab_size=NUM_IDS + 28)
SAMPLERS = ("ar", "lossless", "mix:0.5")
OPTIONS = ("--max-new-tokens", "8", "--temperature", "4", "--dtype", "float64", "--num-samples", str(SAMPLES), "--seed", "3")
COMPLETIONS = ("index", "prompt", "seed", "text", "token_ids", "finish_reason")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A TiDAR checkpoint and an AR one."""
    root = tmp_path_factory.mktemp("models")
    write_random(root / "tidar", SHAPE.with_changes(tidar=Tidar(4, 4)), skip_bias=-1.0)
    write_random(root / "ar", SHAPE, seed=1, skip_bias=-1.0)
    return root


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """Problems that a random model solves now and then."""
    path = tmp_path_factory.mktemp("rows") / "q.jsonl"
    rows = [{"prompt": "def main():" + " x" * number, "answer": "[a-m]", "scorer": "regex"} for number in range(PROBLEMS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def command(models, questions):
    return ["eval", str(models / "tidar"), "--task", f"jsonl:{questions}", "--sampler", ",".join(SAMPLERS), *OPTIONS]


def tables(capsys, arguments):
    assert main([*arguments, "--json", "-q"]) == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return {table["name"]: table["table"] for table in shown}


def refusal(capsys, arguments):
    capsys.readouterr()
    assert main(arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    return error


def kept(report):
    """Everything under a report less what measures the machine."""
    found = {}
    for path in sorted(path for path in (report / "model").rglob("*.jsonl") if path.is_file()):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        keys = None if ".scores" in path.name else COMPLETIONS
        found[path.relative_to(report).as_posix()] = [{key: line[key] for key in keys or line} for line in lines]
    return found


def judged(report):
    """The tables less the speed."""
    rows = [row for table in json.loads((report / "report.json").read_text())["tables"] for row in table["table"]]
    return [{key: value for key, value in row.items() if key != "tokens/s"} for row in rows]


def test_samplers_side_by_side(command, capsys, tmp_path):
    plot = tmp_path / "frontier.svg"
    told = tables(capsys, [*command, "--k", "1,2", "--plot", str(plot)])
    assert [(row["sampler"], row["problems"], row["samples"]) for row in told["quality"]] == [
        (name, PROBLEMS, SAMPLES) for name in SAMPLERS
    ]
    for row in told["quality"]:
        assert 0 <= row["pass@1"] <= row["pass@2"] <= 1
        assert row["pass@1_95%"][0] <= row["pass@1"] <= row["pass@1_95%"][1]
        assert row["tokens/s"] > 0
    assert told["quality"][0]["tokens/forward"] == 1 < told["quality"][2]["tokens/forward"]
    assert [row["sampler"] for row in told["acceptance"]] == ["lossless", "mix:0.5"]
    assert all(len(row["acceptance"]) == len(row["judged"]) == 3 for row in told["acceptance"])
    assert [(row["sampler"], row["against"], row["problems"]) for row in told["differences"]] == [
        (name, "ar", PROBLEMS) for name in SAMPLERS[1:]
    ]
    assert all(row["half_width"] > 0 for row in told["differences"])
    assert b"lossless" in plot.read_bytes() or plot.stat().st_size > 5000


def test_the_table_is_for_people(command, capsys):
    assert main([*command, "-q"]) == 0
    text = capsys.readouterr().out
    assert "Quality and speed: one decoded at a time" in text
    assert "no systematic difference" in text


def test_completions_are_those_of_generate(command, questions, models, tmp_path):
    """There is no second way to decode."""
    assert main([*command, "--report", str(tmp_path / "out"), "--batch-size", "3", "-q"]) == 0
    for name, flags in (("ar", ("ar",)), ("lossless", ("lossless",)), ("mix:0.5", ("mix", "--mix-weight", "0.5"))):
        path = tmp_path / f"{name}.jsonl"
        own = ["generate", str(models / "tidar"), "--input", str(questions), "--output", str(path), "--n", str(SAMPLES), "-q"]
        shared = ["--max-new-tokens", "8", "--temperature", "4", "--dtype", "float64", "--seed", "3"]
        assert main([*own, *shared, "--sampler", *flags]) == 0
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        (found,) = [v for k, v in kept(tmp_path / "out").items() if k.endswith(f"/{name.replace(':', '-')}.jsonl")]
        assert found == [{key: line[key] for key in COMPLETIONS} for line in lines]


def test_a_finished_report_is_read_and_another_config_is_shown(command, capsys, tmp_path):
    report = ["--report", str(tmp_path / "out")]
    first = tables(capsys, command + report)
    assert tables(capsys, command + report) == first, "the speed too: nothing was decoded again"
    assert "max_new_tokens was 8 and is 9" in refusal(capsys, [*command, *report, "--max-new-tokens", "9"])
    assert "n was 2 and is 3" in refusal(capsys, [*command, *report, "--num-samples", "3"])
    assert "choose another --report or give --overwrite" in refusal(capsys, [*command, *report, "--num-problems", "2"])
    again = tables(capsys, [*command, *report, "--num-problems", "2", "--overwrite"])
    assert again["quality"][0]["problems"] == 2


def test_other_weights_at_the_same_path_are_noticed(questions, tmp_path, capsys):
    write_random(tmp_path / "m", SHAPE, seed=5)
    own = ["eval", str(tmp_path / "m"), "--task", f"jsonl:{questions}", "--sampler", "ar", "--report", str(tmp_path / "out")]
    assert main([*own, *OPTIONS, "-q"]) == 0
    (tmp_path / "m").rename(tmp_path / "old")
    write_random(tmp_path / "m", SHAPE, seed=6)
    assert "sha256 was" in refusal(capsys, [*own, *OPTIONS, "-q"])


def test_kills_lose_nothing_and_repeat_nothing(command, tmp_path, capsys):
    """SIGKILL at two random moments; then everything but the speed equals a run that nothing disturbed."""
    whole, broken, chance = tmp_path / "whole", tmp_path / "broken", random.Random(4)
    assert main([*command, "--report", str(whole), "-q"]) == 0
    killed = sum(kill_on_the_way([*command, "--report", str(broken)], partial(_num_bytes, broken), chance) for _ in range(2))
    assert killed > 0
    assert main([*command, "--report", str(broken), "-q"]) == 0
    capsys.readouterr()
    assert kept(broken) == kept(whole)
    assert judged(broken) == judged(whole)
    assert len(kept(broken)) == 2 * len(SAMPLERS)


def _num_bytes(report):
    return sum(path.stat().st_size for path in report.rglob("*.jsonl*") if "run.json" not in path.name)


def test_a_baseline_is_compared_problem_by_problem(command, models, capsys, tmp_path):
    told = tables(capsys, [*command, "--baseline", str(models / "ar"), "--report", str(tmp_path / "out")])
    assert [(row["model"], row["sampler"]) for row in told["quality"]] == [
        *(("model", name) for name in SAMPLERS),
        ("baseline", "ar"),
    ]
    across = [(row["sampler"], row["against"]) for row in told["differences"] if "baseline" in row["against"]]
    assert across == [(f"model {name}", "baseline ar") for name in SAMPLERS]


def test_prompts_that_do_not_fit_count_as_wrong(models, tmp_path, capsys):
    path = tmp_path / "q.jsonl"
    rows = [{"prompt": "x", "answer": "", "scorer": "contains"}, {"prompt": "long " * 600, "answer": "", "scorer": "contains"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = ["eval", str(models / "tidar"), "--task", f"jsonl:{path}", "--sampler", "ar", *OPTIONS]
    assert main([*own, "--json"]) == 0
    said = capsys.readouterr()
    assert "1 of 2 prompts do not fit in the context and count as wrong" in said.err
    assert json.loads(said.out.splitlines()[0])["table"][0]["pass@1"] == 0.5
    path.write_text(json.dumps(rows[1]) + "\n")
    assert tables(capsys, own)["quality"][0]["pass@1"] == 0


def test_likelihood_and_needles_without_decoding(models, tmp_path, capsys):
    (tmp_path / "held.txt").write_text("The river runs to the sea.\n" * 40)
    own = ["eval", str(models / "tidar"), "--task", f"likelihood:{tmp_path}/held.txt", "--task", "needle:128", "--seq-len", "64"]
    told = tables(capsys, [*own, "--num-problems", "3", "--report", str(tmp_path / "out")])
    (row,) = told["likelihood"]
    assert row["num_rows"] == 3
    assert row["ar_bits_per_byte_95%"][0] < row["ar_bits_per_byte"] < row["ar_bits_per_byte_95%"][1]
    (by_offset,) = told["by_offset"]
    assert (len(by_offset["diffusion_bits_per_byte"]), len(by_offset["acceptance"])) == (4, 3)
    assert [(row["length"], row["texts"], row["found"]) for row in told["needles"]] == [(128, 3, 0)]
    assert tables(capsys, [*own, "--num-problems", "3", "--report", str(tmp_path / "out")]) == told
    plain = tables(capsys, ["eval", str(models / "ar"), *own[2:], "--num-problems", "3"])
    assert plain["likelihood"][0]["diffusion_bits_per_byte"] is None
    assert "by_offset" not in plain


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--task is missing"),
        (("--task", "human-eval"), "--task human-eval runs generated programs (--allow-code-execution allows it"),
        (("--task", "needle", "--k", "8"), "--k has 8, expected at most --num-samples 1"),
        (("--task", "needle", "--k", "0,1"), "--k is '0,1', expected whole numbers above 0"),
        (("--task", "needle", "--sampler", "ar,mixed"), "--sampler has 'mixed', expected ar, lossless, mix or mix:WEIGHT"),
        (("--task", "needle", "--sampler", "mix:2"), "--sampler has 'mix:2'"),
        (("--task", "needle", "--sampler", "mix:nan"), "--sampler has 'mix:nan'"),
        (("--task", "needle", "--sampler", "ar,ar"), "ar is given twice"),
        (("--task", "needle", "--task", "needle"), "needle is given twice"),
        (("--task", "needle:1m"), "expected lengths as in needle:2k,8k"),
        (("--task", "needle:1k"), "1024 tokens, expected at most 512, the model's context"),
        (("--task", "likelihood:nothing.txt"), "nothing.txt does not exist"),
        (("--task", "nothing"), "no such kind of task"),
        (("--task", "needle", "--overwrite"), "--overwrite has nothing to write over"),
        (("--task", "needle", "--plot", "no/such/x.png"), "expected a file in a directory that exists"),
    ],
)
def test_what_it_refuses(models, capsys, arguments, message):
    assert message in refusal(capsys, ["eval", str(models / "tidar"), *arguments])


def test_an_ar_model_cannot_draft(models, questions, capsys):
    own = ["eval", str(models / "ar"), "--task", f"jsonl:{questions}", *OPTIONS]
    assert "cannot draft (--sampler ar" in refusal(capsys, own)


def test_several_processes_are_refused(models, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "zaya eval is one process" in refusal(capsys, ["eval", str(models / "ar"), "--task", "needle"])


def test_prompts_of_training_rows_are_found(tmp_path):
    """Of rows of prompts, and of rows that are one text."""
    rows = [{"prompt": "What?\n", "completion": "x"}, {"text": "Why,\nthen?\nAnswer: because"}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert prompts_of((tmp_path / "train.jsonl",)) == {"What?\n", "Why,\n", "Why,\nthen?\n"}


def test_the_bundled_model_on_a_reasoning_task_and_on_human_eval(capsys, tmp_path):
    pytest.importorskip("reasoning_gym")
    specs = ("reasoning-gym:chain_sum:min_terms=2,max_terms=2", "human-eval")
    own = [part for spec in specs for part in ("--task", spec)]
    own += ["--num-problems", "2", "-n", "8", "--batch-size", "2", "--allow-code-execution", "--sampler", "ar,lossless"]
    told = tables(capsys, ["eval", *own, "--report", str(tmp_path)])
    assert [row["task"] for row in told["quality"]] == [spec for spec in (*specs, "all tasks") for _ in range(2)]
    scores = [json.loads(line) for path in tmp_path.rglob("ar.scores.jsonl") for line in path.read_text().splitlines()]
    assert len(scores) == 4
    assert all(line.keys() == {"index", "problem", "score", "answer", "reason"} for line in scores)
