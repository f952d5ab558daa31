"""Minnow's processors and stop inside transformers' own ``generate``, on a tiny model and on answers written by hand."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError
from minnow.loops import Dry, LoopWatch, LzPenalty, Penalty, find_loop
from minnow.loops.integrations.transformers import LoopStopping, PenaltyProcessor, ReasoningBudget
from minnow.model.checkpoint import save_checkpoint

PROMPTS = ["The river Anse flows", "Name the towns of the north, one by one:", "Hm"]


@pytest.fixture
def folder(tiny_model: Any, words: Tokenizer, tmp_path: Path) -> Path:
    save_checkpoint(tiny_model, words, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.fixture
def model(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture
def looper(model: PreTrainedModel) -> PreTrainedModel:
    """Its layers add next to nothing, so that every token's own embedding is the likeliest next one."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "out_proj" in name or "w2" in name:
                parameter.mul_(0.01)
    return model


@pytest.fixture
def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder, padding_side="left")


class Seen(LogitsProcessor):
    """Writes down what passes."""

    def __init__(self) -> None:
        self.steps: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.steps.append((input_ids.clone(), scores.clone()))
        return scores


class Script(LogitsProcessor):
    """Lets the rows write these answers, whatever the model wants, and the last token again when they are over."""

    def __init__(self, answers: Sequence[Sequence[int]]) -> None:
        self.answers, self.step = answers, 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        wanted = [answer[min(self.step, len(answer) - 1)] for answer in self.answers]
        self.step += 1
        scores = torch.zeros_like(scores)
        scores[range(len(wanted)), wanted] = 1.0
        return scores


def write(
    model: PreTrainedModel, answers: Sequence[Sequence[int]], new: int, prompt: int = 3, **options: Any
) -> torch.Tensor:
    """What ``generate`` gives of rows that write ``answers``, without the prompts."""
    inputs = torch.arange(20, 20 + prompt).repeat(len(answers), 1)
    processors = [Script(answers), *options.pop("logits_processor", [])]
    given = {"do_sample": False, "max_new_tokens": new, "pad_token_id": 0} | options
    with torch.no_grad():
        out = model.generate(inputs, attention_mask=torch.ones_like(inputs), logits_processor=processors, **given)
    return out[:, prompt:]


@pytest.mark.parametrize("penalty", [Dry(allowed_length=1), LzPenalty(0.5, 64, 4)])
def test_penalties_come_off_every_row_at_every_step(
    penalty: Penalty, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """In two calls of ``generate`` with one processor: the second has other prompts, and the output begins anew."""
    processor, taken = PenaltyProcessor(penalty), 0.0
    for texts in (PROMPTS, PROMPTS[:1], [PROMPTS[1][: len(PROMPTS[0])]]):
        before, after = Seen(), Seen()
        inputs = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
        prompt = inputs["input_ids"].shape[1]
        with torch.no_grad():
            model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                logits_processor=[before, processor, after],
                max_new_tokens=40,
                min_new_tokens=40,
                do_sample=False,
            )
        for (ids, scores), (_, changed) in zip(before.steps, after.steps, strict=True):
            wanted = scores.clone()
            for row, tokens in enumerate(ids.numpy()):
                places, amounts = penalty.amounts(tokens[:prompt], tokens[prompt:], scores.shape[1])
                wanted[row, torch.from_numpy(places)] -= torch.from_numpy(amounts)
                taken += float(amounts.sum())
            torch.testing.assert_close(changed, wanted, rtol=0, atol=0)
    assert taken > 0


