"""Constraints: what they allow is what a slow oracle allows, forward and back, and their failures stay their own."""

import json
import random

import pytest
import torch

from tests.checkpoints import write_tokenizer
from zaya_core.data.tokenizer import TextTokenizer
from zaya_core.server.grammar import MAX_SCHEMA_BYTES, Grammars, Vocabulary
from zaya_core.server.refusal import Refusal

SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "yy"]}, "b": {"type": "integer", "minimum": 0, "maximum": 20}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
ALL = [f'{{"a": "{a}", "b": {b}}}' for a in ("x", "yy") for b in range(21)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(directory)
    return TextTokenizer(directory)


@pytest.fixture(scope="module")
def grammars(tokenizer):
    size = tokenizer.num_ids + 3
    usable = torch.ones(size, dtype=torch.bool)
    usable[[4, *range(tokenizer.num_ids, size)]] = False
    return Grammars(tokenizer, Vocabulary(size, frozenset({1, 6}), usable))


def oracle(tokenizer, text):
    """Ids whose text keeps a prefix of one of all texts that fit; the ends where one is whole."""
    ids = {i for i in range(tokenizer.num_ids) if (piece := tokenizer.decode([i])) and any(t.startswith(text + piece) for t in ALL)}
    return ids | ({1, 6} if text in ALL else set())


def test_what_is_allowed_is_what_the_oracle_allows(tokenizer, grammars):
    constraint, chance = grammars.json(SCHEMA, "x").constraint(), random.Random(0)
    for _ in range(6):
        ids = []
        while True:
            allowed = set(constraint.allowed(ids).nonzero().flatten().tolist())
            assert allowed == oracle(tokenizer, tokenizer.decode(ids))
            ids.append(chance.choice(sorted(allowed)))
            if ids[-1] in (1, 6):
                break
        assert tokenizer.decode(ids[:-1]) in ALL
        assert constraint.allowed(ids) is None


def test_it_depends_on_the_ids_alone(tokenizer, grammars):
    """As verification asks: after every prefix of a draft, then after another draft from an earlier place."""
    grammar = grammars.json(SCHEMA, "x")
    texts = [tokenizer.encode(text, special=False) for text in ALL[::5]]
    asked = [ids[:length] for ids in texts for length in range(len(ids) + 1)]
    fresh = [grammar.constraint().allowed(prefix) for prefix in asked]
    order = list(range(len(asked)))
    random.Random(1).shuffle(order)
    constraint = grammar.constraint()
    for place in order:
        assert torch.equal(constraint.allowed(asked[place]), fresh[place])
    assert constraint.allowed(tokenizer.encode("nonsense", special=False)) is None
    assert torch.equal(constraint.allowed(asked[3]), fresh[3])
    assert constraint.failure is None


def test_ids_that_may_never_be_drawn_are_not_allowed(grammars):
    constraint = grammars.json({"type": "string"}, "x").constraint()
    quote = constraint.allowed([])
    inside = constraint.allowed([int(quote.nonzero()[0])])
    assert not inside[4]
    assert inside.shape == (grammars.vocabulary.size,)
    assert not inside[grammars.tokenizer.num_ids :].any()


def test_a_grammar_that_nothing_can_follow_ends(grammars):
    only_ends = grammars.vocabulary.usable.clone()
    only_ends[:] = False
    blind = Grammars(grammars.tokenizer, Vocabulary(grammars.vocabulary.size, frozenset({1}), only_ends))
    constraint = blind.json({"type": "string"}, "x").constraint()
    assert constraint.allowed([]).nonzero().flatten().tolist() == [1]
    assert "can follow" in constraint.failure


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"type": "foo"}, "foo"),
        ({"not": {}}, "not"),
        ({"$ref": "http://example.org/x"}, "Resource"),
        ({"x-guidance": {"lenient": True}, "not": {}}, "not"),
        ({"type": "string", "pattern": "(a"}, "regex"),
        ({"enum": ["x" * MAX_SCHEMA_BYTES]}, "bytes"),
        (json.loads('{"items":' * 40 + "{}" + "}" * 40), "deep"),
    ],
)
def test_what_cannot_be_compiled_is_refused_by_name(grammars, schema, told):
    with pytest.raises(Refusal, match=told) as caught:
        grammars.json(schema, "response_format")
    assert (caught.value.status, caught.value.param) == (400, "response_format")
