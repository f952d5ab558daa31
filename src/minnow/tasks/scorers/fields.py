"""Field-level F1 of extracted objects, and whether the whole object is right.

A field is a leaf with the names that lead to it (``lines[].price``); places in a list do not count, so the fields of an
object are a multiset. F1 is pooled over examples as in slot filling (2 · right / (found + wanted)); an answer without
readable JSON has found nothing.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator
from typing import Any

from minnow.tasks.json_answer import same
from minnow.tasks.types import Score


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf with its path; an empty list or object is one."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value:
        for item in value:
            yield from leaves(item, f"{path}[]")
    else:
        yield path, _leaf(value)


def _leaf(value: Any) -> Any:
    """Something hashable that is equal for equal values: text in NFC with single spaces, 1 and 1.0 alike, true apart."""
    if isinstance(value, str):
        return ("text", " ".join(unicodedata.normalize("NFC", value).split()))
    if isinstance(value, bool) or value is None or isinstance(value, (dict, list)):
        return ("other", str(value))
    return ("number", value)


def score(wanted: Any, found: Any) -> Score:
    """Both as JSON values; the value is the F1 of this object's fields."""
    expected, given = Counter(leaves(wanted)), Counter(leaves(found))
    hits = (expected & given).total()
    f1 = 2 * hits / (expected.total() + given.total())
    missed, extra = sorted({path for path, _ in expected - given}), sorted({path for path, _ in given - expected})
    return Score.of(
        same(_normal(found), _normal(wanted)),
        f"wrong or missing: {missed}; not asked for: {extra}" if missed or extra else "items in another order",
        f1,
        valid=1.0,
        field_f1=(2 * hits, expected.total() + given.total()),
        field_precision=(hits, given.total()),
        field_recall=(hits, expected.total()),
    )


def unreadable(wanted: Any, reason: str) -> Score:
    """The score of an answer without readable JSON."""
    count = sum(1 for _ in leaves(wanted))
    return Score.of(False, reason, 0.0, valid=0.0, field_f1=(0, count), field_precision=(0, 0), field_recall=(0, count))


def _normal(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _normal(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_normal(item) for item in value]
    return _leaf(value)[1] if isinstance(value, str) else value
