"""IFEval: prompts whose instructions a program can check."""

from __future__ import annotations

from collections.abc import Iterator

from minnow.data.table import Row
from minnow.tasks.scorers.ifeval import CHECKS, score
from minnow.tasks.task import drafts_of
from minnow.tasks.types import Draft

__all__ = ["read", "score"]


def _prompt(row: Row) -> Iterator[Draft]:
    kinds, settings = row.values["instruction_id_list"], row.values["kwargs"]
    unknown = [kind for kind in kinds if kind not in CHECKS]
    if unknown:
        raise ValueError(f"its instruction {unknown[0]!r} is none of IFEval's")
    if len(kinds) != len(settings):
        raise ValueError(f"it has {len(kinds)} instructions and the settings of {len(settings)}")
    answer = {"instruction_id_list": kinds, "kwargs": settings}
    # There is no worked answer: nothing in this data can be trained on as it is.
    yield Draft(row.values["prompt"], [], answer, id=str(row.values["key"]))


read = drafts_of(_prompt)
