"""For lm-evaluation-harness: the loop rate of any task whose answers are generated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minnow.loops.find import find_text_loops


def loop_rate(references: Sequence[Any], predictions: Sequence[str | Sequence[str]], **options: Any) -> float:
    """A metric for a task's ``metric_list``: the share of ``predictions`` that end in a loop.

    A prediction that is a list of repeats counts as all of them. The harness passes texts, not why they ended: one that
    ended by itself while it repeated something counts too.
    """
    texts = [text for one in predictions for text in ([one] if isinstance(one, str) else one)]
    return sum(loop is not None for loop in find_text_loops(texts)) / max(1, len(texts))
