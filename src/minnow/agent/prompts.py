"""What the model reads and how what it says is read: token ids for a model at hand, messages for one behind a server."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from minnow.agent.tools import Tool
from minnow.data.calls import Call, parse_any_calls, parse_calls, without_thoughts
from minnow.data.tokenizer import Tokenizer
from minnow.rollout import Rollout
from minnow.rollout.text_engine import ChatPrompt, TextAnswer

_MARKER = re.compile(r"<\|\w+\|>")

Messages = Sequence[Mapping[str, Any]]


class LocalPrompts:
    """Prompts of one conversation for a model at hand.

    They only grow: each begins with the prompt before it and the very tokens that answered it, so that a prefix cache
    holds, however the text would be tokenised anew. Only where the chat template rewrites earlier turns (some drop their
    thoughts), or the conversation was shortened, is it written again from its messages.
    """

    def __init__(self, tokenizer: Tokenizer, tools: Sequence[Tool]) -> None:
        self._tokenizer = tokenizer
        # Other families' templates expect OpenAI's form, and their calls are in whichever form they were trained on.
        self._native = type(tokenizer) is Tokenizer
        self._schemas = [tool.schema() if self._native else tool.function_schema() for tool in tools] or None
        self._written: list[int] = []  # by the template, all turns so far
        self._read: list[int] = []  # the same turns, as the model read and wrote them

    def prompt(self, _: str, messages: Messages) -> list[int]:
        """Token ids that end where the model's turn begins."""
        written = self._tokenizer.prompt(messages, self._schemas)
        grown = written[: len(self._written)] == self._written
        self._read = self._read + written[len(self._written) :] if grown else written
        self._written = written
        return self._read

    def said(self, turn: Rollout | TextAnswer) -> str:
        """The text of the model's turn; it is part of every later prompt."""
        rollout = cast(Rollout, turn)
        text = written_text(rollout, self._tokenizer)
        ids = rollout.token_ids[:-1] if rollout.finish_reason == "stop" else rollout.token_ids
        self._read = [*self._read, *ids, self._tokenizer.eos_id]
        self._written = [*self._written, *self._tokenizer.encode_chat(text), self._tokenizer.eos_id]
        return text

    def calls(self, text: str) -> list[Call]:
        """The calls in the model's text.

        Raises:
            CallError: there is one that cannot be read.
        """
        return parse_calls(text) if self._native else parse_any_calls(text)

    def plain(self, text: str) -> str:
        """An answer without special tokens."""
        return _MARKER.sub("", text).strip()


class ServerPrompts:
    """Prompts of one conversation for a model behind an OpenAI-compatible server, which applies the template itself."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        self._schemas = [tool.function_schema() for tool in tools] or None

    def prompt(self, name: str, messages: Messages) -> ChatPrompt:
        """Messages, calls in their text, and the tools."""
        return ChatPrompt(name, list(map(dict, messages)), self._schemas)

    def said(self, turn: Rollout | TextAnswer) -> str:
        """The text of the model's turn, calls that came apart among it in Hermes' form."""
        return turn.text

    def calls(self, text: str) -> list[Call]:
        """As :meth:`LocalPrompts.calls`."""
        return parse_any_calls(text)

    def plain(self, text: str) -> str:
        """An answer without its thoughts."""
        return without_thoughts(text).strip()


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
