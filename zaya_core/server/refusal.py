"""A request that is turned down: its status and OpenAI's error object. Says what is wrong, never what the prompt was."""

from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json
from starlette.responses import JSONResponse, Response

from zaya_core.config import nearest

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "overloaded_error",
}
MAX_QUOTED = 80  # characters of a client's own value in a message


class Refusal(Exception):
    """An answer other than 200. `param` names the parameter at fault, `retry_seconds` when to come back."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry_seconds: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_seconds = status, message, param, code, retry_seconds

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        kind = KINDS.get(self.status, KINDS[400])
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The whole answer."""
        headers = {} if self.retry_seconds is None else {"Retry-After": str(self.retry_seconds)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body(), self.status, headers)


def too_busy(retry_seconds: int) -> Refusal:
    """The queue is full."""
    message = f"the queue is full, come back in {retry_seconds} s"
    return Refusal(429, message, code="queue_full", retry_seconds=retry_seconds)


def invalid(error: ValidationError, body: bytes, known: list[str]) -> Refusal:
    """The first thing that pydantic found wrong in `body`, naming the parameter; `known` are the names there are."""
    found = error.errors(include_url=False, include_context=False)
    # Of a union's members the one that went deepest is the one that was meant.
    first = max(found, key=lambda detail: (detail["loc"][:1] == found[0]["loc"][:1], len(detail["loc"])))
    kind, told = first["type"], first["msg"]
    if kind == "json_invalid":
        return Refusal(400, f"the body is not JSON: {told.removeprefix('Invalid JSON: ')}", code="invalid_json")
    param = _path(first["loc"], from_json(body))[:MAX_QUOTED]
    if kind == "extra_forbidden":
        hint = f", {nearest(param, known)}" if len(first["loc"]) == 1 else ""
        return Refusal(400, f"{param} is not a parameter that this server knows{hint}", param=param, code="unknown_parameter")
    if kind == "missing":
        return Refusal(400, f"{param} is missing", param=param, code="missing_parameter")
    if kind == "unsupported":
        return Refusal(400, f"{param} {told}", param=param, code="unsupported_parameter")
    message = f"{param or 'the body'}: {told[:1].lower()}{told[1:]}{_got(first['input'])}"
    return Refusal(400, message, param=param or None, code="invalid_parameter")


def _path(place: tuple[int | str, ...], value: Any) -> str:
    """The parts of pydantic's path that the client wrote: its own names for the members of a union are none."""
    parts = []
    for number, part in enumerate(place):
        is_inside = part in value if isinstance(value, dict) else isinstance(value, list) and isinstance(part, int)
        if is_inside:
            value = value[part]
        if is_inside or (number == len(place) - 1 and isinstance(value, dict)):
            parts.append(str(part))
    return ".".join(parts)


def _got(value: Any) -> str:
    """A client's short value, quoted; long ones may be prompts and are not repeated."""
    text = repr(value)
    return f", got {text}" if len(text) <= MAX_QUOTED and isinstance(value, int | float | str | bool | None) else ""
