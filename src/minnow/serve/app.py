"""The HTTP server: OpenAI's paths, metrics, the page."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from minnow.serve.bodies import Ask, parse, parse_embedding
from minnow.serve.desk import Desk
from minnow.serve.errors import ApiError
from minnow.serve.openapi import describe
from minnow.serve.wire import Reply, embedded, error_event

_MODEL = "/v1/models/{name:path}"
_PAGE = Path(__file__).with_name("page.html")
_log = logging.getLogger("minnow.serve")


@dataclass(frozen=True)
class Limits:
    """What a client may take of the server.

    Attributes:
        body: bytes of a request.
        reading, sending: seconds without progress after which a slow client is let go.
        hosts: names the server may be addressed by, so that no page elsewhere can be pointed at it; None: any.
    """

    body: int = 1 << 20
    reading: float = 10.0
    sending: float = 30.0
    hosts: tuple[str, ...] | None = ("127.0.0.1", "localhost", "[::1]", "testserver")


def create_app(desk: Desk, limits: Limits | None = None, api_key: str | None = None) -> Starlette:
    """The application.

    Args:
        api_key: what clients have to send as a bearer token.
    """
    server = _Server(desk, limits or Limits(), api_key)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await desk.close()

    routes = [
        Route("/v1/chat/completions", server.endpoint(server.chat), methods=["POST"]),
        Route("/v1/completions", server.endpoint(server.completion), methods=["POST"]),
        Route("/v1/embeddings", server.endpoint(server.embeddings), methods=["POST"]),
        Route("/v1/models", server.endpoint(server.models), methods=["GET"]),
        Route(_MODEL, server.endpoint(server.model), methods=["GET"]),
        Route("/", server.page, methods=["GET"]),
        Route("/health", server.health, methods=["GET"]),
        Route("/metrics", server.endpoint(server.metrics), methods=["GET"]),
        Route("/openapi.json", server.openapi, methods=["GET"]),
    ]
    return Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers={HTTPException: _http_error, ApiError: _api_error, Exception: _bug},
    )


Handler = Callable[[Request], Awaitable[Response]]


class _Server:
    def __init__(self, desk: Desk, limits: Limits, api_key: str | None) -> None:
        self.desk, self.limits = desk, limits
        self._key = None if api_key is None else api_key.encode()
        desk.metrics.counter("minnow_requests_total", "Requests by path and status.")

    def endpoint(self, handler: Handler) -> Handler:
        """``handler`` behind the checks every request passes, its outcome counted."""

        async def checked(request: Request) -> Response:
            path = _MODEL if request.path_params else request.url.path  # whatever is asked for is one label
            try:
                self._admit(request)
                response = await handler(request)
            except ApiError as error:
                response = _error(error)
            if not isinstance(response, _Answer):  # it does not know yet how it will end
                self.desk.metrics.add("minnow_requests_total", path=path, status=str(response.status_code))
            return response

        return checked

    def _admit(self, request: Request) -> None:
        host = request.headers.get("host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if self.limits.hosts is not None and name not in self.limits.hosts:
            raise ApiError(403, "this server answers requests to this machine only", "wrong_host")
        if self._key is not None:
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            right = hmac.compare_digest(given.strip().encode("latin-1"), self._key)
            if scheme.lower() != "bearer" or not right:
                raise ApiError(401, "the API key is missing or wrong; send it as a bearer token", "invalid_api_key")

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, chat=True)

    async def completion(self, request: Request) -> Response:
        return await self._answer(request, chat=False)

    async def embeddings(self, request: Request) -> Response:
        _json_only(request)
        body, asks = parse_embedding(await self._body(request))
        model = body.get("model", self.desk.local.name)
        if model != self.desk.local.name:
            raise _no_model(model, [self.desk.local.name])
        vectors, read = await self.desk.embed(asks, _client(request, body.get("user", "")))
        return JSONResponse(embedded(model, vectors, read, body.get("encoding_format", "float")))

    async def models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_model(name) for name in self.desk.models]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self.desk.models:
            raise _no_model(name, self.desk.models)
        return JSONResponse(_model(name))

    async def metrics(self, _: Request) -> Response:
        return PlainTextResponse(self.desk.metrics.render(), media_type="text/plain; version=0.0.4")

    async def health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def page(self, _: Request) -> Response:
        # Nothing is loaded from elsewhere, and nothing may be.
        policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'"
        return HTMLResponse(_PAGE.read_text(encoding="utf-8"), headers={"Content-Security-Policy": policy})

    async def openapi(self, _: Request) -> Response:
        return JSONResponse(describe())

    async def _answer(self, request: Request, chat: bool) -> Response:
        _json_only(request)
        ask = parse(await self._body(request), chat)
        model = ask.body.get("model", self.desk.local.name)
        if model not in self.desk.models:
            raise _no_model(model, self.desk.models)
        return _Answer(self.desk, ask, Reply(ask, model), _client(request, ask.user), self.limits)

    async def _body(self, request: Request) -> bytes:
        raw = bytearray()
        try:
            async with asyncio.timeout(self.limits.reading):
                async for some in request.stream():
                    raw += some
                    if len(raw) > self.limits.body:
                        raise ApiError(413, f"the body has more than {self.limits.body} bytes", "body_too_large")
        except TimeoutError as error:
            raise ApiError(408, f"the body did not come within {self.limits.reading:g} s", "slow_request") from error
        except ClientDisconnect as error:
            raise ApiError(400, "the client went away", "client_gone") from error
        return bytes(raw)


def _json_only(request: Request) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # Pages of other sites can send plain text here, but not JSON.
        raise ApiError(415, "send the body as application/json", "unsupported_media_type")


def _model(name: str) -> dict[str, str | int]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "minnow"}


def _no_model(model: str, known: Sequence[str]) -> ApiError:
    return ApiError(
        404, f"there is no model {model!r}; use {' or '.join(map(repr, known))}", "model_not_found", "model"
    )


def _client(request: Request, user: str) -> str:
    """Whom the queue is fair to."""
    return f"{request.client.host if request.client else ''}/{user}"


class _Answer(Response):
    """An answer on its way: streamed or whole; given up, and its slot with it, as soon as the client goes."""

    def __init__(self, desk: Desk, ask: Ask, reply: Reply, client: str, limits: Limits) -> None:
        super().__init__()
        self._desk, self._ask, self._reply, self._client, self._limits = desk, ask, reply, client, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = asyncio.create_task((self._stream if self._ask.stream else self._whole)(scope, receive, send))
        gone = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, gone):
                if not task.done():
                    task.cancel()
            await asyncio.gather(gone, return_exceptions=True)
        try:
            await work
        except asyncio.CancelledError:
            self._desk.metrics.add("minnow_answers_total", route="none", finish="cancelled")

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response: Response = _error(ApiError(500, "there is no answer"))
            async with aclosing(self._desk.events(self._ask, self._client)) as events:
                async for event in events:
                    if (whole := self._reply.take(event)) is not None:
                        response = JSONResponse(whole)
        except ApiError as error:
            response = _error(error)
        except Exception:  # noqa: BLE001  a fault here is the server's, and the client is told so
            _log.exception("a request failed")
            response = _error(ApiError(500, "the server has a fault; its log says more"))
        self._note(response.status_code)
        await response(scope, receive, self._patient(send))

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Make the answer as fast as it comes, and send it as fast as it is taken."""
        lines: asyncio.Queue[bytes | ApiError | None] = asyncio.Queue()
        making = asyncio.create_task(self._make(lines))
        patient, begun = self._patient(send), False
        try:
            while (some := await lines.get()) is not None:
                if isinstance(some, ApiError):
                    if not begun:
                        self._note(some.status)
                        await _error(some)(scope, receive, patient)
                        return
                    some = error_event(some.body())
                if not begun:
                    headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
                    await patient({"type": "http.response.start", "status": 200, "headers": headers})
                    begun = True
                ready = [some]
                while not lines.empty() and isinstance(lines._queue[0], bytes):  # type: ignore[attr-defined]
                    ready.append(lines.get_nowait())  # type: ignore[arg-type]
                await patient({"type": "http.response.body", "body": b"".join(ready), "more_body": True})
            self._note(200)
            await patient({"type": "http.response.body", "body": b""})
        finally:
            making.cancel()
            await asyncio.gather(making, return_exceptions=True)

    async def _make(self, lines: asyncio.Queue[bytes | ApiError | None]) -> None:
        try:
            async with aclosing(self._desk.events(self._ask, self._client)) as events:
                async for event in events:
                    lines.put_nowait(self._reply.chunks(event))
        except ApiError as error:
            lines.put_nowait(error)
        except Exception:  # noqa: BLE001  a fault here is the server's, and the client is told so
            _log.exception("a request failed")
            lines.put_nowait(ApiError(500, "the server has a fault; its log says more"))
        lines.put_nowait(None)

    def _patient(self, send: Send) -> Send:
        """``send`` with the patience a slow client gets; past it the connection is closed."""

        async def patient(message: Message) -> None:
            async with asyncio.timeout(self._limits.sending):
                await send(message)

        return patient

    def _note(self, status: int) -> None:
        path = "/v1/chat/completions" if self._reply.chat else "/v1/completions"
        self._desk.metrics.add("minnow_requests_total", path=path, status=str(status))


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _error(error: ApiError) -> JSONResponse:
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error.body(), error.status, headers)


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _error(error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        said = f"{request.url.path} does not take {request.method}"
        response = _error(ApiError(405, said, "method_not_allowed"))
        response.headers.update(error.headers or {})
        return response
    return _error(ApiError(error.status_code, "there is nothing at this path", "not_found"))


async def _bug(_: Request, error: Exception) -> Response:
    _log.error("a request failed", exc_info=error)
    return _error(ApiError(500, "the server has a fault; its log says more"))
