"""Fine-tuning on conversations and answers, and what the training options do: each is turned here."""

import json

import pytest
import torch

from zaya_cli.app import main
from zaya_core.data.chat import chat_template
from zaya_core.data.documents import Documents
from zaya_core.data.examples import Examiner
from zaya_core.data.tokenizer import IM_END, TextTokenizer
from zaya_core.errors import DataError
from zaya_core.io.checkpoint import Checkpoint
from zaya_core.model.load import load_model
from zaya_core.stages.midtrain import MidtrainConfig
from zaya_core.stages.midtrain import run as midtrain
from zaya_core.stages.sft import SftConfig, run


@pytest.fixture(scope="module")
def tidar(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    (root / "a.txt").write_text("".join(f"line {i}: {i * i}\n" for i in range(400)))
    talks = [
        {"messages": [{"role": "user", "content": f"{n} + 1?"}, {"role": "assistant", "content": str(n + 1)}]} for n in range(40)
    ]
    (root / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in talks))
    assert main(["init", "tiny", str(root / "base"), "--data", str(root / "a.txt"), "--dtype", "float32", "-q"]) == 0
    assert main(["convert", str(root / "base"), str(root / "tidar"), "--block", "4", "-q"]) == 0
    return root


def examiner(tidar, **changes):
    tokenizer = TextTokenizer(tidar / "tidar")
    options = {"every_token": False, "num_tail": 3, "max_length": 64, "mask_text": "<mask>"} | changes
    return Examiner(tokenizer, chat_template(tokenizer), **options)


def test_only_answers_are_labels_and_a_tail_of_ends_follows(tidar):
    doctor = examiner(tidar)
    messages = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "unsaid", "weight": 0},
        {"role": "user", "content": "2?"},
        {"role": "assistant", "content": "42", "weight": 0.5},
    ]
    (example,) = doctor.examples([("a:1", {"messages": messages})])
    labelled = [i for i, weight in zip(example.token_ids, example.weights, strict=True) if weight]
    end = doctor.tokenizer.id_of(IM_END)
    assert labelled[-4:] == [end] * 4
    assert doctor.tokenizer.decode(labelled) == "42"
    assert set(example.weights) == {0.0, 0.5}


def test_a_prompt_and_its_completion(tidar):
    doctor = examiner(tidar)
    (example,) = doctor.examples([("a:1", {"prompt": "1 + 1 =", "completion": " 2"})])
    prompt = doctor.tokenizer.encode("1 + 1 =")
    assert example.token_ids[: len(prompt)] == prompt
    assert example.weights == [0.0] * len(prompt) + [1.0] * (len(example.token_ids) - len(prompt))
    assert example.token_ids[-4:] == [doctor.tokenizer.eos_id] * 4


def test_the_doctor_counts_and_says(tidar):
    doctor = examiner(tidar, max_length=60)
    rows = [
        {"messages": [{"role": "user", "content": "nobody answers"}]},
        {"messages": [{"role": "user", "content": "7 x 8 " * 30}, {"role": "assistant", "content": "long"}]},
        {"messages": [{"role": "user", "content": "<mask>"}, {"role": "assistant", "content": "1"}]},
    ]
    kept = list(doctor.examples((f"a:{n}", row) for n, row in enumerate(rows)))
    assert Documents.of(kept).num_tokens <= 60
    assert [line.split()[0] for line in doctor.found()["findings"]] == ["1", "1", "1"]
    with pytest.raises(DataError, match="a:9: a row of text among rows of messages"):
        list(examiner(tidar).examples([("a:8", rows[0]), ("a:9", {"text": "x"})]))


def test_a_conversation_that_is_too_long_loses_thoughts_and_keeps_its_answers(tidar):
    def talk(first, last):
        messages = [
            {"role": "user", "content": "3 x 7?"},
            {"role": "assistant", "content": f"<think>{first}</think>\n\nIt is 21."},
            {"role": "user", "content": "And 8 x 8?"},
            {"role": "assistant", "content": f"<think>{last}</think>\n\nIt is 64."},
        ]
        return {"messages": messages}

    rows = [talk("a b", "c d"), talk("so " * 60, "c d"), talk("so " * 60, "now " * 60), talk("", "c d")]
    rows[3]["messages"][3]["content"] = "It is " * 99
    doctor = examiner(tidar, max_length=160)
    texts = [
        doctor.tokenizer.decode(example.token_ids) for example in doctor.examples((f"a:{n}", row) for n, row in enumerate(rows))
    ]
    assert len(texts) == 3
    assert [text.count("It is 21.") + text.count("It is 64.") for text in texts] == [2, 2, 2]
    assert "<think>a b</think>" in texts[0], "what fits is kept as it is"
    assert "so" not in texts[1], "earlier thoughts go first, whole"
    assert "<think>c d</think>" in texts[1]
    assert 1 < texts[2].count("now") < 60, "then the last thought's tail"
    assert [line.split()[0] for line in doctor.found()["findings"]] == ["2", "1"]


