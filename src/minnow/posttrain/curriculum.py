"""What RL's prompts have been worth so far: which to draw next, and when a task or a run teaches nothing.

Functions of a history that the training state keeps, so that a resumed run draws and reports the same.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from minnow.tasks import Example

WINDOW = 8
"""Steps whose answers make a task's live success rate."""

FLOOR = 0.02
"""Weight of a prompt whose task is always or never right, where an even one has 0.25: rates change."""


@dataclass
class StepRecord:
    """What one step's rollouts showed.

    Attributes:
        tasks: correct answers and answers, by task.
        equal: the reward that all answers earned, or None.
        truncated: share of answers that ran out of tokens.
    """

    tasks: dict[str, tuple[int, int]] = field(default_factory=dict)
    equal: float | None = None
    truncated: float = 0.0


History = dict[int, StepRecord]
"""By step, so that a step that runs again is counted once."""


def success_rates(history: History, step: int, window: int = WINDOW) -> dict[str, tuple[int, int]]:
    """Correct answers and answers by task, in the last ``window`` steps before ``step``."""
    totals: dict[str, tuple[int, int]] = {}
    for past in range(max(0, step - window), step):
        for task, (correct, count) in (history[past].tasks if past in history else {}).items():
            before = totals.get(task, (0, 0))
            totals[task] = (before[0] + correct, before[1] + count)
    return totals


def choose(candidates: Sequence[Example], count: int, history: History, step: int, seed: int) -> list[Example]:
    """``count`` of the candidates, without repeats: those most likely whose tasks are right half of the time.

    The weight is ``p (1 - p)``, the variance of a verdict and so the size of a group's signal; a task not seen yet
    counts as even.
    """
    if len(candidates) <= count:
        return list(candidates)
    rates = success_rates(history, step)
    draw = random.Random(f"{seed}/{step}")

    def key(example: Example) -> float:
        correct, total = rates.get(example.task, (1, 2))
        share = correct / total
        return draw.random() ** (1 / max(FLOOR, share * (1 - share)))  # Efraimidis and Spirakis 2006

    keyed = sorted(((key(example), i) for i, example in enumerate(candidates)), reverse=True)
    return [candidates[i] for i in sorted(i for _, i in keyed[:count])]


def findings(history: History, step: int, patience: int) -> dict[str, str]:
    """What is wrong with the last ``patience`` steps up to ``step``: sentences by what they are about."""
    steps = [history[past] for past in range(step - patience + 1, step + 1) if past in history]
    if len(steps) < patience:
        return {}
    found: dict[str, str] = {}
    rates = success_rates(history, step + 1, patience)
    for task in sorted(rates):
        if not all(task in record.tasks for record in steps):
            continue
        correct, count = rates[task]
        if correct == 0:
            found[task] = (
                f"task {task}: none of {count} answers in {patience} steps was right, so RL has nothing to reinforce; add "
                "SFT samples of it, or make its prompts easier"
            )
        elif correct == count:
            found[task] = (
                f"task {task}: all of {count} answers in {patience} steps were right; it is too easy to learn from, use "
                "harder prompts or leave it out"
            )
    if all(record.truncated == 1.0 for record in steps):
        found["truncated"] = (
            f"every answer of {patience} steps ran out of tokens, so none earned anything; raise max_new_tokens, or check that "
            "the model writes its end token"
        )
    elif all(record.equal is not None for record in steps):
        found["equal"] = (
            f"all answers of {patience} steps earned the same ({steps[-1].equal:g}): nothing is learnt; check the rewards, "
            "sample at higher temperatures, or use prompts that the model gets right now and then"
        )
    return found
