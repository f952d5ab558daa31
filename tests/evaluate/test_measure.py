"""Task scores and loop rates count what they say, for any engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError
from minnow.evaluate.measure import answer, answer_groups, measure_loops, score, score_tasks
from minnow.loops import Rate, find_loop, find_text_loop
from minnow.rollout import Prompt, Rollout, Sampling
from minnow.rollout.records import per_prompt
from minnow.tasks import Example, PocketWorld


@dataclass
class Told:
    """Says for each prompt id what it was told to: (text, reason)."""

    words: Tokenizer
    answers: dict[str, tuple[str, str]]
    asked: list[tuple[str, list[int], Sampling]] = field(default_factory=list)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling | Sequence[Sampling]) -> list[Rollout]:
        out = []
        for (name, ids), one in zip(prompts, per_prompt(sampling, len(prompts)), strict=True):
            self.asked.append((name, ids, one))
            text, reason = self.answers[name]
            tokens = self.words.encode_chat(text)
            loop = find_loop(tokens) if reason == "loop" else None
            out.append(Rollout(name, ids, tokens, text, reason, one, [], loop))
        return out


def reference(example: Example) -> str:
    return example.reference[0]["content"]


def looping(words: Tokenizer) -> str:
    text = "The list begins:" + " Velm and Osk," * 60
    assert find_loop(words.encode_chat(text)) is not None
    return text


def test_answers_come_in_order_by_arm_with_the_chat_prompt(pocket: PocketWorld, words: Tokenizer) -> None:
    examples = [pocket.examples(task, "train", 1)[0] for task in ("arithmetic", "search")]
    engine = Told(words, {e.id: (e.id, "stop") for e in examples})
    arms = [Sampling(0.0, 5), Sampling(1.0, 9, seed=4)]
    groups = answer_groups(engine, words, examples, arms)
    assert [[r.text for r in group] for group in groups] == [[e.id for e in examples]] * 2
    assert [[r.sampling for r in group] for group in groups] == [[arm, arm] for arm in arms]
    assert [ids for _, ids, _ in engine.asked[:2]] == [words.prompt(e.messages, e.tools) for e in examples]
    assert [r.text for r in answer(engine, words, examples, arms[1])] == [e.id for e in examples]


@pytest.mark.parametrize("task", PocketWorld.TASKS)
def test_the_ideal_answer_is_right_when_it_ends(task: str, pocket: PocketWorld) -> None:
    """Its own call where the task is answered by a tool call; cut or looping it earns nothing."""
    example = pocket.examples(task, "train", 1)[0]

    def said(text: str, reason: str) -> Rollout:
        return Rollout(example.id, [1], [2], text, reason, Sampling())

    assert score(example, said(reference(example), "stop")).correct
    assert not score(example, said("I do not know.", "stop")).correct
    for reason in ("length", "loop"):
        verdict = score(example, said(reference(example), reason))
        assert (verdict.value, verdict.correct) == (0.0, False)


def test_task_scores_are_rates_and_values_by_task_and_their_plain_mean(pocket: PocketWorld, words: Tokenizer) -> None:
    examples = [*pocket.examples("arithmetic", "train", 4), *pocket.examples("extraction", "train", 1)]
    answers = {e.id: (reference(e), "stop") for e in examples}
    answers[examples[0].id] = ("No idea.", "stop")
    engine = Told(words, answers)
    scores = score_tasks(engine, words, examples, 33)
    assert scores.rates == {"arithmetic": Rate(3, 4), "extraction": Rate(1, 1)}
    assert scores.values == {"arithmetic": 0.75, "extraction": 1.0}
    assert scores.mean_value == pytest.approx((0.75 + 1.0) / 2)
    assert scores.as_dict()["arithmetic"] == Rate(3, 4).as_dict() | {"value": 0.75}
    assert {sampling for _, _, sampling in engine.asked} == {Sampling(0.0, 33)}


def test_loop_rates_are_of_answers_that_run_on(pocket: PocketWorld, words: Tokenizer) -> None:
    """Where the text still repeats at the budget it is a loop, cut without one it is truncated; an end is an end."""
    examples = pocket.loop_prone("train", 8)
    told = [(looping(words), "length"), ("x", "stop"), ("It was cut", "length"), (looping(words), "stop")] * 2
    engine = Told(words, {e.id: one for e, one in zip(examples, told, strict=True)})
    rates, shown = measure_loops(engine, words, examples, (0.0, 0.5), 64, seed=9)
    assert [(r.temperature, r.max_new_tokens) for r in rates] == [(0.0, 64), (0.5, 64)]
    looped = [e.task for e, (text, reason) in zip(examples, told, strict=True) if len(text) > 10 and reason == "length"]
    for rate in rates:
        assert rate.overall == Rate(2, 8) and (rate.truncated, rate.stopped) == (2, 0)
        tasks = {e.task: [other.task for other in examples].count(e.task) for e in examples}
        assert rate.by_task == {task: Rate(looped.count(task), n) for task, n in tasks.items()}
        numbers = rate.as_dict()
        assert (numbers["count"], numbers["truncated"], numbers["failed"]) == (2, 2, 0)
        assert numbers["causes"] == {"loop": 2, "budget": 2} and numbers["kinds"] == {"period": 2}
        assert numbers["rules"]["antidoom"] == Rate(4, 8).as_dict(), "a published rule is asked of every answer"
    assert {(one.seed, one.stop_on_loop) for _, _, one in engine.asked} == {(9, False)}
    assert {example["temperature"] for example in shown} == {0.0, 0.5}


def test_examples_mark_the_onset_in_the_text(pocket: PocketWorld, words: Tokenizer) -> None:
    """Every task comes once before any comes twice; the text from the onset on is the loop's second copy."""
    examples = pocket.loop_prone("train", 8)
    text = looping(words)
    engine = Told(words, {e.id: (text, "length") for e in examples})
    (rate,), shown = measure_loops(engine, words, examples, [0.0], 999)
    assert [each["task"] for each in shown] == ["page", "enumeration", "walk", "arithmetic"]
    ids = words.encode_chat(text)
    found = find_text_loop(text)
    assert found is not None
    for each in shown:
        copy = words.decode(ids[-each["period"] :])
        assert each["text"] == text and each["onset_character"] == found.onset
        assert text[found.onset :].startswith((copy * 2).lstrip())
    # The token of the first word holds the space before it, the loop begins with the word.
    assert rate.onset is not None and words.decode(ids[: int(rate.onset)]) == text[: found.onset].rstrip()
    assert rate.as_dict()["wasted_of_all"] == round(1 - rate.onset / len(ids), 4)


def test_a_loop_rate_of_no_prompts_is_refused(words: Tokenizer) -> None:
    with pytest.raises(UserError, match="at least one loop-prone prompt"):
        measure_loops(Told(words, {}), words, [], [0.0], 64)