def test_inspect_shows_rows_and_trains_nothing(tidar, tmp_path, capsys):
    command = ["sft", str(tidar / "tidar"), str(tmp_path / "out"), "--data", str(tidar / "chat.jsonl"), "--seq-len", "64"]
    assert main([*command, "--inspect", "2", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["row"] for row in rows] == [0, 1]
    shown = "".join(token[1] for token in rows[0]["documents"][0]["tokens"])
    assert "<|im_start|>user" in shown
    assert any(token[2] for token in rows[0]["documents"][0]["tokens"])
    assert not (tmp_path / "out").exists()


def losses(out):
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


OPTIONS = {
    "plain": {},
    "muon": {"optimizer": "muon"},
    "full": {"gradient_checkpointing": "full"},
    "selective": {"gradient_checkpointing": "selective"},
    "kl": {"draft_loss": "ce+kl", "offset_decay": 0.8},
}


@pytest.fixture(scope="module")
def runs(tidar, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for name, options in OPTIONS.items():
        data = (str(tidar / "chat.jsonl"),)
        list(run(SftConfig(tidar / "tidar", root / name, data=data, max_steps=12, seq_len=64, batch_size=4, lr=5e-3, **options)))
    return root


@pytest.mark.parametrize("name", OPTIONS)
def test_every_way_of_training_learns(runs, name):
    values = losses(runs / name)
    assert values[-1] < values[0] - 0.3, values


def test_recomputing_activations_changes_no_bit(runs):
    assert losses(runs / "full") == losses(runs / "plain")
    assert losses(runs / "selective") == losses(runs / "plain")
    assert losses(runs / "kl") != losses(runs / "plain")


def test_adapters_train_resume_and_are_merged(tidar, tmp_path):
    command = ["sft", str(tidar / "tidar"), "OUT", "--data", str(tidar / "chat.jsonl"), "--seq-len", "64", "--lora-rank", "4"]
    command += ["--max-steps", "6", "--save-every", "3", "--lr", "0.01", "-q"]
    for name in ("whole", "again"):
        command[2] = str(tmp_path / name)
        assert main(command) == 0
    (tmp_path / "again/config.json").unlink()
    assert main([*command, "--resume", str(tmp_path / "again/checkpoints/step-3")]) == 0
    models = {}
    for name in ("whole", "again"):
        models[name] = load_model(Checkpoint.open(tmp_path / name), dtype=torch.float32, device=torch.device("cpu")).state_dict()
    base = load_model(Checkpoint.open(tidar / "tidar"), dtype=torch.float32, device=torch.device("cpu")).state_dict()
    changed = {name for name in base if not torch.equal(base[name], models["whole"][name])}
    assert changed
    assert all("self_attn" in name and "proj" in name for name in changed)
    assert all(torch.equal(models["whole"][name], models["again"][name]) for name in base)


def test_best_is_kept_and_measured_on_what_was_held_out(tidar, tmp_path):
    (tmp_path / "texts").mkdir()
    for number in range(100):
        (tmp_path / f"texts/{number}.txt").write_text(f"text {number}: " + "la " * 30)
    options = {"max_steps": 8, "seq_len": 32, "batch_size": 2, "save_every": 2, "save_total_limit": 1, "eval_rows": 2, "lr": 5e-3}
    list(midtrain(MidtrainConfig(tidar / "tidar", tmp_path / "out", data=(str(tmp_path / "texts"),), **options)))
    rows = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    scores = {row["step"]: row["eval_acceptance_length"] for row in rows if "eval_acceptance_length" in row}
    assert list(scores) == [2, 4, 6, 8]
    best = (tmp_path / "out/checkpoints/BEST").read_text().strip()
    assert (tmp_path / "out/checkpoints" / best / "config.json").exists()
    assert scores[int(best.removeprefix("step-"))] >= scores[8]


def test_a_loss_that_is_no_number_names_step_and_rows(tidar, tmp_path, capsys):
    command = ["midtrain", str(tidar / "tidar"), str(tmp_path / "out"), "--data", str(tidar / "a.txt"), "--seq-len", "64"]
    assert main([*command, "--max-steps", "40", "--lr", "1e30", "--warmup-ratio", "0", "-q"]) == 1
    assert "rows range(" in capsys.readouterr().err.replace("\n", " ")
