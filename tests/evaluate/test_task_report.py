"""Pooled metrics against their definitions, and a report in which every answer is counted once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minnow.evaluate.task_report import pooled, task_report
from minnow.loops import Rate
from minnow.tasks import Example, Score, Task


def test_zeros_and_ones_are_a_rate() -> None:
    rate = Rate(3, 4)
    assert pooled([1.0, 1.0, 0.0, 1.0]) == {
        "mean": 0.75, "n": 4, "low": round(rate.low, 6), "high": round(rate.high, 6)
    }  # fmt: skip


def test_a_mean_has_its_standard_error() -> None:
    values = [0.2, 0.4, 0.9, 0.5]
    found = pooled(values)
    half = 1.959963984540054 * np.std(values, ddof=1) / 2
    assert (found["mean"], found["low"], found["high"]) == (0.5, round(0.5 - half, 6), round(0.5 + half, 6))


def test_the_ratio_interval_covers() -> None:
    """Instructions followed of instructions asked, with the prompts correlated: 95% of intervals hold the truth."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        asked = rng.integers(1, 4, 200)
        easy = rng.beta(2, 1, 200)
        found = pooled([(float(rng.binomial(k, p)), float(k)) for k, p in zip(asked, easy, strict=True)])
        covered += found["low"] <= 2 / 3 <= found["high"]  # type: ignore[operator]
    assert 0.92 <= covered / 400 <= 0.98


def test_nothing_is_known_of_nothing() -> None:
    assert pooled([])["mean"] is None and pooled([(0, 0)])["mean"] is None
    assert pooled([0.5]) == {"mean": 0.5, "n": 1, "low": None, "high": None}


def row(text: str, finish: str = "stop", tokens: int = 3, **more: Any) -> dict[str, Any]:
    kept = {"task": "letters", "prompt": "p", "temperature": 0.0, "max_tokens": 8, "loop": None, "rules": []}
    ends = {"onset_token": None, "period_tokens": None, "cause": None, "error": None}
    return kept | ends | {"text": text, "finish_reason": finish, "tokens": tokens} | more


def test_a_report() -> None:
    def verify(answer: str, text: str) -> Score:
        if text == "?":
            raise ValueError("what?")
        return Score.of(
            text == answer, "other", 0.5 if text != answer else None, vowel=float(text in "aeiou"), pair=(1, 2)
        )

    Task("letters", lambda split, n: [], verify)
    examples = [Example(f"e{i}", "letters", "held_out", [], [], "a") for i in range(6)]
    loop = {"onset": 0, "period": 1, "copies": 9.0, "end": 9, "kind": "exact", "confidence": 1.0}
    rows = [
        row("a"), row("b"), row("?"), row("aaaa", "length"), row("", "failed", error="gone"),
        row("a", "length", loop=loop),
    ]  # fmt: skip
    found = task_report(examples, rows)
    assert (found["n"], found["failed"], found["truncated"]) == (5, 1, 1)
    assert found["correct"] == Rate(1, 5).as_dict() and found["loops"] == Rate(1, 5).as_dict()
    assert found["value"]["mean"] == pytest.approx(1.5 / 5)
    assert found["metrics"]["vowel"] == pooled([1.0, 0.0, 0.0, 0.0, 0.0]), "what was not read has no vowel"
    assert found["metrics"]["pair"]["mean"] == 0.5
    assert found["verifier_faults"] == 1 and found["faults"] == [{"id": "e2", "fault": "ValueError: what?"}]
    assert [each["id"] for each in found["wrong"]] == ["e1", "e2", "e3"]


def test_a_task_nobody_answered() -> None:
    found = task_report([Example("e", "letters", "held_out", [], [], "a")], [row("", "failed", error="gone")])
    assert found == {"n": 0, "failed": 1, "errors": ["gone"]}
