"""E2E reversed with both splits, for specialist.yaml: E2E=e2e_cleaned_dev.jsonl minnow run recipes/specialist.yaml …

One meaning in five is held out with all of its sentences.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from minnow.data.table import Faults
from minnow.tasks import Draft, Task
from minnow.tasks.builtin import e2e
from minnow.tasks.names import split_of
from minnow.tasks.task import examples_of
from minnow.tasks.types import Example, Split


def drafts(split: Split) -> Iterator[Draft]:
    for draft in e2e.read(Path(os.environ["E2E"]), Faults()):
        if split_of(repr(sorted(draft.answer.items()))) == split:
            yield draft


def examples(split: Split, n: int | None) -> list[Example]:
    seen: dict[str, Draft] = {}
    for draft in drafts(split):
        seen.setdefault(str(draft.prompt), draft)
    return examples_of("e2e-parted", split, seen.values())[:n]


task = Task("e2e-parted", examples, e2e.score, max_new_tokens=160)
