"""SciTLDR: a paper's abstract in one sentence (Cachola et al. 2020).

ROUGE against each reference, the best by ROUGE-1 as published; beside it whether the facts hold, which ROUGE does not see.
A fact is a number or a word with a capital or a digit inside the sentence (names, acronyms).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from minnow.data.table import Row
from minnow.tasks.scorers import rouge
from minnow.tasks.task import drafts_of
from minnow.tasks.types import Draft, Score

needs = rouge.require
_WORD = re.compile(r"\w+(?:[-.]\w+)*")


def _abstract(row: Row) -> Iterator[Draft]:
    source = " ".join(row.values["source"])
    targets = [each.strip() for each in row.values["target"] if each.strip()]
    if not (source and targets):
        raise ValueError("its source or target is empty")
    prompt = f"Summarise in one sentence what this paper does:\n{source}"
    name = row.values.get("paper_id")
    yield Draft.plain(
        prompt, targets[0], {"source": source, "targets": targets}, id=None if name is None else str(name)
    )


def facts(text: str) -> set[str]:
    """Numbers, and words with a capital or digit that do not begin a sentence, as they stand."""
    found = set()
    for word in _WORD.finditer(text):
        begins = not text[: word.start()].strip() or text[: word.start()].rstrip()[-1] in ".!?"
        if any(each.isdigit() for each in word[0]) or any(
            each.isupper() for each in (word[0][1:] if begins else word[0])
        ):
            found.add(word[0])
    return found


def score(answer: Mapping[str, Any], text: str) -> Score:
    """The value is ROUGE-1 F1; correct says that every fact of the answer stands in the abstract (and there is one)."""
    if not text:
        return Score.of(False, "empty", rouge1=0.0, rouge2=0.0, rougeL=0.0)
    best = max((rouge.scores(target, text) for target in answer["targets"]), key=lambda found: found["rouge1"])
    said, known = facts(text), set(_WORD.findall(answer["source"]))
    wanted = max((facts(target) & known for target in answer["targets"]), key=len)
    invented = said - known
    words = len(text.split())
    return Score.of(
        not invented,
        f"not in the abstract: {sorted(invented)}",
        best["rouge1"],
        **best,
        fact_coverage=(len(wanted & said), len(wanted)),
        facts_supported=(len(said & known), len(said)),
        compression=words / len(answer["source"].split()),
    )


read = drafts_of(_abstract)
