"""What passes between tasks and everything that trains, samples or scores on them."""

from __future__ import annotations

from collections.abc import Mapping
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

    Attributes:
        messages: the conversation up to the answer; ``reference``: the assistant (and tool) turns that follow it.
        answer: what the task's verifier compares an answer with.
        difficulty: how hard it is beside the others of its task, for training from easy to hard.
    """

    id: str
    task: str
    split: str
    messages: list[dict[str, Any]]
    reference: list[dict[str, Any]]
    answer: Any
    tools: list[dict[str, Any]] | None = None
    loop_prone: bool = False
    difficulty: float | None = None


@dataclass(frozen=True)
class Score:
    """A verdict: ``value`` in [0, 1] for rewards, ``correct`` for accuracies, ``reason`` for people.

    Attributes:
        metrics: further numbers by name; a pair (numerator, denominator) is pooled over examples, as the share of all
            instructions followed is.
        fault: what the verifier raised, where it did.
    """

    value: float
    correct: bool
    reason: str
    metrics: Mapping[str, float | tuple[float, float]] = field(default_factory=dict)
    fault: str | None = None

    @classmethod
    def right(cls) -> Score:
        return cls(1.0, True, "correct")

    @classmethod
    def wrong(cls, reason: str, value: float = 0.0) -> Score:
        return cls(value, False, reason)

    @classmethod
    def of(
        cls, correct: bool, reason: str, value: float | None = None, **metrics: float | tuple[float, float]
    ) -> Score:
        """A verdict with metrics; ``value`` is 1 or 0 unless given, ``reason`` is for the wrong ones."""
        return cls(float(correct) if value is None else value, correct, "correct" if correct else reason, metrics)


@dataclass(frozen=True)
class Draft:
    """An example before it belongs to a split: what is drawn, or read from a row.

    Attributes:
        prompt: the user's text, or the messages up to the answer.
        id: the name that its source gives it.
    """

    prompt: str | list[dict[str, Any]]
    turns: list[dict[str, Any]]
    answer: Any
    tools: list[dict[str, Any]] | None = None
    id: str | None = None

    @classmethod
    def plain(cls, prompt: str | list[dict[str, Any]], reply: str, answer: Any, **more: Any) -> Draft:
        """A draft whose whole continuation is one assistant turn."""
        return cls(prompt, [{"role": "assistant", "content": reply}], answer, **more)

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [{"role": "user", "content": self.prompt}] if isinstance(self.prompt, str) else self.prompt
