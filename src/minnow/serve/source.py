"""What an answer streams from: the model on this machine or a server, behind one protocol."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx2 as httpx
import numpy as np

from minnow.data.calls import Call
from minnow.serve.bodies import Ask


@dataclass(frozen=True)
class Piece:
    """Some of an answer.

    Attributes:
        tokens: how many it has; of a server that does not say, one.
        logprobs: of every token, in OpenAI's form (``token``, ``bytes``, ``logprob``, ``top_logprobs``), where asked for.
    """

    text: str
    tokens: int = 1
    logprobs: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Ended:
    """How an answer ended.

    Attributes:
        reason: ``"stop"`` or ``"length"``.
        prompt_tokens: that were read, ``cached_tokens`` of them from the cache; None where a server does not say.
        calls: tool calls, of a server that tells them from the text.
        timings: milliseconds of the runtime's own clock (``prompt_ms``, ``predicted_ms``) and its rates, where it has them.
    """

    reason: str
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    calls: tuple[Call, ...] = ()
    timings: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Prompt:
    """A request made ready.

    Attributes:
        ids: what a local model reads; None where a server does the reading.
        max_tokens: the budget of the answer.
        trimmed: messages that were left out for want of room.
    """

    ask: Ask
    max_tokens: int | None
    ids: tuple[int, ...] | None = None
    trimmed: int = 0


@dataclass(frozen=True)
class Turn:
    """How to go on with an answer.

    Attributes:
        text: what there is of it.
        banned: texts whose first token must not come next.
        seed: of the noise.
        logprobs: as of :class:`Ask`.
    """

    text: str
    temperature: float
    seed: int
    banned: tuple[str, ...] = ()
    logprobs: int | None = None


class Source(Protocol):
    """Something that answers.

    Attributes:
        name: the model's, for clients.
        slots: answers at once.
        enforces: whether it can hold an answer to a schema or a tool.
    """

    name: str
    slots: int
    enforces: bool

    async def prepare(self, ask: Ask) -> Prompt:
        """The prompt, trimmed where it is too long.

        Raises:
            ApiError: 400, where it cannot be answered.
        """
        ...

    def stream(self, prompt: Prompt, turn: Turn) -> AsyncGenerator[Piece | Ended]:
        """The pieces that follow, and :class:`Ended` last; closing the iterator ends the work.

        Raises:
            ApiError: the engine or server failed, with a status of 500 or above.
        """
        ...

    async def hidden(self, prompt: Prompt, text: str) -> np.ndarray:
        """What the model has made of a prompt and of ``text`` as the beginning of its answer: the hidden states after the
        final norm, ``[tokens of both, width]`` in float32.

        Raises:
            ApiError: the engine failed, or a server stands there, which shows none.
        """
        ...

    async def close(self) -> None: ...


def begun_length(text: str, marks: Sequence[str]) -> int:
    """The length of the longest end of ``text`` that begins one of ``marks`` without being all of it."""
    longest = min(max(map(len, marks), default=0) - 1, len(text))
    return next((size for size in range(longest, 0, -1) if any(mark.startswith(text[-size:]) for mark in marks)), 0)


def connections(url: str) -> httpx.Limits:
    """Of a client of the server at ``url``: any number, kept for further requests only where opening one costs a handshake.

    llama.cpp's server closes kept ones without a word, so that of requests sent right after an answer one in twenty was
    lost; servers in Python close those that have idled for 5 s, which is as long as httpx keeps them by default.
    """
    kept = None if url.startswith("https:") else 0
    return httpx.Limits(max_connections=None, max_keepalive_connections=kept, keepalive_expiry=2.0)
