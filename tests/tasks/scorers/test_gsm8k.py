"""GSM8K's grading, strict (Cobbe et al.) and flexible (lm-eval), on cases worked out by hand."""

from __future__ import annotations

from decimal import Decimal

import pytest

from minnow.tasks.scorers.gsm8k import flexible, score, strict, value

# reference's number, answer, strict, flexible
CASES = [
    ("72", "48 + 24 = 72\n#### 72", True, True),
    ("72", "#### 72", True, True),
    ("72", "####72", False, True),
    ("72", "####  72", False, True),
    ("72", "### 72", False, True),
    ("72", "The answer is 72.", False, True),
    ("72", "The answer is 72", False, True),
    ("72", "72", False, True),
    ("72", "#### 72.", False, True),
    ("72", "#### 72.0", False, False),
    ("72", "#### 72 apples", True, True),
    ("72", "#### 72apples", True, True),
    ("72", "#### 72 km/h", True, True),
    ("72", "#### $72", False, True),
    ("72", "#### €72", False, True),
    ("72", "#### 72$", True, True),
    ("72", "#### 72%", True, True),
    ("72", "#### 71", False, False),
    ("72", "#### -72", False, False),
    ("-72", "#### -72", True, True),
    ("-72", "#### \u221272", False, False),
    ("-72", "#### - 72", False, False),
    ("1000", "#### 1,000", True, True),
    ("1,000", "#### 1000", True, True),
    ("1000", "#### 1 000", False, False),
    ("1000000", "#### 1,000,000", True, True),
    ("1000000", "#### 1,000,000.", False, True),
    ("1000", "#### 1,000.00", False, False),
    ("0.5", "#### 0.5", True, True),
    ("0.5", "#### .5", False, False),
    ("0.5", "#### 1/2", False, False),
    ("5", "#### 5 (that is 10 - 5)", True, True),
    ("5", "#### 5 of 10", True, False),
    ("5", "#### 10\n#### 5", False, True),
    ("10", "#### 10\n#### 5", True, False),
    ("5", "x = 5", False, True),
    ("5", "", False, False),
    ("5", "five", False, False),
    ("5", "#### five", False, False),
    ("5", "####", False, False),
    ("5", "#### ", False, False),
    ("5", "#### \n5", False, True),
    ("18", "She earns $18 a day.", False, True),
    ("18", "That is $18.00.", False, False),
    ("18", "18 dollars, or 1,800 cents", False, False),
    ("18", "step 1: 3*6 = 18", False, True),
    ("18", "18!", False, True),
    ("18", "**18**", False, True),
    ("18", "\\boxed{18}", False, True),
    ("3", "#### 3rd", True, True),
    ("3", "#### \u0663", False, False),
    ("7", "#### 7,", True, True),
    ("7", "#### ,7", True, True),
    ("42", "#### 42<|im_end|>", True, True),
    ("42", "#### 042", False, False),
    ("12", "It takes 12-3 steps", False, False),
    ("2.5", "#### 2.50", False, False),
    ("20", "20 = 20.", False, True),
]


@pytest.mark.parametrize("answer, text, exact, loose", CASES)
def test_grading(answer: str, text: str, exact: bool, loose: bool) -> None:
    found = score(answer, text)
    assert (found.correct, found.metrics["flexible"]) == (exact, float(loose)), (strict(text), flexible(text))
    assert found.value == float(exact) and found.reason


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("$1,000.50", "1000.50"),
        ("1,000.50 EUR", "1000.5"),
        ("so -3", "-3"),
        ("so \u2212 3", "-3"),
        ("£ 7", "7"),
        (".5", "0.5"),
        ("12 km in 3 h", "3"),
        ("x2", None),
        ("none", None),
        ("", None),
        ("10,00", "0"),
    ],
)
def test_value(text: str, wanted: str | None) -> None:
    assert value(text) == (None if wanted is None else Decimal(wanted))
