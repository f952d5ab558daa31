"""What the answers to a task's examples are worth: rates and means with intervals, loops, cuts and faults beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from minnow.evaluate.loops import LoopRates
from minnow.evaluate.measure import score_text
from minnow.evaluate.survey import FAILED, ending_of, judged_of
from minnow.loops import Rate
from minnow.loops.rate import Z_95
from minnow.tasks import Example, Score

_SHOWN = 3
_SHOWN_CHARACTERS = 300


def task_report(examples: Sequence[Example], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The numbers of one task.

    An answer that loops or is cut at its budget is wrong, as everywhere here; a request that failed is in no number.

    Args:
        rows: an answer for each example as :mod:`minnow.evaluate.survey` keeps it, all of one temperature and budget.

    Returns:
        ``correct`` (a rate), ``value`` and the task's own ``metrics`` (:func:`pooled`), the ``loops`` rate, ``truncated``,
        ``failed``, ``verifier_faults`` with the first of them spelled out, and a few wrong answers with the reason.
    """
    answered = [(example, row) for example, row in zip(examples, rows, strict=True) if row["finish_reason"] != FAILED]
    scores = [score_text(example, row["text"], ending_of(row)) for example, row in answered]
    out: dict[str, Any] = {"n": len(scores), "failed": len(rows) - len(scores)}
    if not scores:
        return out | {"errors": [row["error"] for row in rows[:_SHOWN]]}
    loops = LoopRates([judged_of(row) for _, row in answered])
    names = dict.fromkeys(name for score in scores for name in score.metrics)
    faults = [
        {"id": example.id, "fault": score.fault}
        for (example, _), score in zip(answered, scores, strict=True)
        if score.fault is not None
    ]
    wrong = [
        {"id": example.id, "reason": score.reason, "text": row["text"][:_SHOWN_CHARACTERS]}
        for (example, row), score in zip(answered, scores, strict=True)
        if not score.correct
    ]
    return out | {
        "correct": Rate(sum(score.correct for score in scores), len(scores)).as_dict(),
        "value": pooled([score.value for score in scores]),
        "metrics": {name: pooled(_given(scores, name)) for name in names},
        "loops": loops.overall.as_dict(),
        "truncated": loops.truncated,
        "tokens_per_answer": loops.as_dict()["tokens_per_answer"],
        "verifier_faults": len(faults),
        "faults": faults[:_SHOWN],
        "wrong": wrong[:_SHOWN],
    }


def _given(scores: Sequence[Score], name: str) -> list[float | tuple[float, float]]:
    """A metric of the answers that have it; an answer that was not read (loops, cut, faulty) has 0 of its kind.

    A metric in pairs leaves such answers out of both sums; what they lack is in ``correct`` and ``value``.
    """
    known = [score.metrics[name] for score in scores if name in score.metrics]
    if any(isinstance(each, tuple) for each in known):
        return known
    return known + [0.0] * sum(not score.metrics for score in scores)


def pooled(values: Sequence[float | tuple[float, float]]) -> dict[str, float | None]:
    """The sum of numerators over the sum of denominators (1 where a value is no pair), with a 95% interval.

    Where all values are 0 or 1 it is a rate and the interval Wilson's; otherwise that of the ratio estimator, from the
    residuals' spread over the examples (Cochran 1977, section 2.11), which for plain values is the standard error of
    their mean. None where it cannot be known.
    """
    pairs = [each if isinstance(each, tuple) else (each, 1.0) for each in values]
    total, n = sum(weight for _, weight in pairs), len(pairs)
    if not total:
        return {"mean": None, "n": n, "low": None, "high": None}
    if all(weight == 1 and value in (0, 1) for value, weight in pairs):
        rate = Rate(round(sum(value for value, _ in pairs)), n)
        low, high = rate.low, rate.high
        mean = rate.rate
    else:
        mean = sum(value for value, _ in pairs) / total
        if n < 2:
            return {"mean": round(mean, 6), "n": n, "low": None, "high": None}
        spread = sum((value - mean * weight) ** 2 for value, weight in pairs) * n / (n - 1)
        half = Z_95 * math.sqrt(spread) / total
        low, high = mean - half, mean + half
    return {"mean": round(mean, 6), "n": n, "low": round(low, 6), "high": round(high, 6)}
