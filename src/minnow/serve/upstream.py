"""Another OpenAI-compatible server: llama-server, Ollama, vLLM, SGLang, or one in the cloud."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import httpx2 as httpx
import numpy as np

from minnow.data.calls import Call
from minnow.rollout.reply import Reply, ReplyError
from minnow.rollout.server_engine import check_server
from minnow.serve.bodies import Ask
from minnow.serve.errors import ApiError
from minnow.serve.events import events
from minnow.serve.source import Ended, Piece, Prompt, Turn, connections


class UpstreamSource:
    """Answers from a server (:class:`minnow.serve.source.Source`).

    Redirects are not followed: the key would go along.

    Args:
        url: where the API begins, such as ``http://localhost:8000/v1``.
        model: the name the server knows the model by.
        connect: seconds until a connection has to stand.
        stall: seconds without a sign of life after which the answer counts as broken off.

    Raises:
        UserError: an address or a key that is none.

    Attributes:
        sent_bytes: of all request bodies so far: what has left for the server.
    """

    enforces = True

    def __init__(
        self,
        url: str,
        model: str,
        slots: int = 32,
        connect: float = 5.0,
        stall: float = 30.0,
        api_key: str | None = None,
    ) -> None:
        check_server(url, api_key)
        self.url, self.name, self.slots, self.sent_bytes = url.rstrip("/"), model, slots, 0
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        timeout = httpx.Timeout(stall, connect=connect, pool=connect)
        self._client = httpx.AsyncClient(headers=headers, timeout=timeout, limits=connections(url))

    async def close(self) -> None:
        await self._client.aclose()

    async def prepare(self, ask: Ask) -> Prompt:
        return Prompt(ask, ask.max_tokens)

    async def hidden(self, prompt: Prompt, text: str) -> np.ndarray:
        raise ApiError(
            400, "the server behind this one shows no hidden states, which embeddings are made of", "unsupported"
        )

    async def stream(self, prompt: Prompt, turn: Turn) -> AsyncGenerator[Piece | Ended]:
        ask = prompt.ask
        body: dict[str, Any] = ask.body | {"model": self.name, "stream": True, "temperature": turn.temperature}
        if ask.seed is not None or turn.temperature > 0:
            body["seed"] = turn.seed % 2**31
        if ask.messages is None:
            body["prompt"] = ask.prompt + turn.text
            if turn.logprobs is not None:
                body["logprobs"] = turn.logprobs
        else:
            body["stream_options"] = {"include_usage": True}
            if turn.logprobs is not None:
                body |= {"logprobs": True} | ({"top_logprobs": turn.logprobs} if turn.logprobs else {})
            if turn.text:
                # The answer so far as the last message, to be gone on with: llama.cpp and Ollama do so of themselves.
                body["messages"] = [*body["messages"], {"role": "assistant", "content": turn.text}]
                body |= {"continue_final_message": True, "add_generation_prompt": False}
        raw = json.dumps(body).encode()
        self.sent_bytes += len(raw)
        path = "completions" if ask.messages is None else "chat/completions"
        reply = Reply()
        try:
            async with self._client.stream(
                "POST", f"{self.url}/{path}", content=raw, headers={"Content-Type": "application/json"}
            ) as response:
                if response.status_code != 200:
                    raise _refused(response.status_code, (await response.aread())[:2000], response.headers)
                if response.headers.get("content-type", "").startswith("text/event-stream"):
                    async for some in events(response.aiter_raw()):
                        piece = _taken(reply, some)
                        if piece is not None:
                            yield piece
                else:
                    piece = _taken(reply, [response.json() if await response.aread() else {}])
                    if piece is not None:
                        yield piece
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            raise _failed(str(error) or type(error).__name__) from error
        yield _ended(reply)


def _refused(status: int, said: bytes, headers: httpx.Headers) -> ApiError:
    try:
        message = str(json.loads(said)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = said.decode(errors="replace")[:200]
    if status == 429:
        after = headers.get("retry-after", "")
        return ApiError(429, f"the server behind this one is busy: {message}", "upstream_busy", retry_after=int(after) if after.isdecimal() else 1)  # fmt: skip
    if status in (400, 404, 413, 422):
        return ApiError(status, message, "refused_by_upstream")
    # A key the upstream refuses is this server's fault and not the client's.
    return ApiError(502, f"the server behind this one answered {status}: {message}", "bad_upstream")


def _taken(reply: Reply, some: list[dict[str, Any]]) -> Piece | None:
    """What events that came together bring."""
    text, listed = "", list[dict[str, Any]]()
    try:
        for event in some:
            text += reply.take(event)
            listed += reply.logprobs
    except ReplyError as error:
        raise _failed(str(error)) from error
    return Piece(text, max(1, len(listed)), tuple(listed)) if text else None


def _ended(reply: Reply) -> Ended:
    ending = reply.ending()
    if ending is None:
        raise _failed("its answer broke off")
    if ending not in ("stop", "length", "loop"):
        raise _failed(f"it ended the answer for {ending!r}")
    try:
        calls = tuple(Call(call["name"], json.loads(call["arguments"] or "{}")) for call in reply.calls)
    except ValueError as error:
        raise _failed("it made a call that is not JSON") from error
    usage, details = reply.usage, reply.usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return Ended(ending, usage.get("prompt_tokens"), cached, usage.get("completion_tokens"), calls, reply.timings)


def _failed(said: str) -> ApiError:
    return ApiError(502, f"the server behind this one failed: {said}", "bad_upstream")
