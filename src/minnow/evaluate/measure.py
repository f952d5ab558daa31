"""Task scores and doom-loop rates of any engine, each with its interval and its settings."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError
from minnow.loops import Rate
from minnow.rollout.records import Engine, Rollout, Sampling
from minnow.tasks import Example, Score, verify, verify_call

CALL_TASKS = ("search", "calculator")
"""Tasks whose first answer is a tool call; the whole conversation is the agent's business."""


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
    if rollout.finish_reason != "stop":
        return Score(0.0, False, "loops" if rollout.finish_reason == "loop" else "does not end")
    return verify_call(example, rollout.text) if example.task in CALL_TASKS else verify(example, rollout.text)


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


def score_tasks(
    engine: Engine, tokenizer: Tokenizer, examples: Sequence[Example], max_new_tokens: int, seed: int = 0
) -> TaskScores:
    """Greedy answers to ``examples``, scored by their verifiers."""
    rollouts = answer(engine, tokenizer, examples, Sampling(0.0, max_new_tokens, seed))
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


@dataclass
class LoopRates:
    """Doom-loop rate of one temperature and token budget, with the truncations that are not loops."""

    temperature: float
    max_new_tokens: int
    overall: Rate
    truncated: int
    by_task: dict[str, Rate]

    def as_dict(self) -> dict[str, Any]:
        return {
            "temperature": self.temperature,
            "max_new_tokens": self.max_new_tokens,
            **self.overall.as_dict(),
            "truncated": self.truncated,
            "by_task": {task: rate.as_dict() for task, rate in self.by_task.items()},
        }


def loop_rates(examples: Sequence[Example], rollouts: Sequence[Rollout]) -> LoopRates:
    """Count the rollouts that end in a loop.

    Raises:
        UserError: no rollouts.
    """
    if not rollouts:
        raise UserError("there are no prompts to measure a loop rate on; ask for at least one loop-prone prompt")
    by_task: dict[str, list[bool]] = defaultdict(list)
    for example, rollout in zip(examples, rollouts, strict=True):
        by_task[example.task].append(rollout.finish_reason == "loop")
    loops = sum(map(sum, by_task.values()))
    sampling = rollouts[0].sampling
    return LoopRates(
        sampling.temperature,
        sampling.max_new_tokens,
        Rate(loops, len(rollouts)),
        sum(rollout.finish_reason == "length" for rollout in rollouts),
        {task: Rate(sum(flags), len(flags)) for task, flags in sorted(by_task.items())},
    )


def measure_loops(
    engine: Engine,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    temperatures: Sequence[float],
    max_new_tokens: int,
    seed: int = 0,
) -> tuple[list[LoopRates], list[dict[str, Any]]]:
    """Doom-loop rate at each temperature, and a few of the loops spelled out."""
    arms = [Sampling(temperature, max_new_tokens, seed) for temperature in temperatures]
    rates, shown = [], []
    for rollouts in answer_groups(engine, tokenizer, examples, arms):
        rates.append(loop_rates(examples, rollouts))
        shown += loop_examples(tokenizer, examples, rollouts)
    return rates, shown[:8]


def loop_examples(
    tokenizer: Tokenizer, examples: Sequence[Example], rollouts: Sequence[Rollout], most: int = 4
) -> list[dict[str, Any]]:
    """Looping answers as text with the onset marked: every task's first, then every task's second, and so on."""
    found: list[tuple[int, dict[str, Any]]] = []
    seen: Counter[str] = Counter()
    for example, rollout in zip(examples, rollouts, strict=True):
        if rollout.loop is None:
            continue
        seen[example.task] += 1
        if seen[example.task] > most:
            continue
        before = tokenizer.decode(rollout.token_ids[: rollout.loop.onset], keep_special=True)
        shown = {
            "task": example.task,
            "prompt": example.messages[-1]["content"],
            "text": rollout.text,
            "onset_character": len(before),
            "kind": rollout.loop.kind,
            "period": rollout.loop.period,
            "copies": rollout.loop.copies,
            "temperature": rollout.sampling.temperature,
        }
        found.append((seen[example.task], shown))
    return [shown for _, shown in sorted(found, key=lambda entry: entry[0])[:most]]
