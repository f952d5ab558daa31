"""Doom-loop rates of finished answers: by task, by published rule, with onsets, causes and examples.

A rate is of answers that ended or ran to their budget, judged where they end. Counting what a watch stops on the way
gives more: many answers repeat themselves for a while and then go on.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import Any

from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError
from minnow.loops import RULES, Loop, Paired, Rate, TextWatch, diagnose
from minnow.loops.cause import LOOP
from minnow.rollout.records import Rollout
from minnow.tasks import Example

MINNOW, WATCH = "minnow", "minnow-watch"
"""Minnow's own verdict among the rules: on a finished answer, and at any moment while it was written."""

_PIECE = 64  # characters between two looks of the watch


@dataclass(frozen=True)
class Judged:
    """One finished answer and the verdict on its text.

    Attributes:
        tokens: how many the answer has; None where a server does not say.
        finish_reason: ``"stop"``, ``"length"``, or ``"loop"`` where it was stopped for one.
        loop: with positions in characters of ``text``.
        onset: the token in which the loop begins; of a server's answer in proportion to its characters.
        period: its length in tokens.
        cause: why the answer was cut (:func:`minnow.loops.diagnose`).
        rules: the published rules that call it a loop, whether it ended or not, and ``WATCH`` where a watch would have
            stopped it; None where they were not asked.
    """

    task: str
    prompt: str
    text: str
    finish_reason: str
    temperature: float
    max_new_tokens: int
    tokens: int | None
    loop: Loop | None = None
    onset: int | None = None
    period: int | None = None
    cause: str | None = None
    rules: tuple[str, ...] | None = None


def judge(answer: Judged, stopped_for: Loop | None = None, place: Callable[[int], int] | None = None) -> Judged:
    """``answer`` with its verdict, over text: that knows numbers, marks and tool calls, which token ids do not.

    Args:
        stopped_for: the loop (in characters) an answer was stopped for; it stands where the text shows none.
        place: the token that a character belongs to; by default tokens are taken to be of equal length.
    """
    if answer.finish_reason == "stop":
        return answer
    found = diagnose(answer.text, "length", answer.max_new_tokens)
    loop, cause = found.loop, found.cause
    if answer.finish_reason == "loop" and loop is None:
        loop, cause = stopped_for, LOOP
    if loop is None or answer.tokens is None:
        return replace(answer, loop=loop, cause=cause)
    if place is None:
        share = answer.tokens / len(answer.text)
        onset, second = round(share * loop.onset), round(share * (loop.onset + loop.period))
    else:
        onset, second = place(loop.onset), place(loop.onset + loop.period)
    return replace(answer, loop=loop, onset=onset, period=max(1, second - onset), cause=cause)


def judge_rollout(tokenizer: Tokenizer, example: Example, rollout: Rollout) -> Judged:
    """The verdict on an engine's answer."""
    ids, sampling = rollout.token_ids, rollout.sampling

    def characters(tokens: int) -> int:
        return len(tokenizer.decode(ids[:tokens], keep_special=True))

    def token_of(character: int) -> int:
        low, high = 0, len(ids)  # the token that brings this character ends behind it
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if characters(middle + 1) > character else (middle + 1, high)
        return low

    stopped_for = None
    if rollout.finish_reason == "loop" and rollout.loop is not None:
        loop = rollout.loop
        onset, second, end = (characters(at) for at in (loop.onset, loop.onset + loop.period, loop.end))
        stopped_for = replace(loop, onset=onset, period=max(1, second - onset), end=end)
    answer = Judged(
        example.task,
        example.messages[-1]["content"],
        rollout.text,
        rollout.finish_reason,
        sampling.temperature,
        sampling.max_new_tokens,
        len(ids),
    )
    return judge(answer, stopped_for, token_of)


def with_rules(answers: Sequence[Judged]) -> list[Judged]:
    """The answers with the word of the watch and of every published rule on their texts."""
    asked = {WATCH: _would_stop, **RULES}
    return [replace(each, rules=tuple(name for name, rule in asked.items() if rule(each.text))) for each in answers]


def _would_stop(text: str) -> Loop | None:
    """The first loop that a watch sees in ``text`` as it comes; many answers get out of it again."""
    watch = TextWatch()
    pieces = (text[start : start + _PIECE] for start in range(0, len(text), _PIECE))
    return next((loop for loop in map(watch.push, pieces) if loop is not None), None) or watch.finish()


