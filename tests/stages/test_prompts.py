"""What the model reads: plain texts, conversations through the template, and who was tuned for chat."""

import json

import pytest

from tests.checkpoints import NUM_IDS, write_random
from tests.models import TINY
from zaya_core.config import Tidar
from zaya_core.data.tokenizer import TextTokenizer
from zaya_core.errors import ZayaError
from zaya_core.io.checkpoint import CERTIFICATE, Checkpoint
from zaya_core.stages.generate import GenerateConfig
from zaya_core.stages.prompts import Dresser, is_tuned_for_chat, read_all

HI = [{"role": "user", "content": "hi"}]
RENDERED = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture
def checkpoint(tmp_path):
    return write_random(tmp_path / "model", TINY.with_changes(vocab_size=NUM_IDS + 28, tidar=Tidar(4, 4)))


def certified(checkpoint, paper):
    """The same directory with another birth certificate."""
    path = checkpoint.path / CERTIFICATE
    path.unlink(missing_ok=True)
    if paper is not None:
        path.write_text(json.dumps(paper))
    return Checkpoint.open(checkpoint.path)


def prompts(checkpoint, **options):
    tokenizer = TextTokenizer(checkpoint.path)
    return read_all(Dresser.of(GenerateConfig(**options), checkpoint, tokenizer)), tokenizer


def rows(tmp_path, *values):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(value if isinstance(value, str) else json.dumps(value) + "\n" for value in values))
    return path


def test_a_text_for_a_base_model_stays_a_text(checkpoint):
    (prompt,), tokenizer = prompts(checkpoint, prompt="hi")
    assert prompt.token_ids(tokenizer) == [2, *tokenizer.encode("hi", special=False)]
    assert not prompt.is_chat
    (raw,), _ = prompts(checkpoint, prompt="hi", raw=True)
    assert raw.token_ids(tokenizer) == tokenizer.encode("hi", special=False)


def test_a_text_for_a_chat_model_is_a_users_words(checkpoint):
    """Trained without BOS (data/examples.py), so asked without."""
    tuned = certified(checkpoint, {"stage": "sft", "chat": True, "parent": None})
    (prompt,), tokenizer = prompts(tuned, prompt="hi")
    assert (prompt.text, prompt.read) == ("hi", RENDERED)
    assert prompt.token_ids(tokenizer) == tokenizer.encode(RENDERED, special=False)
    assert tokenizer.id_of("<|im_start|>") in prompt.token_ids(tokenizer)
    (raw,), _ = prompts(tuned, prompt="hi", raw=True)
    assert raw.token_ids(tokenizer) == tokenizer.encode("hi", special=False)


def test_messages_are_always_rendered_and_a_system_prompt_goes_first(checkpoint, tmp_path):
    mine = [{"role": "system", "content": "short"}, *HI]
    path = rows(tmp_path, {"messages": HI}, {"messages": mine}, {"prompt": "plain"})
    (first, second, plain), _ = prompts(checkpoint, input=path)
    assert first.text == first.read == RENDERED
    assert second.read == "<|im_start|>system\nshort<|im_end|>\n" + RENDERED
    assert plain.read is None
    path = rows(tmp_path, {"messages": HI}, {"messages": mine})
    (with_system, own), _ = prompts(checkpoint, input=path, system_prompt="long")
    assert with_system.read == "<|im_start|>system\nlong<|im_end|>\n" + RENDERED
    assert own.read == second.read


BAD = {
    "no key": ({"text": "x"}, 'rows.jsonl:2: expected an object with a string "prompt" or with "messages"'),
    "a number": ({"prompt": 3}, "rows.jsonl:2: expected an object"),
    "no JSON": ("{\n", "rows.jsonl:2: not JSON"),
    "a list": ("[1]\n", "rows.jsonl:2: list, expected an object"),
    "no messages": ({"messages": []}, 'rows.jsonl:2: "messages" is list, expected a list of messages'),
    "no role": ({"messages": [{"content": "x"}]}, "rows.jsonl:2: message 1 needs the strings"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_says_where(checkpoint, tmp_path, name):
    row, message = BAD[name]
    with pytest.raises(ZayaError) as caught:
        prompts(checkpoint, input=rows(tmp_path, {"prompt": "good"}, row))
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_what_has_no_place_is_refused(checkpoint, tmp_path):
    with pytest.raises(ZayaError, match="--system-prompt has no place before a plain text"):
        prompts(checkpoint, prompt="x", system_prompt="y")
    with pytest.raises(ZayaError, match="holds no prompt"):
        prompts(checkpoint, input=rows(tmp_path))
    with pytest.raises(ZayaError, match=r"rows.jsonl:1: \"messages\" cannot be taken as they are"):
        prompts(checkpoint, input=rows(tmp_path, {"messages": HI}), raw=True)


LINEAGES = {
    "made here, never on conversations": (
        {"stage": "midtrain", "parent": {"certificate": {"stage": "init", "parent": None}}},
        False,
    ),
    "tuned on conversations": ({"stage": "sft", "chat": True, "parent": None}, True),
    "converted after tuning": ({"stage": "convert", "parent": {"certificate": {"chat": True}}}, True),
    "made elsewhere": (None, True),
    "converted from elsewhere": ({"stage": "convert", "parent": {"certificate": None}}, True),
}


@pytest.mark.parametrize("name", LINEAGES)
def test_who_was_tuned_for_chat(checkpoint, name):
    paper, wanted = LINEAGES[name]
    changed = certified(checkpoint, paper)
    assert is_tuned_for_chat(changed, TextTokenizer(changed.path)) is wanted
    (checkpoint.path / "chat_template.jinja").unlink()
    assert is_tuned_for_chat(changed, TextTokenizer(changed.path)) is (wanted and paper is not None and "chat" in json.dumps(paper))
