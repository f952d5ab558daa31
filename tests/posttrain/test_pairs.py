"""Which two of a prompt's answers become a pair, and what is kept of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError
from minnow.loops import Loop, find_loop
from minnow.posttrain import pairs as pairs_module
from minnow.posttrain.journal import Journal
from minnow.posttrain.jury import Case, Ratings
from minnow.posttrain.pairs import (
    ALL_LOOP,
    DISPUTED,
    NO_CLEAN,
    NO_GAP,
    OVER_SHARE,
    PAIRED,
    POOR,
    REPEATED,
    Candidate,
    Journals,
    Pair,
    PairReport,
    PairSettings,
    build_pairs,
    choose_pair,
    cut_loop,
    prefer_reference,
)
from minnow.rollout import Prompt, Rollout, Sampling
from minnow.rollout.records import per_prompt
from minnow.tasks import Example, PocketWorld, Score
from minnow.tasks.given import Given

EXAMPLE = Example("e1", "arithmetic", "train", [{"role": "user", "content": "2 + 2?"}], [], 4)
LOOP = Loop("period", onset=9, period=5, copies=20.0, end=104)
RULES = PairSettings(score_gap=0.5, periods_kept=3)


@pytest.fixture(autouse=True)
def scores_by_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """``"0.75 good"`` scores 0.75; 1 is correct. Loops and cut answers earn nothing, as everywhere."""

    def score(example: Example, rollout: Rollout) -> Score:
        value = float(rollout.text.split()[0]) if rollout.finish_reason == "stop" else 0.0
        return Score(value, value >= 0.75, "")

    monkeypatch.setattr(pairs_module, "score", score)


def said(text: str, reason: str = "stop", temperature: float = 1.0, length: int = 12) -> Rollout:
    """An answer with ids that depend on its text."""
    ids = [100 + sum(map(ord, text)) % 300 + place for place in range(length)]
    return Rollout("e1", [1, 2], ids, text, reason, Sampling(temperature), [], LOOP if reason == "loop" else None)


def looping(name: str, temperature: float = 1.0) -> Rollout:
    return said(name, "loop", temperature, 104)


def chosen(*rollouts: Rollout, settings: PairSettings = RULES) -> tuple[Pair | None, str]:
    """The greedy one first."""
    scores = [pairs_module.score(EXAMPLE, rollout) for rollout in rollouts]
    return choose_pair(
        EXAMPLE, [Candidate(r, s.value, s.correct) for r, s in zip(rollouts, scores, strict=True)], settings
    )


def test_a_loop_is_rejected_before_a_wrong_answer_and_the_greedy_one_before_a_sampled_one() -> None:
    greedy, sampled, wrong, right = (
        looping("g", 0.0),
        looping("s"),
        said("0.0 wrong"),
        said("1.0 right", temperature=0.4),
    )
    pair, fate = chosen(greedy, wrong, sampled, right)
    assert pair is not None and fate == PAIRED
    assert (pair.kind, pair.chosen_ids) == ("loop", right.token_ids)
    assert pair.rejected_ids == greedy.token_ids[: 9 + 3 * 5]
    assert pair.onset == 9 and pair.provenance == {
        "chosen_score": 1.0, "rejected_score": 0.0, "chosen_grade": 0.0, "rejected_grade": 0.0, "agreement": None,
        "chosen_temperature": 0.4, "rejected_temperature": 0.0, "seed": 0, "rejected_finish": "loop",
        "loop_kind": "period", "loop_period": 5, "rejected_onset": 9,
    }  # fmt: skip
    pair, _ = chosen(right, wrong, sampled)
    assert pair is not None and pair.rejected_ids == sampled.token_ids[:24] and pair.chosen_ids == right.token_ids


def test_loops_come_first_only_where_that_is_asked_for() -> None:
    """Otherwise the worst by score is rejected, and of equal ones the first."""
    wrong, greedy, right = said("0.0 wrong", temperature=0.0), looping("g"), said("1.0 right")
    pair, _ = chosen(wrong, greedy, right, settings=replace(RULES, loops_first=False))
    assert pair is not None and (pair.kind, pair.rejected_ids) == ("quality", wrong.token_ids)
    pair, _ = chosen(wrong, greedy, right)
    assert pair is not None and pair.kind == "loop"


def test_a_pair_that_the_jury_disputes_is_left_out() -> None:
    """Of four ratings three put the chosen one first; a loop is a loop whatever a jury says of other answers."""
    best, worst = said("1.0 best"), said("0.0 worst")
    candidates = [Candidate(worst, 0.0, False, 0, 0.2), Candidate(best, 1.0, True, 1, 0.8)]
    ratings = Ratings([[2.0, 9.0], [3.0, 8.0], [1.0, 9.0], [2.0, 2.0]])
    assert ratings.grade(1) == 0.7 and ratings.agreement(1, 0) == 0.75
    pair, fate = choose_pair(EXAMPLE, candidates, RULES, ratings)
    assert fate == PAIRED and pair is not None and pair.provenance["agreement"] == 0.75
    assert choose_pair(EXAMPLE, candidates, replace(RULES, agreement=0.8), ratings) == (None, DISPUTED)
    loop = [Candidate(looping("l"), 0.0, False), candidates[1]]
    pair, fate = choose_pair(EXAMPLE, loop, replace(RULES, agreement=1.0), ratings)
    assert fate == PAIRED and pair is not None and pair.provenance["agreement"] is None


def test_between_equal_scores_the_jury_decides() -> None:
    first, second = said("1.0 first"), said("1.0 second")
    candidates = [Candidate(first, 1.0, True, 0, 0.9), Candidate(second, 1.0, True, 1, 0.2)]
    ratings = Ratings([[9.0, 2.0], [9.0, 2.0]])
    pair, _ = choose_pair(EXAMPLE, candidates, RULES, ratings)
    assert pair is not None and (pair.chosen_ids, pair.rejected_ids) == (first.token_ids, second.token_ids)
    candidates[1] = replace(candidates[1], grade=0.6)
    assert choose_pair(EXAMPLE, candidates, RULES, ratings) == (None, NO_GAP)


def test_the_best_answer_is_chosen_and_a_sampled_one_between_equals() -> None:
    greedy, same, better = said("0.8 greedy", temperature=0.0), said("0.8 same"), said("0.9 better")
    pair, _ = chosen(greedy, looping("l"), same)
    assert pair is not None and pair.chosen_ids == same.token_ids
    pair, _ = chosen(greedy, looping("l"), same, better)
    assert pair is not None and pair.chosen_ids == better.token_ids


def test_no_pair_chooses_an_answer_that_is_itself_bad() -> None:
    assert chosen(looping("g"), said("0.4 poor")) == (None, POOR)
    assert chosen(said("0.6 not correct"), said("0.0 wrong")) == (None, POOR)
    assert chosen(said("cut", "length"), looping("l")) == (None, NO_CLEAN)


def test_a_quality_pair_needs_the_gap() -> None:
    right, near, wrong = said("1.0 right"), said("0.6 near"), said("0.5 wrong")
    assert chosen(right, near) == (None, NO_GAP)
    pair, _ = chosen(right, near, wrong)
    assert pair is not None and pair.kind == "quality" and pair.rejected_ids == wrong.token_ids
    assert pair.provenance["rejected_score"] == 0.5
    cut = said("never ends", "length")
    pair, _ = chosen(right, near, cut)
    assert pair is not None and pair.kind == "quality" and pair.rejected_ids == cut.token_ids


def test_all_loops_are_told_apart_from_no_clean_answer() -> None:
    assert chosen(looping("g"), looping("a"), looping("b")) == (None, ALL_LOOP)
    assert chosen(looping("g"), said("cut", "length")) == (None, NO_CLEAN)


def test_equal_answers_make_no_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """A verifier that judges one text twice differently must not train a text against itself."""
    verdicts = iter([Score(1.0, True, ""), Score(0.0, False, "")])
    monkeypatch.setattr(pairs_module, "score", lambda example, rollout: next(verdicts))
    assert chosen(said("1.0 same"), said("1.0 same")) == (None, NO_GAP)


@pytest.mark.parametrize("period", [1, 7, 40])
@pytest.mark.parametrize("periods", [1, 3])
def test_a_loop_is_cut_after_its_onset_and_some_periods(period: int, periods: int) -> None:
    """The onset is the second copy's first token, so one copy more than ``periods`` is left."""
    ids = [*range(1000, 1020), *list(range(period)) * 300][: 20 + 8 * max(period, 16)]
    loop = find_loop(ids)
    assert loop is not None
    rollout = replace(looping("l"), token_ids=ids, loop=loop)
    assert cut_loop(rollout, periods) == [*range(1000, 1020), *list(range(period)) * (1 + periods)]
    clean = said("1.0")
    assert cut_loop(clean, periods) == clean.token_ids


