"""Streamed text: what is shown is final, no half character appears, and the parts are the whole."""

import random

import pytest

from tests.checkpoints import write_tokenizer
from zaya_core.data.stream import TextStream
from zaya_core.data.tokenizer import TextTokenizer

TEXTS = ["family 👩‍👩‍👧‍👦 and flag 🇮🇸!", "東京 é e\u0301 ñ", "    if x:\n\t\treturn '…'\n", "ends in 🙂", "🙂"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(directory)
    return TextTokenizer(directory)


def streamed(tokenizer, groups):
    """The parts as shown, `finish` last."""
    stream = TextStream(tokenizer)
    parts = [stream.push(group) for group in groups]
    assert stream.text == "".join(parts)
    parts.append(stream.finish())
    assert stream.text == "".join(parts)
    return parts


def cut(ids, rng):
    """The ids in groups of 1 to 5, as a decode step commits them."""
    groups = []
    while ids:
        size = rng.randint(1, 5)
        groups.append(ids[:size])
        ids = ids[size:]
    return groups


@pytest.mark.parametrize("text", TEXTS)
def test_no_half_character_is_shown(tokenizer, text):
    ids = tokenizer.encode(text)
    longest = max(len(tokenizer.encode(character, special=False)) for character in text)
    assert longest >= 2 or text.isascii(), "the text must have characters of several tokens"
    for groups in ([[index] for index in ids], *(cut(ids, random.Random(seed)) for seed in range(5))):
        parts = streamed(tokenizer, groups)
        assert "".join(parts) == text
        assert "\ufffd" not in "".join(parts)
        assert parts[-1] == "", "whole characters do not wait for the end"


def test_characters_come_as_soon_as_they_are_whole(tokenizer):
    stream = TextStream(tokenizer)
    parts = [stream.push([index]) for index in tokenizer.encode("a🙂b", special=False)]
    assert [part for part in parts if part] == ["a", "🙂", "b"]
    assert len(parts) == 6


def test_an_unfinished_character_is_shown_at_the_end_as_decode_shows_it(tokenizer):
    ids = tokenizer.encode("ok 🙂")[:-1]
    parts = streamed(tokenizer, [[index] for index in ids])
    assert "".join(parts[:-1]) == "ok "
    assert "".join(parts) == tokenizer.decode(ids)
    assert set(parts[-1]) == {"\ufffd"}


def test_special_tokens_are_not_shown(tokenizer):
    ids = [2, *tokenizer.encode("ab", special=False), tokenizer.id_of("<|im_end|>"), 1]
    assert "".join(streamed(tokenizer, [ids])) == "ab"


@pytest.mark.parametrize("seed", range(20))
def test_any_ids_at_all_stream_to_their_decoding(tokenizer, seed):
    """A random model writes bytes that are no text: the parts must still add up, and nothing may raise."""
    rng = random.Random(seed)
    weights = [rng.random() ** 8 for _ in range(tokenizer.num_ids)]
    for _ in range(20):
        ids = rng.choices(range(tokenizer.num_ids), weights, k=60)
        assert "".join(streamed(tokenizer, cut(ids, rng))) == tokenizer.decode(ids)


def test_nothing_streams_to_nothing(tokenizer):
    assert streamed(tokenizer, []) == [""]
