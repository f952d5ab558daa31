"""Which prompts are drawn, and what is said of tasks and runs that teach nothing."""

from __future__ import annotations

from collections import Counter

from minnow.posttrain.curriculum import History, StepRecord, choose, findings, success_rates
from minnow.tasks import Example


def examples(*tasks: str) -> list[Example]:
    return [Example(f"{task}-{i}", task, "train", [], [], None) for i, task in enumerate(tasks)]


def history(steps: int, **tasks: tuple[int, int]) -> History:
    return {step: StepRecord(dict(tasks)) for step in range(steps)}


def test_rates_are_of_the_last_steps_only() -> None:
    past = history(3, sums=(0, 4)) | {step: StepRecord({"sums": (4, 4), "walks": (1, 2)}) for step in (3, 4)}
    assert success_rates(past, 5, 2) == {"sums": (8, 8), "walks": (2, 4)}
    assert success_rates(past, 3, 2) == {"sums": (0, 8)}
    assert success_rates(past, 0) == {}


def test_even_tasks_are_drawn_before_those_always_or_never_right() -> None:
    candidates = examples(*["easy", "even", "hard", "new"] * 10)
    past = history(4, easy=(8, 8), even=(4, 8), hard=(0, 8))
    drawn = Counter(each.task for seed in range(40) for each in choose(candidates, 8, past, 4, seed))
    assert drawn["even"] + drawn["new"] > 0.8 * 40 * 8 and min(drawn["easy"], drawn["hard"]) > 0
    assert abs(drawn["even"] - drawn["new"]) < 40


def test_a_draw_is_without_repeats_in_order_and_the_same_again() -> None:
    candidates = examples(*["a", "b", "c"] * 5)
    once = choose(candidates, 6, {}, 2, 7)
    assert once == choose(candidates, 6, {}, 2, 7) != choose(candidates, 6, {}, 1, 7)
    places = [candidates.index(each) for each in once]
    assert places == sorted(set(places)) and len(places) == 6
    assert choose(candidates, 15, {}, 0, 0) == candidates


def test_a_cold_task_and_an_easy_one_are_named_with_the_remedy() -> None:
    past = history(5, cold=(0, 8), easy=(8, 8), good=(3, 8))
    found = findings(past, 4, 5)
    assert set(found) == {"cold", "easy"}
    assert "none of 40 answers in 5 steps" in found["cold"] and "add SFT samples" in found["cold"]
    assert "all of 40 answers" in found["easy"] and "too easy" in found["easy"]
    assert findings(past, 3, 5) == {}, "not before so many steps"
    past[2].tasks["cold"] = (1, 8)
    past[3].tasks.pop("easy")
    assert findings(past, 4, 5) == {}, "one right answer is a beginning, and a task must be seen in every step"


def test_equal_rewards_and_cut_answers_are_named() -> None:
    equal: History = {step: StepRecord({}, 0.25, 0.0) for step in range(3)}
    assert "earned the same (0.25)" in findings(equal, 2, 3)["equal"]
    equal[1].equal = None
    assert findings(equal, 2, 3) == {}
    cut: History = {step: StepRecord({}, 0.0, 1.0) for step in range(3)}
    assert set(findings(cut, 2, 3)) == {"truncated"} and "raise max_new_tokens" in findings(cut, 2, 3)["truncated"]
