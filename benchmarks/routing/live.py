"""The same in real time: two servers over HTTP, a proxy between them, a client before them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import uvicorn
from links import Link, Proxy, Trace
from replay import Outcome, Way, body
from starlette.applications import Starlette

from minnow.data.calls import Call, render_calls
from minnow.data.tokenizer import Tokenizer
from minnow.device.gguf_export import export_gguf
from minnow.evaluate.measure import score_text
from minnow.serve.app import create_app
from minnow.serve.desk import Desk, Settings
from minnow.serve.llama import LlamaSource
from minnow.serve.metrics import Metrics
from minnow.serve.upstream import UpstreamSource
from minnow.tasks import Example

_CONTEXT = 1024


@asynccontextmanager
async def _serving(app: Starlette) -> AsyncIterator[int]:
    """The port of ``app``, served in a task of this process."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", access_log=False))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield int(server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        await task


def _source(folder: Path, checkpoint: Path, name: str) -> LlamaSource:
    file = export_gguf(checkpoint, folder / f"{name}.gguf", "F16").file
    return LlamaSource(file, Tokenizer.load(checkpoint), _CONTEXT, name)


async def live(
    folder: Path,
    edge: Path,
    cloud: Path,
    way: Way,
    path: Trace,
    seed: int,
    asked: Sequence[tuple[float, Example]],
    deadline: float,
) -> list[Outcome]:
    """What becomes of ``asked`` on this link: as :func:`replay.play`, but nothing is played."""
    far = Desk(_source(folder, cloud, "cloud"), Settings(guard=None), Metrics())
    async with _serving(create_app(far)) as port:
        start = time.monotonic()
        link = Link(path, seed, lambda: time.monotonic() - start)
        proxy = Proxy(link, "127.0.0.1", port)
        upstream = UpstreamSource(f"http://127.0.0.1:{await proxy.start()}/v1", "cloud", stall=10.0)
        near = Desk(_source(folder, edge, "edge"), Settings(deadline, guard=None), Metrics(), way.policy, upstream)
        outcomes = []
        async with _serving(create_app(near)) as served, httpx.AsyncClient(timeout=60, trust_env=False) as client:
            for second, example in asked:
                await asyncio.sleep(max(0.0, second - link.clock()))
                state, before, came = link.state, upstream.sent_bytes, time.perf_counter()
                events = await _ask(client, f"http://127.0.0.1:{served}", body(example))
                seconds, sent = time.perf_counter() - came, upstream.sent_bytes - before
                outcomes.append(_heard(example, events, state, sent, seconds, deadline))
        proxy.close()
        return outcomes


async def _ask(client: httpx.AsyncClient, url: str, request: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a streamed answer; of an error alone where there is none."""
    async with client.stream("POST", f"{url}/v1/chat/completions", json=request | {"stream": True}) as response:
        if response.status_code != 200:
            return [json.loads(await response.aread())]
        return [json.loads(line[6:]) async for line in response.aiter_lines() if line.startswith("data: {")]


def _heard(
    example: Example, events: list[dict[str, Any]], state: str, sent: int, seconds: float, deadline: float
) -> Outcome:
    if "error" in events[-1]:
        return Outcome(example.id, state, False, True, sent > 0, False, deadline, sent)
    choices = [choice for event in events for choice in event["choices"]]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    calls = [call["function"] for choice in choices for call in choice["delta"].get("tool_calls") or ()]
    text += render_calls([Call(call["name"], json.loads(call["arguments"])) for call in calls]) if calls else ""
    finish = choices[-1]["finish_reason"]
    right = score_text(example, text, "stop" if finish == "tool_calls" else finish).correct
    routed = next(event["route"] for event in events if "route" in event)
    return Outcome(example.id, state, right, False, sent > 0, routed["action"] == "cloud", seconds, sent)
