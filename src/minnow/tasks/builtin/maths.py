"""GSM8K (grade-school sums with worked answers) and AQuA (multiple-choice algebra)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from minnow.data.table import Row
from minnow.tasks.scorers import gsm8k
from minnow.tasks.task import drafts_of
from minnow.tasks.types import Draft, Score

_CALCULATION = re.compile(r"<<[^>]*>>")  # the annotations of a calculator that nobody here has
_LETTER = re.compile(r"\b(?i:answer)\b[^A-Za-z]*(?:\b(?i:is|the|correct|option)\b[^A-Za-z]*)*([A-E])\b")

score_gsm8k = gsm8k.score


def _gsm8k(row: Row) -> Iterator[Draft]:
    worked = _CALCULATION.sub("", row.values["answer"])
    answer = gsm8k.strict(worked)
    if answer is None:
        raise ValueError("its answer has no '#### N'")
    prompt = f"{row.values['question'].strip()}\nWork it out step by step, then end with '#### ' and the number."
    yield Draft.plain(prompt, worked, answer)


def _aqua(row: Row) -> Iterator[Draft]:
    values = row.values
    options = "\n".join(values["options"])
    if values["correct"] not in ("A", "B", "C", "D", "E"):
        raise ValueError(f"its correct option is {values['correct']!r}, none of A to E")
    prompt = f"{values['question'].strip()}\n{options}\nWork it out, then end with 'Answer: ' and the letter."
    yield Draft.plain(prompt, f"{values['rationale'].strip()}\nAnswer: {values['correct']}", values["correct"])


def chosen(text: str) -> str | None:
    """The letter an answer chooses: the last one after the word "answer", or the whole text where it is one letter."""
    found = _LETTER.findall(text) or re.findall(r"\A\W*([A-Ea-e])\W*\Z", text)
    return found[-1].upper() if found else None


def score_aqua(answer: str, text: str) -> Score:
    """Right for the correct option's letter (accuracy, Ling et al. 2017)."""
    found = chosen(text)
    return Score.of(found == answer, "no option chosen" if found is None else f"chose {found}, not {answer}")


read_gsm8k, read_aqua = drafts_of(_gsm8k), drafts_of(_aqua)