def test_rows_are_in_trls_format(words: Tokenizer, pocket: PocketWorld) -> None:
    """Conversational preference rows; the end token goes, other special tokens stay."""
    example = pocket.examples("search", "train", 1)[0]
    call = words.encode_chat('<|tool_call_start|>[search(query="Velm")]<|tool_call_end|>')
    pair = Pair(example, "loop", [1, 2], [*call, words.eos_id], words.encode("again again"), {"chosen_score": 1.0})
    row = pair.as_row(words)
    assert row["prompt"] == example.messages and row["tools"] == example.tools
    assert row["chosen"] == [
        {"role": "assistant", "content": '<|tool_call_start|>[search(query="Velm")]<|tool_call_end|>'}
    ]
    assert row["rejected"] == [{"role": "assistant", "content": "again again"}]
    assert (row["kind"], row["task"], row["prompt_id"], row["chosen_score"]) == ("loop", "search", example.id, 1.0)
    assert json.loads(json.dumps(row)) == row
    # What transformers' template makes of the row is what was trained on.
    ids, mask = words.conversation([*row["prompt"], *row["chosen"]], row["tools"])
    assert [token for token, trained in zip(ids, mask, strict=True) if trained] == pair.chosen_ids


class Scripted:
    """Greedy loops on prompts whose number divides by ``every``, is wrong on the other ones; sampled is right."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.asked: list[tuple[str, float, int]] = []

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling | Sequence[Sampling]) -> list[Rollout]:
        out = []
        for (name, ids), one in zip(prompts, per_prompt(sampling, len(prompts)), strict=True):
            self.asked.append((name, one.temperature, one.max_new_tokens))
            number = int(name[1:])
            if one.temperature:
                answer = said(f"1.0 right {number} {one.temperature}")
            else:
                answer = looping("l") if number % self.every == 0 else said(f"0.0 wrong {number}")
            out.append(replace(answer, prompt_id=name, prompt_ids=ids, sampling=one))
        return out


def numbered(*numbers: int) -> list[Example]:
    """Prompts that have no run of words in common."""
    asked = [[{"role": "user", "content": " ".join(f"{n}{c}" for c in "abcdefghi")}] for n in numbers]
    return [replace(EXAMPLE, id=f"e{n}", messages=each) for n, each in zip(numbers, asked, strict=True)]


def build(words: Tokenizer, every: int, share: float, count: int = 12) -> tuple[Scripted, PairReport]:
    engine = Scripted(every)
    settings = PairSettings((0.4, 1.0), 64, 0.5, loop_share=share)
    return engine, build_pairs(engine, words, numbered(*range(count)), settings, seed=5)


def test_every_prompt_gets_one_greedy_and_one_answer_per_temperature(words: Tokenizer) -> None:
    engine, report = build(words, every=2, share=1.0)
    assert sorted(engine.asked) == sorted((f"e{i}", t, 64) for i in range(12) for t in (0.0, 0.4, 1.0))
    assert report.as_dict() == {
        "prompts": 12, "rollouts": 36, "pairs": 12, "loop_pairs": 6, "quality_pairs": 6, "all_loop_prompts": 0,
        "fates": {PAIRED: 12}, "judges": {},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("every", "share", "loops", "quality"), [(2, 0.4, 4, 6), (2, 0.5, 6, 6), (1, 0.7, 1, 0), (1, 1.0, 12, 0)]
)
def test_loop_pairs_keep_to_their_share(words: Tokenizer, every: int, share: float, loops: int, quality: int) -> None:
    _, report = build(words, every, share)
    assert (report.as_dict()["loop_pairs"], report.as_dict()["quality_pairs"]) == (loops, quality)
    assert report.fates[PAIRED] == loops + quality and report.fates[OVER_SHARE] == 12 - loops - quality


def test_a_share_that_comes_out_even_is_not_lost_to_rounding(words: Tokenizer) -> None:
    """3 * 0.7 / 0.3 is 6.999… in floating point; seven loops of ten pairs is a share of 0.7."""
    examples = numbered(*range(0, 18, 2), 1, 3, 5)
    report = build_pairs(Scripted(2), words, examples, PairSettings((1.0,), 64, 0.5, loop_share=0.7), seed=5)
    assert (report.as_dict()["loop_pairs"], report.as_dict()["quality_pairs"]) == (7, 3)


def test_a_reference_that_scores_above_the_rollouts_is_chosen(words: Tokenizer) -> None:
    example = PocketWorld(0, entities=125).examples("arithmetic", "train", 1)[0]
    rollout_answer, loop = [50, 51, words.eos_id], [60, 61]
    weak = Pair(example, "loop", [1], rollout_answer, loop, {"chosen_score": 0.5, "chosen_temperature": 1.0})
    better = prefer_reference(weak, words)
    text = words.decode(better.chosen_ids[:-1])
    assert better.chosen_ids[-1] == words.eos_id and text == example.reference[0]["content"]
    assert better.provenance == {"chosen_score": 1.0, "chosen_temperature": None}
    assert better.rejected_ids == loop
    right = replace(weak, provenance={"chosen_score": 1.0, "chosen_temperature": 1.0})
    assert prefer_reference(right, words) is right
    calls = PocketWorld(0, entities=125).examples("calculator", "train", 1)[0]
    assert prefer_reference(replace(weak, example=calls), words).chosen_ids == rollout_answer


def test_a_prompt_much_like_an_earlier_one_gives_no_second_pair(words: Tokenizer) -> None:
    first, second, third = numbered(1, 3, 5)
    report = build_pairs(Scripted(2), words, [first, replace(second, messages=first.messages), third], RULES, seed=5)
    assert [pair.example.id for pair in report.pairs] == ["e1", "e5"] and report.fates == {PAIRED: 2, REPEATED: 1}


class Graded:
    """A judge that likes long answers, and remembers what it was asked."""

    name = "long"

    def __init__(self) -> None:
        self.cases: list[Case] = []

    def grade(self, cases: Sequence[Case], seed: int) -> Iterator[tuple[int, list[float] | None]]:
        self.cases += cases
        for place, case in enumerate(cases):
            yield place, [min(10.0, len(answer) / 3) for answer in case.answers]


class Varied:
    """Ends at once with as many words as the temperature has tenths; greedy answers loop."""

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling | Sequence[Sampling]) -> list[Rollout]:
        out = []
        for (name, ids), one in zip(prompts, per_prompt(sampling, len(prompts)), strict=True):
            answer = said("1.0" + " word" * round(10 * one.temperature)) if one.temperature > 0.3 else looping("l")
            out.append(replace(answer, prompt_id=name, prompt_ids=ids, sampling=one))
        return out


def test_open_prompts_are_the_jurys(words: Tokenizer) -> None:
    """It is asked about the different answers that end, in both orders, and its grades are the scores."""
    example = replace(EXAMPLE, answer=Given("rules"))
    settings = PairSettings((0.4, 0.9, 0.9), 64, 0.3, loops_first=False)
    judge = Graded()
    report = build_pairs(Varied(), words, [example], settings, 0, [judge])
    short, long = "1.0" + 4 * " word", "1.0" + 9 * " word"
    assert [case.answers for case in judge.cases] == [[short, long], [long, short]]
    assert report.judges["long"].as_dict() == {"asked": 2, "failed": 0, "compared": 1, "equal": 1.0, "kappa": None}
    settings = replace(settings, temperatures=(0.4, 0.9))
    (pair,) = build_pairs(Varied(), words, [example], settings, 0, [Graded()]).pairs
    assert pair.kind == "loop" and pair.provenance["rejected_score"] == 0.0
    assert pair.provenance["chosen_score"] == 1.0, "capped at 10"


def test_a_verifiers_equals_alone_are_the_jurys(words: Tokenizer) -> None:
    judge = Graded()
    build_pairs(Varied(), words, [EXAMPLE], PairSettings((0.4,), 64), 0, [judge])
    assert judge.cases == [], "one right answer needs no jury"
    build_pairs(Varied(), words, [EXAMPLE], PairSettings((0.4, 0.6), 64), 0, [judge])
    assert [len(case.answers) for case in judge.cases] == [2, 2]


def test_what_a_silent_jury_did_not_grade_is_not_chosen(words: Tokenizer) -> None:
    class Silent(Graded):
        def grade(self, cases: Sequence[Case], seed: int) -> Iterator[tuple[int, list[float] | None]]:
            yield from ((place, None) for place in range(len(cases)))

    example = replace(EXAMPLE, answer=Given("rules"))
    report = build_pairs(Varied(), words, [example], PairSettings((0.4, 0.9), 64), 0, [Silent()])
    assert report.pairs == [] and report.fates == {POOR: 1}
    assert report.judges["long"].as_dict()["failed"] == 2


def test_kept_answers_and_grades_are_not_asked_for_again(words: Tokenizer, tmp_path: Path) -> None:
    """Also after the half line of a kill; and the pairs come out the same."""
    examples = [replace(each, answer=Given("rules")) for each in numbered(1, 2, 3)]
    settings = PairSettings((0.4, 0.9), 64)

    def journals() -> Journals:
        return Journals(Journal(tmp_path / "rollouts.jsonl", {"a": 1}), Journal(tmp_path / "grades.jsonl", {}))

    whole = build_pairs(Varied(), words, examples, settings, 0, [Graded()], journals())
    with (tmp_path / "grades.jsonl").open("a") as file:
        file.write('{"judge": "lo')
    judge, engine = Graded(), Scripted(1)
    again = build_pairs(engine, words, examples, settings, 0, [judge], journals())
    assert engine.asked == [] and judge.cases == []
    assert [pair.rejected_ids for pair in again.pairs] == [pair.rejected_ids for pair in whole.pairs]
    with pytest.raises(UserError, match="was made with a 1, not 2"):
        Journal(tmp_path / "rollouts.jsonl", {"a": 2})
    (tmp_path / "other").write_text("a diary\n")
    with pytest.raises(UserError, match="is not what this command wrote"):
        Journal(tmp_path / "other", {})
