"""SQuAD's exact match and token F1 (Rajpurkar et al. 2016, evaluate-v1.1; 2018, evaluate-v2.0).

Both compare normalised answers: lower case, without ASCII punctuation and the articles a, an, the, with single spaces.
The best of the accepted answers counts. In v2.0 an unanswerable question has the empty answer, and an answer that is
empty once normalised matches only another empty one; v1.1 gives two empty answers an F1 of 0.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from minnow.tasks.types import Score

NO_ANSWER = "unanswerable"
"""What a model is asked to say where the passage holds no answer; it stands for the empty answer."""

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def normalised(text: str) -> str:
    """The form in which answers are compared."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answer: str) -> bool:
    return normalised(prediction) == normalised(answer)


def f1(prediction: str, answer: str, version: int = 1) -> float:
    """Harmonic mean of precision and recall over the bags of tokens."""
    said, gold = normalised(prediction).split(), normalised(answer).split()
    if version == 2 and not (said and gold):
        return float(said == gold)
    common = (Counter(said) & Counter(gold)).total()
    return 2 * common / (len(said) + len(gold)) if common else 0.0


def score(answers: Sequence[str], text: str) -> Score:
    """v1.1: correct for an exact match with one of ``answers``, F1 as the value."""
    return _best(answers, text, 1)


def score_v2(answers: Sequence[str], text: str) -> Score:
    """v2.0; ``answers`` is empty for an unanswerable question. :data:`NO_ANSWER` in the text's place is the empty one."""
    if normalised(text) == NO_ANSWER:
        text = ""
    kept = [each for each in answers if normalised(each)] or [""]
    scored = _best(kept, text, 2)
    kind = "has_answer" if kept != [""] else "no_answer"
    return Score.of(scored.correct, scored.reason, scored.value, **scored.metrics, **{kind: float(scored.correct)})


def _best(answers: Sequence[str], text: str, version: int) -> Score:
    exact = any(exact_match(text, each) for each in answers)
    best = max(f1(text, each, version) for each in answers)
    return Score.of(exact, f"answered {text[:80]!r}, not {answers[0]!r}", best, f1=best)
