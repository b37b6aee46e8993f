"""The OpenAPI document of our own endpoints, made from the schemas that requests are parsed with."""

from typing import Any

from pydantic.json_schema import models_json_schema

import zaya_core
from zaya_core.server.schemas import ChatRequest, CompletionRequest

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
STATUSES = {
    "400": "refused",
    "401": "no valid key",
    "404": "not here",
    "413": "too large",
    "429": "the queue is full",
    "503": "not now",
}


def document() -> dict[str, Any]:
    """OpenAPI 3.1."""
    bodies = [(CompletionRequest, "validation"), (ChatRequest, "validation")]
    names, schemas = models_json_schema(bodies, ref_template="#/components/schemas/{model}")
    paths: dict[str, Any] = {
        "/health": {"get": _operation("Is the model loaded?", "application/json")},
        "/version": {"get": _operation("The server's version.", "application/json")},
        "/metrics": {"get": _operation("Counters for Prometheus.", "text/plain")},
        "/v1/models": {"get": _operation("The model that is served.", "application/json")},
    }
    for path, (schema, about) in {
        "/v1/completions": (CompletionRequest, "Continue a text, or score it."),
        "/v1/chat/completions": (ChatRequest, "Answer a conversation."),
    }.items():
        body = {"required": True, "content": {"application/json": {"schema": names[(schema, "validation")]}}}
        paths[path] = {"post": _operation(about, "application/json", "text/event-stream") | {"requestBody": body}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "zaya serve-local", "version": zaya_core.__version__},
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"] | {"Error": ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _operation(about: str, *types: str) -> dict[str, Any]:
    refused = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    answers: dict[str, Any] = {status: {"description": told, "content": refused} for status, told in STATUSES.items()}
    answers["200"] = {"description": "done", "content": {kind: {} for kind in types}}
    return {"summary": about, "responses": answers}
