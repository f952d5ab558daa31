"""One request's way: here first, looked at, and to the cloud or the search where that is better and allowed."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from os.path import commonprefix
from typing import Any

import numpy as np

from minnow.agent import Tool
from minnow.agent.marks import neutral
from minnow.agent.tools import call_tool
from minnow.data.calls import Call, render_calls
from minnow.errors import UserError
from minnow.rollout.server_engine import openai_messages
from minnow.serve.answering import Finished, answer
from minnow.serve.bodies import Ask, prompt_text
from minnow.serve.errors import ApiError
from minnow.serve.guarded import Taken
from minnow.serve.links import Breaker, RetryBudget, Speed, battery
from minnow.serve.personal import personal_data
from minnow.serve.policy import Decision, Facts, Policy, choose, closed, pace_of, reconsider, threshold_of
from minnow.serve.probe import load_probe
from minnow.serve.source import Piece, Prompt, Turn
from minnow.serve.upstream import UpstreamSource

_MOST_SEARCHES = 4
_RESULT = 2000  # characters of a search's result
_WEIGHT, _LEAST_READ = 0.2, 32  # of the latest answer in the mean speed of reading; tokens that tell of it


@dataclass(frozen=True)
class Looked:
    """The server made a call of its own."""

    call: Call
    result: str


@dataclass(frozen=True)
class Routed:
    """The end of a request: the answer's, the way it went and why, and every way that was tried."""

    finished: Finished
    action: str
    reason: str
    tried: tuple[str, ...]


Part = Piece | Taken | Looked | Finished
Local = Callable[[Ask, str, int | None], AsyncGenerator[Piece | Taken | Finished]]
"""The local model: ``(ask, begun, logprobs)`` to what :func:`minnow.serve.answering.answer` gives."""