@dataclass(frozen=True)
class LoopRates:
    """Doom-loop rate of one temperature and token budget, and what goes with it.

    Attributes:
        answers: what was judged, all of one temperature and budget.
        failed: requests that brought no answer; they are not in the rate.
    """

    answers: Sequence[Judged]
    failed: int = 0

    def __post_init__(self) -> None:
        if not self.answers:
            raise UserError("there are no prompts to measure a loop rate on; ask for at least one loop-prone prompt")

    @property
    def temperature(self) -> float:
        return self.answers[0].temperature

    @property
    def max_new_tokens(self) -> int:
        return self.answers[0].max_new_tokens

    @cached_property
    def looping(self) -> list[Judged]:
        return [each for each in self.answers if each.loop is not None]

    @property
    def overall(self) -> Rate:
        return Rate(len(self.looping), len(self.answers))

    @property
    def truncated(self) -> int:
        """Answers cut at the budget without a loop."""
        return sum(each.finish_reason == "length" and each.loop is None for each in self.answers)

    @property
    def stopped(self) -> int:
        """Answers that were ended for a loop; left alone, some would have got out of it."""
        return sum(each.finish_reason == "loop" for each in self.answers)

    @property
    def by_task(self) -> dict[str, Rate]:
        tasks: dict[str, list[bool]] = defaultdict(list)
        for each in self.answers:
            tasks[each.task].append(each.loop is not None)
        return {task: Rate(sum(flags), len(flags)) for task, flags in sorted(tasks.items())}

    @property
    def onset(self) -> float | None:
        """Median onset in tokens; None without loops, or where tokens are not known."""
        onsets = [each.onset for each in self.looping if each.onset is not None]
        return statistics.median(onsets) if onsets else None

    @property
    def wasted(self) -> tuple[float, float] | None:
        """Tokens behind the onsets, as a share of the looping answers' and of all tokens; None as for ``onset``."""
        known = [(each.tokens, each.onset) for each in self.answers if each.tokens is not None]
        looping = [(tokens, onset) for tokens, onset in known if onset is not None]
        if not looping:
            return None
        lost = sum(tokens - onset for tokens, onset in looping)
        return lost / sum(tokens for tokens, _ in looping), lost / sum(tokens for tokens, _ in known)

    def as_dict(self) -> dict[str, Any]:
        tokens = [each.tokens for each in self.answers if each.tokens is not None]
        wasted = self.wasted
        out: dict[str, Any] = {
            "temperature": self.temperature,
            "max_new_tokens": self.max_new_tokens,
            **self.overall.as_dict(),
            "truncated": self.truncated,
            "stopped": self.stopped,
            "failed": self.failed,
            "by_task": {task: rate.as_dict() for task, rate in self.by_task.items()},
            "causes": dict(Counter(each.cause for each in self.answers if each.cause is not None)),
            "kinds": dict(Counter(each.loop.kind for each in self.looping if each.loop is not None)),
            "tokens_per_answer": round(sum(tokens) / len(tokens), 2) if tokens else None,
            "median_onset": self.onset,
            "wasted_of_loops": wasted and round(wasted[0], 4),
            "wasted_of_all": wasted and round(wasted[1], 4),
        }
        flags = rule_flags(self.answers)
        if flags:
            out["rules"] = {name: Rate(sum(said), len(said)).as_dict() for name, said in flags.items()}
            out["agreement"] = agreement(self.answers)
        return out


def rule_flags(answers: Sequence[Judged]) -> dict[str, list[bool]]:
    """What Minnow's verdict (first), its watch and every published rule say of each answer; empty where not asked."""
    if any(each.rules is None for each in answers):
        return {}
    others = {name: [name in (each.rules or ()) for each in answers] for name in (WATCH, *RULES)}
    return {MINNOW: [each.loop is not None for each in answers], **others}


def agreement(answers: Sequence[Judged]) -> list[dict[str, Any]]:
    """Of every two rules, Minnow's verdict first: what both, one or none of them call a loop, and Cohen's kappa."""
    flags = rule_flags(answers)
    out = []
    for first, second in combinations(flags, 2):
        table = Paired.of(flags[first], flags[second])
        counts = {"both": table.both, "only_first": table.first, "only_second": table.second}
        kappa = table.kappa
        out.append({"rules": [first, second], **counts, "kappa": None if kappa is None else round(kappa, 4)})
    return out


def loop_examples(answers: Sequence[Judged], most: int = 4) -> list[dict[str, Any]]:
    """Looping answers with the onset marked: every task's first, then every task's second, and so on."""
    found: list[tuple[int, dict[str, Any]]] = []
    seen: Counter[str] = Counter()
    for each in answers:
        if each.loop is None:
            continue
        seen[each.task] += 1
        if seen[each.task] <= most:
            found.append((seen[each.task], _spelled_out(each, each.loop)))
    return [shown for _, shown in sorted(found, key=lambda entry: entry[0])[:most]]


def _spelled_out(answer: Judged, loop: Loop) -> dict[str, Any]:
    return {
        "task": answer.task,
        "prompt": answer.prompt,
        "text": answer.text,
        "onset_character": loop.onset,
        "kind": loop.kind,
        "period": answer.period,
        "copies": loop.copies,
        "temperature": answer.temperature,
    }


def by_temperature(answers: Sequence[Judged], failed: Mapping[float, int] | None = None) -> list[LoopRates]:
    """One :class:`LoopRates` for each temperature, in the order in which they come."""
    groups: dict[float, list[Judged]] = defaultdict(list)
    for each in answers:
        groups[each.temperature].append(each)
    return [LoopRates(group, (failed or {}).get(temperature, 0)) for temperature, group in groups.items()]
