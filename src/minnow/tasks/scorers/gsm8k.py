"""GSM8K's grading: the number after ``####`` (Cobbe et al. 2021), and the last number (lm-eval's flexible-extract).

Strict: the first ``#### N`` of the text, commas removed, must equal the reference's as a string
(``grade_school_math/dataset.py``). Flexible: the last number-like run of the text; commas, dollar signs and a final
full stop are removed on both sides before they are compared as strings (lm-eval's ``gsm8k.yaml``).
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

from minnow.tasks.types import Score

_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_IGNORED = re.compile(r",|\$|\.$")
_NUMBER = re.compile(r"(?<![\w.])[-−]?\s?(?:[$€£]\s?)?(?:[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?|\.[0-9]+)")


def strict(text: str) -> str | None:
    """The number after the first ``####``; None where there is none."""
    found = _STRICT.search(text)
    return found[1].strip().replace(",", "") if found else None


def flexible(text: str) -> str | None:
    """The last number-like run of the text, as lm-eval compares it; None where there is none."""
    found = _FLEXIBLE.findall(text)
    return _IGNORED.sub("", next(filter(None, found[-1]))) if found else None


def score(answer: str, text: str) -> Score:
    """``answer``: the reference's number as it stands after ``####``; correct by the strict rule."""
    wanted, found = answer.strip().replace(",", ""), strict(text)
    last = flexible(text)
    agrees = last is not None and last == _IGNORED.sub("", answer.strip())
    reason = "no '#### N' in the text" if found is None else f"answered {found}, not {wanted}"
    return Score.of(found == wanted, reason, flexible=float(agrees))


def value(text: str) -> Decimal | None:
    """The last number of a text as a value: ``$1,000.50``, ``-3``, ``.5`` and ``7 km`` are numbers; None without one."""
    found = _NUMBER.findall(text)
    if not found:
        return None
    try:
        return Decimal(re.sub(r"[$€£,\s]", "", found[-1]).replace("−", "-"))
    except InvalidOperation:
        return None
