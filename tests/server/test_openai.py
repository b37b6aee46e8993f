"""The official client against a real process: whole, streamed, asynchronous, structured, scored, with tools."""

import asyncio
import json
import math

import openai
import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel

from zaya_core.assets import BUNDLED
from zaya_core.data.tokenizer import TextTokenizer

CODE = "import os\n"
HELLO = [{"role": "user", "content": "Hello"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather somewhere.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "enum": ["Rome", "Oslo"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


def text(server, **options):
    return server.client.completions.create(**{"model": "tiny", "prompt": CODE, "seed": 1, "max_tokens": 20} | options)


def chat(server, **options):
    return server.client.chat.completions.create(**{"model": "tiny", "messages": HELLO, "seed": 1, "max_tokens": 20} | options)


def test_models(server):
    (model,) = server.client.models.list().data
    assert (model.id, model.max_model_len) == ("tiny", 8192)
    assert server.client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        server.client.models.retrieve("gpt-5")


@pytest.mark.parametrize("sampler", ["ar", "lossless", "mix"])
def test_a_seeded_text_whole_and_streamed(server, sampler):
    options = {"extra_body": {"zaya": {"sampler": sampler}, "ignore_eos": True}}
    whole = text(server, **options)
    parts = list(text(server, stream=True, stream_options={"include_usage": True}, **options))
    assert "".join(part.choices[0].text for part in parts if part.choices) == whole.choices[0].text
    assert [part.choices[0].finish_reason for part in parts if part.choices][-1] == whole.choices[0].finish_reason == "length"
    assert parts[-1].choices == []
    assert parts[-1].usage == whole.usage
    assert all(part.usage is None for part in parts[:-1])
    usage = whole.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (4, 20, 24)
    assert usage.zaya["sampler"] == sampler
    assert sum(usage.zaya["acceptance_histogram"]) == usage.zaya["num_forwards"]
    assert usage.zaya["tokens_per_forward"] == pytest.approx(19 / usage.zaya["num_forwards"])
    assert (usage.zaya["tokens_per_forward"] == 1) == (sampler == "ar")


def test_chat_whole_and_streamed(server):
    whole = chat(server)
    parts = list(chat(server, stream=True))
    assert parts[0].choices[0].delta.role == "assistant"
    assert all(part.choices[0].delta.role is None for part in parts[1:])
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content
    assert parts[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert len({part.id for part in parts}) == 1
    assert whole.usage.prompt_tokens == len(_ids("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"))


def test_asynchronous_streams_side_by_side(server):
    async def one(client, seed):
        stream = await client.chat.completions.create(model="tiny", messages=HELLO, seed=seed, max_tokens=12, stream=True)
        return "".join([part.choices[0].delta.content or "" async for part in stream])

    async def many():
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(one(client, seed) for seed in (1, 2, 3, 1)))

    first, second, third, again = asyncio.run(many())
    assert first == again
    assert len({first, second, third}) == 3


def test_n_choices_are_those_of_their_seeds(server):
    three = text(server, n=3, prompt=[CODE, "class A:"], seed=5)
    assert [choice.index for choice in three.choices] == list(range(6))
    assert three.usage.prompt_tokens == 4 + 4
    single = [text(server, seed=5 + k).choices[0].text for k in range(3)]
    assert [choice.text for choice in three.choices[:3]] == single
    streamed = [""] * 6
    for part in text(server, n=3, prompt=[CODE, "class A:"], seed=5, stream=True):
        streamed[part.choices[0].index] += part.choices[0].text
    assert streamed == [choice.text for choice in three.choices]


def test_prompts_as_token_ids(server):
    as_text = text(server, prompt="import os\n", echo=True, logprobs=0)
    tokens = as_text.choices[0].logprobs.tokens
    assert tokens[:4] == ["<bos>", "import", " os", "\n"]
    ids = [2, *_ids(CODE)]
    assert text(server, prompt=ids).choices[0].text == as_text.choices[0].text.removeprefix(CODE)
    twice = text(server, prompt=[ids, ids], temperature=0).choices
    assert twice[0].text == twice[1].text


def _spelled() -> dict[str, int]:
    """The id of each token's own text."""
    tokenizer = TextTokenizer(BUNDLED)
    return {tokenizer.backend.decode([token_id], skip_special_tokens=False): token_id for token_id in range(tokenizer.num_ids)}


def _ids(written):
    return TextTokenizer(BUNDLED).encode(written, special=False)


def test_stop_strings(server):
    whole = text(server, max_tokens=40, temperature=0).choices[0].text
    stop = whole[10:13]
    cut = text(server, max_tokens=40, temperature=0, stop=[stop, "never there"])
    assert cut.choices[0].text == whole[: whole.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    assert cut.usage.completion_tokens < 40
    streamed = list(text(server, max_tokens=40, temperature=0, stop=stop, stream=True))
    assert "".join(part.choices[0].text for part in streamed) == cut.choices[0].text


def test_logprobs_of_a_chat(server):
    answer = chat(server, logprobs=True, top_logprobs=3).choices[0]
    content = answer.logprobs.content
    assert "".join(entry.token for entry in content) == answer.message.content
    assert b"".join(bytes(entry.bytes) for entry in content).decode() == answer.message.content
    for entry in content:
        assert len(entry.top_logprobs) == 3
        assert entry.logprob <= entry.top_logprobs[0].logprob + 1e-5
        assert sum(math.exp(top.logprob) for top in entry.top_logprobs) <= 1.0001
    parts = list(chat(server, logprobs=True, top_logprobs=3, stream=True))
    streamed = [entry for part in parts if part.choices[0].logprobs for entry in part.choices[0].logprobs.content]
    assert streamed == content


def test_a_prompts_own_likelihood(server):
    answer = text(server, echo=True, logprobs=2, max_tokens=0)
    (choice,), logprobs = answer.choices, answer.choices[0].logprobs
    assert choice.text == CODE
    assert answer.usage.completion_tokens == 0
    assert logprobs.token_logprobs[0] is None
    assert logprobs.text_offset == [0, 0, 6, 9]
    assert all(token in tops for token, tops in zip(logprobs.tokens[1:], logprobs.top_logprobs[1:], strict=True))
    # What the engine says of tokens that it generates is what scoring says of the same tokens in a prompt.
    generated = text(server, logprobs=1, max_tokens=12, prompt=[2, *_ids(CODE)])
    # One by one: what is drawn need not be how its own text is tokenised.
    ids = [2, *_ids(CODE), *(_spelled()[token] for token in generated.choices[0].logprobs.tokens)]
    scored = text(server, prompt=ids, echo=True, logprobs=1, max_tokens=0).choices[0].logprobs
    assert scored.tokens[4:] == generated.choices[0].logprobs.tokens
    assert scored.token_logprobs[4:] == pytest.approx(generated.choices[0].logprobs.token_logprobs, abs=1e-3)


def test_one_token_after_a_scored_prompt_is_the_engines(server):
    plain = text(server, max_tokens=1, logprobs=1).choices[0]
    scored = text(server, max_tokens=1, logprobs=1, echo=True).choices[0]
    assert scored.text == CODE + plain.text
    assert scored.logprobs.tokens[4:] == plain.logprobs.tokens
    assert scored.logprobs.token_logprobs[4:] == pytest.approx(plain.logprobs.token_logprobs, abs=1e-4)


class Place(BaseModel):
    city: str
    people: int


SHORT = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 6}, "people": {"type": "integer", "minimum": 0, "maximum": 999}},
    "required": ["city", "people"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("sampler", ["ar", "lossless", "mix"])
def test_json_by_schema(server, sampler):
    wanted = {"type": "json_schema", "json_schema": {"name": "place", "schema": SHORT, "strict": True}}
    options = {"response_format": wanted, "max_tokens": 200, "extra_body": {"zaya": {"sampler": sampler}}}
    answer = chat(server, **options).choices[0]
    assert answer.finish_reason == "stop"
    assert len(Place.model_validate_json(answer.message.content).city) <= 6
    streamed = "".join(part.choices[0].delta.content or "" for part in chat(server, stream=True, **options))
    assert streamed == answer.message.content


def test_any_json_object(server):
    answer = chat(server, response_format={"type": "json_object"}, max_tokens=60, temperature=0).choices[0]
    assert answer.message.content.startswith("{")
    if answer.finish_reason == "stop":
        assert isinstance(json.loads(answer.message.content), dict)


def test_a_call_that_must_come(server):
    options = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 200}
    answer = chat(server, **options).choices[0]
    assert answer.finish_reason == "tool_calls"
    (call,) = answer.message.tool_calls
    assert call.function.name == "weather"
    arguments = json.loads(call.function.arguments)
    assert arguments.keys() == {"city", "days"}
    assert arguments["city"] in ("Rome", "Oslo")
    parts = [part.choices[0] for part in chat(server, stream=True, **options)]
    calls = [call for part in parts for call in part.delta.tool_calls or []]
    assert [(call.index, call.function.name, call.function.arguments) for call in calls] == [
        (0, "weather", call.function.arguments)
    ]
    assert parts[-1].finish_reason == "tool_calls"
    history = [
        *HELLO,
        answer.message.model_dump(exclude_none=False),
        {"role": "tool", "tool_call_id": call.id or "x", "content": "sunny"},
    ]
    assert chat(server, messages=history, tools=[WEATHER], max_tokens=4).choices[0].finish_reason in ("length", "stop")


def test_a_named_call(server):
    choice = {"type": "function", "function": {"name": "weather"}}
    answer = chat(server, tools=[WEATHER], tool_choice=choice, parallel_tool_calls=False, max_tokens=200).choices[0]
    assert (answer.finish_reason, answer.message.tool_calls[0].function.name) == ("stop", "weather")


def test_drafts_are_shown_in_a_field_of_their_own(server):
    extra = {"zaya": {"show_drafts": True}, "ignore_eos": True}
    plain = text(server, extra_body={"ignore_eos": True}).choices[0].text
    parts = list(text(server, stream=True, extra_body=extra))
    assert "".join(part.choices[0].text for part in parts) == plain
    told = [part.choices[0].model_extra["zaya"] for part in parts if "zaya" in part.choices[0].model_extra]
    assert sum(step["num_tokens"] for step in told) == 20
    assert all(isinstance(step["draft"], str) for step in told)


def test_usage_so_far_in_every_chunk(server):
    options = {"include_usage": True, "continuous_usage_stats": True}
    counts = [part.usage.completion_tokens for part in text(server, stream=True, stream_options=options)]
    assert counts == sorted(counts)
    assert counts[-1] == 20


def test_a_second_turn_reads_only_what_is_new(server):
    messages = [{"role": "system", "content": "x = 1\n" * 100}, {"role": "user", "content": "Explain."}]
    first = chat(server, messages=messages)
    before = server.metric("zaya_prompt_tokens_reused")
    more = [*messages, {"role": "assistant", "content": first.choices[0].message.content}, {"role": "user", "content": "Again?"}]
    second = chat(server, messages=more)
    assert server.metric("zaya_prompt_tokens_reused") - before > 0.8 * first.usage.prompt_tokens
    assert chat(server, messages=more).choices[0].message.content == second.choices[0].message.content


def test_mix_of_weight_one_is_lossless(server):
    lossless = text(server, extra_body={"zaya": {"sampler": "lossless", "proposals": "all"}})
    mixed = text(server, extra_body={"zaya": {"sampler": "mix", "mix_weight": 1.0, "proposals": "all"}})
    assert lossless.choices[0].text == mixed.choices[0].text
