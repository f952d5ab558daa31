"""One answer of one source: guarded, its tool calls read, its parts counted."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from minnow.data.calls import CALL_END, CALL_START, Call, CallError, parse_any_calls
from minnow.rollout.guard import Guard
from minnow.serve.guarded import Taken, guard_stream
from minnow.serve.source import Ended, Piece, Prompt, Source, Turn, begun_length

_OPENINGS = (CALL_START, CALL_END, "<tool_call>", "<|python_tag|>")
_BARE = ("{", "[")  # begin a call only where they begin the answer


@dataclass(frozen=True)
class Finished:
    """The end of an answer.

    Attributes:
        reason: ``"stop"``, ``"length"``, ``"loop"`` or ``"tool_calls"``.
        calls: the tool calls it ends in.
        text: the whole, calls included, as the model wrote it.
        usage: in OpenAI's form.
        timings: milliseconds: ``ttft_ms``, ``total_ms`` by the server's clock, and the runtime's own.
        rewinds, discarded: what the guard did: times, and characters thrown away.
        trimmed: messages that were left out of the prompt.
    """

    reason: str
    calls: tuple[Call, ...]
    text: str
    usage: dict[str, Any]
    timings: dict[str, float]
    rewinds: int = 0
    discarded: int = 0
    trimmed: int = 0


@dataclass
class _Visible:
    """What of an answer that may hold tool calls is text for the reader."""

    reads_calls: bool
    text: str = ""
    shown: int = 0
    opened: bool = False

    def push(self, piece: str) -> str:
        self.text += piece
        if not self.reads_calls:
            self.shown = len(self.text)
            return piece
        if self.opened:
            return ""
        if self.text.lstrip().startswith(_BARE):
            self.opened = True
            return ""
        places = [at for mark in _OPENINGS if (at := self.text.find(mark, self.shown)) >= 0]
        self.opened = bool(places)
        safe = min(places) if places else len(self.text) - begun_length(self.text[self.shown :], _OPENINGS)
        new = self.text[self.shown : safe]
        self.shown = max(self.shown, safe)
        return new

    def rest(self) -> str:
        """What was held back, where it is no call after all."""
        rest, self.shown = self.text[self.shown :], len(self.text)
        return rest


async def answer(
    source: Source, prompt: Prompt, turn: Turn, guard: Guard | None, hold: int
) -> AsyncGenerator[Piece | Taken | Finished]:
    """The answer of ``source`` as a client is to have it; :class:`Finished` comes last.

    Raises:
        ApiError: as the source does.
    """
    start, first = time.monotonic(), None
    visible = _Visible(bool(prompt.ask.tools))
    tokens, rewinds, discarded = 0, 0, 0
    # A grammar cannot be taken up in the middle.
    held_to = prompt.ask.schema is not None or bool(prompt.ask.must_call)
    stream: AsyncGenerator[Piece | Taken | Ended] = (
        source.stream(prompt, turn) if guard is None or held_to else guard_stream(source, prompt, turn, guard, hold)
    )
    async with aclosing(stream):
        async for part in stream:
            if first is None:
                first = time.monotonic()
            if isinstance(part, Taken):
                rewinds, discarded = part.rewinds, discarded + part.characters
                yield part
            elif isinstance(part, Piece):
                tokens += part.tokens
                text = visible.push(part.text)
                # How sure the model was of a call is wanted too, whose text is not for the reader.
                if text or part.logprobs:
                    yield part if text == part.text else replace(part, text=text)
            else:
                ended = part
    calls, reason = ended.calls, ended.reason
    if visible.reads_calls and not calls and reason == "stop":
        try:
            calls = tuple(parse_any_calls(visible.text))
        except CallError:
            calls = ()
        names = {tool["name"] for tool in prompt.ask.tools}
        calls = calls if all(call.name in names for call in calls) else ()
    if prompt.ask.one_call:  # what no grammar held to it
        calls = calls[:1]
    if not calls and (rest := visible.rest()):
        yield Piece(rest, 0)
    now = time.monotonic()
    timings = {"ttft_ms": 1000 * ((first or now) - start), "total_ms": 1000 * (now - start), **ended.timings}
    usage = _usage(prompt, ended, tokens)
    yield Finished(
        "tool_calls" if calls else reason,
        calls,
        visible.text,
        usage,
        timings,
        rewinds,
        discarded,
        prompt.trimmed,
    )


def _usage(prompt: Prompt, ended: Ended, tokens: int) -> dict[str, Any]:
    read, written = ended.prompt_tokens or len(prompt.ids or ()), ended.completion_tokens or tokens
    usage: dict[str, Any] = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    if ended.cached_tokens is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": ended.cached_tokens}
    return usage
