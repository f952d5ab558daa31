"""What happens to a request: it waits its turn, is answered, and is counted."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from minnow.rollout.guard import Guard
from minnow.serve.answering import Finished, answer
from minnow.serve.bodies import Ask
from minnow.serve.errors import ApiError
from minnow.serve.guarded import Taken
from minnow.serve.metrics import Metrics
from minnow.serve.queue import FairQueue
from minnow.serve.source import Piece, Source, Turn


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


@dataclass(frozen=True)
class Done:
    """A request's end: the answer's, and the way it went."""

    finished: Finished
    route: str
    reason: str
    queue_ms: float


Event = Piece | Taken | Done


class Desk:
    """Takes requests and gives their events."""

    def __init__(self, local: Source, settings: Settings, metrics: Metrics) -> None:
        self.local, self.settings, self.metrics = local, settings, metrics
        self.queue = FairQueue(local.slots, settings.queue)
        metrics.counter("minnow_answers_total", "Answers by the way they went and how they ended.")
        metrics.counter("minnow_tokens_total", "Tokens read and written.")
        metrics.counter("minnow_loops_total", "Loops caught, answers that recovered, answers given up.")
        metrics.histogram("minnow_queue_seconds", "Time from a request to its slot.")
        metrics.histogram("minnow_ttft_seconds", "Time from a request to the first token of its answer.")
        metrics.histogram("minnow_answer_seconds", "Time from a request to the end of its answer.")
        metrics.gauge("minnow_running", "Answers under way.", lambda: self.queue.running)
        metrics.gauge("minnow_waiting", "Requests waiting.", lambda: self.queue.waiting)

    async def close(self) -> None:
        await self.local.close()

    async def events(self, ask: Ask, client: str) -> AsyncGenerator[Event]:
        """The answer as it comes, :class:`Done` last.

        Raises:
            ApiError: whatever keeps it from being answered; 504 once its time is over.
        """
        deadline = ask.deadline or self.settings.deadline
        try:
            async with asyncio.timeout(deadline), aclosing(self._local(ask, client)) as parts:
                async for part in parts:
                    yield part
        except TimeoutError as error:
            raise ApiError(504, f"the answer was not ready within {deadline:g} s", "deadline_exceeded") from error

    async def _local(self, ask: Ask, client: str) -> AsyncGenerator[Event]:
        came = time.monotonic()
        if (ask.schema is not None or ask.must_call) and not self.local.enforces:
            raise ApiError(
                400,
                "this engine cannot hold an answer to a schema or a tool; leave that out, or serve a GGUF file",
                "unsupported",
                "response_format" if ask.schema is not None else "tool_choice",
            )
        prompt = await self.local.prepare(ask)
        seed = secrets.randbits(31) if ask.seed is None else ask.seed
        turn = Turn("", ask.temperature, seed, logprobs=ask.logprobs)
        async with self.queue.slot(client) as waited:
            self.metrics.time("minnow_queue_seconds", waited)
            async with aclosing(answer(self.local, prompt, turn, self.settings.guard, self.settings.hold)) as parts:
                first = True
                async for part in parts:
                    if first:
                        self.metrics.time("minnow_ttft_seconds", time.monotonic() - came)
                        first = False
                    if isinstance(part, Finished):
                        yield self._count(part, came, waited)
                    else:
                        yield part

    def _count(self, finished: Finished, came: float, waited: float) -> Done:
        add = self.metrics.add
        add("minnow_answers_total", route="local", finish=finished.reason)
        add("minnow_tokens_total", finished.usage["prompt_tokens"], kind="read")
        add("minnow_tokens_total", finished.usage["completion_tokens"], kind="written")
        if finished.rewinds:
            add("minnow_loops_total", finished.rewinds, outcome="caught")
            add("minnow_loops_total", outcome="given_up" if finished.reason == "loop" else "recovered")
        self.metrics.time("minnow_answer_seconds", time.monotonic() - came)
        timings = finished.timings | {"queue_ms": 1000 * waited}
        return Done(replace(finished, timings=timings), "local", "there is only the local model", 1000 * waited)
