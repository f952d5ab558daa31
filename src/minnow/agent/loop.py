"""The tool loop: generate, call, read, again; many conversations at once, turn by turn."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from minnow.agent.tools import Tool, call_tool
from minnow.data.calls import Call, CallError, parse_calls
from minnow.data.tokenizer import Tokenizer
from minnow.rollout import Engine, Rollout, Sampling

NUDGE = "You have made this call before and the result is the same. Answer now, or make another call."
_MARKER = re.compile(r"<\|\w+\|>")


class Task(Protocol):
    """What a conversation starts from; an :class:`minnow.tasks.Example` is one."""

    @property
    def id(self) -> str: ...
    @property
    def messages(self) -> list[dict[str, Any]]: ...


@dataclass(frozen=True)
class Limits:
    """Where a conversation ends if the model does not end it.

    Attributes:
        max_calls: calls made (unreadable ones count); the model may still answer after the last one.
        max_new_tokens: tokens of one turn; takes the place of the sampling's own.
        max_context: tokens of a prompt and the turn after it, the model's context; None where the engine sets no bound.
        max_seconds: of the whole run, looked at between turns.
        max_result_characters: a longer tool result is cut.
    """

    max_calls: int = 4
    max_new_tokens: int = 256
    max_context: int | None = None
    max_seconds: float = 600.0
    max_result_characters: int = 2000


@dataclass(frozen=True)
class CallRecord:
    """A call and what came back; ``worked`` is false where the result is an error text."""

    name: str
    arguments: dict[str, Any]
    result: str
    worked: bool


@dataclass
class Trace:
    """One conversation from the task to the end.

    Attributes:
        messages: the task's messages and every assistant and tool turn after them.
        answer: the final text without special tokens; empty where the conversation ended on a call.
        finish: ``"answer"``; ``"length"`` (a turn or the context was full); ``"limit"`` (calls or seconds spent);
            ``"loop"`` (the text loops, or the same call came back again after a nudge).
        prompt_tokens, completion_tokens: sums over the turns.
        seconds: from the start of the run to the end of this conversation.
    """

    id: str
    messages: list[dict[str, Any]]
    calls: list[CallRecord] = field(default_factory=list)
    answer: str = ""
    finish: str = ""
    turns: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """The trace as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Called:
    """The model made a call; its result follows."""

    call: Call


@dataclass(frozen=True)
class Returned:
    """What the model reads next."""

    text: str
    worked: bool


@dataclass(frozen=True)
class Answered:
    """The conversation ended; ``text`` is empty unless there is an answer."""

    text: str
    finish: str


Event = Called | Returned | Answered


