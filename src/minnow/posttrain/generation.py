"""Data out of a model: its answers to prompts, those kept that a verifier or a jury thinks right, with where they come from.

Rejection sampling fine-tuning (Yuan et al. 2023, arXiv 2308.01825) is this and SFT on what it gives.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

from minnow.data.duplicates import NearCopies
from minnow.errors import UserError
from minnow.evaluate.measure import score_text
from minnow.posttrain.chat_checks import NEAR, held_by
from minnow.posttrain.journal import Journal
from minnow.posttrain.jury import Case, Judge, JudgeRecord, RuleJudge, convene
from minnow.tasks import Example
from minnow.tasks.given import is_open

UNENDED, WRONG, KEPT, COPY, LEAKED = "no answer ends", "no right answer", "kept", "near copies", "in evaluation sets"


@dataclass(frozen=True)
class GenerationSettings:
    """How candidates are drawn, and which are kept.

    Attributes:
        samples: answers to each prompt; at temperature 0 there is one.
        shots: worked examples of the prompt's task put before it, for a model that does not know the form yet; what is
            written has none.
        keep: of the right answers to a prompt the best one (the verifier's value, the jury's grade, then the shortest),
            or all different ones.
        least_grade: of the jury, 0 to 1, for an answer that no verifier knows.
    """

    samples: int = 4
    temperature: float = 0.8
    max_new_tokens: int = 384
    shots: int = 0
    keep: Literal["best", "all"] = "best"
    least_grade: float = 0.7

    def __post_init__(self) -> None:
        if self.samples < 1 or self.shots < 0 or not 0 <= self.least_grade <= 1:
            raise UserError(
                f"samples is {self.samples}, shots {self.shots} and least_grade {self.least_grade:g}; use at least 1, 0 or "
                "more, and a grade between 0 and 1"
            )


def with_shots(examples: Sequence[Example], shots: int) -> list[Example]:
    """Each example with worked ones of its task before it: the next ``shots`` in order, round the end.

    Raises:
        UserError: a task has too few worked examples with the same tools.
    """
    if not shots:
        return list(examples)
    worked: dict[tuple[str, str], list[Example]] = {}
    for each in sorted(examples, key=lambda each: each.id):
        if each.reference:
            worked.setdefault(_company(each), []).append(each)
    out = []
    for example in examples:
        ring = worked.get(_company(example), [])
        first = bisect_left(ring, example.id, key=lambda each: each.id)
        around = (ring[(first + step) % len(ring)] for step in range(len(ring)))
        shown = list(islice((each for each in around if each is not example), shots))
        if len(shown) < shots:
            raise UserError(
                f"the task {example.task!r} has {len(shown)} other worked examples for {example.id}, and {shots} were to "
                "be shown; lower --shots or give more"
            )
        begin = [each for each in example.messages if each["role"] == "system"]
        turns = [turn for each in shown for turn in (*_plain(each.messages), *each.reference)]
        out.append(replace(example, messages=[*begin, *turns, *_plain(example.messages)]))
    return out


def _company(example: Example) -> tuple[str, str]:
    """What two examples share when one may be shown before the other: the task, and the tools."""
    return example.task, json.dumps(example.tools, sort_keys=True)


def _plain(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [dict(each) for each in messages if each["role"] != "system"]


@dataclass
class Generated:
    """Rows in the form that fine-tuning reads, and what became of the prompts.

    Attributes:
        answers: candidates in all; ``right``: those that a verifier or the jury let pass.
    """

    rows: list[dict[str, Any]]
    fates: Counter[str]
    answers: int
    right: int
    judges: dict[str, JudgeRecord]


def keep_right(
    examples: Sequence[Example],
    answers: Mapping[str, Sequence[Mapping[str, Any]]],
    settings: GenerationSettings,
    judges: Sequence[Judge] = (),
    grades: Journal | None = None,
    seed: int = 0,
    evaluation: Sequence[str] = (),
    advance: Callable[[int], None] = lambda count: None,
) -> Generated:
    """Filter candidates.

    Args:
        examples: as they are to be written, by ``id`` the keys of ``answers``.
        answers: rows with ``text`` and ``finish_reason``; all else in them is copied into what is written.
        judges: of answers to prompts without a verifier; without any the rules of form judge.
        grades: what they said before, and where new grades go.
        evaluation: texts that no row may share a run of words with.

    Raises:
        UserError: as the judges; what came before is kept.
    """
    jury = list(judges) or [RuleJudge()]
    ended = {each.id: [row for row in answers[each.id] if row["finish_reason"] == "stop"] for each in examples}
    open_ones = [each for each in examples if is_open(each) and ended[each.id]]
    texts = {each.id: list(dict.fromkeys(row["text"] for row in ended[each.id])) for each in open_ones}
    cases = [Case(each.id, each.messages, texts[each.id]) for each in open_ones]
    ratings, records = convene(jury if cases else (), cases, grades or Journal(None, {}), seed, advance)
    leaked = held_by(evaluation)
    out = Generated([], Counter(), sum(map(len, answers.values())), 0, records)
    near = NearCopies(NEAR)
    for example in examples:
        right: dict[str, dict[str, Any]] = {}
        for row in ended[example.id]:
            if is_open(example):
                rated = ratings.get(example.id)
                grade = 0.0 if rated is None else rated.grade(texts[example.id].index(row["text"]))
                value, passes = grade, grade >= settings.least_grade
            else:
                score = score_text(example, row["text"], "stop")
                value, passes = score.value, score.correct
            out.right += passes
            if passes:
                right.setdefault(row["text"], {"score": round(value, 4), **row})
        if not right:
            out.fates[WRONG if ended[example.id] else UNENDED] += 1
            continue
        best = sorted(right.values(), key=lambda row: (-row["score"], len(row["text"])))
        for row in best[: 1 if settings.keep == "best" else None]:
            made = _row(
                example, row, sum(each["text"] in right for each in ended[example.id]) / len(answers[example.id])
            )
            said = "\n".join(each["content"] for each in made["messages"])
            fate = LEAKED if leaked(said) else COPY if near(said) else KEPT
            out.fates[fate] += 1
            if fate == KEPT:
                out.rows.append(made)
    return out


def _row(example: Example, answer: Mapping[str, Any], success: float) -> dict[str, Any]:
    """TRL's conversational format with provenance; ``difficulty`` is the share of answers that were not right."""
    turns = answer.get("turns") or [{"role": "assistant", "content": answer["text"]}]
    about = {key: value for key, value in answer.items() if key not in ("text", "turns", "finish_reason")}
    return {
        "messages": [*example.messages, *turns],
        "tools": example.tools,
        "task": example.task,
        "prompt_id": example.id,
        "difficulty": round(1 - success, 4),
        **about,
    }


def worked_answers(examples: Sequence[Example]) -> dict[str, list[dict[str, Any]]]:
    """The references of examples as candidates: what a task thinks of its own worked examples is asked as of any other.

    Of a reference of several turns the first is judged, as an answer of a model would be, and all are written.
    """
    return {
        each.id: [
            {
                "text": each.reference[0]["content"],
                "finish_reason": "stop",
                "turns": each.reference,
                "model": "reference",
            }
        ]
        if each.reference
        else []
        for each in examples
    }
