"""Sums and differences with the work written out, one line per operand, units first.

Every digit is then a small look-up: the header of a line brings the two numbers next to each
other, each column names its two digits and the carry or borrow, and the result only collects the
columns. Totals stay in 0 … 999 (0 … 99 in long problems, which then fit a context of 512 tokens),
and the operands of one problem differ, so that "the operand after this one" is well defined.
"""

from __future__ import annotations

import re
from random import Random

from minnow.tasks.names import split_of
from minnow.tasks.types import Draft, Score, Split

HIGHEST_TOTAL, HIGHEST_LONG_TOTAL = 999, 99
TRAINED_OPERANDS = (2, 3, 4)
LONG_OPERANDS = (8, 14)
_OPERAND_WEIGHTS = (8, 7, 5)
_MINUS_SHARE = 0.45
_QUESTIONS = ("What is {}?", "Work out {}.")


def _columns(first: int, second: int) -> list[tuple[int, int]]:
    width = max(len(str(first)), len(str(second)))
    return [(first // 10**place % 10, second // 10**place % 10) for place in range(width)]


def add_steps(first: int, second: int) -> list[str]:
    """The columns of ``first + second``, units first: ["7+8=15", "3+4+1=8"] for 37 + 48."""
    steps, carry = [], 0
    for place, (x, y) in enumerate(_columns(first, second)):
        total = x + y + carry
        steps.append(f"{x}+{y}+{carry}={total}" if place else f"{x}+{y}={total}")
        carry = total // 10
    return steps


def subtract_steps(first: int, second: int) -> list[str]:
    """The columns of ``first - second`` (not negative): ["12-5=7", "8-1-1=6"] for 82 - 15."""
    steps, borrow = [], 0
    for place, (x, y) in enumerate(_columns(first, second)):
        lent = 1 if x - y - borrow < 0 else 0
        x += 10 * lent
        steps.append(f"{x}-{y}-{borrow}={x - y - borrow}" if place else f"{x}-{y}={x - y}")
        borrow = lent
    return steps


def worked(numbers: list[int], signs: str) -> tuple[str, int]:
    """The written-out work for ``numbers[0] signs[0] numbers[1] …`` and the result."""
    total, lines = numbers[0], []
    for sign, number in zip(signs, numbers[1:], strict=True):
        after = total + number if sign == "+" else total - number
        steps = add_steps(total, number) if sign == "+" else subtract_steps(total, number)
        lines.append(f"{total} {sign} {number}: {', '.join(steps)}, so {after}.")
        total = after
    return "\n".join([*lines, f"Answer: {total}."]), total


def _operand(rng: Random, allow_three_digits: bool) -> int:
    size = rng.random()
    if size < 0.35:
        return rng.randint(1, 9)
    if size < 0.95 or not allow_three_digits:
        return rng.randint(10, 99)
    return rng.randint(100, 500)


def draw(rng: Random, split: Split, long: bool = False) -> Draft:
    """One problem of ``split``; ``long`` asks for more operands than are ever trained on."""
    highest = HIGHEST_LONG_TOTAL if long else HIGHEST_TOTAL
    while True:
        count = rng.randint(*LONG_OPERANDS) if long else rng.choices(TRAINED_OPERANDS, _OPERAND_WEIGHTS)[0]
        numbers, signs = [_operand(rng, not long)], ""
        total = numbers[0]
        while len(numbers) < count:
            number = _operand(rng, not long)
            fits = {"+": total + number <= highest, "-": number <= total}
            wanted, other = ("-", "+") if rng.random() < _MINUS_SHARE else ("+", "-")
            sign = wanted if fits[wanted] else other
            if number in numbers or not fits[sign]:
                continue
            total += number if sign == "+" else -number
            numbers.append(number)
            signs += sign
        expression = str(numbers[0]) + "".join(f" {s} {n}" for s, n in zip(signs, numbers[1:], strict=True))
        if split_of(expression) == split:
            work, result = worked(numbers, signs)
            return Draft.plain(rng.choice(_QUESTIONS).format(expression), work, result)


def score(answer: int, text: str) -> Score:
    """Right when the last "Answer: N" in ``text`` is ``answer``."""
    found = re.findall(r"Answer: (-?\d+)", text)
    if not found:
        return Score.wrong("no 'Answer: N' in the text")
    return Score.right() if int(found[-1]) == answer else Score.wrong(f"answered {found[-1]}, not {answer}")
