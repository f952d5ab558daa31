"""The tool loop: generate, call, read, again; many conversations at once, turn by turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol, cast

from minnow.agent.grammar import call_grammar
from minnow.agent.marks import neutral
from minnow.agent.prompts import LocalPrompts, ServerPrompts
from minnow.agent.tools import Tool, call_tool
from minnow.data.calls import Call, CallError
from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError
from minnow.rollout import Engine, Rollout, Sampling
from minnow.rollout.text_engine import ChatPrompt, TextAnswer, TextEngine, answer_all

NUDGE = "You have made this call before and the result is the same. Answer now, or make another call."
BLOCKED = "error: this call was made before and is not made again. Answer now with what you know."

Consent = Callable[[Call], bool]
"""Asked before a tool with effects is called; True lets it."""


class Task(Protocol):
    """What a conversation starts from; an :class:`minnow.tasks.Example` is one, a ``ChatPrompt`` too."""

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
        max_tokens: tokens that the model writes in all, looked at between turns.
        max_context: tokens of a prompt and the turn after it, the model's context; None where the engine sets no bound.
        max_seconds: of the whole run, looked at between turns and calls.
        max_result_characters: a longer tool result is cut.
    """

    max_calls: int = 4
    max_new_tokens: int = 256
    max_tokens: int | None = None
    max_context: int | None = None
    max_seconds: float = 600.0
    max_result_characters: int = 2000

    def __post_init__(self) -> None:
        if self.max_calls < 0 or self.max_seconds < 0 or (self.max_tokens is not None and self.max_tokens < 1):
            raise UserError(
                f"{self.max_calls} calls, {self.max_tokens} tokens and {self.max_seconds:g} seconds bound no conversation; use "
                "no negative numbers, and at least 1 token"
            )


@dataclass(frozen=True)
class CallRecord:
    """A call and what came back, after ``seconds``; ``worked`` is false where the result is an error text."""

    name: str
    arguments: dict[str, Any]
    result: str
    worked: bool
    seconds: float = 0.0


@dataclass
class Trace:
    """One conversation from the task to the end.

    Attributes:
        messages: the task's messages and every assistant and tool turn after them.
        answer: the final text without special tokens; empty where the conversation ended on a call.
        finish: ``"answer"``; ``"length"`` (a turn or the context was full); ``"limit"`` (calls, tokens or seconds spent);
            ``"loop"`` (the text loops, or the same calls came back after a nudge and a refusal); ``"failed"`` (the
            server gave no answer, and ``error`` says why).
        unreadable: turns whose call could not be read.
        prompt_tokens, completion_tokens: sums over the turns; of a server, what it says it wrote.
        seconds: from the start of the run to the end of this conversation.
    """

    id: str
    messages: list[dict[str, Any]]
    calls: list[CallRecord] = field(default_factory=list)
    answer: str = ""
    finish: str = ""
    turns: int = 0
    unreadable: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    error: str = ""

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


class _Repeats:
    """What is done about calls that come back: a first repeat is nudged, a second not made, a third ends the run.

    A repeat is the same name, arguments and result. Calls whose results change (a clock) never are.
    """

    def __init__(self) -> None:
        self._results: dict[str, set[str]] = {}
        self.count = 0

    def blocked(self, call: str) -> bool:
        """Whether ``call`` is refused: one was nudged before, and this one has only ever had one result."""
        return self.count > 0 and len(self._results.get(call, ())) == 1

    def note(self, call: str, result: str) -> bool:
        """Remember a result; True where it is a repeat."""
        known = self._results.setdefault(call, set())
        again = result in known
        known.add(result)
        self.count += again
        return again

    def refuse(self) -> bool:
        """A call that was not made counts as a repeat."""
        self.count += 1
        return True


