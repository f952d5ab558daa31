"""What happens to a request: it waits its turn, is answered, and is counted."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from minnow.agent import Tool
from minnow.rollout.guard import Guard
from minnow.serve.answering import Finished, answer
from minnow.serve.bodies import Ask
from minnow.serve.errors import ApiError
from minnow.serve.guarded import Taken
from minnow.serve.metrics import Metrics
from minnow.serve.policy import Policy
from minnow.serve.queue import FairQueue
from minnow.serve.router import Looked, Routed, Router
from minnow.serve.source import Piece, Prompt, Source, Turn
from minnow.serve.upstream import UpstreamSource


@dataclass(frozen=True)
class Settings:
    """Attributes:
    deadline: seconds a request may take, waiting included, where it names none.
    queue: requests that may wait.
    guard: what is done about loops; None: nothing.
    hold: characters the guard may hold back.
    """

    deadline: float = 120.0
    queue: int = 128
    guard: Guard | None = field(default_factory=Guard)
    hold: int = 1000


Event = Piece | Taken | Looked | Routed


class Desk:
    """Takes requests and gives their events."""

    def __init__(
        self,
        local: Source,
        settings: Settings,
        metrics: Metrics,
        policy: Policy | None = None,
        cloud: UpstreamSource | None = None,
        tools: Sequence[Tool] = (),
    ) -> None:
        self.local, self.cloud, self.settings, self.metrics = local, cloud, settings, metrics
        self.queue = FairQueue(local.slots, settings.queue)
        self.router = Router(policy or Policy(), cloud, tools, self.queue.wait_seconds, local.hidden, local.slots)
        metrics.counter("minnow_answers_total", "Answers by the way they went and how they ended.")
        metrics.counter("minnow_tokens_total", "Tokens read and written.")
        metrics.counter("minnow_loops_total", "Loops caught, answers that recovered, answers given up.")
        metrics.histogram("minnow_queue_seconds", "Time from a request to its slot.")
        metrics.histogram("minnow_ttft_seconds", "Time from a request to the first token of its answer.")
        metrics.histogram("minnow_answer_seconds", "Time from a request to the end of its answer.")
        metrics.gauge(
            "minnow_cloud_bytes", "Bytes of request bodies sent to the cloud.", lambda: cloud.sent_bytes if cloud else 0
        )
        metrics.gauge("minnow_running", "Answers under way.", lambda: self.queue.running)
        metrics.gauge("minnow_waiting", "Requests waiting.", lambda: self.queue.waiting)

    async def close(self) -> None:
        await self.local.close()
        if self.cloud is not None:
            await self.cloud.close()

    @property
    def models(self) -> list[str]:
        """What clients may name: the local model first."""
        return [self.local.name, *([self.cloud.name] if self.cloud is not None else [])]

    async def events(self, ask: Ask, client: str) -> AsyncGenerator[Event]:
        """The answer as it comes, :class:`Routed` last.

        Raises:
            ApiError: whatever keeps it from being answered; 504 once its time is over.
        """
        came, first = time.monotonic(), True
        deadline = ask.deadline or self.settings.deadline
        if self.cloud is not None and ask.route == "auto" and ask.body.get("model") == self.cloud.name:
            ask = replace(ask, route="cloud")
        try:
            async with asyncio.timeout(deadline):
                prompt = await self.local.prepare(ask)
                parts = self.router.events(ask, prompt, deadline, partial(self._local, client, prompt))
                async with aclosing(parts):
                    async for part in parts:
                        if isinstance(part, Piece) and not part.text and not part.logprobs:
                            continue  # some of a call, of whose tokens nobody asked
                        if first:
                            self.metrics.time("minnow_ttft_seconds", time.monotonic() - came)
                            first = False
                        if isinstance(part, Routed):
                            self._count(part, came)
                        yield part
        except TimeoutError as error:
            raise _overdue(deadline) from error

    async def embed(self, asks: Sequence[Ask], client: str) -> tuple[list[np.ndarray], int]:
        """A vector of length 1 for each text, the mean of the local model's hidden states, and the tokens read.

        Raises:
            ApiError: a text is empty or too long, the model shows no states, or the time is over.
        """
        vectors, read = [], 0
        try:
            async with asyncio.timeout(self.settings.deadline):
                prompts = [await self.local.prepare(ask) for ask in asks]
                async with self.queue.slot(client):
                    for prompt in prompts:
                        mean = (await self.local.hidden(prompt, "")).mean(0)
                        vectors.append(mean / max(float(np.linalg.norm(mean)), 1e-12))
                        read += len(prompt.ids or ())
        except TimeoutError as error:
            raise _overdue(self.settings.deadline) from error
        self.metrics.add("minnow_tokens_total", read, kind="read")
        return vectors, read

    async def _local(
        self, client: str, prompt: Prompt, ask: Ask, begun: str, logprobs: int | None
    ) -> AsyncGenerator[Piece | Taken | Finished]:
        if (ask.schema is not None or ask.must_call) and not self.local.enforces:
            raise ApiError(
                400,
                "this engine cannot hold an answer to a schema or a tool; leave that out, or serve a GGUF file",
                "unsupported",
                "response_format" if ask.schema is not None else "tool_choice",
            )
        if ask is not prompt.ask:  # with what a search has found
            prompt = await self.local.prepare(ask)
        seed = secrets.randbits(31) if ask.seed is None else ask.seed
        turn = Turn(begun, ask.temperature, seed, logprobs=logprobs)
        settings = self.settings
        async with self.queue.slot(client) as waited:
            self.metrics.time("minnow_queue_seconds", waited)
            async with aclosing(answer(self.local, prompt, turn, settings.guard, settings.hold)) as parts:
                async for part in parts:
                    if isinstance(part, Finished):
                        self.router.note(prompt, part)
                        part = replace(part, timings=part.timings | {"queue_ms": 1000 * waited})
                    yield part

    def _count(self, routed: Routed, came: float) -> None:
        add, finished = self.metrics.add, routed.finished
        add("minnow_answers_total", route=routed.action, finish=finished.reason)
        add("minnow_tokens_total", finished.usage["prompt_tokens"], kind="read")
        add("minnow_tokens_total", finished.usage["completion_tokens"], kind="written")
        if finished.rewinds:
            add("minnow_loops_total", finished.rewinds, outcome="caught")
            add("minnow_loops_total", outcome="given_up" if finished.reason == "loop" else "recovered")
        self.metrics.time("minnow_answer_seconds", time.monotonic() - came)


def _overdue(deadline: float) -> ApiError:
    return ApiError(504, f"the answer was not ready within {deadline:g} s", "deadline_exceeded")
