"""ROUGE-1, ROUGE-2 and ROUGE-L F1 (Lin 2004) by Google's ``rouge-score``, with stemming as papers use it."""

from __future__ import annotations

from functools import cache
from typing import Any

from minnow.errors import UserError

KINDS = ("rouge1", "rouge2", "rougeL")


@cache
def _scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ModuleNotFoundError as error:
        raise UserError(
            "ROUGE is scored by the package rouge-score, which is not installed; run: pip install 'minnow[eval]'"
        ) from error
    return RougeScorer(KINDS, use_stemmer=True)


def require() -> None:
    """Raise UserError where ``rouge-score`` is not installed."""
    _scorer()


def scores(reference: str, text: str) -> dict[str, float]:
    """F1 of each kind, in [0, 1]."""
    return {kind: found.fmeasure for kind, found in _scorer().score(reference, text).items()}
