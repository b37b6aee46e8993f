"""Chat templates: what they render, which characters the assistant wrote, and what they may not do."""

import pytest
from transformers import PreTrainedTokenizerFast

from tests.checkpoints import NUM_IDS, write_random, write_tokenizer
from tests.models import TINY
from zaya_core.data.chat import TEMPLATE, ChatTemplate, chat_template, write_template
from zaya_core.data.tokenizer import CHATML, TextTokenizer
from zaya_core.errors import ConfigError, DataError
from zaya_core.stages import convert

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "And 3 + 3?"},
    {"role": "assistant", "content": "6"},
]
PLAIN = CHATML.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")


def template(source):
    return ChatTemplate(source, "chat_template.jinja", {"bos_token": "<bos>", "eos_token": "<eos>"})


def test_it_renders_as_transformers_does(tmp_path):
    write_tokenizer(tmp_path)
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for more in (False, True):
        expected = theirs.apply_chat_template(TALK, tokenize=False, add_generation_prompt=more, chat_template=CHATML)
        assert chat_template(TextTokenizer(tmp_path)).render(TALK, add_generation_prompt=more) == expected


@pytest.mark.parametrize("source", [CHATML, PLAIN], ids=["markers", "prefixes"])
def test_the_assistant_wrote_its_words_and_the_end_of_the_turn(source):
    text, spans = template(source).spans(TALK)
    assert [text[begin:end] for begin, end in spans] == ["4<|im_end|>", "6<|im_end|>"]
    assert template(PLAIN).has_markers is False


FORGETFUL = "{% for m in messages %}{{ m.role }}:{{ m.content if loop.last else '...' }};{% endfor %}"


def test_a_template_that_rewrites_earlier_turns_is_refused():
    with pytest.raises(DataError, match=r"differently once others follow.*generation"):
        template(FORGETFUL).spans(TALK)


HOSTILE = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__init__.__globals__ }}",
    "{{ raise_exception.__globals__['__builtins__']['open']('/etc/passwd').read() }}",
    "{{ strftime_now.__code__ }}",
    "{{ messages.append({'role': 'system', 'content': 'obey'}) }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{% set f = '{0.__class__.__init__.__globals__}' %}{{ f.format(raise_exception) }}",
    "{{ range(10 ** 9) | list }}",
    "{% include '/etc/passwd' %}",
]


@pytest.mark.parametrize("source", HOSTILE)
def test_a_template_that_calls_out_is_stopped(source):
    with pytest.raises(ConfigError, match=r"chat_template\.jinja"):
        template(source).render(TALK)


def test_a_conversion_refuses_such_a_template_and_carries_others(tmp_path):
    write_random(tmp_path / "base", TINY.with_changes(vocab_size=NUM_IDS + 20))
    path = tmp_path / "base" / TEMPLATE
    path.write_text(HOSTILE[1])
    with pytest.raises(ConfigError, match="was stopped"):
        list(convert.run(convert.ConvertConfig(tmp_path / "base", tmp_path / "out")))
    assert not (tmp_path / "out").exists()
    path.write_text("{{ raise_exception('system first') }}")
    list(convert.run(convert.ConvertConfig(tmp_path / "base", tmp_path / "out")))
    assert (tmp_path / "out" / TEMPLATE).read_text() == path.read_text()


def test_a_broken_template_is_named():
    with pytest.raises(ConfigError, match=r"chat_template\.jinja failed"):
        template("{% for m in messages %}").render(TALK)
    with pytest.raises(ConfigError, match="no tools here"):
        template("{{ raise_exception('no tools here') }}").render(TALK)


def test_a_checkpoint_without_a_template_gets_chatml(tmp_path):
    write_tokenizer(tmp_path)
    (tmp_path / TEMPLATE).unlink()
    assert chat_template(TextTokenizer(tmp_path)).source == CHATML
    write_template(tmp_path)
    assert (tmp_path / TEMPLATE).read_text() == CHATML


def test_without_an_end_of_turn_token_the_end_of_text_ends_a_turn(tmp_path):
    write_tokenizer(tmp_path)
    (tmp_path / TEMPLATE).unlink()
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace("<|im_end|>", "<|other|>"))
    text, spans = chat_template(TextTokenizer(tmp_path)).spans(TALK)
    assert text[slice(*spans[0])] == "4<eos>"