class Conversation:
    """One conversation under way: gives prompts, takes rollouts, makes the calls."""

    def __init__(self, task: Task, tokenizer: Tokenizer, tools: Sequence[Tool], limits: Limits) -> None:
        self.trace = Trace(task.id, [dict(message) for message in task.messages])
        self._tokenizer, self._tools, self._limits = tokenizer, tools, limits
        self._schemas = [tool.schema() for tool in tools] or None
        self._seen: set[tuple[str, str]] = set()
        self._nudged = False
        self._attempts = 0
        self._start = time.monotonic()

    @property
    def finished(self) -> bool:
        return bool(self.trace.finish)

    def prompt(self) -> list[int] | None:
        """Token ids of the next turn's prompt; None, and the conversation ends, where time or context is used up."""
        if time.monotonic() - self._start > self._limits.max_seconds:
            self.end("limit")
            return None
        ids = self._tokenizer.prompt(self.trace.messages, self._schemas)
        room = self._limits.max_context
        if room is not None and len(ids) + self._limits.max_new_tokens > room:
            self.end("length")
            return None
        return ids

    def take(self, rollout: Rollout) -> Iterator[Event]:
        """Use one turn of the model: make its calls, or end with its answer. Events come as things happen."""
        trace = self.trace
        trace.turns += 1
        trace.prompt_tokens += len(rollout.prompt_ids)
        trace.completion_tokens += len(rollout.token_ids)
        text = written_text(rollout, self._tokenizer)
        trace.messages.append({"role": "assistant", "content": text})
        if rollout.finish_reason == "loop":
            yield self.end("loop", text)
            return
        try:
            calls = parse_calls(text)
        except CallError as error:
            if rollout.finish_reason == "length":
                yield self.end("length")
            elif self._attempts >= self._limits.max_calls:
                yield self.end("limit")
            else:
                self._attempts += 1
                yield from self._return(text, f"error: {error}", worked=False)
            return
        if not calls:
            yield self.end("length" if rollout.finish_reason == "length" else "answer", text)
        for call in calls:
            if self._attempts >= self._limits.max_calls:
                yield self.end("limit")
                return
            self._attempts += 1
            yield Called(call)
            result, worked = call_tool(self._tools, call, self._limits.max_result_characters)
            trace.calls.append(CallRecord(call.name, call.arguments, result, worked))
            yield from self._return(call.canonical, result, worked)
            if self.finished:
                return

    def forget(self) -> bool:
        """Leave out the oldest exchange and go on; False where the one under way is all there is."""
        messages = self.trace.messages
        questions = [place for place, message in enumerate(messages) if message["role"] == "user"]
        if len(questions) < 2:
            return False
        self.trace.messages = messages[: questions[0]] + messages[questions[1] :]
        self.trace.finish = ""
        return True

    def end(self, finish: str, text: str = "") -> Answered:
        """End the conversation, with ``text`` as its answer."""
        self.trace.finish = finish
        self.trace.answer = _MARKER.sub("", text).strip()
        self.trace.seconds = time.monotonic() - self._start
        return Answered(self.trace.answer, finish)

    def _return(self, call: str, result: str, worked: bool) -> Iterator[Event]:
        """Hand a result to the model; the same call with the same result earns one nudge, then the end."""
        repeated = (call, result) in self._seen
        self._seen.add((call, result))
        content = f"{result}\n{NUDGE}" if repeated else result
        self.trace.messages.append({"role": "tool", "content": content})
        yield Returned(content, worked)
        if repeated and self._nudged:
            yield self.end("loop")
        self._nudged = self._nudged or repeated


def run_agent(
    engine: Engine,
    tokenizer: Tokenizer,
    tasks: Sequence[Task],
    tools: Sequence[Tool],
    limits: Limits | None = None,
    sampling: Sampling | None = None,
) -> list[Trace]:
    """Run every task to its end; each turn of all unfinished conversations is one ``engine.generate`` call.

    Without ``tools`` this is the closed-book run. Traces come in the order of ``tasks``.
    """
    limits = limits or Limits()
    base = replace(sampling or Sampling(), max_new_tokens=limits.max_new_tokens)
    conversations = [Conversation(task, tokenizer, tools, limits) for task in tasks]
    turn = 0
    while True:
        asked = [(c, ids) for c in conversations if not c.finished and (ids := c.prompt()) is not None]
        if not asked:
            return [conversation.trace for conversation in conversations]
        # Another seed each turn: the same noise again would invite the same call again.
        rollouts = engine.generate([(c.trace.id, ids) for c, ids in asked], replace(base, seed=base.seed + turn))
        for (conversation, _), rollout in zip(asked, rollouts, strict=True):
            for _ in conversation.take(rollout):
                pass
        turn += 1


def written_text(rollout: Rollout, tokenizer: Tokenizer) -> str:
    """The completion, special tokens as text, but with look-alikes broken.

    A model that copies ``<|im_end|>`` out of a page writes it in ordinary tokens. As text the two are the same, and the
    assistant's text is read for special tokens in the next prompt, so a page could speak as the user or make calls.
    Hence a marker that is spelled out loses its shape (``< |im_end|>``).
    """
    if not _MARKER.search(tokenizer.decode(rollout.token_ids)):
        return rollout.text
    parts: list[str] = []
    ordinary: list[int] = []
    ids = rollout.token_ids[:-1] if rollout.finish_reason == "stop" else rollout.token_ids
    for token in ids:
        if tokenizer.decode([token]):
            ordinary.append(token)
            continue
        parts += [_broken(tokenizer.decode(ordinary)), tokenizer.decode([token], keep_special=True)]
        ordinary = []
    return "".join([*parts, _broken(tokenizer.decode(ordinary))])


def _broken(text: str) -> str:
    return _MARKER.sub(lambda match: "< " + match[0][1:], text)