class Router:
    """Chooses, and sees a request through.

    Args:
        cloud: the one in the cloud, where the policy names one.
        tools: what the server itself looks things up with.
        waits: seconds a new request would wait for the local model.
        hidden: what the local model has made of the beginning of an answer
            (:meth:`minnow.serve.source.Source.hidden`), for a policy with a probe.
        slots: conversations that the local model keeps what it has read of.
    """

    def __init__(
        self,
        policy: Policy,
        cloud: UpstreamSource | None,
        tools: Sequence[Tool] = (),
        waits: Callable[[], float] = lambda: 0.0,
        hidden: Callable[[Prompt, str], Awaitable[np.ndarray]] | None = None,
        slots: int = 1,
    ) -> None:
        self.policy, self.cloud, self._tools, self._waits = policy, cloud, list(tools), waits
        self.threshold = threshold_of(policy.signal)
        self._probe = load_probe(policy.signal.probe) if policy.signal.probe is not None else None
        self._hidden = hidden
        self._prefill, decode = pace_of(policy)
        self._read = deque[tuple[int, ...]](maxlen=slots)  # the latest prompts
        self.here = Speed(0.1, decode)
        self.there = Speed(1.0, 60.0)
        self._timed = -math.inf  # when the cloud was last seen to answer
        settings = policy.cloud
        self.breaker = Breaker(settings.failures if settings else 1, settings.pause if settings else 0.0)
        self._retries = RetryBudget()

    def facts(self, ask: Ask, prompt: Prompt, left: float) -> Facts:
        """What is known of a request now; ``left``: seconds until its deadline."""
        ids = prompt.ids or ()
        kept = max((len(commonprefix([ids, other])) for other in self._read), default=0)
        read = (len(ids) - kept) / self._prefill
        limit = self.policy.cloud.megabytes if self.policy.cloud else None
        sent = self.cloud.sent_bytes if self.cloud else 0
        # Looked for only where it decides something: a long text takes a while.
        gated = self.policy.cloud is not None and self.policy.personal_data == "local"
        # An estimate that is too old would never be mended if it kept everything from being sent.
        known = self.policy.cloud is not None and time.monotonic() - self._timed < self.policy.cloud.pause
        personal = next(filter(None, map(personal_data, prompt_text(ask))), None) if gated else None
        return Facts(
            wanted=ask.route,
            private=ask.private,
            personal=personal,
            open=self.breaker.open,
            spent=limit is not None and sent >= limit * 1e6,
            battery=battery() if self.policy.least_battery is not None else None,
            local=self._waits() + read + self.here.seconds(prompt.max_tokens),
            cloud=self.there.seconds(ask.max_tokens) if known else 0.0,
            left=left,
            searches=bool(self._tools) and not ask.tools and ask.schema is None and ask.messages is not None,
        )

    def note(self, prompt: Prompt, finished: Finished) -> None:
        """Learn from a local answer how fast the model reads and writes, and what it has read."""
        timings, new = finished.timings, finished.timings.get("prompt_n", 0)
        reading = timings.get("prompt_ms", 0.0) / 1000
        if reading > 0 and new >= _LEAST_READ:
            self._prefill += _WEIGHT * (new / reading - self._prefill)
        first, seconds = timings["ttft_ms"] / 1000 - reading, timings["total_ms"] / 1000 - reading
        self.here.note(first, seconds, finished.usage["completion_tokens"])
        self._read.append(prompt.ids or ())

    async def events(
        self, ask: Ask, prompt: Prompt, left: float, local: Local
    ) -> AsyncGenerator[Piece | Taken | Looked | Routed]:
        """The request's answer, :class:`Routed` last; ``prompt`` is what ``local`` would read.

        Raises:
            ApiError: neither way has an answer.
        """
        end = time.monotonic() + left
        self._retries.request()
        facts, shown = self.facts(ask, prompt, left), ""
        async with aclosing(self._chosen(ask, prompt, facts, end, local)) as parts:
            async for part in parts:
                shown += part.text if isinstance(part, Piece) else ""
                if isinstance(part, Routed) and part.finished.reason == "loop" and part.action == "local":
                    now = replace(facts, left=end - time.monotonic(), open=self.breaker.open)
                    if ask.route == "auto" and closed(self.policy, now) is None:
                        await parts.aclose()  # its slot is free
                        async with aclosing(self._after_loop(ask, part, shown, end)) as others:
                            async for other in others:
                                yield other
                        return
                yield part

    async def _after_loop(
        self, ask: Ask, given_up: Routed, shown: str, end: float
    ) -> AsyncGenerator[Piece | Taken | Looked | Routed]:
        """What follows a local answer that the guard gave up at a loop's onset: the cloud goes on from there."""
        tried = [*given_up.tried, "cloud"]
        decision = Decision("local", f"{given_up.reason}; it looped and was ended in the cloud", None)
        try:
            async with aclosing(self._cloud(ask, end, shown)) as parts:
                async for part in parts:
                    if isinstance(part, Finished):
                        here = given_up.finished
                        part = replace(part, rewinds=here.rewinds, discarded=here.discarded, trimmed=here.trimmed)
                    yield self._shown(part, ask, decision, tried)
        except ApiError as error:
            yield replace(given_up, reason=f"{given_up.reason}; it looped, but {error.message}", tried=tuple(tried))

    async def _chosen(
        self, ask: Ask, prompt: Prompt, facts: Facts, end: float, local: Local
    ) -> AsyncGenerator[Piece | Taken | Looked | Routed]:
        """The answer by the way that is chosen."""
        left = facts.left
        # Past this moment the cloud would leave the local model no time to stand in; without that it has all there is.
        latest = end - facts.local if facts.local < left else end
        decision, tried = choose(self.policy, facts), []
        if decision.action == "local":
            tried.append("local")
            held: list[Part] = []
            looks = self.threshold is not None and ask.route == "auto"
            wanted = max(ask.logprobs or 0, 2) if looks else ask.logprobs
            offers = self.policy.signal.asks and facts.searches and ask.route == "auto"
            calls: Sequence[Call] = ()
            async with aclosing(local(self._offered(ask) if offers else ask, "", wanted)) as parts:
                async for part in parts:
                    if offers and isinstance(part, Finished) and part.calls:
                        decision, calls = (
                            Decision("search", "the local model asked to search", decision.closed),
                            part.calls,
                        )
                        break
                    if looks:
                        held.append(part)
                        enough = self._probe.tokens if self._probe is not None else self.policy.signal.tokens
                        if not isinstance(part, Finished) and _tokens(held) < enough:
                            continue
                        looks = False
                        signal = await self._signal(prompt, held)
                        # A model that could have asked for the search has not.
                        searches = facts.searches and not offers
                        now = replace(facts, left=end - time.monotonic(), open=self.breaker.open, searches=searches)
                        decision = reconsider(self.policy, now, decision, signal, self.threshold)
                        if decision.action != "local":
                            break
                        for some in held:
                            yield self._shown(some, ask, decision, tried)
                    else:
                        yield self._shown(part, ask, decision, tried)
                if decision.action == "local":
                    return
                # The local answer waits where it is, and goes on if there is none elsewhere.
                async with aclosing(self._elsewhere(ask, decision, tried, latest, local, parts, calls)) as others:
                    async for other in others:
                        if isinstance(other, ApiError):
                            decision = Decision("local", f"{decision.reason}, but {other.message}", other.message)
                            break
                        yield other
                    else:
                        return
                for some in held:
                    yield self._shown(some, ask, decision, tried)
                async for part in parts:
                    yield self._shown(part, ask, decision, tried)
            return
        async with aclosing(self._elsewhere(ask, decision, tried, latest, local)) as others:
            async for other in others:
                if not isinstance(other, ApiError):
                    yield other
                    continue
                decision = Decision("local", f"{decision.reason}, but {other.message}", other.message)
                tried.append("local")
                async with aclosing(local(ask, "", ask.logprobs)) as parts:
                    async for part in parts:
                        yield self._shown(part, ask, decision, tried)

    async def _signal(self, prompt: Prompt, held: Sequence[Part]) -> float | None:
        """How good the beginning of a local answer looks; None where there is nothing to tell it from."""
        entries = [entry for part in held if isinstance(part, Piece) for entry in part.logprobs]
        if not entries:
            return None
        if self._probe is None:
            return min(map(_margin, entries[: self.policy.signal.tokens]))
        assert self._hidden is not None and prompt.ids is not None
        begun = b"".join(bytes(entry["bytes"]) for entry in entries[: self._probe.tokens])
        states = await self._hidden(prompt, begun.decode(errors="ignore"))
        try:
            return self._probe(states[len(prompt.ids) - 1 :])
        except UserError as error:
            raise ApiError(500, str(error), "wrong_probe") from error

    def _shown(self, part: Part, ask: Ask, decision: Decision, tried: list[str]) -> Piece | Taken | Looked | Routed:
        if isinstance(part, Finished):
            return Routed(part, decision.action, decision.reason, tuple(tried))
        if not isinstance(part, Piece):
            return part
        if ask.logprobs is None:
            return replace(part, logprobs=())
        most = ask.logprobs  # the router may have asked for more
        kept = tuple(entry | {"top_logprobs": entry["top_logprobs"][:most]} for entry in part.logprobs)
        return replace(part, logprobs=kept)

    async def _elsewhere(
        self,
        ask: Ask,
        decision: Decision,
        tried: list[str],
        latest: float,
        local: Local,
        waiting: AsyncGenerator[Part] | None = None,
        calls: Sequence[Call] = (),
    ) -> AsyncGenerator[Piece | Taken | Looked | Routed | ApiError]:
        """The answer by search or from the cloud; an ApiError in its place where nothing of it has been shown.

        ``waiting`` is a local answer in reserve: it holds a slot, and is given up before another needs one; ``calls`` are the
        searches it asks for.
        """
        if decision.action == "search":
            if waiting is not None:
                await waiting.aclose()
            tried.append("search")
            async with aclosing(self._search(ask, local, calls)) as parts:
                async for part in parts:
                    yield self._shown(part, ask, decision, tried)
            return
        tried.append("cloud")
        shown = ""
        try:
            async with aclosing(self._cloud(ask, latest)) as parts:
                async for part in parts:
                    shown += part.text if isinstance(part, Piece) else ""
                    yield self._shown(part, ask, decision, tried)
        except ApiError as error:
            if not shown:
                yield error
                return
            if ask.schema is not None or ask.must_call:
                raise  # a grammar cannot be taken up in the middle
            # The reader has the beginning of it: the local model goes on from there.
            if waiting is not None:
                await waiting.aclose()
            tried.append("local")
            broken = Decision("cloud", f"{decision.reason}; it broke off and was ended here", None)
            async with aclosing(local(ask, shown, None)) as rest:
                async for more in rest:
                    yield self._shown(more, ask, broken, tried)

    def _offered(self, ask: Ask) -> Ask:
        """``ask`` with the server's own tools."""
        body = ask.body | {"tools": [tool.function_schema() for tool in self._tools]}
        return replace(ask, tools=tuple(tool.schema() for tool in self._tools), body=body)

    async def _search(
        self, ask: Ask, local: Local, calls: Sequence[Call]
    ) -> AsyncGenerator[Piece | Taken | Looked | Finished]:
        """The local model with the server's own tools: its calls are made here, and it answers in the end.

        ``calls``: those it has made already.
        """
        asked, looked = self._offered(ask), list[dict[str, Any]]()
        for turn in range(_MOST_SEARCHES + 1):
            if turn == _MOST_SEARCHES:
                body = {name: value for name, value in asked.body.items() if name != "tools"}
                asked, calls = replace(asked, tools=(), body=body), ()
            if not calls:
                async with aclosing(local(asked, "", ask.logprobs)) as parts:
                    async for part in parts:
                        if isinstance(part, Finished) and part.calls:
                            calls = part.calls
                        else:
                            yield part
                if not calls:
                    return
            looked.append({"role": "assistant", "content": render_calls(calls)})
            for call in calls:
                result, _ = await asyncio.to_thread(call_tool, self._tools, call, _RESULT)
                looked.append({"role": "tool", "content": neutral(result)})
                yield Looked(call, looked[-1]["content"])
            body = asked.body | {"messages": [*ask.body["messages"], *openai_messages(looked)]}
            asked, calls = replace(asked, messages=(*(ask.messages or ()), *looked), body=body), ()

    async def _cloud(self, ask: Ask, latest: float, begun: str = "") -> AsyncGenerator[Piece | Taken | Finished]:
        """The cloud's answer, or what follows ``begun`` in it; tried again while nothing of it has come.

        Raises:
            ApiError: it has failed, or is too slow.
        """
        assert self.cloud is not None and self.policy.cloud is not None
        settings = self.policy.cloud
        # Who asks is nobody's business there.
        body = {name: value for name, value in ask.body.items() if name != "user"}
        prompt = Prompt(replace(ask, body=body), ask.max_tokens)
        for attempt in range(settings.retries + 1):
            self.breaker.start()
            start, first, finished = time.monotonic(), None, False
            try:
                turn = Turn(begun, ask.temperature, ask.seed or 0, logprobs=ask.logprobs)
                async with aclosing(answer(self.cloud, prompt, turn, None, 0)) as parts:
                    while True:
                        patience = min(
                            settings.first_token if first is None else settings.stall, latest - time.monotonic()
                        )
                        try:
                            async with asyncio.timeout(patience):
                                part = await anext(parts)
                        except StopAsyncIteration:
                            return
                        except TimeoutError as error:
                            what = "did not begin in time" if first is None else "stalled"
                            raise ApiError(504, f"the cloud {what}", "cloud_timeout") from error
                        first = first or time.monotonic()
                        if isinstance(part, Finished):
                            finished = True
                            self.breaker.worked()
                            self._timed = time.monotonic()
                            self.there.note(first - start, time.monotonic() - start, part.usage["completion_tokens"])
                        yield part
            except ApiError as error:
                if error.status < 500 and error.status != 429:
                    self.breaker.worked()  # it is there, and does not like the request
                    raise
                self.breaker.failed()
                if first is not None or attempt == settings.retries or self.breaker.open or not self._retries.take():
                    raise
            finally:
                if not finished:
                    self.breaker.left()


def _margin(entry: dict[str, Any]) -> float:
    """By how much the likeliest token at a place exceeds the next; infinity where there was no other."""
    logs = sorted((float(other["logprob"]) for other in entry["top_logprobs"]), reverse=True)
    return logs[0] - logs[1] if len(logs) > 1 else math.inf


def _tokens(parts: Sequence[Part]) -> int:
    return sum(part.tokens for part in parts if isinstance(part, Piece))
