"""The one trimming routine, against a slow oracle that reads the text character by character, over every way to split it."""

import random
from collections import namedtuple
from itertools import combinations

import pytest

from tests.checkpoints import write_tokenizer
from zaya_core.data.tokenizer import TextTokenizer
from zaya_core.data.transcript import Transcript

Piece = namedtuple("Piece", "token_id logprob")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(directory)
    return TextTokenizer(directory)


def pieces(tokenizer, text):
    return [Piece(token_id, -float(place)) for place, token_id in enumerate(tokenizer.encode(text, special=False))]


def every_split(items):
    """All ways to cut a list into consecutive groups."""
    for count in range(len(items)):
        for borders in combinations(range(1, len(items)), count):
            yield [items[begin:end] for begin, end in zip((0, *borders), (*borders, len(items)), strict=True)]


def written(tokenizer, groups, stops, reason):
    """The transcript of these groups, and the parts as shown; what follows its end is not pushed."""
    transcript, parts = Transcript(tokenizer, stops), []
    for place, group in enumerate(groups):
        parts.append(transcript.push(group, reason if place == len(groups) - 1 else None))
        assert transcript.text == "".join(parts)
        if transcript.finish_reason:
            break
    return transcript, parts


def oracle(tokenizer, tokens, stops, reason):
    """(text, tokens, finish_reason): end the text at the first character with which a stop string is whole."""
    said = tokens[:-1] if reason == "stop" else tokens
    whole = tokenizer.decode([token.token_id for token in said])
    for end in range(len(whole) + 1):
        begins = [end - len(stop) for stop in stops if whole[:end].endswith(stop)]
        if begins:
            text = whole[: min(begins)]
            lengths = [len(tokenizer.decode([t.token_id for t in said[:count]]).rstrip("\ufffd")) for count in range(len(said) + 1)]
            kept = max(count for count in range(len(said) + 1) if lengths[count] <= len(text))
            while kept and lengths[kept - 1] == lengths[kept]:
                kept -= 1
            return text, said[:kept], "stop"
    return whole, tokens, reason


TEXT = "def main():\n  return 🙂é"
STOPS = [
    (),
    ("\n",),
    ("main",),
    ("n():", "in()"),
    ("return", "\n  ret"),
    ("🙂",),
    ("é",),
    ("def",),
    ("xyz", "main():\n  returned"),
    ("e", "def m"),
    ("):\n", ":", "\n  "),
]


@pytest.mark.parametrize("stops", STOPS, ids=repr)
@pytest.mark.parametrize("text", ["def main", "in():\n", "  return", "a🙂é", "eee", "main main"])
def test_every_split_gives_the_oracles_text(tokenizer, text, stops):
    tokens = pieces(tokenizer, text)[:11]
    for reason, ending in (("length", []), ("stop", [Piece(1, -0.5)])):
        wanted = oracle(tokenizer, tokens + ending, stops, reason)
        for groups in every_split(tokens + ending):
            transcript, parts = written(tokenizer, groups, stops, reason)
            assert (transcript.text, transcript.tokens, transcript.finish_reason) == wanted
            assert "\ufffd" not in "".join(parts[:-1])


@pytest.mark.parametrize("seed", range(8))
def test_long_texts_in_random_splits(tokenizer, seed):
    chance = random.Random(seed)
    tokens = pieces(tokenizer, TEXT * 3)
    for stops in STOPS:
        groups, rest = [], tokens
        while rest:
            size = chance.randint(1, 9)
            groups, rest = [*groups, rest[:size]], rest[size:]
        transcript, _ = written(tokenizer, groups, stops, "length")
        assert (transcript.text, transcript.tokens, transcript.finish_reason) == oracle(tokenizer, tokens, stops, "length")


def test_only_what_may_become_a_stop_string_is_held_back(tokenizer):
    transcript = Transcript(tokenizer, ["STOP", "abc"])
    shown = [transcript.push([piece]) for piece in pieces(tokenizer, "xSTxabc")]
    assert "".join(shown) == "xSTx"
    assert shown[0] == "x"
    assert (transcript.text, transcript.finish_reason) == ("xSTx", "stop")


def test_an_end_token_is_kept_and_has_no_text(tokenizer):
    tokens = [*pieces(tokenizer, "ab"), Piece(tokenizer.eos_id, -1.0)]
    transcript = Transcript(tokenizer)
    assert transcript.push(tokens, "stop") == "ab"
    assert (transcript.tokens, transcript.finish_reason) == (tokens, "stop")


def test_an_end_token_that_is_text_elsewhere_has_none_here(tokenizer):
    """Which ids end is the engine's to say; the tokenizer may hold one of them for ordinary text."""
    tokens = pieces(tokenizer, "ab")
    transcript = Transcript(tokenizer)
    assert transcript.push(tokens, "stop") == tokenizer.decode([token.token_id for token in tokens[:-1]])


def test_text_held_back_is_shown_at_the_end(tokenizer):
    transcript = Transcript(tokenizer, ["STOP"])
    assert transcript.push(pieces(tokenizer, "a ST")) == "a "
    assert transcript.push([Piece(tokenizer.eos_id, 0.0)], "stop") == "ST"
    assert transcript.text == "a ST"


def test_a_stop_string_before_the_end_token_of_its_group_wins(tokenizer):
    tokens = pieces(tokenizer, "a\nb")
    transcript = Transcript(tokenizer, ["\n"])
    transcript.push([*tokens, Piece(tokenizer.eos_id, 0.0)], "stop")
    assert transcript.text == "a"
    assert transcript.tokens == tokens[:1]
