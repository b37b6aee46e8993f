"""A parsed request into orders: token ids, a law, a seed and stop strings for each completion. The last place that may refuse.

Nothing is decoded here. A seed, the options and the prompt decide an order; the load never does.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from zaya_core.engine.chance import SeededChance
from zaya_core.engine.draft import Proposals, Verifier
from zaya_core.engine.request import Decoding, Request
from zaya_core.ops.sampling import Sampler
from zaya_core.server.conversation import prompt_text
from zaya_core.server.grammar import Constraint, Grammar, check_schema
from zaya_core.server.refusal import Refusal
from zaya_core.server.schemas import (
    ChatRequest,
    CompletionRequest,
    Function,
    JsonBySchema,
    JsonObject,
    NamedTool,
    PlainText,
    Shared,
    ZayaOptions,
)
from zaya_core.server.served import SEEDS, Served
from zaya_core.server.tools import ANYTHING, Dialect, dialect_of, forced, voluntary

DEFAULT_MAX_TOKENS = 16  # OpenAI's, for /v1/completions
DEFAULT_MIX_WEIGHT = 0.5
AUTO_PROPOSALS = 3
NEUTRAL = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}


@dataclass(frozen=True)
class Order:
    """One completion to write: number `index` of its request, after prompt number `prompt`."""

    index: int
    prompt: int
    request: Request
    stops: tuple[str, ...]
    constraint: Constraint | None
    may_adapt: bool = False  # nobody gave a seed or asked for drafts: the load may decide whether there are any, never the law


@dataclass(frozen=True)
class Assignment:
    """All that one request asks for. `scored`: how many likeliest tokens to name beside each prompt token; None scores nothing."""

    prompts: list[list[int]]
    orders: list[Order]
    sampler: str
    seed: int
    is_streamed: bool
    includes_usage: bool
    includes_usage_so_far: bool
    shows_drafts: bool
    echoes: bool = False
    texts: tuple[str, ...] = ()
    num_top_logprobs: int | None = None
    scored: int | None = None
    tools: tuple[Function, ...] = ()
    dialect: Dialect | None = None
    max_calls: int | None = None
    is_named_call: bool = False


def completion_assignment(sent: CompletionRequest, served: Served) -> Assignment:
    """`/v1/completions`."""
    _check_shared(sent, served)
    prompts = _prompts(sent.prompt, served)
    max_tokens = DEFAULT_MAX_TOKENS if sent.max_tokens is None else sent.max_tokens
    if max_tokens == 0 and not sent.echo:
        raise Refusal(400, "max_tokens is 0, which only echo can use; expected at least 1", param="max_tokens")
    for prompt in prompts:
        _check_room(prompt, max_tokens, served, "prompt")
    common = _common(sent, served)
    return Assignment(
        prompts=prompts,
        orders=_orders(sent, served, prompts, max_tokens, common["seed"], ends=served.end_ids, num_top=sent.logprobs),
        echoes=bool(sent.echo),
        texts=_texts(sent.prompt, prompts, served) if sent.echo else (),
        num_top_logprobs=sent.logprobs,
        scored=sent.logprobs if sent.echo else None,
        **common,
    )


def chat_assignment(sent: ChatRequest, served: Served) -> Assignment:
    """`/v1/chat/completions`."""
    _check_shared(sent, served)
    if sent.top_logprobs is not None and not sent.logprobs:
        raise Refusal(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    limits = {sent.max_tokens, sent.max_completion_tokens} - {None}
    if len(limits) > 1:
        raise Refusal(400, "max_tokens and max_completion_tokens differ; give one", param="max_completion_tokens")
    tools, dialect, grammar = _tools(sent, served)
    grammar = grammar or _response_grammar(sent, served)
    prompt = _encoded(prompt_text(served.template, sent.messages, tools), served, special=False)
    room = served.bounds.max_model_len - len(prompt)
    max_tokens = limits.pop() if limits else max(1, room)
    _check_room(prompt, max_tokens, served, "messages")
    common, num_top = _common(sent, served), (sent.top_logprobs or 0) if sent.logprobs else None
    orders = _orders(sent, served, [prompt], max_tokens, common["seed"], ends=served.turn_ends, num_top=num_top, grammar=grammar)
    return Assignment(
        prompts=[prompt],
        orders=orders,
        num_top_logprobs=num_top,
        tools=tools,
        dialect=dialect,
        max_calls=1 if sent.parallel_tool_calls is False else None,
        is_named_call=isinstance(sent.tool_choice, NamedTool),
        **common,
    )


def _check_shared(sent: Shared, served: Served) -> None:
    if sent.model is not None and sent.model != served.name:
        raise Refusal(
            404, f"the model {sent.model[:100]!r} is not served, expected {served.name!r}", param="model", code="model_not_found"
        )
    if sent.stream_options is not None and not sent.stream:
        raise Refusal(400, "stream_options needs stream: true", param="stream_options")
    options = sent.zaya or ZayaOptions()
    sampler = options.sampler or served.bounds.default_sampler
    if sampler != "ar" and served.tidar is None:
        raise Refusal(400, "this model is autoregressive and cannot draft; expected zaya.sampler ar", param="zaya.sampler")
    if options.mix_weight is not None and sampler != "mix":
        raise Refusal(400, f"zaya.mix_weight has no effect with the sampler {sampler}", param="zaya.mix_weight")
    if options.proposals is not None and sampler == "ar":
        raise Refusal(400, "zaya.proposals has no effect with the sampler ar", param="zaya.proposals")
    if options.show_drafts and not sent.stream:
        raise Refusal(400, "zaya.show_drafts needs stream: true", param="zaya.show_drafts")


def _common(sent: Shared, served: Served) -> dict[str, Any]:
    options = sent.zaya or ZayaOptions()
    return {
        "sampler": options.sampler or served.bounds.default_sampler,
        "seed": secrets.randbelow(2**31) if sent.seed is None else sent.seed % SEEDS,
        "is_streamed": bool(sent.stream),
        "includes_usage": bool(sent.stream_options and sent.stream_options.include_usage),
        "includes_usage_so_far": bool(sent.stream_options and sent.stream_options.continuous_usage_stats),
        "shows_drafts": options.show_drafts,
    }


def _prompts(prompt: str | list[str] | list[int] | list[list[int]], served: Served) -> list[list[int]]:
    """Each prompt's ids; texts get BOS as the tokenizer says, ids are taken as they are."""
    if isinstance(prompt, str):
        return [_encoded(prompt, served, special=True)]
    if not prompt:
        raise Refusal(400, "prompt is an empty list", param="prompt")
    if isinstance(prompt[0], str):
        return [_encoded(text, served, special=True) for text in prompt]  # type: ignore[arg-type]
    rows: list[list[int]] = [prompt] if isinstance(prompt[0], int) else prompt  # type: ignore[list-item, assignment]
    for row in rows:
        largest = max(row, default=0)
        if largest >= served.config.vocab_size:
            raise Refusal(400, f"prompt has the id {largest}, expected ids below {served.config.vocab_size}", param="prompt")
    return rows


