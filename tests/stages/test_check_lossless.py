"""`--check-lossless`: nothing on a sound model, and the first difference with its logits where drafts are trusted blindly."""

import json

import pytest
import torch

from tests.checkpoints import NUM_IDS, write_random
from tests.models import TINY, random_ids, random_model
from zaya_cli.app import main
from zaya_core.config import Tidar
from zaya_core.engine.chance import SeededChance
from zaya_core.engine.check import TIE, decoded, greedy_difference, logprob_error
from zaya_core.engine.draft import Proposals, Verifier
from zaya_core.engine.request import Decoding, Request
from zaya_core.layout import causal
from zaya_core.ops.sampling import Sampler


def settings(weight=1.0, temperature=0.0, ends=()):
    return Decoding(
        20,
        Sampler(temperature),
        verifier=Verifier(weight),
        proposals=Proposals(2),
        block_length=4,
        forbidden=(4,),
        end_ids=frozenset(ends),
    )


@pytest.fixture(scope="module")
def network():
    return random_model(TINY.with_changes(tidar=Tidar(4, 4)), dtype=torch.float64)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("models") / "tidar"
    wide = TINY.with_changes(vocab_size=NUM_IDS + 28, tidar=Tidar(4, 4), moe_intermediate_size=1056)
    write_random(path, wide, skip_bias=-1.0)
    return str(path)


def test_a_difference_is_the_first_and_has_the_logits_of_a_plain_forward(network):
    """Weight 0 trusts every draft: that is not lossless, and must be seen."""
    prompt = random_ids(network.config, 1, 9)[0].tolist()
    assert greedy_difference(network, prompt, settings()) is None
    found = greedy_difference(network, prompt, settings(weight=0.0))
    blind, plain = (
        [final.token_id for final in decoded(network, Request(prompt, how, SeededChance(0)))]
        for how in (settings(weight=0.0), Decoding(20, Sampler(0.0), forbidden=(4,)))
    )
    place = len(found.prefix_ids) - len(prompt)
    assert blind[:place] == plain[:place]
    assert (found.lossless_token_id, found.ar_token_id) == (blind[place], plain[place])
    hidden = network(torch.tensor([found.prefix_ids]), causal(torch.zeros(1, dtype=torch.int64), len(found.prefix_ids)))
    row = network.logits(hidden[0])[-1]
    assert found.ar_logit == pytest.approx(float(row[plain[place]]))
    assert found.margin == pytest.approx(float(row.index_fill(0, torch.tensor([4]), float("-inf")).max() - row[blind[place]]))
    assert found.margin > TIE
    assert found.read_by(network) == found


def test_texts_that_end_early_are_compared_too(network):
    prompt = random_ids(network.config, 1, 9)[0].tolist()
    ends = decoded(network, Request(prompt, settings(), SeededChance(0)))[7].token_id
    assert greedy_difference(network, prompt, settings(ends=(ends,))) is None
    assert len(decoded(network, Request(prompt, settings(ends=(ends,)), SeededChance(0)))) <= 8


def test_logprobs_of_samples_are_those_of_one_forward(network):
    prompt = random_ids(network.config, 1, 9)[0].tolist()
    assert logprob_error(network, Request(prompt, settings(temperature=2.0), SeededChance(3))) < 1e-10


def check(capsys, model, *more):
    code = main(["generate", model, "-p", "def main():", "-n", "20", "--check-lossless", "--ignore-eos", "--json", *more])
    captured = capsys.readouterr()
    return code, [json.loads(line) for line in captured.out.splitlines()], captured.err


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_a_sound_model_passes(model, capsys, dtype):
    code, rows, _ = check(capsys, model, "--dtype", dtype, "--temperature", "0")
    assert code == 0
    assert rows[-1]["is_lossless"] is True
    assert all(row["float32_agrees"] for row in rows[:-1])


def test_what_it_says_of_sampling(model, capsys):
    code, rows, error = check(capsys, model, "--dtype", "float32", "--temperature", "2", "--seed", "1")
    assert code == 0
    assert "share a law and no draws" in error
    assert rows[-1]["largest_logprob_error"] < 1e-3


def test_a_real_difference_fails(model, capsys, monkeypatch):
    """The fault: drafts are trusted as they are."""
    monkeypatch.setattr("zaya_core.stages.decoding._mix_weight", lambda config: 0.0)
    code, (first, summary), error = check(capsys, model, "--dtype", "bfloat16", "--temperature", "0")
    assert code == 1
    assert first["is_real"] is True
    assert first["float32_agrees"] is False
    assert first["margin_in_float32"] > TIE
    assert {"token", "ar_token", "lossless_token", "ar_logit", "lossless_logit", "margin"} <= first.keys()
    assert summary == {"is_lossless": False, "num_prompts": 1, "num_different": 1, "num_really_different": 1}
    assert "lossless is not ar on 1 of 1 prompts, the first of them index 0" in error