def test_dry_leads_a_looping_model_out(looper: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    def answer(*processors: LogitsProcessor) -> list[int]:
        inputs = tokenizer(PROMPTS[0], return_tensors="pt", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            out = looper.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                logits_processor=list(processors),
                max_new_tokens=200,
                min_new_tokens=200,
                do_sample=False,
            )
        return out[0, inputs.shape[1] :].tolist()

    assert find_loop(answer()) is not None
    assert find_loop(answer(PenaltyProcessor(Dry()))) is None


OPEN, CLOSE, MESSAGE, EOS = 30, [31, 32], [33, 31], 7


def test_a_reasoning_block_is_closed_at_its_budget(model: PreTrainedModel) -> None:
    answers = [
        [OPEN, *range(40, 60)],  # cut
        [OPEN, 40, 41, *CLOSE, *range(42, 60)],  # closes by itself
        [*range(40, 60)],  # never opens
        [OPEN, 40, 41, 42, 31, 44, 45, 46],  # the forced ids begin with what stands there already
        [OPEN, 40, *CLOSE, 50, OPEN, *range(60, 80)],  # a second block has a budget of its own
    ]
    out = write(model, answers, 16, logits_processor=[ReasoningBudget(5, [OPEN], CLOSE, MESSAGE)]).tolist()
    # The script goes on where it is after the forced tokens.
    assert out[0] == [OPEN, 40, 41, 42, 43, 44, *MESSAGE, *CLOSE, *answers[0][10:16]]
    assert out[1] == answers[1][:16] and out[2] == answers[2][:16]
    assert out[3][:10] == [OPEN, 40, 41, 42, 31, 44, *MESSAGE, *CLOSE]
    assert out[4] == [OPEN, 40, *CLOSE, 50, OPEN, *range(60, 65), *MESSAGE, *CLOSE, *answers[4][15:16]]


def test_a_block_that_the_prompt_opens_counts(model: PreTrainedModel) -> None:
    # The prompt is 20, 21, 22: `21` opens, and one of the block's tokens is there.
    out = write(model, [list(range(40, 60))], 8, logits_processor=[ReasoningBudget(3, [21], CLOSE)]).tolist()[0]
    assert out == [40, 41, *CLOSE, 44, 45, 46, 47]
    out = write(model, [list(range(40, 60))], 4, logits_processor=[ReasoningBudget(0, [20, 21, 22], CLOSE)]).tolist()[0]
    assert out == [*CLOSE, 42, 43]


def test_a_budget_without_tags_is_refused() -> None:
    for bad in ((-1, [1], [2]), (5, [], [2]), (5, [1], [])):
        with pytest.raises(UserError, match="both tags"):
            ReasoningBudget(*bad)


def clean(size: int, seed: int = 0) -> list[int]:
    return (100 + np.random.default_rng(seed).permutation(300)[:size]).tolist()


def test_only_rows_that_loop_are_stopped(model: PreTrainedModel) -> None:
    stop = LoopStopping(persistence=0, ends=[EOS])
    answers = [
        [*clean(20), *[50, 51, 52] * 60],
        clean(200, 1),
        [*clean(60, 2), *[70, 71, 72, 73, 74] * 60],
        [*clean(30, 3), EOS],  # what follows is padding, and no loop
    ]
    out = write(model, answers, 200, stopping_criteria=[stop], eos_token_id=EOS)
    assert set(stop.loops) == {0, 2}
    assert {row: (loop.kind, loop.period, loop.onset) for row, loop in stop.loops.items()} == {
        0: ("period", 3, 23),
        2: ("period", 5, 65),
    }
    for row in (0, 2):
        end = stop.loops[row].end
        assert out[row, :end].tolist() == answers[row][:end] and (out[row, end:] == 0).all()
    assert out[1].tolist() == answers[1][:200]
    # As the watch alone has it, pushed by hand.
    watch, found = LoopWatch(4), {}
    for step in range(200):
        column = np.array([answer[min(step, len(answer) - 1)] for answer in answers])
        found |= watch.push(column, np.array([True, True, True, False]))
    assert found == stop.loops


def test_all_rows_stopped_end_the_call_and_the_next_begins_anew(model: PreTrainedModel) -> None:
    stop = LoopStopping(persistence=0)
    looping = [*clean(20), *[50, 51, 52] * 60]
    short = write(model, [looping, looping], 200, stopping_criteria=[stop])
    assert short.shape[1] < 200 and set(stop.loops) == {0, 1}
    write(model, [clean(40), clean(40, 1)], 40, prompt=4, stopping_criteria=[stop])
    assert stop.loops == {}
    # The same prompts once more: its own output, not the last call's grown.
    for _ in range(2):
        assert torch.equal(write(model, [looping, looping], 200, stopping_criteria=[stop]), short)


def test_a_loop_that_is_left_is_no_stop_where_it_must_last(model: PreTrainedModel) -> None:
    passing = [*clean(10), *[50, 51, 52, 53, 54, 55] * 12, *clean(140, 1)]
    lasting = [*clean(10), *[50, 51, 52, 53, 54, 55] * 40]
    at_once, later = LoopStopping(persistence=0), LoopStopping(persistence=300)
    write(model, [passing, lasting], 220, stopping_criteria=[at_once])
    assert set(at_once.loops) == {0, 1}
    out = write(model, [passing, lasting], 220, stopping_criteria=[later])
    assert set(later.loops) == {1} and out[0].tolist() == passing[:220]
    # Exact copies must last for two fifths of that.
    assert 120 <= later.loops[1].end - later.loops[1].onset < 130


def test_with_a_tokenizer_a_table_of_numbers_goes_on(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    counting = "".join(f"item {n}: town of the river\n" for n in range(1, 60))
    digits = tokenizer("".join(str(7**n) for n in range(1, 90)), add_special_tokens=False)["input_ids"][:400]
    rows = [tokenizer(counting, add_special_tokens=False)["input_ids"][:400], digits]
    stop = LoopStopping(tokenizer, persistence=0)
    write(model, rows, min(map(len, rows)), stopping_criteria=[stop])
    assert {row: loop.kind for row, loop in stop.loops.items()} == {0: "counter"}


def test_a_looping_model_is_cut_where_it_would_have_gone_on(
    looper: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    inputs = tokenizer(PROMPTS, padding=True, return_tensors="pt", add_special_tokens=False)
    given = {
        "input_ids": inputs["input_ids"],
        "attention_mask": inputs["attention_mask"],
        "max_new_tokens": 300,
        "do_sample": False,
    }
    stop, prompt = LoopStopping(tokenizer, persistence=100), inputs["input_ids"].shape[1]
    with torch.no_grad():
        whole = looper.generate(**given)[:, prompt:]
        cut = looper.generate(**given, stopping_criteria=[stop])[:, prompt:]
    assert stop.loops
    for row, loop in stop.loops.items():
        assert loop.end < 300 and torch.equal(cut[row, : loop.end], whole[row, : loop.end])


def test_the_documentation_runs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).resolve().parents[3] / "docs/loops.md").read_text(encoding="utf-8")
    section = page.partition("## In your own stack")[2].partition("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda **given: generate(**given | {"max_new_tokens": 16}))
    inputs = tokenizer(PROMPTS, padding=True, return_tensors="pt", add_special_tokens=False)
    inputs.pop("token_type_ids", None)
    names: dict[str, Any] = {"model": model, "tokenizer": tokenizer, "inputs": inputs}
    for block in blocks:
        exec(block, names)  # noqa: S102 (the page's own code)
        if "output = " in block:
            assert names["output"].shape[1] > inputs["input_ids"].shape[1], block
    assert len(blocks) == 5
    assert names["reward_funcs"][0](completions=["all well"]) == [0.0] and names["loop_rate"]([], ["all well"]) == 0.0