def _texts(prompt: Any, prompts: list[list[int]], served: Served) -> tuple[str, ...]:
    """The prompts to be echoed, as they were sent where they were texts."""
    if isinstance(prompt, str):
        return (prompt,)
    return tuple(prompt) if isinstance(prompt[0], str) else tuple(served.tokenizer.decode(row) for row in prompts)


def _encoded(text: str, served: Served, *, special: bool) -> list[int]:
    return served.tokenizer.encode(text, special=special)


def _check_room(prompt: list[int], max_tokens: int, served: Served, param: str) -> None:
    context = served.bounds.max_model_len
    if not prompt:
        raise Refusal(400, f"{param} has no tokens", param=param)
    if len(prompt) + max_tokens > context:
        message = (
            f"this model's context is {context} tokens; {param} has {len(prompt)} and {max_tokens} more are asked for, "
            f"{len(prompt) + max_tokens} together: shorten {param} or lower max_tokens"
        )
        raise Refusal(400, message, param=param, code="context_length_exceeded")


def _orders(
    sent: Shared,
    served: Served,
    prompts: list[list[int]],
    max_tokens: int,
    seed: int,
    *,
    ends: frozenset[int],
    num_top: int | None,
    grammar: Grammar | None = None,
) -> list[Order]:
    """`n` for every prompt, each with the next seed."""
    if max_tokens == 0:
        return []
    special_ends, stops = _stops(sent.stop or (), served)
    if sent.ignore_eos and grammar is not None:
        raise Refusal(400, "ignore_eos and a grammar exclude each other: a text that the grammar ends must end", param="ignore_eos")
    how = _decoding(sent, served, max_tokens, special_ends if sent.ignore_eos else ends | special_ends, num_top)
    may_adapt = sent.seed is None and sent.zaya in (None, ZayaOptions()) and how.verifier.mix_weight == 1
    orders = []
    for prompt, prompt_ids in enumerate(prompts):
        for _ in range(sent.n or 1):
            constraint = grammar and grammar.constraint()
            own = replace(how, constraint=constraint) if constraint else how
            request = Request(prompt_ids, own, SeededChance(seed + len(orders)))
            if request.num_slots > served.bounds.num_slots:
                message = f"the request may need {request.num_slots} places of the K/V pool, which has {served.bounds.num_slots}"
                raise Refusal(400, f"{message}; lower max_tokens", param="max_tokens")
            orders.append(Order(len(orders), prompt, request, stops, constraint, may_adapt))
    return orders


