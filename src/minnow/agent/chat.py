"""Talking to a model in the terminal, its tool calls shown as they happen."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from minnow.agent.loop import Answered, Called, CallRecord, Consent, Conversation, Event, Limits, Returned, ask
from minnow.agent.tools import Tool
from minnow.data.calls import Call
from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError
from minnow.rollout import Engine, Sampling
from minnow.rollout.text_engine import ChatPrompt, TextEngine

HELP = (
    "/tools on|off   use the tools or not\n/reset          forget the conversation\n/quit           leave (Ctrl-D too)"
)
_ENDINGS = {
    "length": "cut: the answer or the conversation is as long as it may be",
    "limit": "stopped: too many calls without an answer",
    "loop": "stopped: the model was going in circles",
    "failed": "the server gave no answer",
}
# Escape sequences in a page or an answer would otherwise drive the user's terminal.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class ChatSession:
    """A conversation with memory; ``tokenizer`` is None for a model behind a server.

    Exchanges that end in an answer are remembered; one that is interrupted, loops or runs out of calls leaves no trace,
    so it cannot draw the next answer into the same rut. When the context is full the oldest exchanges are forgotten.

    Attributes:
        tools_on: whether the model is offered the tools.
        messages: what is remembered.
    """

    def __init__(
        self,
        engine: Engine | TextEngine,
        tokenizer: Tokenizer | None,
        tools: Sequence[Tool] = (),
        limits: Limits | None = None,
        sampling: Sampling | None = None,
        consent: Consent | None = None,
    ) -> None:
        self._engine, self._tokenizer, self._tools, self._consent = engine, tokenizer, list(tools), consent
        self._limits = limits or Limits()
        self._sampling = replace(sampling or Sampling(), max_new_tokens=self._limits.max_new_tokens)
        self.tools_on = bool(tools)
        self.messages: list[dict[str, Any]] = []

    @property
    def has_tools(self) -> bool:
        return bool(self._tools)

    def reset(self) -> None:
        """Forget the conversation."""
        self.messages = []

    def send(self, text: str) -> Iterator[Event]:
        """Ask; yields calls and results as they happen and ends with one :class:`Answered`."""
        # What a terminal could not decode arrives as lone surrogates, which have no token.
        question = {"role": "user", "content": text.encode("utf-8", "replace").decode("utf-8")}
        tools = self._tools if self.tools_on else []
        task = ChatPrompt("chat", [*self.messages, question])
        conversation = Conversation(task, self._tokenizer, tools, self._limits, self._consent)
        while (prompt := _fitting_prompt(conversation)) is not None:
            turn = replace(self._sampling, seed=self._sampling.seed + conversation.trace.turns)
            (answer,) = ask(self._engine, [(conversation, prompt)], turn)
            for event in conversation.take(answer):
                if isinstance(event, Answered) and event.text and event.finish in ("answer", "length"):
                    self.messages = conversation.trace.messages
                yield event
            if conversation.finished:
                return
        yield Answered(conversation.trace.answer, conversation.trace.finish)


def chat(session: ChatSession, source: TextIO | None = None, console: Console | None = None) -> None:
    """Read questions and show answers until ``/quit`` or the end of the input.

    In a terminal, Ctrl-C stops the answer under way, and leaves at the prompt. With piped input every line is a
    question, nothing is prompted for, and Ctrl-C is the caller's.

    Raises:
        UserError: the input is not UTF-8.
        KeyboardInterrupt: Ctrl-C with piped input.
    """
    source = source or sys.stdin
    interactive = source.isatty()
    console = console or Console(highlight=False, soft_wrap=not interactive)
    if interactive:
        with suppress(ImportError):
            import readline  # noqa: F401  (gives input() line editing and history; absent on Windows)
        console.print(Text("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves.", style="dim"))
    while (line := _read(source, console, interactive)) is not None:
        if line.startswith("/"):
            if not _command(line, session, console):
                return
        elif line:
            try:
                with console.status("…"):
                    _show(session.send(line), console)
            except KeyboardInterrupt:
                if not interactive:
                    raise
                console.print(Text("stopped", style="dim"))


def _fitting_prompt(conversation: Conversation) -> Any | None:
    """The next prompt, with as many of the oldest exchanges forgotten as the context demands."""
    while (prompt := conversation.prompt()) is None and conversation.trace.finish == "length" and conversation.forget():
        pass
    return prompt


def _read(source: TextIO, console: Console, interactive: bool) -> str | None:
    """The next line without its ends; None at the end of the input."""
    try:
        line = input("you> ") + "\n" if interactive else source.readline()
    except EOFError:
        return None
    except KeyboardInterrupt:
        if not interactive:
            raise
        console.print()
        return None
    except UnicodeDecodeError as error:
        raise UserError("the questions on standard input are not UTF-8; convert them first") from error
    return line.strip() if line else None


def _command(line: str, session: ChatSession, console: Console) -> bool:
    """Obey a command; False when it is time to leave."""
    command, _, argument = line.partition(" ")
    if command == "/quit":
        return False
    if command == "/reset":
        session.reset()
        answer = "forgotten"
    elif command == "/tools" and argument.strip() in ("on", "off"):
        session.tools_on = argument.strip() == "on" and session.has_tools
        answer = f"tools {'on' if session.tools_on else 'off'}" + ("" if session.has_tools else " (this chat has none)")
    elif command == "/help":
        answer = HELP
    else:
        answer = f"unknown command {line}\n{HELP}"
    console.print(Text(safe(answer), style="dim"))
    return True


def _show(events: Iterator[Event], console: Console) -> None:
    for event in events:
        if isinstance(event, Called):
            console.print(Text(called_text(event.call), style="dim cyan"))
        elif isinstance(event, Returned):
            console.print(Text(returned_text(event.text), style="dim" if event.worked else "dim red"))
        else:
            if event.text:
                console.print(Text(safe(event.text)))
            if event.finish in _ENDINGS:
                console.print(Text(_ENDINGS[event.finish], style="dim yellow"))


def called_text(call: Call | CallRecord) -> str:
    """A call as a terminal shows it."""
    given = ", ".join(f"{name}={value!r}" for name, value in call.arguments.items())
    return safe(f"→ {call.name}({given})")


def returned_text(result: str) -> str:
    """What a call gave, as a terminal shows it."""
    return safe("  " + result.replace("\n", "\n  "))


def safe(text: str) -> str:
    """``text`` without the characters that drive a terminal."""
    return _CONTROLS.sub("", text)
