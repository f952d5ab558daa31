"""Recorded answers played again in virtual time, through the server's own desk, router, breaker and readers.

An event loop whose clock jumps to the next thing that is to happen; a local model that says what it said, when it said it;
and the transport of an HTTP client whose bytes travel over a :class:`links.Link`.
"""

from __future__ import annotations

import asyncio
import json
import selectors
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import httpx2 as httpx
import numpy as np
from answers import Answer, Pace
from links import LOGIN, WORKING, Link, Trace

from minnow.serve.bodies import Ask, parse
from minnow.serve.desk import Desk, Settings
from minnow.serve.errors import ApiError
from minnow.serve.links import Breaker
from minnow.serve.metrics import Metrics
from minnow.serve.policy import Policy
from minnow.serve.router import Routed
from minnow.serve.source import Ended, Piece, Prompt, Turn
from minnow.serve.upstream import UpstreamSource
from minnow.tasks import Example

_CONNECT = 5.0  # seconds, as UpstreamSource waits
_IDLE = 2.0  # after which a connection is no longer kept, as minnow.serve.source.connections has it


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop that never waits: its clock goes to the next timer instead."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_Jump(self))

    def time(self) -> float:
        return self.now


class _Jump(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout:
            self._loop.now += timeout
        return ready


class Replayed:
    """The local model (:class:`minnow.serve.source.Source`): what it said, at the pace it has.

    Args:
        signals: where given, the margin that every token of an answer is said to have had.
    """

    name, slots, enforces = "edge", 4, True

    def __init__(
        self,
        answers: Mapping[str, Answer],
        pace: Pace,
        signals: Mapping[str, float] | None = None,
    ) -> None:
        self._answers, self._pace, self._signals = answers, pace, signals

    async def close(self) -> None: ...

    async def prepare(self, ask: Ask) -> Prompt:
        return Prompt(ask, ask.max_tokens, (0,) * self._answers[ask.user].prompt_tokens)

    async def hidden(self, prompt: Prompt, text: str) -> np.ndarray:
        answer = self._answers[prompt.ask.user]
        await asyncio.sleep(self._pace.prefill * (answer.prompt_tokens + len(answer.states)))
        return np.concatenate(
            [
                np.zeros((answer.prompt_tokens - 1, answer.states.shape[1])),
                answer.states,
            ]
        )

    async def stream(self, prompt: Prompt, turn: Turn) -> AsyncGenerator[Piece | Ended]:
        answer, last, place = self._answers[prompt.ask.user], 0.0, 0
        said = len(turn.text)  # what the cloud has said before it broke off takes the place of as much
        for second, text, tokens in answer.pieces:
            await asyncio.sleep(second - last)
            last, kept = second, text[said:]
            said = max(0, said - len(text))
            margins = answer.tokens[place : place + len(tokens), 1].tolist()
            place += len(tokens)
            if self._signals is not None:
                margins = [self._signals[answer.id]] * len(tokens)
            entries = [
                {"bytes": list(one.encode()), "top_logprobs": [{"logprob": margin}, {"logprob": 0.0}]}
                for one, margin in zip(tokens, margins, strict=True)
            ]
            yield Piece(kept, len(tokens), tuple(entries) if turn.logprobs is not None else ())
        await asyncio.sleep(answer.seconds - last)
        yield Ended(answer.finish, answer.prompt_tokens, 0, place)


class LinkTransport(httpx.AsyncBaseTransport):
    """The cloud: a server that says what it said, at the far end of a link."""

    def __init__(self, answers: Mapping[str, Answer], link: Link, asked: Callable[[], str]) -> None:
        self._answers, self._link, self._asked = answers, link, asked
        self._until = -1.0  # a connection is kept until then

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        link, clock = self._link, self._link.clock
        if link.state == "offline":
            raise httpx.ConnectError("no network")
        if clock() > self._until:
            await self._wait(
                link.arrival(link.arrival(clock(), 100), 100),
                _CONNECT,
                httpx.ConnectTimeout,
            )
            if link.state == "portal":
                return httpx.Response(200, headers={"Content-Type": "text/html"}, content=LOGIN)
            await self._wait(
                link.arrival(link.arrival(clock(), 500), 4000),
                _CONNECT,
                httpx.ConnectTimeout,
            )  # TLS
        self._until = clock() + _IDLE
        patience = request.extensions["timeout"]["read"]
        there = link.arrival(clock(), len(await request.aread()) + 300)
        return httpx.Response(
            200,
            headers={"Content-Type": "text/event-stream"},
            stream=_Bytes(self._say(there, patience)),
        )

    async def _wait(self, until: float, patience: float, error: type[httpx.TransportError]) -> None:
        now = self._link.clock()
        await asyncio.sleep(min(until - now, patience))
        if until - now > patience:
            self._until = -1.0
            raise error("timed out")

    async def _say(self, start: float, patience: float) -> AsyncIterator[bytes]:
        answer, latest = self._answers[self._asked()], 0.0
        parts = [(second, {"choices": [{"delta": {"content": text}}]}) for second, text, _ in answer.pieces]
        spent = {"completion_tokens": sum(len(tokens) for _, _, tokens in answer.pieces)}
        finish = {
            "choices": [{"delta": {}, "finish_reason": answer.finish}],
            "usage": spent,
        }
        for second, event in [*parts, (answer.seconds, finish)]:
            data = b"data: " + json.dumps(event).encode() + b"\n\n"
            latest = max(latest, self._link.arrival(start + second, len(data) + 300))
            await self._wait(latest, patience, httpx.ReadTimeout)
            if self._link.state in ("offline", "portal"):
                self._until = -1.0
                raise httpx.ReadError("the network has changed")
            yield data
        yield b"data: [DONE]\n\n"


class _Bytes(httpx.AsyncByteStream):
    def __init__(self, parts: AsyncIterator[bytes]) -> None:
        self._parts = parts

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._parts


@dataclass
class Outcome:
    """What became of a request: ``late`` without an answer by its deadline; ``sent``: whether it left for the cloud."""

    id: str
    state: str
    right: bool
    late: bool
    sent: bool
    from_cloud: bool
    seconds: float
    bytes: int


@dataclass(frozen=True)
class Way:
    """How requests are served.

    Attributes:
        route: as a client asks for it; ``"upstream"``: the cloud is all there is.
        signals: as of :class:`Replayed`.
    """

    policy: Policy
    route: str = "auto"
    signals: Mapping[str, float] | None = None


BUDGET = 512


def body(example: Example) -> dict[str, Any]:
    """The request that asks for an answer to ``example``."""
    tools = [{"type": "function", "function": tool} for tool in example.tools or ()]
    return {"messages": example.messages, "max_tokens": BUDGET, "temperature": 0} | ({"tools": tools} if tools else {})


def play(
    way: Way,
    path: Trace,
    seed: int,
    asked: Sequence[tuple[float, Example]],
    local: Mapping[str, Answer],
    cloud: Mapping[str, Answer],
    pace: Pace,
    deadline: float,
) -> list[Outcome]:
    """Send ``asked`` (when, and what) one after another into a server on this link.

    Requests do not overlap: one that is asked while another runs waits for it, its time begins with its turn.
    """
    loop = VirtualLoop()
    current = [""]

    async def run() -> list[Outcome]:
        link = Link(path, seed, loop.time)
        far = UpstreamSource("http://cloud/v1", "cloud", stall=10.0)
        far._client = httpx.AsyncClient(
            transport=LinkTransport(cloud, link, lambda: current[0]),
            timeout=far._client.timeout,
        )
        alone = way.route == "upstream"
        near = far if alone else Replayed(local, pace, way.signals)
        desk = Desk(
            near,
            Settings(deadline, guard=None),
            Metrics(),
            way.policy,
            None if alone or way.policy.cloud is None else far,
        )
        if (
            settings := way.policy.cloud
        ) is not None:  # which had taken its clock before the loop's was put in its place
            desk.router.breaker = Breaker(settings.failures, settings.pause, loop.time)
        outcomes = []
        for second, example in asked:
            await asyncio.sleep(max(0.0, second - loop.time()))
            current[0] = example.id
            request = body(example) | {"user": example.id} | ({} if alone else {"minnow": {"route": way.route}})
            came, before, state = loop.time(), far.sent_bytes, link.state
            routed = None
            try:
                async for event in desk.events(parse(json.dumps(request).encode(), chat=True), "client"):
                    routed = event if isinstance(event, Routed) else routed
            except ApiError:
                routed = None
            far_answer = routed is not None and (alone or routed.action == "cloud")
            right = routed is not None and _right(routed, (cloud if far_answer else local)[example.id])
            sent = far.sent_bytes - before
            outcomes.append(
                Outcome(
                    example.id,
                    state,
                    right,
                    routed is None,
                    sent > 0 or alone,
                    far_answer,
                    loop.time() - came if routed is not None else deadline,
                    sent,
                )
            )
        await desk.close()
        return outcomes

    asyncio.set_event_loop(loop)
    try:
        with mock.patch("time.monotonic", loop.time):
            outcomes = loop.run_until_complete(run())
            loop.run_until_complete(loop.shutdown_asyncgens())
            return outcomes
    finally:
        loop.close()


def _right(routed: Routed, answer: Answer) -> bool:
    """An answer that two models have written in turn cannot be played again and counts as wrong."""
    return answer.right and routed.finished.text == answer.text


def works(state: str) -> bool:
    return state in WORKING