class Conversation:
    """One conversation under way: gives prompts, takes the model's turns, makes the calls.

    Args:
        tokenizer: the model's; None for one behind a server, which is asked with messages.
        consent: asked before a tool with effects is called; without it such calls are refused.
    """

    def __init__(
        self,
        task: Task,
        tokenizer: Tokenizer | None,
        tools: Sequence[Tool],
        limits: Limits,
        consent: Consent | None = None,
    ) -> None:
        self.trace = Trace(task.id, [dict(message) for message in task.messages])
        self._prompts = ServerPrompts(tools) if tokenizer is None else LocalPrompts(tokenizer, tools)
        self._tools, self._limits, self._consent = tools, limits, consent
        self._repeats = _Repeats()
        self._attempts = 0
        self._outside = False  # text from outside has been read
        self._start = time.monotonic()

    @property
    def finished(self) -> bool:
        return bool(self.trace.finish)

    def prompt(self) -> Any | None:
        """The next turn's prompt: token ids, or messages and tools for a server.

        None, and the conversation ends, where time, tokens or context are used up.
        """
        spent = self._limits.max_tokens is not None and self.trace.completion_tokens >= self._limits.max_tokens
        if spent or self._late():
            self.end("limit")
            return None
        prompt = self._prompts.prompt(self.trace.id, self.trace.messages)
        room = self._limits.max_context
        if room is not None and isinstance(prompt, list) and len(prompt) + self._limits.max_new_tokens > room:
            self.end("length")
            return None
        return prompt

    def take(self, turn: Rollout | TextAnswer) -> Iterator[Event]:
        """Use one turn of the model: make its calls, or end with its answer. Events come as things happen."""
        trace, finish = self.trace, turn.finish_reason
        if isinstance(turn, TextAnswer) and finish == "failed":
            trace.error = turn.error or "no answer"
            yield self.end("failed")
            return
        trace.turns += 1
        read, written = _tokens(turn)
        trace.prompt_tokens += read
        trace.completion_tokens += written
        text = self._prompts.said(turn)
        trace.messages.append({"role": "assistant", "content": text})
        if finish == "loop":
            yield self.end("loop", text)
            return
        try:
            calls = self._prompts.calls(text)
        except CallError as error:
            trace.unreadable += 1
            if finish == "length":
                yield self.end("length")
            elif self._attempts >= self._limits.max_calls:
                yield self.end("limit")
            else:
                self._attempts += 1
                yield from self._return(text, f"error: {error}", worked=False)
            return
        if not calls:
            yield self.end("length" if finish == "length" else "answer", text)
        for call in calls:
            if self._attempts >= self._limits.max_calls or self._late():
                yield self.end("limit")
                return
            self._attempts += 1
            yield Called(call)
            started = time.monotonic()
            result, worked = self._make(call)
            trace.calls.append(CallRecord(call.name, call.arguments, result, worked, time.monotonic() - started))
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
        self.trace.answer = self._prompts.plain(text)
        self.trace.seconds = time.monotonic() - self._start
        return Answered(self.trace.answer, finish)

    def _late(self) -> bool:
        return time.monotonic() - self._start > self._limits.max_seconds

    def _make(self, call: Call) -> tuple[str, bool]:
        """The result of a call, or why it is not made."""
        if self._repeats.blocked(call.canonical):
            return BLOCKED, False
        tool = next((each for each in self._tools if each.name == call.name), None)
        if tool is not None and tool.effects:
            if self._outside:
                return f"error: {call.name} is not run in a turn that has read text from outside.", False
            if self._consent is None or not self._consent(call):
                return f"error: the user does not let {call.name} run.", False
        result, worked = call_tool(self._tools, call, self._limits.max_result_characters)
        self._outside = self._outside or (tool is not None and tool.outside)
        return neutral(result), worked

    def _return(self, call: str, result: str, worked: bool) -> Iterator[Event]:
        """Hand a result to the model, with a nudge where it repeats; the third repeat is the end."""
        again = self._repeats.note(call, result) if result != BLOCKED else self._repeats.refuse()
        content = f"{result}\n{NUDGE}" if again and self._repeats.count == 1 else result
        self.trace.messages.append({"role": "tool", "content": content})
        yield Returned(content, worked)
        if again and self._repeats.count > 2:
            yield self.end("loop")


def ask(
    engine: Engine | TextEngine, asked: Sequence[tuple[Conversation, Any]], sampling: Sampling
) -> Sequence[Rollout | TextAnswer]:
    """The model's next turn in every conversation, given with its prompt."""
    if asked and isinstance(asked[0][1], ChatPrompt):
        return answer_all(cast(TextEngine, engine), [prompt for _, prompt in asked], sampling)
    return cast(Engine, engine).generate([(each.trace.id, prompt) for each, prompt in asked], sampling)


def run_agent(
    engine: Engine | TextEngine,
    tokenizer: Tokenizer | None,
    tasks: Sequence[Task],
    tools: Sequence[Tool],
    limits: Limits | None = None,
    sampling: Sampling | None = None,
    consent: Consent | None = None,
    valid_calls: bool = False,
) -> list[Trace]:
    """Run every task to its end; each turn of all unfinished conversations is one call of the engine.

    Without ``tools`` this is the closed-book run. Traces come in the order of ``tasks``.

    Args:
        engine: a model at hand (torch, llama.cpp) with its ``tokenizer``, or a server with None.
        consent: asked before a tool with effects is called; without it such calls are refused.
        valid_calls: hold every turn to text and calls of these tools that can be read and fit them.

    Raises:
        UserError: ``valid_calls``, and the engine is not llama.cpp's or the model's calls are not in LFM2's form.
    """
    limits = limits or Limits()
    base = replace(sampling or Sampling(), max_new_tokens=limits.max_new_tokens)
    if valid_calls and tools:
        if type(tokenizer) is not Tokenizer:
            raise UserError("only calls in LFM2's form can be held to a grammar; this model has others, leave that out")
        base = replace(base, grammar=call_grammar([tool.schema() for tool in tools], must=False))
    conversations = [Conversation(task, tokenizer, tools, limits, consent) for task in tasks]
    turn = 0
    while True:
        asked = [(c, prompt) for c in conversations if not c.finished and (prompt := c.prompt()) is not None]
        if not asked:
            return [conversation.trace for conversation in conversations]
        # Another seed each turn: the same noise again would invite the same call again.
        answers = ask(engine, asked, replace(base, seed=base.seed + turn))
        for (conversation, _), answer in zip(asked, answers, strict=True):
            for _ in conversation.take(answer):
                pass
        turn += 1


def _tokens(turn: Rollout | TextAnswer) -> tuple[int, int]:
    """How many tokens a turn read and wrote; a server tells the latter only."""
    if isinstance(turn, TextAnswer):
        return 0, turn.tokens or 0
    return len(turn.prompt_ids), len(turn.token_ids)
