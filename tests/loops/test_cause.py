from __future__ import annotations

import random

import pytest
from loop_cases import prose

from minnow.loops import diagnose

RNG = random.Random(0)
LONG, SHORT = prose(RNG, 1500), prose(RNG, 200)
LOOPING = SHORT + " " + "and so it goes on and on, as before, " * 30


@pytest.mark.parametrize(
    ("text", "reason", "budget", "cause"),
    [
        (LOOPING, "length", 512, "loop"),
        (LOOPING, None, None, "loop"),
        (LOOPING, "stop", 512, None),
        (LONG, "length", 2000, "long answer"),
        (LONG, "length", None, "long answer"),
        (LONG, None, None, None),
        (SHORT, "length", 256, "budget"),
        (SHORT, "length", None, "budget"),
        ("<think>\n" + LONG, "length", 4096, "budget"),
        ("<think>\nyes</think>" + LONG, "length", 4096, "long answer"),
        (SHORT + "<|im_end|>\n<|im_start|>user\nAnd then?", "length", 256, "template"),
        (SHORT + "<|im_end|>", "length", 256, "budget"),
        ("Answer: 4\nQuestion: 2 + 3?\nAnswer: 5\nQuestion: 1 + 1?\nAnswer: 2\n", "length", 99, "template"),
        ((SHORT + "</s>\n") * 9, "length", 4096, "template"),
        ("", "length", 64, "template"),
        ("\ufffd" * 50, "length", 64, "template"),
        ("", None, None, None),
    ],
)
def test_causes(text: str, reason: str | None, budget: int | None, cause: str | None) -> None:
    found = diagnose(text, reason, budget)
    assert found.cause == cause
    assert (found.loop is not None) == (text == LOOPING and reason != "stop" or text == (SHORT + "</s>\n") * 9)


def test_causes_of_tokens() -> None:
    rng = random.Random(1)
    fresh = [rng.randint(0, 10**6) for _ in range(1500)]
    assert diagnose(fresh, "length").cause == "long answer"
    assert diagnose(fresh[:200], "length").cause == "budget"
    assert diagnose(fresh[:200], "length", 4096).cause == "long answer"
    assert diagnose([*fresh[:50], *[1, 2, 3] * 40], "length").cause == "loop"
    assert diagnose([*fresh[:50], *[1, 2, 3] * 40, 7]).cause is None  # it ended by itself
