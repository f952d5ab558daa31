"""What is judged of a finished answer, and what is counted: stopped answers, onsets, rules and how they agree."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from minnow.data.tokenizer import Tokenizer
from minnow.evaluate.loops import MINNOW, WATCH, Judged, LoopRates, judge, judge_rollout, rule_flags, with_rules
from minnow.loops import RULES, Loop, find_loop, find_text_loop
from minnow.rollout import Rollout, Sampling
from minnow.tasks import PocketWorld

ROUND = "The list begins:" + " Velm and Osk," * 60


def answered(text: str, reason: str = "length", tokens: int | None = 200, budget: int = 200) -> Judged:
    return judge(Judged("a", "prompt", text, reason, 0.0, budget, tokens))


def test_the_text_is_judged_not_the_ids(words: Tokenizer, pocket: PocketWorld) -> None:
    """Digits of a number repeat as ids do not know; an answer that ended is never a loop."""
    example = pocket.loop_prone("train", 1)[0]
    number = "The fraction is 0." + "142857" * 60
    ids = words.encode_chat(number)
    rollout = Rollout("p", [1], ids, number, "length", Sampling(0.0, len(ids)), [], find_loop(ids))
    assert rollout.loop is not None and find_text_loop(number) is None, "the case must be one that ids get wrong"
    assert judge_rollout(words, example, rollout).loop is None
    assert answered(ROUND, "stop").loop is None and answered(ROUND).loop == find_text_loop(ROUND)


def test_a_stopped_answer_counts_with_the_loop_it_was_stopped_for(words: Tokenizer, pocket: PocketWorld) -> None:
    """Five copies of a short line stop a row of ids; where the text shows no loop, the ids' stands, in characters."""
    example = pocket.loop_prone("train", 1)[0]
    text = "At first: é" + " Velm" * 20
    ids = words.encode_chat(text)
    copy = len(words.encode_chat(" Velm"))
    start = len(ids) - 20 * copy
    said = Loop("period", start + copy, copy, 20.0, len(ids))
    assert find_text_loop(text) is None
    found = judge_rollout(words, example, Rollout("p", [1], ids, text, "loop", Sampling(0.0, 500), [], said))
    assert found.loop == Loop("period", len("At first: é Velm"), len(" Velm"), 20.0, len(text))
    assert (found.onset, found.period, found.cause) == (start + copy, copy, "loop")
    assert LoopRates([found]).overall.count == LoopRates([found]).stopped == 1


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.text(max_size=40), st.text("aé日😀 ", min_size=1, max_size=12))
def test_an_onset_in_characters_becomes_the_token_that_holds_it(before: str, block: str) -> None:
    """Also inside a character of several byte tokens: the prefix up to the token never passes the onset."""
    words, example = _words(), PocketWorld(0, 200).loop_prone("train", 1)[0]
    ids = words.encode_chat(before + " and then" + block * 90)
    text = words.decode(ids, keep_special=True)
    found = judge_rollout(words, example, Rollout("p", [1], ids, text, "length", Sampling(0.0, len(ids))))
    if found.loop is None:
        return
    assert found.onset is not None and found.period is not None and found.period >= 1
    upto = len(words.decode(ids[: found.onset], keep_special=True))
    assert upto <= found.loop.onset < len(words.decode(ids[: found.onset + 1], keep_special=True))


_KEPT: list[Tokenizer] = []


def _words() -> Tokenizer:
    """Once for all cases of a property."""
    from minnow.data.tokenizer import train_tokenizer

    if not _KEPT:
        _KEPT.append(train_tokenizer(PocketWorld(0, 200).documents(50), 300))
    return _KEPT[0]


def test_onsets_and_waste_are_over_tokens_and_unknown_without_them() -> None:
    half = answered(ROUND)
    other = answered("It was cut here", tokens=100)
    rates = LoopRates([half, other])
    assert half.loop is not None and half.onset == round(200 * half.loop.onset / len(ROUND))
    assert rates.onset == half.onset
    assert rates.wasted == ((200 - half.onset) / 200, (200 - half.onset) / 300)
    silent = LoopRates([answered(ROUND, tokens=None)])
    assert silent.overall.count == 1 and (silent.onset, silent.wasted) == (None, None)
    assert silent.as_dict()["tokens_per_answer"] is None


def test_why_answers_were_cut() -> None:
    wrong = "Yes.<|im_end|>\n<|im_start|>user\nAnd now?"
    texts = [(ROUND, 2000), ("It goes on", 2000), ("It goes on", 100), (wrong, 2000)]
    rates = LoopRates([answered(text, budget=budget) for text, budget in texts])
    assert rates.as_dict()["causes"] == {"loop": 1, "long answer": 1, "budget": 1, "template": 1}
    assert rates.truncated == 3


def test_rules_are_asked_of_every_answer_and_compared() -> None:
    texts = [(ROUND, "length"), (ROUND, "stop"), ("A plain answer.", "stop"), ("words " * 12, "length")]
    answers = with_rules([answered(text, reason) for text, reason in texts])
    flags = rule_flags(answers)
    assert list(flags) == [MINNOW, WATCH, *RULES] and flags[MINNOW] == [True, False, False, False]
    for name, rule in RULES.items():
        assert flags[name] == [rule(text) is not None for text, _ in texts]
    numbers = LoopRates(answers).as_dict()
    assert numbers["rules"]["antidoom"]["count"] == sum(flags["antidoom"]) == 3
    assert len(numbers["agreement"]) == 12 * 11 / 2
    pair = next(each for each in numbers["agreement"] if each["rules"] == [MINNOW, "antidoom"])
    assert pair == {"rules": [MINNOW, "antidoom"], "both": 1, "only_first": 0, "only_second": 2, "kappa": 0.2}
    assert "rules" not in LoopRates([answered(ROUND)]).as_dict()


def test_the_watchs_word_is_what_stopping_early_would_count() -> None:
    """A list that went round and then came to its end: no loop, but a watch would have cut it."""
    fresh = " ".join(f"word{i}{'abcde'[i % 5]}" for i in range(200))
    passing = ROUND + " and so on. " + fresh
    answers = with_rules([answered(text) for text in (ROUND, passing, fresh)])
    flags = rule_flags(answers)
    assert flags[MINNOW] == [True, False, False] and flags[WATCH] == [True, True, False]
    assert LoopRates(answers).as_dict()["rules"][WATCH]["count"] == 2
