"""`recipes/bench/equal.py`: requests in company are what they are alone on the bundled model, and a faulty batch is found out."""

import pytest
import torch

from recipes.bench.cause import WatchedEngine
from recipes.bench.equal import differences, mixed_requests
from recipes.bench.texts import code, held_out_ids
from zaya_core.assets import BUNDLED
from zaya_core.data.tokenizer import TextTokenizer
from zaya_core.engine.batch import Engine
from zaya_core.io.checkpoint import Checkpoint
from zaya_core.model.load import load_serving
from zaya_core.model.native import NativeModel


class Leaky:
    """Its rows hear a little of one another."""

    def _forward(self, turns, routing):
        hidden = super()._forward(turns, routing)
        return hidden if len(turns) == 1 else hidden + 0.05 * hidden.roll(1, 0)


class LeakyEngine(Leaky, Engine):
    """As it runs."""


class LeakyWatched(Leaky, WatchedEngine):
    """As it is followed."""


@pytest.fixture(scope="module")
def model():
    return load_serving(Checkpoint.open(BUNDLED), dtype=torch.float32, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def requests(model):
    token_ids = held_out_ids(TextTokenizer(BUNDLED), 4000)
    return mixed_requests(token_ids, model.config.tidar, 12, most_tokens=16)


def test_requests_in_company_are_what_they_are_alone(model, requests):
    assert all(one.is_excused for one in differences(model, requests, rows=4))


def test_in_bfloat16_by_native_kernels_no_bit_differs(requests):
    model = load_serving(Checkpoint.open(BUNDLED), dtype=torch.bfloat16, device=torch.device("cpu"))
    if not isinstance(model, NativeModel):
        pytest.skip("this machine has no native kernels")
    assert differences(model, requests, rows=4) == []


def test_what_is_no_rounding_is_not_excused(model, requests):
    found = differences(model, requests, rows=4, engines=(LeakyEngine, LeakyWatched))
    assert len(found) > 2
    assert all(one.cause is not None for one in found)
    assert not any(one.is_excused for one in found)


def test_windows_are_consecutive_text():
    tokenizer = TextTokenizer(BUNDLED)
    first, second = code(tokenizer, 2, 50)
    assert first + second == held_out_ids(tokenizer, 100)
