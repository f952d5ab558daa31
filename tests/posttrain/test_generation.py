"""Which candidates become data: by verifier, by jury, by form; with shots before them and provenance behind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from minnow.errors import UserError
from minnow.posttrain.generation import GenerationSettings, keep_right, with_shots, worked_answers
from minnow.posttrain.jury import Case
from minnow.tasks import Example
from minnow.tasks.given import Given
from minnow.tasks.task import register

WORDS = [
    "alder",
    "birch",
    "cedar",
    "dogwood",
    "elm",
    "fir",
    "ginkgo",
    "hazel",
    "ironwood",
    "juniper",
    "larch",
    "maple",
    "oak",
    "pine",
    "rowan",
    "spruce",
]


def example(name: str, answer: Any = None, reference: str | None = None, **more: Any) -> Example:
    given = Given("rules") if answer is None else Given("exact", answer)
    turns = [] if reference is None else [{"role": "assistant", "content": reference}]
    return Example(name, "given-test", "train", [{"role": "user", "content": f"ask {name}"}], turns, given, **more)


@pytest.fixture(autouse=True)
def _verifier() -> None:
    from minnow.tasks.given import verify_given

    register("given-test", verify_given)


def said(*texts: str, reason: str = "stop", **about: Any) -> list[dict[str, Any]]:
    return [{"text": text, "finish_reason": reason, "sample": i, **about} for i, text in enumerate(texts)]


def test_right_answers_are_kept_with_where_they_come_from() -> None:
    examples = [example("a", "yes"), example("b", "yes"), example("c", "yes"), example("d", ["yes", "oh yes"])]
    answers = {
        "a": said("no", "yes", "yes", model="m"),
        "b": said("no", "maybe"),
        "c": said("yes", reason="loop"),
        "d": said("oh yes", "yes"),
    }
    made = keep_right(examples, answers, GenerationSettings())
    assert dict(made.fates) == {"kept": 2, "no right answer": 1, "no answer ends": 1}
    assert (made.answers, made.right) == (8, 4)
    first, second = made.rows
    assert first == {
        "messages": [{"role": "user", "content": "ask a"}, {"role": "assistant", "content": "yes"}], "tools": None,
        "task": "given-test", "prompt_id": "a", "difficulty": 0.3333, "score": 1.0, "sample": 1, "model": "m",
    }  # fmt: skip
    assert second["messages"][-1]["content"] == "yes" and second["difficulty"] == 0.0, "the shortest of equals"
    every = keep_right(examples, answers, GenerationSettings(keep="all"))
    assert [row["messages"][-1]["content"] for row in every.rows] == ["yes", "yes", "oh yes"]


class Fixed:
    name = "fixed"

    def grade(self, cases: Sequence[Case], seed: int) -> Iterator[tuple[int, list[float] | None]]:
        for place, case in enumerate(cases):
            yield place, [9.0 if "oak" in answer else 2.0 for answer in case.answers]


def test_a_jury_grades_what_no_verifier_knows() -> None:
    examples, texts = [example("a"), example("b")], {"a": said("oak tree", "a stone"), "b": said("a stone")}
    made = keep_right(examples, texts, GenerationSettings(), [Fixed()])
    assert [row["messages"][-1]["content"] for row in made.rows] == ["oak tree"] and made.rows[0]["score"] == 0.9
    assert made.judges["fixed"].asked == 4 and made.fates["no right answer"] == 1
    by_form = keep_right(examples[:1], {"a": said(" ".join(WORDS), "oak oak oak")}, GenerationSettings())
    assert [row["messages"][-1]["content"] for row in by_form.rows] == [" ".join(WORDS)], (
        "without a jury the form counts"
    )


def test_copies_and_evaluation_texts_are_no_data() -> None:
    long = " ".join(f"{word}{n}" for n in range(3) for word in WORDS)
    examples = [example("a", long), example("b", long), example("c", "yes")]
    answers = {"a": said(long), "b": said(long), "c": said("yes")}
    made = keep_right(examples, answers, GenerationSettings(), evaluation=[long])
    assert dict(made.fates) == {"in evaluation sets": 2, "kept": 1}
    near = keep_right(examples, answers, GenerationSettings())
    assert dict(near.fates) == {"kept": 2, "near copies": 1}


def test_shots_stand_before_the_prompt_and_not_in_what_is_written() -> None:
    examples = [example(name, "yes", f"said {name}") for name in "abc"]
    shown = with_shots(examples, 2)
    turns = [[message["content"] for message in each.messages] for each in shown]
    assert turns[0] == ["ask b", "said b", "ask c", "said c", "ask a"] and turns[2][-1] == "ask c"
    assert all(each.id == own.id for each, own in zip(shown, examples, strict=True))
    with pytest.raises(UserError, match="has 2 other worked examples for a, and 3 were to be shown"):
        with_shots(examples, 3)


def test_worked_examples_are_asked_of_like_any_answer() -> None:
    examples = [example("a", "yes", "yes"), example("b", "yes", "no"), example("c", "yes")]
    made = keep_right(examples, worked_answers(examples), GenerationSettings())
    assert [row["prompt_id"] for row in made.rows] == ["a"] and made.rows[0]["model"] == "reference"
    assert made.fates["no right answer"] == 1 and made.fates["no answer ends"] == 1
