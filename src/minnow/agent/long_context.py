"""A document too long for the context, as data: the model searches it, reads slices and asks itself about parts.

The idea is that of recursive language models (arXiv 2512.24601), with three tools instead of code that the model writes. For
models that cannot plan with tools, :func:`map_reduce` asks every part and puts the answers together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from minnow.agent.loop import Limits, run_agent
from minnow.agent.pages import best_passages, passages
from minnow.agent.tools import Tool
from minnow.data.calls import CallError
from minnow.data.tokenizer import Tokenizer
from minnow.rollout import Engine, Sampling
from minnow.rollout.text_engine import ChatPrompt, TextEngine

SHOWN = 1500
"""Characters that one look into the document shows."""
NOTHING = "nothing"
_PART = "{text}\n\nAnswer from the text above alone, or say: nothing.\n{question}"
_NOTES = "Notes from the parts of a document, in order:\n{text}\n\nAnswer from the notes.\n{question}"


@dataclass(frozen=True)
class Asked:
    """One question to the model about characters ``start`` to ``end`` of the document (or of the notes about it)."""

    question: str
    start: int
    end: int
    answer: str
    finish: str
    tokens: int


@dataclass
class SelfAsker:
    """The model, asked about parts of a text within a budget; ``asked`` is the trace.

    Attributes:
        tokenizer: None for a model behind a server.
        part: characters of text that fit one question.
        budget: questions in all.
    """

    engine: Engine | TextEngine
    tokenizer: Tokenizer | None
    limits: Limits = field(default_factory=Limits)
    sampling: Sampling = field(default_factory=Sampling)
    part: int = 4000
    budget: int = 64
    asked: list[Asked] = field(default_factory=list)

    def ask(self, question: str, parts: Sequence[tuple[int, int, str]], form: str = _PART) -> list[str]:
        """The answers about ``(start, end, text)`` parts, all asked side by side.

        Raises:
            CallError: more questions than the budget has left.
        """
        if len(parts) > self.budget - len(self.asked):
            raise CallError(
                f"{len(parts)} questions are more than the {self.budget - len(self.asked)} that are left; ask about less."
            )
        tasks = [
            ChatPrompt(f"{start}-{end}", [{"role": "user", "content": form.format(text=text, question=question)}])
            for start, end, text in parts
        ]
        traces = run_agent(self.engine, self.tokenizer, tasks, [], self.limits, self.sampling)
        for (start, end, _), trace in zip(parts, traces, strict=True):
            self.asked.append(Asked(question, start, end, trace.answer, trace.finish, trace.completion_tokens))
        return [trace.answer for trace in traces]

    def as_dict(self) -> list[dict[str, Any]]:
        """The trace as JSON values."""
        return [asdict(each) for each in self.asked]


def document_tools(text: str, asker: SelfAsker) -> list[Tool]:
    """``find``, ``read`` and ``ask`` over a document that the model never sees whole; their results are text from outside."""

    def find(query: str) -> str:
        found = best_passages(text, query, SHOWN)
        return "\n".join(f"[{each.start}–{each.end}] {each.text.strip()}" for each in found) or "Nothing found."

    def read(start: int, length: int = SHOWN) -> str:
        if not 0 <= start < len(text):
            raise CallError(f"the document has characters 0 to {len(text)}.")
        end = min(start + max(1, min(length, SHOWN)), len(text))
        return f"[{start}–{end} of {len(text)}] {text[start:end]}"

    def ask(question: str, start: int, end: int) -> str:
        if not 0 <= start < end <= len(text):
            raise CallError(f"the document has characters 0 to {len(text)}.")
        parts = parts_of(text, asker.part, start, end)
        answers = asker.ask(question, parts)
        return "\n".join(f"[{one}–{other}] {said}" for (one, other, _), said in zip(parts, answers, strict=True))

    size = f"the document of {len(text)} characters"
    return [
        Tool("find", f"Find passages of {size} about a few words.", {"query": "string"}, find, outside=True),
        Tool(
            "read",
            f"Read {size} from a character on.",
            {"start": "integer", "length": "integer"},
            read,
            frozenset({"length"}),
            outside=True,
        ),
        Tool(
            "ask",
            f"Have a part of {size} read and a question about it answered.",
            {"question": "string", "start": "integer", "end": "integer"},
            ask,
            outside=True,
        ),
    ]


def map_reduce(text: str, question: str, asker: SelfAsker) -> str:
    """The question asked of every part, then of the answers, until they fit one question; empty where no part has one.

    Raises:
        CallError: the document has more parts than the budget has questions.
    """
    form = _PART
    while True:
        parts = parts_of(text, asker.part)
        answers = asker.ask(question, parts, form)
        if len(parts) == 1:
            return "" if _says_nothing(answers[0]) else answers[0]
        notes = [f"- {answer}" for answer in dict.fromkeys(answers) if not _says_nothing(answer)]
        if len(notes) < 2:
            return notes[0][2:] if notes else ""
        shorter = "\n".join(notes)
        if len(shorter) >= len(text):
            raise CallError("the answers about the parts are no shorter than the parts; ask for shorter ones.")
        text, form = shorter, _NOTES


def parts_of(text: str, length: int, start: int = 0, end: int | None = None) -> list[tuple[int, int, str]]:
    """``text[start:end]`` in parts of whole sentences, of up to ``length`` characters, with where they stand."""
    found = passages(text[start:end], length)
    return [(start + each.start, start + each.end, each.text) for each in found]


def _says_nothing(answer: str) -> bool:
    return answer.strip().strip(".!").casefold() in ("", NOTHING)
