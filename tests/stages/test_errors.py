"""What users get wrong, through the command line: one line on stderr, exit code 2, and nothing written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoints import write_random
from zaya_cli.app import main
from zaya_core.io.weights import SINGLE
from zaya_core.presets import PRESETS

ROOT = Path(__file__).parents[2]
SMALL = PRESETS["tiny"].with_changes(vocab_size=320)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base, its conversion, and damaged copies of the base."""
    root = tmp_path_factory.mktemp("models")
    base = write_random(root / "base", SMALL)
    assert main(["convert", str(base.path), str(root / "tidar"), "--block", "8", "-q"]) == 0
    damage(root, "cut", SINGLE, lambda data: data[: len(data) // 2])
    damage(root, "llama", "config.json", lambda data: data.replace(b'"zaya"', b'"llama"'))
    damage(root, "headless", "config.json", lambda data: None)
    damage(root, "garbled", "config.json", lambda data: data[:50])
    damage(root, "legacy", "config.json", lambda data: data.replace(b"{", b'{"activation_func": "swiglu", ', 1))
    damage(root, "wide", "config.json", lambda data: data.replace(b'"hidden_size": 64', b'"hidden_size": 96'))
    (root / "empty.txt").write_text("")
    (root / "blank.jsonl").write_text("\n\n")
    (root / "short.txt").write_text("a few words")
    (root / "bad.jsonl").write_text('{"text": "good"}\n{"txt": "bad"}\n')
    (root / "unknown.yaml").write_text("blok: 8\n")
    (root / "wrong.yaml").write_text("block: many\n")
    return root


def damage(root, name, file, change):
    """A copy of base/ with one file changed, or gone where `change` gives None."""
    (root / name).mkdir()
    for path in (root / "base").iterdir():
        data = path.read_bytes() if path.name != file else change(path.read_bytes())
        if data is not None:
            (root / name / path.name).write_bytes(data)


def tree(root):
    return sorted(f"{path.relative_to(root)} {path.stat().st_size}" for path in root.rglob("*"))


CASES = {
    "missing directory": ("generate {r}/none --prompt x", "{r}/none is not a directory, expected a checkpoint"),
    "no config": ("convert {r}/headless {r}/out", "{r}/headless has no config.json"),
    "garbled config": ("convert {r}/garbled {r}/out", "{r}/garbled/config.json is not JSON"),
    "truncated weights": ("convert {r}/cut {r}/out", "{r}/cut/model.safetensors is cut"),
    "truncated for midtrain": ("midtrain {r}/cut {r}/out --objective ar --data stdlib", "model.safetensors is cut"),
    "wrong model type": ("convert {r}/llama {r}/out", "{r}/llama/config.json: model_type is 'llama', expected 'zaya'"),
    "misshapen weights": ("convert {r}/wide {r}/out", "expected [96] by config.json"),
    "unknown option": ("convert {r}/base {r}/out --blok 8", "no such option '--blok'"),
    "unknown config key": ("convert {r}/base {r}/out -c {r}/unknown.yaml", "unknown key 'blok' (did you mean block?)"),
    "wrong config value": ("convert {r}/base {r}/out -c {r}/wrong.yaml", "block is 'many', expected a whole number"),
    "no data": ("midtrain {r}/tidar {r}/out", "--data is missing"),
    "missing data": ("midtrain {r}/tidar {r}/out --data {r}/no.txt", "--data {r}/no.txt does not exist"),
    "empty data": ("midtrain {r}/tidar {r}/out --data {r}/empty.txt", "--data {r}/empty.txt holds no text"),
    "blank data": ("midtrain {r}/tidar {r}/out --data {r}/blank.jsonl", "holds no text"),
    "bad row": ("midtrain {r}/tidar {r}/out --data {r}/bad.jsonl", '{r}/bad.jsonl:2: expected "text"'),
    "too little data": ("midtrain {r}/tidar {r}/out --data {r}/short.txt --seq-len 64", "at least one row of --seq-len 64"),
    "row over the context": ("midtrain {r}/tidar {r}/out --data stdlib --seq-len 1025", "--seq-len is 1025, expected at most"),
    "another block": ("midtrain {r}/tidar {r}/out --data stdlib --block 4", "--block is 4, expected the checkpoint's 8"),
    "tidar on a base": ("midtrain {r}/base {r}/out --data stdlib", "plain autoregressive checkpoint (run zaya convert"),
    "prompt over the context": ("generate {r}/tidar --prompt {long} -n 8", "--max-new-tokens is 8, expected at most 1024 together"),
    "block of 0 to convert": ("convert {r}/base {r}/out --block 0", "--block is 0, expected at least 2"),
    "block of 0 to generate": ("generate {r}/tidar --prompt x --block 0", "--block is 0, expected at least 1"),
    "block over the trained": ("generate {r}/tidar --prompt x --block 9", "--block is 9, expected at most the trained 8"),
    "negative temperature": ("generate {r}/tidar --prompt x --temperature -1", "--temperature is -1.0, expected at least 0"),
    "temperature no number": ("generate {r}/tidar --prompt x --temperature nan", "--temperature is nan, expected at least 0"),
    "mix weight": ("generate {r}/tidar --prompt x --mix-weight 1.5", "--mix-weight is 1.5, expected at most 1"),
    "proposals": ("generate {r}/tidar --prompt x --proposals some", "--proposals is 'some', expected auto, all or a number"),
    "drafts of a base": ("generate {r}/base --prompt x --sampler lossless", "{r}/base is autoregressive and cannot draft"),
    "two prompts": ("generate {r}/tidar --prompt x --prompt-file y", "--prompt and --prompt-file exclude each other"),
    "missing prompt file": ("generate {r}/tidar --prompt-file {r}/no.txt", "--prompt-file {r}/no.txt"),
    "empty prompt": ("generate {r}/tidar --raw --prompt-file {r}/empty.txt", "the prompt has no tokens"),
    "mask outside": ("convert {r}/base {r}/out --mask-token-id 320", "--mask-token-id is 320, expected below"),
    "converted twice": ("convert {r}/tidar {r}/out", "{r}/tidar is a TiDAR checkpoint already"),
    "out in use": ("convert {r}/base {r}/tidar", "{r}/tidar is not empty (choose another directory or give --overwrite)"),
    "unknown preset": ("init tinny {r}/out", "preset 'tinny' is unknown (did you mean tiny?)"),
}


def filled(text, root):
    return text.replace("{r}", str(root)).replace("{long}", "word-" * 250)


@pytest.mark.parametrize("case", CASES)
def test_one_line_and_nothing_written(models, capfd, monkeypatch, case):
    for name in [name for name in os.environ if name.startswith("ZAYA_")]:
        monkeypatch.delenv(name)
    command, words = (filled(text, models) for text in CASES[case])
    before = tree(models)
    assert main(command.split()) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err
    assert tree(models) == before


@pytest.mark.parametrize("case", ["truncated weights", "drafts of a base", "empty data"])
def test_the_real_process_ends_the_same(models, case):
    command, words = (filled(text, models) for text in CASES[case])
    before = tree(models)
    ran = subprocess.run(
        [sys.executable, "-m", "zaya_cli", *command.split()], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("error: ")
    assert words in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert tree(models) == before


def test_the_same_models_work_when_asked_rightly(models, capfd):
    """So that the refusals above are for the reasons that they give."""
    words = ["--prompt", "x", "-n", "5", "--ignore-eos", "--seed", "1", "--json", "-q"]
    assert main(["generate", str(models / "tidar"), "--block", "8", *words]) == 0
    assert main(["generate", str(models / "base"), "--sampler", "ar", *words]) == 0
    results = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [len(result["token_ids"]) for result in results] == [5, 5]
