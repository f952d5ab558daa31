"""What passes between the pocket world and everything that trains, samples or scores on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = ("train", "held_out")


class Page(NamedTuple):
    """One page of the encyclopaedia, which is also the search corpus."""

    id: str
    title: str
    text: str


@dataclass(frozen=True)
class Example:
    """One prompt with an ideal continuation and what the verifier needs.

    ``messages`` holds the user turn, ``reference`` the assistant (and tool) turns that follow it.
    """

    id: str
    task: str
    split: str
    messages: list[dict[str, Any]]
    reference: list[dict[str, Any]]
    answer: Any
    tools: list[dict[str, Any]] | None = None
    loop_prone: bool = False


@dataclass(frozen=True)
class Score:
    """A verdict: ``value`` in [0, 1] for rewards, ``correct`` for accuracies, ``reason`` for people."""

    value: float
    correct: bool
    reason: str

    @classmethod
    def right(cls) -> Score:
        return cls(1.0, True, "correct")

    @classmethod
    def wrong(cls, reason: str, value: float = 0.0) -> Score:
        return cls(value, False, reason)


@dataclass(frozen=True)
class Draft:
    """An example before it has an id: what the task modules draw."""

    prompt: str
    turns: list[dict[str, Any]]
    answer: Any
    tools: list[dict[str, Any]] | None = field(default=None)

    @classmethod
    def plain(cls, prompt: str, reply: str, answer: Any) -> Draft:
        """A draft whose whole continuation is one assistant turn."""
        return cls(prompt, [{"role": "assistant", "content": reply}], answer)
