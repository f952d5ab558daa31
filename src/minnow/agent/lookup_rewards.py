"""Reinforcement learning of looking things up: groups of conversations about one question, and what each one earns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from minnow.agent.expert import NOT_KNOWN, Library
from minnow.agent.lookup_scores import right
from minnow.agent.loop import Limits, Trace, run_agent
from minnow.agent.tools import search_tool
from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError
from minnow.rollout import Engine, Prompt, Rollout, Sampling
from minnow.rollout.text_engine import ChatPrompt
from minnow.tasks.questions import Question


@dataclass(frozen=True)
class LookupRewards:
    """What a conversation earns: 1 for the right answer (where there is none, for saying so), and

    Attributes:
        evidence: for reading what the expert read: this times the share of its results that the model saw.
        thrift: less this for every call beyond the expert's.
    """

    evidence: float = 0.2
    thrift: float = 0.05

    def __post_init__(self) -> None:
        if min(self.evidence, self.thrift) < 0:
            raise UserError(f"evidence is {self.evidence:g} and thrift {self.thrift:g}; neither can be negative")

    def __call__(self, question: Question, expert: Sequence[str], said: str, trace: Trace) -> float:
        """Of ``trace``, where the expert read the results ``expert`` and ended with ``said``."""
        earned = right(None if said == NOT_KNOWN else question.gold, trace)
        read = {call.result for call in trace.calls}
        found = sum(result in read for result in expert) / len(expert)
        extra = max(0, len(trace.calls) + trace.unreadable - len(expert))
        return earned + self.evidence * found - self.thrift * extra


class Turns(NamedTuple):
    """A conversation as RL sees it: every turn of the model, and what all of them together earned.

    A turn's prompt holds the results of the calls before it, so none of their tokens is ever trained on.
    """

    turns: list[Rollout]
    reward: float


@dataclass
class _Recorded:
    """An engine that remembers what it said, by the names of the prompts."""

    engine: Engine
    said: dict[str, list[Rollout]] = field(default_factory=dict)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling | Sequence[Sampling]) -> list[Rollout]:
        answers = self.engine.generate(prompts, sampling)
        for answer in answers:
            self.said.setdefault(answer.prompt_id, []).append(answer)
        return answers


def lookup_groups(
    engine: Engine,
    tokenizer: Tokenizer,
    library: Library,
    questions: Sequence[Question],
    group: int,
    limits: Limits,
    sampling: Sampling,
    rewards: LookupRewards,
) -> list[list[Turns]]:
    """``group`` sampled conversations about every question, with the search tool over the library's pages."""
    recorded = _Recorded(engine)
    tasks = [
        ChatPrompt(f"{place}/{member}", [{"role": "user", "content": question.text(place % 2)}])
        for place, question in enumerate(questions)
        for member in range(group)
    ]
    traces = run_agent(recorded, tokenizer, tasks, [search_tool(library.index)], limits, sampling)
    groups = []
    for place, question in enumerate(questions):
        turns, said = library.worked(question)
        expert = [turn["content"] for turn in turns if turn["role"] == "tool"]
        own = traces[place * group : (place + 1) * group]
        groups.append([Turns(recorded.said[each.id], rewards(question, expert, said, each)) for each in own])
    return groups
