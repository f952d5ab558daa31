"""E2E reversed: a sentence about a restaurant in, its slots as JSON out (Novikova et al. 2017; cleaned 2019)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from minnow.data.table import Row
from minnow.tasks.task import drafts_of
from minnow.tasks.types import Draft
from minnow.tasks.verifiers import json_fields

SLOTS = ("name", "eatType", "food", "priceRange", "customer rating", "area", "familyFriendly", "near")
_SLOT = re.compile(r"\s*([\w ]+)\[([^\]]*)\]\s*(?:,|$)")

score = json_fields


def slots(meaning: str) -> dict[str, str]:
    """The slots of a meaning representation, ``name[Alimentum], area[city centre]``.

    Raises:
        ValueError: it is none.
    """
    found = {name: value for name, value in _SLOT.findall(meaning)}
    if not found or _SLOT.sub("", meaning):
        raise ValueError(f"{meaning!r} is no list of slots")
    return found


def _sentence(row: Row) -> Iterator[Draft]:
    values: dict[str, Any] = row.values
    answer = slots(values["mr"])
    prompt = (
        f"Extract as JSON what is said, with the keys {', '.join(SLOTS)} where they apply:\n{values['ref'].strip()}"
    )
    yield Draft.plain(prompt, json.dumps(answer, ensure_ascii=False), answer)


read = drafts_of(_sentence)