def _stops(stops: Sequence[str], served: Served) -> tuple[frozenset[int], tuple[str, ...]]:
    """Special tokens have no text: as stop strings they are ids that end."""
    tokenizer = served.tokenizer
    ids = {stop: tokenizer.id_of(stop) for stop in stops}
    special = {stop: index for stop, index in ids.items() if index is not None and not tokenizer.decode([index])}
    return frozenset(special.values()), tuple(stop for stop in stops if stop not in special)


def _decoding(sent: Shared, served: Served, max_tokens: int, ends: frozenset[int], num_top: int | None) -> Decoding:
    options, generation = sent.zaya or ZayaOptions(), served.generation
    sampler = _sampler(sent, generation)
    how = Decoding(max_tokens, sampler, end_ids=ends, forbidden=served.forbidden, num_top_logprobs=num_top or 0)
    name = options.sampler or served.bounds.default_sampler
    if name == "ar":
        return how
    assert served.tidar is not None
    wanted = "auto" if options.proposals is None else options.proposals
    count = {"auto": AUTO_PROPOSALS, "all": None}[wanted] if isinstance(wanted, str) else wanted
    weight = DEFAULT_MIX_WEIGHT if options.mix_weight is None else options.mix_weight
    return replace(
        how,
        verifier=Verifier(weight if name == "mix" else 1.0),
        proposals=Proposals(count),
        block_length=served.tidar.block_length,
    )


def _sampler(sent: Shared, generation: dict[str, Any]) -> Sampler:
    """What was sent, else generation_config.json's, else what changes nothing."""
    values = {}
    for name, neutral in NEUTRAL.items():
        given = generation.get(name) if getattr(sent, name) is None else getattr(sent, name)
        values[name] = neutral if given is None else type(neutral)(given)
    return Sampler(**values | {"top_k": max(0, values["top_k"])})


def _tools(sent: ChatRequest, served: Served) -> tuple[tuple[Function, ...], Dialect | None, Grammar | None]:
    """The functions that may be called, how calls are written, and the grammar that forces one where one must come."""
    named = sent.tool_choice.function.name if isinstance(sent.tool_choice, NamedTool) else None
    tools = tuple(tool.function for tool in sent.tools or ())
    if not tools:
        if named or sent.tool_choice == "required":
            raise Refusal(400, "tool_choice needs tools", param="tool_choice")
        return (), None, None
    if sent.tool_choice == "none":
        return (), None, None
    dialect = dialect_of(served.template.source)
    if dialect is None:
        raise Refusal(400, "tools: this model's chat template writes calls in a way that is not known here", param="tools")
    for tool in tools:
        check_schema(tool.parameters or ANYTHING, "tools")
    if named and named not in {tool.name for tool in tools}:
        raise Refusal(400, f"tool_choice names {named!r}, which is not among tools", param="tool_choice")
    if isinstance(sent.response_format, JsonObject | JsonBySchema):
        raise Refusal(400, "response_format of JSON and tools exclude each other", param="response_format")
    if named or sent.tool_choice == "required":
        chosen = [tool for tool in tools if named in (None, tool.name)]
        rules = forced(dialect, chosen, served.grammars, many=named is None and sent.parallel_tool_calls is not False)
        return tools, dialect, served.grammars.lark(rules, "tools")
    if any(tool.strict for tool in tools):
        return tools, dialect, served.grammars.lark(voluntary(dialect, tools, served.grammars), "tools")
    return tools, dialect, None


def _response_grammar(sent: ChatRequest, served: Served) -> Grammar | None:
    wanted = sent.response_format
    if wanted is None or isinstance(wanted, PlainText):
        return None
    schema = ANYTHING if isinstance(wanted, JsonObject) else wanted.json_schema.schema_
    return served.grammars.json(ANYTHING if schema is None else schema, "response_format")
