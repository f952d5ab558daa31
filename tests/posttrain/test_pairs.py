"""Which two of a prompt's answers become a pair, and what is kept of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from minnow.data.tokenizer import Tokenizer
from minnow.loops import Loop, find_loop
from minnow.posttrain import pairs as pairs_module
from minnow.posttrain.pairs import Pair, PairReport, PairSettings, build_pairs, choose_pair, cut_loop, prefer_reference
from minnow.rollout import Prompt, Rollout, Sampling
from minnow.rollout.records import per_prompt
from minnow.tasks import Example, PocketWorld, Score

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


def chosen(greedy: Rollout, *sampled: Rollout, settings: PairSettings = RULES) -> tuple[Pair | None, bool]:
    return choose_pair(EXAMPLE, greedy, sampled, settings)


def test_a_loop_is_rejected_before_a_wrong_answer_and_the_greedy_one_before_a_sampled_one() -> None:
    greedy, sampled, wrong, right = (
        looping("g", 0.0),
        looping("s"),
        said("0.0 wrong"),
        said("1.0 right", temperature=0.4),
    )
    pair, every = chosen(greedy, wrong, sampled, right)
    assert pair is not None and not every
    assert (pair.kind, pair.chosen_ids) == ("loop", right.token_ids)
    assert pair.rejected_ids == greedy.token_ids[: 9 + 3 * 5]
    assert pair.provenance == {
        "chosen_score": 1.0, "rejected_score": 0.0, "chosen_temperature": 0.4, "rejected_temperature": 0.0,
        "rejected_finish": "loop", "rejected_onset": 9,
    }  # fmt: skip
    pair, _ = chosen(right, wrong, sampled)
    assert pair is not None and pair.rejected_ids == sampled.token_ids[:24] and pair.chosen_ids == right.token_ids


def test_the_best_answer_is_chosen_and_a_sampled_one_between_equals() -> None:
    greedy, same, better = said("0.8 greedy", temperature=0.0), said("0.8 same"), said("0.9 better")
    pair, _ = chosen(greedy, looping("l"), same)
    assert pair is not None and pair.chosen_ids == same.token_ids
    pair, _ = chosen(greedy, looping("l"), same, better)
    assert pair is not None and pair.chosen_ids == better.token_ids


def test_no_pair_chooses_an_answer_that_is_itself_bad() -> None:
    assert chosen(looping("g"), said("0.4 poor")) == (None, False)
    assert chosen(said("0.6 not correct"), said("0.0 wrong")) == (None, False)
    assert chosen(said("cut", "length"), looping("l")) == (None, False)


def test_a_quality_pair_needs_the_gap() -> None:
    right, near, wrong = said("1.0 right"), said("0.6 near"), said("0.5 wrong")
    assert chosen(right, near) == (None, False)
    pair, _ = chosen(right, near, wrong)
    assert pair is not None and pair.kind == "quality" and pair.rejected_ids == wrong.token_ids
    assert pair.provenance["rejected_score"] == 0.5
    cut = said("never ends", "length")
    pair, _ = chosen(right, near, cut)
    assert pair is not None and pair.kind == "quality" and pair.rejected_ids == cut.token_ids


def test_all_loops_are_told_apart_from_no_clean_answer() -> None:
    assert chosen(looping("g"), looping("a"), looping("b")) == (None, True)
    assert chosen(looping("g"), said("cut", "length")) == (None, False)


def test_equal_answers_make_no_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """A verifier that judges one text twice differently must not train a text against itself."""
    verdicts = iter([Score(1.0, True, ""), Score(0.0, False, "")])
    monkeypatch.setattr(pairs_module, "score", lambda example, rollout: next(verdicts))
    assert chosen(said("1.0 same"), said("1.0 same")) == (None, False)


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


def build(words: Tokenizer, every: int, share: float, count: int = 12) -> tuple[Scripted, PairReport]:
    examples = [replace(EXAMPLE, id=f"e{i}") for i in range(count)]
    engine = Scripted(every)
    return engine, build_pairs(engine, words, examples, PairSettings((0.4, 1.0), 64, 0.5, share, 3), seed=5)


def test_every_prompt_gets_one_greedy_and_one_answer_per_temperature(words: Tokenizer) -> None:
    engine, report = build(words, every=2, share=1.0)
    assert sorted(engine.asked) == sorted((f"e{i}", t, 64) for i in range(12) for t in (0.0, 0.4, 1.0))
    assert report.as_dict() == {
        "prompts": 12, "rollouts": 36, "pairs": 12, "loop_pairs": 6, "quality_pairs": 6, "all_loop_prompts": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("every", "share", "loops", "quality"), [(2, 0.4, 4, 6), (2, 0.5, 6, 6), (1, 0.7, 1, 0), (1, 1.0, 12, 0)]
)
def test_loop_pairs_keep_to_their_share(words: Tokenizer, every: int, share: float, loops: int, quality: int) -> None:
    _, report = build(words, every, share)
    assert (report.as_dict()["loop_pairs"], report.as_dict()["quality_pairs"]) == (loops, quality)


def test_a_share_that_comes_out_even_is_not_lost_to_rounding(words: Tokenizer) -> None:
    """3 * 0.7 / 0.3 is 6.999… in floating point; seven loops of ten pairs is a share of 0.7."""
    examples = [replace(EXAMPLE, id=f"e{i}") for i in (*range(0, 18, 2), 1, 3, 5)]
    report = build_pairs(Scripted(2), words, examples, PairSettings((1.0,), 64, 0.5, 0.7, 3), seed=5)
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
