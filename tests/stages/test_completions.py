"""What one completion says: stop strings on a real run, many at once on stdout, drafts and their trace."""

import json
from itertools import pairwise
from pathlib import Path
from shutil import copytree

import pytest

from tests.checkpoints import NUM_IDS, write_random
from tests.models import TINY
from zaya_cli.app import main
from zaya_core.config import Tidar
from zaya_core.data.tokenizer import TextTokenizer
from zaya_core.engine.batch import Engine
from zaya_core.events import Drafts, Result, Text
from zaya_core.io.checkpoint import CERTIFICATE, GENERATION
from zaya_core.stages.completing import Job, Shown, complete
from zaya_core.stages.generate import GenerateConfig, open_checkpoint, run
from zaya_core.stages.prompts import Prompt

SHARED = ("-p", "def main():", "--seed", "3", "--temperature", "2", "--dtype", "float64")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tidar"
    write_random(path, TINY.with_changes(vocab_size=NUM_IDS + 28, tidar=Tidar(4, 4)), skip_bias=-1.0)
    return path


def generate(capsys, *arguments: str) -> list[dict]:
    assert main(["generate", *arguments, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("sampler", ["ar", "lossless", "mix"])
def test_a_stop_string_ends_text_ids_counts_and_logprobs(model, capsys, sampler):
    shared = (str(model), *SHARED, "-n", "40", "--sampler", sampler, "--ignore-eos", "--logprobs")
    (whole,) = generate(capsys, *shared)
    tokenizer = TextTokenizer(model)
    for begin, size in ((3, 2), (10, 4), (17, 1), (0, 3)):
        stop = whole["text"][begin : begin + size]
        (cut,) = generate(capsys, *shared, "--stop", "never there", "--stop", stop)
        assert cut["text"] == whole["text"][: whole["text"].index(stop)]
        assert cut["finish_reason"] == "stop"
        count = len(cut["token_ids"])
        assert cut["token_ids"] == whole["token_ids"][:count]
        assert cut["text"].startswith(tokenizer.decode(cut["token_ids"]))
        assert cut["logprobs"] == whole["logprobs"][:count]
        stats = cut["stats"]
        assert stats["num_tokens"] == count
        assert sum(stats["acceptance_histogram"]) == stats["num_forwards"]
        assert sum(n * c for n, c in enumerate(stats["acceptance_histogram"], 1)) == max(0, count - 1)
        if sampler == "ar" and count > 1:
            assert stats["tokens_per_forward"] == 1.0


def test_an_end_token_is_among_the_ids_and_not_in_the_text(model, capsys, tmp_path):
    """Inside a block too: an ordinary token is made the end."""
    path = tmp_path / "ending"
    copytree(model, path)
    shared = (str(path), *SHARED, "-n", "40", "--sampler", "mix", "--mix-weight", "0", "--logprobs")
    (whole,) = generate(capsys, *shared, "--ignore-eos")
    end = whole["token_ids"][9]
    count = whole["token_ids"].index(end) + 1
    (path / GENERATION).write_text(json.dumps({"eos_token_id": [end]}))
    (cut,) = generate(capsys, *shared)
    assert cut["token_ids"] == whole["token_ids"][:count]
    assert cut["text"] == TextTokenizer(model).decode(cut["token_ids"][:-1])
    assert cut["finish_reason"] == "stop"
    assert cut["stats"]["num_tokens"] == count == len(cut["logprobs"])


def test_a_stop_string_frees_the_engines_row(model):
    opened = open_checkpoint(GenerateConfig(model=model, max_new_tokens=30, temperature=2.0, ignore_eos=True))
    engine = Engine(opened.model(GenerateConfig(dtype="float64")), num_slots=200, max_rows=2)
    prompt = Prompt("def main():", "here")

    def texts(*stops):
        jobs = [Job(index, prompt, 3 + index, opened.how, stops) for index in range(4)]
        events = list(complete(engine, jobs, opened.tokenizer, shown=Shown("lossless")))
        assert engine.num_rows == 0
        return {event.values["index"]: event.values["text"] for event in events if isinstance(event, Result)}

    whole = texts()
    stop = whole[0][4:6]
    assert texts(stop) == {index: text.partition(stop)[0] for index, text in whole.items()}


def test_a_run_that_is_closed_takes_its_requests_back(model):
    opened = open_checkpoint(GenerateConfig(model=model, max_new_tokens=30, ignore_eos=True))
    engine = Engine(opened.model(GenerateConfig()), num_slots=200, max_rows=2)
    events = complete(engine, [Job(0, Prompt("x", ""), 0, opened.how)], opened.tokenizer, shown=Shown("lossless"))
    assert isinstance(next(events), Text)
    assert engine.num_rows == 1
    events.close()
    assert engine.num_rows == 0


def test_a_run_that_is_closed_where_several_end_at_once(model):
    opened = open_checkpoint(GenerateConfig(model=model, max_new_tokens=3, ignore_eos=True, sampler="ar"))
    engine = Engine(opened.model(GenerateConfig()), num_slots=200, max_rows=3)
    jobs = [Job(index, Prompt("x", ""), index, opened.how) for index in range(3)]
    events = complete(engine, jobs, opened.tokenizer, shown=Shown("ar"))
    assert any(isinstance(event, Result) for event in events)
    events.close()
    assert engine.num_rows == 0


def test_many_on_stdout_do_not_mix(model, capsys):
    shared = (str(model), *SHARED, "-n", "15", "--ignore-eos", "--n", "3")
    apart = generate(capsys, *shared)
    assert [(row["index"], row["seed"]) for row in apart] == [(0, 3), (1, 4), (2, 5)]
    together = generate(capsys, *shared, "--batch-size", "3")
    assert [(row["index"], row["text"]) for row in together] == [(row["index"], row["text"]) for row in apart]
    assert main(["generate", *shared, "--batch-size", "3", "-q"]) == 0
    assert capsys.readouterr().out == "".join(row["text"] + "\n" * (not row["text"].endswith("\n")) for row in apart)


def test_a_chat_model_ends_its_turn(model, capsys, tmp_path):
    """<|im_end|> ends what a conversation asks for, and not a raw text."""
    path = tmp_path / "chat"
    write_random(path, TINY.with_changes(vocab_size=NUM_IDS + 28, tidar=Tidar(4, 4)), skip_bias=-1.0)
    (path / CERTIFICATE).write_text(json.dumps({"chat": True}))
    opened = open_checkpoint(GenerateConfig(model=path))
    end = opened.tokenizer.id_of("<|im_end|>")
    job = Job(0, Prompt("hi", "", read="<|im_start|>user\nhi"), 0, opened.how)
    assert end in job.request(opened.tokenizer).how.end_ids
    assert end not in Job(0, Prompt("hi", ""), 0, opened.how).request(opened.tokenizer).how.end_ids
    (shown,) = generate(capsys, str(path), "-p", "hi", "-n", "3")
    assert shown["prompt"] == "hi"
    assert shown["stats"]["num_prompt_tokens"] > 3


def test_drafts_say_the_same_tokens_as_the_result(model, tmp_path):
    """Their final pieces are the text; a trace read back is what was shown."""
    path = tmp_path / "trace.jsonl"
    options = {"prompt": "def main():", "max_new_tokens": 20, "ignore_eos": True, "seed": 5, "trace": path}
    events = list(run(GenerateConfig(model=model, show_drafts=True, **options)))
    steps = [event for event in events if isinstance(event, Drafts)]
    (result,) = (event.values for event in events if isinstance(event, Result))
    assert not [event for event in events if isinstance(event, Text)]
    finals = [piece for step in steps for piece in (*step.accepted, *step.drawn)]
    assert [token_id for token_id, _ in finals] == result["token_ids"]
    assert result["text"].startswith("".join(text for _, text in finals))
    assert len(steps) == 1 + result["stats"]["num_forwards"]
    for before, step in pairwise(steps[:-1]):  # the last forward's is cut at the limit
        assert [piece[0] for piece in (*step.accepted, *step.rejected)] == [piece[0] for piece in before.pre_drafted]
    again = list(run(GenerateConfig(replay=path)))
    assert json.dumps([vars(step) for step in again]) == json.dumps([vars(step) for step in steps])
    events = list(run(GenerateConfig(model=model, **options)))
    assert "".join(event.text for event in events if isinstance(event, Text)) == result["text"]
    assert not [event for event in events if isinstance(event, Drafts)]


def test_the_experts_of_every_token_that_was_read(model, capsys):
    """Prompt and text less the last token, an expert (or the skip expert, 4) a layer; the same however many are read at once."""
    shared = (str(model), *SHARED, "-n", "15", "--temperature", "0", "--ignore-eos", "--return-experts")
    (drafted,), (plain,) = (generate(capsys, *shared, "--sampler", sampler) for sampler in ("lossless", "ar"))
    stats = drafted["stats"]
    assert len(drafted["experts"]) == stats["num_prompt_tokens"] + 15 - 1
    assert {len(row) for row in drafted["experts"]} == {TINY.num_hidden_layers}
    assert {choice for row in drafted["experts"] for choice in row} <= set(range(TINY.num_experts + 1))
    assert drafted["experts"] == plain["experts"]
    (cut,) = generate(capsys, *shared, "--stop", drafted["text"][6:8])
    count = len(cut["token_ids"])
    assert cut["experts"] == drafted["experts"][: stats["num_prompt_tokens"] + max(0, count - 1)]


@pytest.mark.parametrize("law", [("--repetition-penalty", "3"), ("--min-p", "0.9"), ("--top-k", "1"), ("--top-p", "0.01")])
def test_what_changes_the_law_changes_the_text_and_keeps_it_exact(model, capsys, law):
    """Near greedy by min-p, top-k and top-p at a high temperature; with a penalty greedy lossless is greedy ar."""
    shared = (str(model), "-p", "x = 1\n" * 3, "-n", "25", "--ignore-eos", "--dtype", "float64", "--seed", "1")
    temperature = ("--temperature", "0" if "penalty" in law[0] else "3")
    (drafted,), (plain,) = (generate(capsys, *shared, *temperature, *law, "--sampler", sampler) for sampler in ("lossless", "ar"))
    (without,) = generate(capsys, *shared, *temperature)
    assert without["token_ids"] != drafted["token_ids"]
    if law[0] != "--min-p":  # which leaves two likely tokens to chance
        assert drafted["token_ids"] == plain["token_ids"]


def test_drafts_of_another_temperature_change_draws_and_no_greedy_text(model, capsys):
    shared = (str(model), "-p", "x = 1\n" * 3, "-n", "25", "--dtype", "float64", "--seed", "1", "--draft-temperature")
    for temperature, is_same in (("0", True), ("3", False)):
        (cold,), (hot,) = (generate(capsys, *shared, draft, "--temperature", temperature) for draft in ("0", "9"))
        assert (cold["token_ids"] == hot["token_ids"]) == is_same
    assert main(["generate", *shared, "0.5", "--sampler", "ar"]) == 0
    assert "--draft-temperature has no effect with --sampler ar" in capsys.readouterr().err


EXCLUDED = {
    "chat and prompt": (("--chat", "-p", "x"), "--prompt and --chat exclude each other"),
    "output and chat": (("--chat", "--output", "y"), "--output and --chat exclude each other"),
    "chat and trace": (("--chat", "--trace", "y"), "--chat and --trace exclude each other"),
    "a check of many": (("-p", "x", "--check-lossless", "--n", "2"), "--check-lossless and --n exclude each other"),
    "many drafts": (("--show-drafts", "--batch-size", "2"), "expected 1 with --show-drafts"),
    "empty stop": (("-p", "x", "--stop", ""), "--stop is empty"),
    "nothing to write over": (("-p", "x", "--overwrite"), "--overwrite has nothing to write over"),
    "mix is not lossless": (("-p", "x", "--check-lossless", "--sampler", "mix"), "--sampler is mix, expected lossless"),
    "no trace": (("--replay", "no.jsonl"), "--replay no.jsonl is not a file"),
}


@pytest.mark.parametrize("name", EXCLUDED)
def test_options_that_cannot_be_together(model, capsys, name):
    words, message = EXCLUDED[name]
    assert main(["generate", str(model), *words]) == 2
    assert message in capsys.readouterr().err
