"""What a client may send, as pydantic values: every parameter is typed, bounded, and either honoured or refused by name.

Parameters of OpenAI's that nothing here implements are `only(...)`: their neutral values pass, because clients send them unasked.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from zaya_core.server.refusal import invalid

LEAST_TOP_P = 1e-6  # far below, it is 0 in float32, and no token is left
MAX_CHOICES = 128
MAX_STOPS = 16
MAX_TOP_LOGPROBS = 20
LEAST_TEMPERATURE = 0.01  # below, logits divided by it leave the range of float32; 0 is greedy


class Sent(BaseModel):
    """Unknown keys are errors, and so are values of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


def only(*neutral: Any) -> Any:
    """A parameter that is not implemented: None and `neutral` change nothing and pass."""

    def check(value: Any) -> Any:
        if value is None or any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in neutral):
            return value
        raise PydanticCustomError("unsupported", "is not supported here; leave it out")

    return Annotated[Any, AfterValidator(check)]


def _temperature(value: float) -> float:
    if 0 < value < LEAST_TEMPERATURE:
        raise PydanticCustomError("temperature", "expected 0 or at least {least}", {"least": LEAST_TEMPERATURE})
    return value


def _stops(value: str | list[str]) -> tuple[str, ...]:
    stops = (value,) if isinstance(value, str) else tuple(value)
    if not all(stops):
        raise PydanticCustomError("stop", "an empty stop string would end every text at once")
    return stops


StopText = Annotated[str, Field(max_length=1000)]
Stops = Annotated[StopText | Annotated[list[StopText], Field(max_length=MAX_STOPS)], AfterValidator(_stops)]
Temperature = Annotated[float, Field(ge=0, le=1000), AfterValidator(_temperature)]
TokenId = Annotated[int, Field(ge=0)]


class ZayaOptions(Sent):
    """Ours, per request: how to decode, and whether to stream what is not yet final."""

    sampler: Literal["lossless", "mix", "ar"] | None = None
    mix_weight: Annotated[float, Field(ge=0, le=1)] | None = None
    proposals: Literal["auto", "all"] | Annotated[int, Field(ge=0, le=1024)] | None = None
    show_drafts: bool = False


class StreamOptions(Sent):
    """`stream_options`; `continuous_usage_stats` tells the usage so far in every chunk, as vLLM's clients ask for."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: only(False) = None


class Shared(Sent):
    """Parameters of both kinds of completion."""

    model: str | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stops | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Temperature | None = None
    top_p: Annotated[float, Field(ge=LEAST_TOP_P, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    ignore_eos: bool | None = None
    zaya: ZayaOptions | None = None
    user: str | None = None
    frequency_penalty: only(0) = None
    presence_penalty: only(0) = None
    logit_bias: only({}) = None
    metadata: only({}) = None
    service_tier: only("auto", "default") = None


class CompletionRequest(Shared):
    """`POST /v1/completions`."""

    prompt: str | list[str] | list[TokenId] | list[list[TokenId]]
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    best_of: only(1) = None
    suffix: only("") = None


class TextPart(Sent):
    """A piece of a message; text is all that this model reads."""

    type: Literal["text"]
    text: str


class CalledFunction(Sent):
    """The function of a call that the assistant made; `arguments` is JSON text."""

    name: str
    arguments: str


class ToolCall(Sent):
    """A call that the assistant made earlier."""

    id: str
    type: Literal["function"]
    function: CalledFunction
    index: int | None = None


class Message(Sent):
    """One turn. The keys that OpenAI's client writes back as null may stay null."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: only("") = None
    audio: only() = None
    function_call: only() = None
    annotations: only([]) = None
    parsed: Any = None
    reasoning: only("") = None


class Function(Sent):
    """A function that the model may call; `parameters` is its JSON schema."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Sent):
    """One entry of `tools`."""

    type: Literal["function"]
    function: Function


class FunctionName(Sent):
    """The function that must be called."""

    name: str


class NamedTool(Sent):
    """`tool_choice` that names one."""

    type: Literal["function"]
    function: FunctionName


class JsonSchema(Sent):
    """The schema of `response_format`."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class PlainText(Sent):
    """`response_format` of any text."""

    type: Literal["text"]


class JsonObject(Sent):
    """`response_format` of any JSON object."""

    type: Literal["json_object"]


class JsonBySchema(Sent):
    """`response_format` of JSON that fits a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


class ChatRequest(Shared):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    response_format: Annotated[PlainText | JsonObject | JsonBySchema, Field(discriminator="type")] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    modalities: only(["text"]) = None
    store: only(False) = None
    audio: only() = None
    prediction: only() = None
    reasoning_effort: only() = None
    verbosity: only() = None
    web_search_options: only() = None
    functions: only([]) = None
    function_call: only("none") = None


SomeRequest = TypeVar("SomeRequest", bound=Shared)


def parse(schema: type[SomeRequest], body: bytes) -> SomeRequest:
    """The body as a `schema`; anything else is a Refusal that names the parameter."""
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error, body, list(schema.model_fields)) from None
