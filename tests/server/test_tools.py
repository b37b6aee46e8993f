"""Tool calls in both dialects: read out of a text however it is split, written by a grammar, told to templates that have none."""

import json
import random

import pytest
import torch

from tests.checkpoints import write_tokenizer
from zaya_core.data.chat import ChatTemplate
from zaya_core.data.tokenizer import CHATML, TextTokenizer
from zaya_core.server.conversation import prompt_text
from zaya_core.server.grammar import Grammars, Vocabulary
from zaya_core.server.refusal import Refusal
from zaya_core.server.schemas import Function, Message
from zaya_core.server.tools import Call, CallReader, JsonCalls, TaggedCalls, dialect_of, forced, voluntary

ZYPHRA = TaggedCalls("zyphra_tool_call")
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [Function(name="weather", parameters=SCHEMA), Function(name="stop")]
JSON_TEXT = (
    'Sure. <tool_call>\n{"name": "weather", "arguments": {"city": "Rome <3"}}\n</tool_call>\n'
    '<tool_call>{"name": "stop"}</tool_call> a <tool_call>no json</tool_call> b <tool_ca'
)
TAGGED_TEXT = (
    "Sure. <zyphra_tool_call>\n<function=weather>\n<parameter=city>\n12\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
    "</function>\n</zyphra_tool_call>\n<function=stop>\n</function> a <zyphra_tool_call>\nno call\n</function> b <func"
)
SPLIT = [1, 2, 3, 7, 1000]


