"""Which id becomes the mask: one that exists, one that is reserved, a row that is free, a new row, or the user's."""

import pytest
from tokenizers import Tokenizer

from tests.checkpoints import TEXT
from zaya_core.data.mask import MaskChoice, choose_mask, given_mask
from zaya_core.data.tokenizer import RESERVED, TextTokenizer, train_tokenizer
from zaya_core.errors import ConfigError


@pytest.fixture
def renamed(tmp_path):
    """A tokenizer whose special tokens have other names: `renamed({"<mask>": "<a>"})`."""

    def build(names):
        train_tokenizer([TEXT], 300, tmp_path)
        path = tmp_path / "tokenizer.json"
        text = path.read_text(encoding="utf-8")
        for old, new in names.items():
            text = text.replace(f'"{old}"', f'"{new}"')
        path.write_text(text, encoding="utf-8")
        assert Tokenizer.from_file(str(path)).get_vocab_size() == 300
        return TextTokenizer(tmp_path)

    return build


NO_MASK = {"<mask>": "<was-mask>"}
NO_RESERVED = NO_MASK | {name: f"<word{number}>" for number, name in enumerate(RESERVED)}


@pytest.mark.parametrize("name", ["<mask>", "<|mask|>", "[MASK]"])
def test_an_existing_mask(renamed, name):
    assert choose_mask(renamed({"<mask>": name}), 512) == MaskChoice(4, name, False, 512, f"the tokenizer has {name}")


@pytest.mark.parametrize("form", ["<unused{}>", "<|reserved_special_token_{}|>", "[unused{}]"])
def test_the_highest_reserved_id(renamed, form):
    tokenizer = renamed(NO_MASK | {name: form.format(number) for number, name in enumerate(RESERVED)})
    last = form.format(len(RESERVED) - 1)
    assert choose_mask(tokenizer, 512) == MaskChoice(tokenizer.id_of(last), last, False, 512, f"{last} is reserved and unused")


def test_a_free_row_of_the_padded_embedding(renamed):
    choice = choose_mask(renamed(NO_RESERVED), 320)
    assert choice == MaskChoice(300, "<|mask|>", True, 320, "row 300 of the embedding had no token")


def test_the_last_free_row(renamed):
    assert choose_mask(renamed(NO_RESERVED), 301).token_id == 300
    assert choose_mask(renamed(NO_RESERVED), 301).vocab_size == 301


def test_a_grown_embedding_has_a_multiple_of_64_rows(renamed):
    choice = choose_mask(renamed(NO_RESERVED), 300)
    assert (choice.token_id, choice.token, choice.is_new, choice.vocab_size) == (300, "<|mask|>", True, 320)
    assert "grew from 300 to 320 rows" in choice.why


def test_a_tokenizer_larger_than_the_embedding(renamed):
    with pytest.raises(ConfigError, match="the tokenizer has 300 ids, the embedding 299 rows"):
        choose_mask(renamed({}), 299)


def test_a_given_id(renamed):
    tokenizer = renamed({})
    assert given_mask(7, tokenizer, 512) == MaskChoice(7, RESERVED[0], False, 512, "--mask-token-id")
    assert given_mask(511, tokenizer, 512).token is None
    assert given_mask(7, None, 512).token is None


@pytest.mark.parametrize("token_id", [512, 10**12])
def test_a_given_id_that_the_embedding_lacks(renamed, token_id):
    with pytest.raises(ConfigError, match=f"--mask-token-id is {token_id}, expected below the vocabulary's 512"):
        given_mask(token_id, renamed({}), 512)
