"""SQuAD 1.1 and 2.0: a question about a passage, answered with a stretch of it (2.0: or not at all)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from minnow.data.table import Row
from minnow.tasks.scorers.squad import NO_ANSWER, score, score_v2
from minnow.tasks.task import drafts_of
from minnow.tasks.types import Draft

__all__ = ["read", "read_v2", "score", "score_v2"]


def _questions(row: Row) -> Iterator[tuple[str, str, list[str], str]]:
    """Passage, question, accepted answers and id: of an article as published, or of a row of the hub's tables."""
    values: dict[str, Any] = row.values
    if "paragraphs" not in values:
        yield values["context"], values["question"], list(values["answers"]["text"]), str(values["id"])
        return
    for paragraph in values["paragraphs"]:
        for asked in paragraph["qas"]:
            answers = [] if asked.get("is_impossible") else [each["text"] for each in asked["answers"]]
            yield paragraph["context"], asked["question"], answers, str(asked["id"])


def _answerable(row: Row) -> Iterator[Draft]:
    for passage, question, answers, name in _questions(row):
        if not answers:
            raise ValueError(f"question {name} has no answer, as in SQuAD 2.0; the task for that is squad2")
        prompt = f"{passage}\n\nQuestion: {question.strip()}\nAnswer with words of the text, as few as will do."
        yield Draft.plain(prompt, answers[0], answers, id=name)


def _all(row: Row) -> Iterator[Draft]:
    for passage, question, answers, name in _questions(row):
        prompt = (
            f"{passage}\n\nQuestion: {question.strip()}\nAnswer with words of the text, as few as will do, or with "
            f"'{NO_ANSWER}' if the text does not say."
        )
        yield Draft.plain(prompt, answers[0] if answers else NO_ANSWER, answers, id=name)


read, read_v2 = drafts_of(_answerable), drafts_of(_all)