@pytest.fixture(scope="module")
def grammars(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(directory)
    tokenizer = TextTokenizer(directory)
    return Grammars(tokenizer, Vocabulary(tokenizer.num_ids, frozenset({1}), torch.ones(tokenizer.num_ids, dtype=torch.bool)))


def read(dialect, text, size):
    reader = CallReader(dialect, TOOLS)
    said = "".join(reader.push(text[at : at + size])[0] for at in range(0, len(text), size))
    return said + reader.finish(), reader.calls


@pytest.mark.parametrize("size", SPLIT)
def test_calls_in_json(size):
    said, calls = read(JsonCalls(), JSON_TEXT, size)
    assert said == "Sure. a <tool_call>no json</tool_call> b <tool_ca"
    assert calls == [Call("weather", '{"city": "Rome <3"}'), Call("stop", "{}")]


@pytest.mark.parametrize("size", SPLIT)
def test_calls_in_tags(size):
    """Strings stay text by the schema, other values are JSON; the wrapper may be special tokens without text."""
    said, calls = read(ZYPHRA, TAGGED_TEXT, size)
    assert said == "Sure. a <zyphra_tool_call>\nno call\n</function> b <func"
    assert [(call.name, json.loads(call.arguments)) for call in calls] == [("weather", {"city": "12", "days": 3}), ("stop", {})]


@pytest.mark.parametrize("dialect", [JsonCalls(), ZYPHRA], ids=["json", "tags"])
def test_what_is_no_call_comes_out_as_it_was(dialect):
    for text in ("", "plain", "a < b", "<tool", "<tool_call>", "<function=", "x <zyphra_tool_call", "1 <function=f> 2"):
        for size in SPLIT:
            assert read(dialect, text, size) == (text, [])


@pytest.mark.parametrize("dialect", [JsonCalls(), ZYPHRA], ids=["json", "tags"])
@pytest.mark.parametrize("many", [False, True])
def test_a_forced_grammar_writes_only_calls(grammars, dialect, many):
    chance = random.Random(0)
    for _ in range(4):
        constraint, ids = grammars.lark(forced(dialect, TOOLS, grammars, many=many), "tools").constraint(), []
        while (allowed := constraint.allowed(ids)) is not None and len(ids) < 600:
            choices = allowed.nonzero().flatten().tolist()
            ids.append(1 if 1 in choices else chance.choice(choices))
        said, calls = read(dialect, grammars.tokenizer.decode(ids), 1000)
        if ids[-1] == 1:
            assert said == ""
            assert calls
            assert {call.name for call in calls} <= {"weather", "stop"}
            assert all("city" in json.loads(call.arguments) for call in calls if call.name == "weather")


WEATHER = {
    "json": '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>',
    "tags": "<zyphra_tool_call>\n<function=weather>\n<parameter=city>\nR\n<o\n</parameter>\n</function>\n</zyphra_tool_call>",
}


@pytest.mark.parametrize(("dialect", "kind"), [(JsonCalls(), "json"), (ZYPHRA, "tags")], ids=["json", "tags"])
def test_a_voluntary_grammar_lets_text_pass_and_holds_calls_to_their_schema(grammars, dialect, kind):
    call = WEATHER[kind]

    def accepts(rules, text):
        constraint, ids = grammars.lark(rules, "tools").constraint(), [*grammars.tokenizer.encode(text, special=False), 1]
        return all(bool(constraint.allowed(ids[:place])[token_id]) for place, token_id in enumerate(ids))

    rules = voluntary(dialect, TOOLS, grammars)
    assert accepts(rules, "anything at all < goes")
    assert accepts(rules, f"so: {call} done")
    assert accepts(rules, f"{call}{call}")
    assert not accepts(rules, call.replace("city", "town"))
    assert not accepts(rules, call.replace("weather", "unknown"))
    assert accepts(forced(dialect, TOOLS, grammars, many=False), call)
    assert accepts(forced(dialect, TOOLS, grammars, many=True), f"{call}\n{call}")
    assert not accepts(forced(dialect, TOOLS, grammars, many=False), f"{call}\n{call}")
    assert not accepts(forced(dialect, TOOLS, grammars, many=True), "no call")


def test_references_in_a_tools_schema(grammars):
    schema = {
        "$defs": {"c": {"enum": ["Rome"]}},
        "type": "object",
        "properties": {"city": {"$ref": "#/$defs/c"}},
        "required": ["city"],
    }
    grammars.lark(forced(JsonCalls(), [Function(name="f", parameters=schema)], grammars, many=False), "tools")


def test_the_template_says_the_dialect():
    assert dialect_of(CHATML) == JsonCalls()
    assert dialect_of("{% if tools %}<tool_call>{% endif %}") == JsonCalls()
    assert dialect_of("{% if tools %}<zyphra_tool_call><function=f>{% endif %}") == ZYPHRA
    assert dialect_of("{% if tools %}[TOOL_CALLS]{% endif %}") is None


def message(role, content=None, **more):
    return Message.model_validate({"role": role, "content": content} | more)


CALLED = [{"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}]
TALK = [
    message("developer", "Be brief."),
    message("user", "?"),
    message("assistant", tool_calls=CALLED),
    message("tool", "sunny", tool_call_id="1"),
]


def test_a_template_without_tools_gets_them_in_words():
    text = prompt_text(ChatTemplate(CHATML, "chatml", {}), TALK, TOOLS)
    head, user, assistant, result, last = text.split("<|im_start|>")[1:]
    assert head.startswith("system\nBe brief.\n\nYou may call these functions:")
    assert '"weather"' in head
    assert assistant == 'assistant\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>\n'
    assert result == "user\n<tool_response>\nsunny\n</tool_response><|im_end|>\n"
    assert (user, last) == ("user\n?<|im_end|>\n", "assistant\n")


def test_a_template_with_tools_gets_values():
    called = "{% for c in m.tool_calls or [] %}:{{ c.function.arguments.city }}{% endfor %}"
    source = "{{ tools[0].function.name }}{% for m in messages %}|{{ m.role }}" + called + "{% endfor %}"
    assert prompt_text(ChatTemplate(source, "own", {}), TALK, TOOLS) == "weather|system|user|assistant:Rome|tool"


def test_a_template_that_refuses_is_quoted():
    source = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(Refusal, match="roles must alternate"):
        prompt_text(ChatTemplate(source, "/secret/path", {}), [message("user", "x")], [])
