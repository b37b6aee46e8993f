"""Which path leads where. The two kinds of completion are `answering`'s; the rest is told from what is known already."""

from collections.abc import Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

import zaya_core
from zaya_core.server.answering import Completions, Desk
from zaya_core.server.gate import Gate, Rules
from zaya_core.server.openapi import document
from zaya_core.server.orders import chat_assignment, completion_assignment
from zaya_core.server.refusal import Refusal
from zaya_core.server.schemas import ChatRequest, CompletionRequest

PAGE = Path(__file__).with_name("page.html")
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
TOLD = {404: "there is nothing at this path", 405: "this path does not take that method"}


class Pages:
    """The endpoints that need no engine."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    async def page(self, request: Request) -> Response:
        """Chat with the model in a browser."""
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers=PAGE_HEADERS)

    async def health(self, request: Request) -> Response:
        """200 once the model is loaded."""
        self.desk.open()
        return JSONResponse({"status": "ok"})

    async def version(self, request: Request) -> Response:
        """Ours."""
        return JSONResponse({"version": zaya_core.__version__})

    async def metrics(self, request: Request) -> Response:
        """For Prometheus."""
        return Response(self.desk.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def openapi(self, request: Request) -> Response:
        """What clients may send."""
        return JSONResponse(document())

    async def models(self, request: Request) -> Response:
        """One model, in a list or by its name."""
        service = self.desk.open()
        served, name = service.served, request.path_params.get("name")
        if name not in (None, served.name):
            raise Refusal(
                404, f"the model {name[:100]!r} is not served, expected {served.name!r}", param="model", code="model_not_found"
            )
        tidar = served.tidar
        known = {
            "id": served.name,
            "object": "model",
            "created": service.started_at,
            "owned_by": "zaya",
            "max_model_len": served.bounds.max_model_len,
            "zaya": {"sampler": served.bounds.default_sampler, "block_length": tidar and tidar.block_length},
        }
        return JSONResponse(known if name else {"object": "list", "data": [known]})


async def refused(request: Request, error: Exception) -> Response:
    """Errors in OpenAI's shape, the router's too."""
    if isinstance(error, HTTPException):
        error = Refusal(error.status_code, TOLD.get(error.status_code, error.detail))
    assert isinstance(error, Refusal)
    return error.response()


def build(desk: Desk, *, rules: Rules, origins: tuple[str, ...], complain: Callable[[str], None]) -> Starlette:
    """The ASGI application. `origins` may use it from pages of their own."""
    pages = Pages(desk)
    routes = [
        Route("/", pages.page),
        Route("/health", pages.health),
        Route("/version", pages.version),
        Route("/metrics", pages.metrics),
        Route("/openapi.json", pages.openapi),
        Route("/v1/models", pages.models),
        Route("/v1/models/{name:path}", pages.models),
        Route("/v1/completions", Completions(desk, CompletionRequest, completion_assignment), methods=["POST"]),
        Route("/v1/chat/completions", Completions(desk, ChatRequest, chat_assignment), methods=["POST"]),
    ]
    paths = [route.path for route in routes]
    middleware = [Middleware(Gate, rules=rules, metrics=desk.metrics, paths=paths, complain=complain)]
    if origins:
        middleware.insert(0, Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"]))
    return Starlette(routes=routes, middleware=middleware, exception_handlers={HTTPException: refused, Refusal: refused})
