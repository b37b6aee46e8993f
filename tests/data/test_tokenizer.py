"""The trained tokenizer: ZAYA1's ids, exact round trips, documents, and the same reading by transformers."""

import pytest
from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer

from tests.checkpoints import NUM_IDS, TEXT, write_tokenizer
from zaya_core.data.tokenizer import SPECIALS, TextTokenizer, add_token, train_tokenizer
from zaya_core.errors import CheckpointError, ConfigError

STRINGS = {
    "plain": "The capital of France is Paris.",
    "code": "class A:\n    def f(self):\n\t\treturn {  'x':1 }\n\n\n    # end \n",
    "unicode": "Größe, 東京, Ελλάδα, עברית, e\u0301 \u00a0\u200b x",
    "emoji": "👩‍👩‍👧‍👦 🇮🇸 👍🏽 \U0001f9d1\u200d\U0001f680",
    "spaces": "   three  two one ",
    "controls": "\r\n\x00\x1f\x7f\ufffd",
    "empty": "",
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(directory)
    return TextTokenizer(directory)


def test_special_ids_are_zaya1s(tokenizer):
    assert [tokenizer.id_of(name) for name in ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")] == [0, 1, 2, 3, 4]
    assert [tokenizer.id_of(name) for name in SPECIALS] == list(range(len(SPECIALS)))
    assert tokenizer.num_ids <= NUM_IDS
    assert tokenizer.known_ids == frozenset(range(tokenizer.num_ids))
    assert tokenizer.eos_id == 1
    assert {1, tokenizer.id_of("<|im_end|>")} <= tokenizer.ending_ids


@pytest.mark.parametrize("text", STRINGS.values(), ids=STRINGS)
def test_round_trip(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids[0] == 2
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode(text, special=False) == ids[1:]
    assert tokenizer.encode_documents([text]) == [[*ids, 1]]


def test_training_is_of_the_text(tokenizer):
    assert len(tokenizer.encode(TEXT)) < len(TEXT.encode())
    assert len(tokenizer.encode("zqxj" * 5)) == 1 + 20, "bytes that were never seen together stay apart"


def test_too_small_a_vocabulary(tmp_path):
    with pytest.raises(ConfigError, match=f"vocabulary of 100 is too small, expected at least {len(SPECIALS) + 256}"):
        train_tokenizer([TEXT], 100, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_documents_keep_spelled_out_specials_as_text(tokenizer):
    text = "a <eos> b <mask><bos> c <|im_end|>"
    (ids,) = tokenizer.encode_documents([text])
    assert (ids[0], ids[-1]) == (2, 1)
    assert not set(ids[1:-1]) & set(range(len(SPECIALS)))
    assert tokenizer.decode(ids) == text
    # A prompt may name them, and encoding documents has not changed that.
    assert 1 in tokenizer.encode(text)[1:-1]


@pytest.fixture
def appending(tokenizer, tmp_path):
    """The same tokenizer with ZAYA1's habit of appending an end to any text (model.md D10)."""
    tokenizer.copy_to(tmp_path)
    backend = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)])
    backend.save(str(tmp_path / "tokenizer.json"))
    return TextTokenizer(tmp_path)


def test_an_appended_end_is_stripped_from_prompts(appending, tokenizer):
    assert appending.backend.encode("hello").ids[-1] == 1
    assert appending.encode("hello") == tokenizer.encode("hello")
    assert appending.encode("hello", special=False) == tokenizer.encode("hello", special=False)
    assert appending.encode_documents(["hello"]) == tokenizer.encode_documents(["hello"]), "one EOS, not two"


def test_an_end_that_the_user_wrote_stays(appending, tokenizer):
    assert tokenizer.encode("hello<eos>") == [*tokenizer.encode("hello"), 1]
    assert appending.encode("hello<eos>") == tokenizer.encode("hello<eos>")


@pytest.mark.parametrize("text", STRINGS.values(), ids=STRINGS)
def test_transformers_reads_the_same_ids(tokenizer, text, theirs):
    assert theirs(text)["input_ids"] == tokenizer.encode(text)
    assert theirs.decode(tokenizer.encode(text), skip_special_tokens=True) == text


@pytest.fixture(scope="module")
def theirs(tokenizer):
    return AutoTokenizer.from_pretrained(tokenizer.directory)


def test_transformers_renders_chatml(theirs, tokenizer):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert (theirs.pad_token_id, theirs.eos_token_id, theirs.bos_token_id) == (0, 1, 2)
    rendered = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    start, end = tokenizer.id_of("<|im_start|>"), tokenizer.id_of("<|im_end|>")
    ids = tokenizer.encode(rendered, special=False)
    assert (ids.count(start), ids.count(end)) == (3, 2)


def test_the_template_marks_what_the_assistant_says(theirs):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there"}]
    given = theirs.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    said = [index for index, mask in zip(given["input_ids"], given["assistant_masks"], strict=True) if mask]
    assert theirs.decode(said) == "Hello there<|im_end|>"


def test_add_token_takes_the_next_id_only(tokenizer, tmp_path):
    tokenizer.copy_to(tmp_path)
    free = tokenizer.num_ids
    with pytest.raises(ConfigError, match=f"got id {free} in .*, expected {free + 5}"):
        add_token(tmp_path, "<|new|>", free + 5)
    add_token(tmp_path, "<|new|>", free)
    grown = TextTokenizer(tmp_path)
    (a,), (b,) = (tokenizer.encode(text, special=False) for text in "ab")
    assert grown.encode("a<|new|>b", special=False) == [a, free, b]
    assert AutoTokenizer.from_pretrained(tmp_path).convert_tokens_to_ids("<|new|>") == free


def test_missing_and_broken_files_are_named(tokenizer, tmp_path):
    with pytest.raises(CheckpointError, match=f"{tmp_path} has no tokenizer.json"):
        TextTokenizer(tmp_path).encode("x")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not a tokenizer"):
        TextTokenizer(tmp_path).encode("x")
    (tmp_path / "tokenizer.json").write_bytes((tokenizer.directory / "tokenizer.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json names no eos_token"):
        TextTokenizer(tmp_path).encode_documents(["x"])
