"""Task scores and doom-loop rates of any engine, each with its interval and its settings.

How a finished answer is judged, and what is counted of it, is in :mod:`minnow.evaluate.loops`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minnow.data.tokenizer import Tokenizer
from minnow.evaluate.loops import Judged, LoopRates, judge_rollout, loop_examples, with_rules
from minnow.loops import Rate
from minnow.rollout.records import Engine, Rollout, Sampling
from minnow.tasks import Example, Score, judge


def answer(engine: Engine, tokenizer: Tokenizer, examples: Sequence[Example], sampling: Sampling) -> list[Rollout]:
    """One rollout per example, in order."""
    return answer_groups(engine, tokenizer, examples, [sampling])[0]


def answer_groups(
    engine: Engine, tokenizer: Tokenizer, examples: Sequence[Example], arms: Sequence[Sampling]
) -> list[list[Rollout]]:
    """One rollout per example and arm, all decoded together: a list per arm, examples in order."""
    prompts = [(e.id, tokenizer.prompt(e.messages, e.tools)) for e in examples]
    rollouts = engine.generate(prompts * len(arms), [arm for arm in arms for _ in prompts])
    return [rollouts[i * len(prompts) : (i + 1) * len(prompts)] for i in range(len(arms))]


def score(example: Example, rollout: Rollout) -> Score:
    """The verifier's word on one answer; an answer that loops or never ends earns nothing."""
    return score_text(example, rollout.text, rollout.finish_reason)


def score_text(example: Example, text: str, finish_reason: str) -> Score:
    """:func:`score` of an answer that is only known as text."""
    if finish_reason != "stop":
        return Score.wrong("loops" if finish_reason == "loop" else "does not end")
    return judge(example, text)


@dataclass
class TaskScores:
    """Share of correct answers and mean verifier value by task."""

    rates: dict[str, Rate]
    values: dict[str, float]

    @property
    def mean_value(self) -> float:
        """Unweighted over tasks; unlike the share of correct answers it sees a page that has got better or worse."""
        return sum(self.values.values()) / max(1, len(self.values))

    def as_dict(self) -> dict[str, dict[str, float]]:
        return {task: rate.as_dict() | {"value": self.values[task]} for task, rate in self.rates.items()}


def score_tasks(engine: Engine, tokenizer: Tokenizer, examples: Sequence[Example], max_new_tokens: int) -> TaskScores:
    """Greedy answers to ``examples``, scored by their verifiers."""
    rollouts = answer(engine, tokenizer, examples, Sampling(0.0, max_new_tokens))
    return tally(examples, rollouts)


def tally(examples: Sequence[Example], rollouts: Sequence[Rollout]) -> TaskScores:
    """Correct answers and values by task."""
    found: dict[str, list[Score]] = defaultdict(list)
    for example, rollout in zip(examples, rollouts, strict=True):
        found[example.task].append(score(example, rollout))
    return TaskScores(
        {task: Rate(sum(s.correct for s in scores), len(scores)) for task, scores in found.items()},
        {task: sum(s.value for s in scores) / len(scores) for task, scores in found.items()},
    )


def measure_loops(
    engine: Engine,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    temperatures: Sequence[float],
    max_new_tokens: int,
    seed: int = 0,
) -> tuple[list[LoopRates], list[dict[str, Any]]]:
    """Doom-loop rate of answers that run on, at each temperature, and a few of the loops spelled out.

    Raises:
        UserError: no examples.
    """
    arms = [Sampling(temperature, max_new_tokens, seed, stop_on_loop=False) for temperature in temperatures]
    groups = answer_groups(engine, tokenizer, examples, arms)
    return loops_of([judge_rollouts(tokenizer, examples, rollouts) for rollouts in groups])


def judge_rollouts(tokenizer: Tokenizer, examples: Sequence[Example], rollouts: Sequence[Rollout]) -> list[Judged]:
    """Minnow's verdict on each answer."""
    return [judge_rollout(tokenizer, e, r) for e, r in zip(examples, rollouts, strict=True)]


def loops_of(arms: Sequence[Sequence[Judged]]) -> tuple[list[LoopRates], list[dict[str, Any]]]:
    """Rates of each arm (answers of one temperature), by every published rule too, and at most eight loops."""
    shown = [example for answers in arms for example in loop_examples(answers)]
    return [LoopRates(with_rules(answers)) for answers in arms], shown[:8]
