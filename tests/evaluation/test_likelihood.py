"""Bits per byte against one forward over the text, token by token."""

import math

import pytest
import torch

from tests.checkpoints import NUM_IDS, write_random
from tests.models import TINY
from zaya_core.config import Tidar
from zaya_core.data.tokenizer import TextTokenizer
from zaya_core.evaluation.likelihood import likelihood
from zaya_core.layout import causal
from zaya_core.model.load import load_model

TEXT = "Größer als die Erde: " + "the river runs to the sea, and nobody remembers why. " * 3


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    config = TINY.with_changes(vocab_size=NUM_IDS + 28, tidar=Tidar(4, 4))
    return write_random(tmp_path_factory.mktemp("models") / "tidar", config, skip_bias=-1.0)


def test_a_single_row_equals_one_forward(checkpoint, tmp_path):
    model, tokenizer = load_model(checkpoint, dtype=torch.float64, device=torch.device("cpu")), TextTokenizer(checkpoint.path)
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    ids = torch.tensor([tokenizer.encode(TEXT)])
    found = likelihood(model, tokenizer, str(path), seq_len=ids.shape[1], num_rows=9)
    with torch.inference_mode():
        laws = model.logits(model(ids, causal(torch.zeros(1, dtype=torch.int64), ids.shape[1]))).log_softmax(-1)
    nats = -laws[0, :-1].gather(-1, ids[0, 1:, None]).mean()
    per_byte = (ids.shape[1] - len(tokenizer.encode(""))) / len(TEXT.encode())
    assert found["num_rows"] == 1
    assert found["tokens_per_byte"] == pytest.approx(per_byte)
    assert found["ar_bits_per_byte"] == pytest.approx(float(nats) / math.log(2) * per_byte, rel=1e-6)
    by_offset = found["diffusion_bits_per_byte_by_offset"]
    assert len(by_offset) == 4
    assert min(by_offset) < found["diffusion_bits_per_byte"] < max(by_offset)
