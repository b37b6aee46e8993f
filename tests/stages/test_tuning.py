"""The settings file changes what `generate` does: how much it drafts, whether it drafts at all, and never the text's law."""

import json
import re

import pytest

from tests.models import TINY, random_model
from zaya_core.config import Tidar
from zaya_core.engine.request import Decoding
from zaya_core.engine.ways import Way, Ways
from zaya_core.errors import ConfigError
from zaya_core.events import Note, Result
from zaya_core.ops.sampling import Sampler
from zaya_core.settings import Settings, Tuned
from zaya_core.stages.generate import GenerateConfig, run
from zaya_core.stages.tuning import Timed, _Clock, _said, _speeds

PROMPT = "import os\n\n\ndef main():"


def completion(path, **options):
    given = {"prompt": PROMPT, "max_new_tokens": 24, "temperature": 0.0, "seed": 0, "ignore_eos": True, "dtype": "float32"}
    events = run(GenerateConfig(**(given | options), settings=path))
    return next(event.values for event in events if isinstance(event, Result))


@pytest.fixture
def settings(tmp_path):
    """`settings(block, proposals)` -> a file with this cell for short contexts, and AR for long ones."""

    def write(block, proposals, block_length=16):
        path = tmp_path / f"{block}-{proposals}.json"
        cells = (Tuned(1, 64, block, proposals, 2.0), Tuned(1, 4096, 1, 0, 1.0))
        path.write_text(json.dumps(Settings("tiny", "here", "float32", "0.8", block_length, cells).to_json()))
        return path

    return write


def test_the_settings_file_changes_what_generate_does(settings):
    plain = completion(None)
    whole, short, none = (completion(settings(*cell)) for cell in ((16, 16), (4, 1), (1, 0)))
    assert plain["token_ids"] == whole["token_ids"] == short["token_ids"] == none["token_ids"]
    assert len(whole["stats"]["acceptance_histogram"]) == 16
    assert len(short["stats"]["acceptance_histogram"]) == 4
    assert none["stats"]["tokens_per_forward"] == 1
    assert none["stats"]["num_forwards"] > short["stats"]["num_forwards"] >= whole["stats"]["num_forwards"]


def test_a_long_request_has_the_cell_of_its_own_context(settings):
    path = settings(16, 3)
    assert completion(path)["stats"]["tokens_per_forward"] > 1
    assert completion(path, prompt=PROMPT * 100)["stats"]["tokens_per_forward"] == 1


def test_the_ar_sampler_does_not_read_it_and_a_number_excludes_it(tmp_path):
    missing = tmp_path / "missing.json"
    assert completion(missing, sampler="ar")["stats"]["tokens_per_forward"] == 1
    with pytest.raises(ConfigError, match="--settings chooses where --proposals is auto, got 2"):
        completion(missing, proposals="2")
    with pytest.raises(ConfigError, match="cannot be read"):
        completion(missing)


def test_without_seed_and_settings_steps_are_measured_and_the_text_decides():
    asked = GenerateConfig(prompt=PROMPT, max_new_tokens=24, temperature=0.0, ignore_eos=True, dtype="float32")
    events = list(run(asked))
    said = next(event.text for event in events if isinstance(event, Note) and event.text.startswith("proposals auto: "))
    assert "of AR if" in said
    values = next(event.values for event in events if isinstance(event, Result))
    assert values["token_ids"] == completion(None, sampler="ar")["token_ids"]
    assert (values["stats"]["block"], values["stats"]["proposals"]) == (16, "auto")


def test_many_rows_are_read_before_steps_are_timed():
    """57 tokens for each of 150 rows are more than a forward reads; none of them may be left to the steps that are timed."""
    model = random_model(TINY.with_changes(tidar=Tidar(4, 4)))
    how = Decoding(1, Sampler(), block_length=4, forbidden=(4,))
    clock = _Clock(model, how, list(range(5, 62)), batch=150, context=8)
    assert clock.timed(Way(0, 0)).slots == 1
    assert 4 < clock.timed(Way(1, 4)).slots <= 8


def test_the_guess_is_said_whatever_is_chosen_at_first():
    speeds = {Way(0, 0): 1.0, Way(1, 4): 0.9}
    tables = ((Way(0, 0),) * 3, (Way(0, 0), Way(0, 0), Way(1, 4)), (Way(0, 0), Way(1, 4), Way(1, 4)))
    said = [_said(Ways(fastest, 0.4), speeds) for fastest in tables]
    assert all("about 0.90x of AR if 40% of drafts are accepted" in one for one in said)
    assert [one.split(",")[0] for one in said] == ["none", "none at first", "1 of 4 at first"]


def test_speeds_weigh_tokens_with_seconds():
    alpha, every = 0.8, Way(4, 4)
    speeds = _speeds({Way(0, 0): Timed(1.0, 1), every: Timed(1.5, 20), Way(1, 4): Timed(1.5, 8)}, alpha)
    assert speeds[Way(0, 0)] == 1
    assert speeds[every] == pytest.approx((1 - alpha**4) / (1 - alpha) / 1.5)  # always a whole draft
    assert 1 < speeds[Way(1, 4)] < speeds[every]


def test_block_limits_what_the_settings_file_says(settings):
    assert completion(settings(16, 3), block=4)["stats"]["block"] == 4
    assert completion(settings(4, 1), block=8)["stats"]["block"] == 4


def test_the_guess_is_of_the_trained_block_whatever_is_asked():
    def said(**options):
        events = run(GenerateConfig(prompt=PROMPT, max_new_tokens=2, dtype="float32", **options))
        return next(event.text for event in events if isinstance(event, Note) and event.text.startswith("proposals auto: "))

    guesses = [re.search(r"if (\d+)% of drafts", said(**options)).group(1) for options in ({}, {"block": 4})]
    assert guesses[0] == guesses[1]


def test_settings_for_another_block_are_refused(settings):
    with pytest.raises(ConfigError, match="blocks of 8, expected the model's 16"):
        completion(settings(8, 1, block_length=8))
