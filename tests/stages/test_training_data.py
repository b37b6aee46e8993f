"""What a run reads and writes beside its weights: the token cache, mixtures, held-out figures, TensorBoard."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from tests.train.test_resume import figures
from zaya_cli.app import main
from zaya_core.data.cache import open_documents, write_documents
from zaya_core.data.documents import Example
from zaya_core.stages.midtrain import MidtrainConfig, run


@pytest.fixture(scope="module")
def tidar(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    (root / "digits.txt").write_text("".join(f"{i} {i * i}\n" for i in range(300)))
    rows = [{"text": "word " * (5 + number % 7)} for number in range(120)]
    (root / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["init", "tiny", str(root / "base"), "--data", str(root / "digits.txt"), "--dtype", "float32", "-q"]) == 0
    assert main(["convert", str(root / "base"), str(root / "tidar"), "--block", "4", "-q"]) == 0
    return root


def train(tidar, out, *data, **options):
    options = {"max_steps": 4, "seq_len": 32, "batch_size": 2, "log_every": 1} | options
    list(run(MidtrainConfig(tidar / "tidar", out, data=tuple(map(str, data)), **options)))
    return figures(out)


def test_tokens_are_made_once_and_made_again_alike(tidar, tmp_path, monkeypatch):
    monkeypatch.setenv("ZAYA_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "text.txt"
    text.write_text((tidar / "digits.txt").read_text())
    first = train(tidar, tmp_path / "a", text)
    (made,) = (tmp_path / "cache" / "tokens").iterdir()
    before = (made / "token_ids.bin").stat().st_mtime_ns
    assert train(tidar, tmp_path / "b", text) == first
    assert (made / "token_ids.bin").stat().st_mtime_ns == before, "the second run read the cache"
    (made / "meta.json").unlink()
    assert train(tidar, tmp_path / "c", text) == first, "a broken cache is made again"
    text.write_text(text.read_text().replace("1", "2"))
    os.utime(text, ns=(1, 1))
    assert train(tidar, tmp_path / "d", text) != first, "a changed file is read anew"
    assert len(list((tmp_path / "cache" / "tokens").iterdir())) == 2


def test_runs_that_tokenise_the_same_text_at_once_do_not_disturb_each_other(tidar, tmp_path):
    documents = [Example([number % 7 + 1] * 50, None) for number in range(400)]
    cache = tmp_path / "cache" / "tokens" / "same"
    barrier = Barrier(3)

    def write() -> None:
        barrier.wait()
        for _ in write_documents(cache, documents, lambda: {"kind": "text"}, limit=None):
            pass

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(write) for _ in range(3)]:
            done.result()
    found, _ = open_documents(cache)
    assert len(found.lengths) == 400
    assert [path.name for path in cache.parent.iterdir()] == ["same"], "nothing half-written stays"


def test_a_mixture_draws_from_both_by_weight(tidar, tmp_path, capsys):
    command = ["midtrain", str(tidar / "tidar"), str(tmp_path / "a"), "--seq-len", "32", "--inspect", "200", "--json"]
    sources = ["--data", f"{tidar / 'digits.txt'}:1", "--data", f"{tidar / 'words.jsonl'}:3"]
    assert main([*command, *sources]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 200
    texts = ["".join(token[1] for document in row["documents"] for token in document["tokens"]) for row in rows]
    assert sum("w" in text for text in texts) == pytest.approx(150, abs=10)
    assert main([*command, *sources, "--data", str(tidar / "digits.txt")]) == 2
    assert "2 of 3 --data have a weight" in capsys.readouterr().err


def test_rows_are_shown_to_people(tidar, tmp_path, capsys):
    command = ["midtrain", str(tidar / "tidar"), str(tmp_path / "a"), "--seq-len", "32", "--inspect", "1"]
    assert main([*command, "--data", str(tidar / "words.jsonl")]) == 0
    shown = capsys.readouterr().out
    assert "row 0, document 0:" in shown
    assert "¦ begins a block" in shown
    assert shown.replace("¦", "").count("word") > 5
    assert shown.count("¦") > 3


def test_figures_go_to_tensorboard(tidar, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    rows = train(tidar, tmp_path / "a", tidar / "digits.txt", report_to="tensorboard")
    events = accumulator.EventAccumulator(str(tmp_path / "a" / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars("loss")] == pytest.approx([row["loss"] for row in rows])
    assert [event.step for event in events.Scalars("acceptance_length")] == [1, 2, 3, 4]


def test_weight_decay_shrinks_matrices(tidar, tmp_path):
    from safetensors.torch import load_file

    name = "model.layers.0.self_attn.o_proj.weight"
    norms = []
    for decay in (0.0, 10.0):
        train(tidar, tmp_path / str(decay), tidar / "digits.txt", weight_decay=decay, lr=1e-2)
        norms.append(load_file(tmp_path / str(decay) / "model.safetensors")[name].norm())
    assert norms[1] < 0.95 * norms[0]


def test_the_expected_start_is_said_and_met(tidar, tmp_path):
    config = MidtrainConfig(tidar / "tidar", tmp_path / "a", data=(str(tidar / "digits.txt"),), seq_len=32, max_steps=1)
    notes = " ".join(event.text for event in run(config) if hasattr(event, "text"))
    (row,) = figures(tmp_path / "a")
    uniform = float(notes.split("ln V = ")[1].split()[0])
    assert row["ar_loss"] == pytest.approx(uniform, rel=0.1)
    assert row["diffusion_loss"] == pytest.approx(uniform, rel=0.1)
