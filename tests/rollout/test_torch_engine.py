"""Batched decoding against transformers' generate, the training forward, and itself under other batchings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError
from minnow.loops import CUT_AFTER, Dry, LzPenalty, Penalty, find_loop
from minnow.loops.integrations.transformers import PenaltyProcessor
from minnow.loops.penalties import Amounts
from minnow.model.backbone import Backbone
from minnow.model.checkpoint import save_checkpoint
from minnow.rollout import Prompt, Rollout, Sampling, TorchEngine
from minnow.rollout.torch_engine import _Row, _uniform
from minnow.train.objectives import completion_log_probs, pack_sequences


def prompts_of(count: int, seed: int = 0, most: int = 12) -> list[Prompt]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, most, (count,), generator=generator).tolist()
    return [(f"p{i}", torch.randint(14, 500, (n,), generator=generator).tolist()) for i, n in enumerate(lengths)]


def pulled(model: Backbone, token: int, strength: float) -> Backbone:
    """The model with one more reason to say ``token``: its row of the head points along the usual hidden state."""
    with torch.no_grad():
        hidden = model(torch.tensor([ids for _, ids in prompts_of(1)]))
        model.embedding[token] += strength * hidden.mean((0, 1)) / hidden.mean((0, 1)).norm() ** 2
    return model


@pytest.fixture
def stopping(tiny_model: Backbone, words: Tokenizer) -> Backbone:
    """Says the end token now and then."""
    return pulled(tiny_model, words.eos_id, 2.0)


def key(rollout: Rollout) -> tuple[Any, ...]:
    return (rollout.prompt_id, rollout.token_ids, rollout.finish_reason, rollout.text, rollout.loop)


def test_greedy_equals_transformers(tmp_path: Path, stopping: Backbone, words: Tokenizer) -> None:
    """A batch of ragged prompts here, one prompt at a time there; ids beyond the tokenizer's are never drawn here."""
    save_checkpoint(stopping, words, tmp_path / "checkpoint")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint")
    theirs.generation_config.suppress_tokens = list(range(words.vocab_size, stopping.config.vocab_size))
    prompts = prompts_of(10)
    rollouts = TorchEngine(stopping, words).generate(prompts, Sampling(max_new_tokens=40, stop_on_loop=False))
    for (name, ids), rollout in zip(prompts, rollouts, strict=True):
        wanted = theirs.generate(torch.tensor([ids]), max_new_tokens=40, do_sample=False)[0, len(ids) :].tolist()
        assert (rollout.prompt_id, rollout.prompt_ids) == (name, ids)
        assert rollout.token_ids == wanted
    assert {rollout.finish_reason for rollout in rollouts} == {"stop", "length"}


def test_penalties_are_those_of_generate(tmp_path: Path, tiny_model: Backbone, words: Tokenizer) -> None:
    """Greedy rows with DRY and the LZ penalty, refilled here; the log-probabilities stay the model's."""
    model = pulled(tiny_model, 100, 4.0)
    save_checkpoint(model, words, tmp_path / "checkpoint")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint")
    theirs.generation_config.suppress_tokens = list(range(words.vocab_size, model.config.vocab_size))
    prompts, sampling = prompts_of(6), Sampling(max_new_tokens=60, stop_on_loop=False)
    penalties = [Dry(0.4, breakers=[(20,)]), LzPenalty(0.1, 48, 8)]
    rollouts = TorchEngine(model, words, rows=4, penalties=penalties).generate(prompts, sampling)
    # The embedding has rows beyond the tokenizer's ids: a smaller code there, so the vocabulary is told.
    processor = PenaltyProcessor(*(_Told(penalty, words.vocab_size) for penalty in penalties))
    for (_, ids), rollout in zip(prompts, rollouts, strict=True):
        given = torch.tensor([ids])
        out = theirs.generate(given, max_new_tokens=60, do_sample=False, logits_processor=[processor])
        assert rollout.token_ids == out[0, len(ids) :].tolist()
    plain = TorchEngine(model, words).generate(prompts, sampling)
    assert all(a.token_ids != b.token_ids for a, b in zip(rollouts, plain, strict=True))
    batch = pack_sequences([r.prompt_ids for r in rollouts], [r.token_ids for r in rollouts], 128)
    wanted = completion_log_probs(model, batch).detach()
    for i, rollout in enumerate(rollouts):
        torch.testing.assert_close(torch.tensor(rollout.log_probs), wanted[batch.sequences == i], atol=1e-4, rtol=1e-4)


@dataclass(frozen=True)
class _Told:
    penalty: Penalty
    vocabulary: int

    def amounts(self, prompt: np.ndarray, output: np.ndarray, vocabulary: int) -> Amounts:
        return self.penalty.amounts(prompt, output, self.vocabulary)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("rows", "share"), [(1, 0.25), (2, 1.0), (4, 0.01), (5, 0.5)])
def test_answers_do_not_depend_on_the_batch(
    stopping: Backbone, words: Tokenizer, rows: int, share: float, temperature: float
) -> None:
    """Rows in flight and refills change nothing: the noise belongs to (seed, place of the prompt, position)."""
    prompts = prompts_of(9)
    samplings = [Sampling(temperature, 3 + 5 * place % 17, seed=5) for place in range(9)]  # rows end at different times
    wanted = TorchEngine(stopping, words, rows=64).generate(prompts, samplings)
    got = TorchEngine(stopping, words, rows, share).generate(prompts, samplings)
    assert [key(r) for r in got] == [key(r) for r in wanted]


def test_a_seed_gives_the_same_answers_and_another_seed_others(stopping: Backbone, words: Tokenizer) -> None:
    engine, prompts = TorchEngine(stopping, words), prompts_of(4)
    first, again = (engine.generate(prompts, Sampling(1.0, 16, seed=3)) for _ in range(2))
    assert [key(r) for r in first] == [key(r) for r in again]
    assert [r.log_probs for r in first] == [r.log_probs for r in again]
    other = engine.generate(prompts, Sampling(1.0, 16, seed=4))
    assert all(x.token_ids != y.token_ids for x, y in zip(first, other, strict=True))


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_log_probs_are_those_of_the_training_forward(stopping: Backbone, words: Tokenizer, temperature: float) -> None:
    """At temperature 1 over the whole embedding, whatever the sampling temperature."""
    prompts = prompts_of(6)
    rollouts = TorchEngine(stopping, words, rows=4).generate(prompts, Sampling(temperature, 20, seed=1))
    batch = pack_sequences([r.prompt_ids for r in rollouts], [r.token_ids for r in rollouts], 64)
    wanted = completion_log_probs(stopping, batch).detach()
    for i, rollout in enumerate(rollouts):
        torch.testing.assert_close(torch.tensor(rollout.log_probs), wanted[batch.sequences == i], atol=1e-4, rtol=1e-4)


def test_equal_prompts_are_read_once(stopping: Backbone, words: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the call holds them far apart, among others of their length."""
    read: list[list[int]] = []
    plain = Backbone.prefill

    def counted(self: Backbone, tokens: Tensor, lengths: Tensor, capacity: int) -> Any:
        read.extend(row[:length].tolist() for row, length in zip(tokens, lengths, strict=True))
        return plain(self, tokens, lengths, capacity)

    monkeypatch.setattr(Backbone, "prefill", counted)
    first, second, third = ([20, 30, 40], [50, 60, 70], [21, 31, 41])
    prompts = [(f"p{i}", ids) for i, ids in enumerate([first, second, first, third, first, second])]
    engine = TorchEngine(stopping, words, rows=3)
    engine.generate(prompts, Sampling(max_new_tokens=1))
    assert sorted(read) == sorted([first, second, third])

    rollouts = engine.generate(prompts, Sampling(1.0, 12, seed=2))
    assert len({tuple(rollouts[i].token_ids) for i in (0, 2, 4)}) == 3, "equal prompts are sampled apart"
    alone = TorchEngine(stopping, words, rows=1).generate(prompts, Sampling(1.0, 12, seed=2))
    assert [key(r) for r in rollouts] == [key(r) for r in alone]


def test_an_answer_that_ends_by_itself(tiny_model: Backbone, words: Tokenizer) -> None:
    (rollout,) = TorchEngine(pulled(tiny_model, words.eos_id, 50.0), words).generate(prompts_of(1), Sampling())
    assert rollout.token_ids == [words.eos_id] and rollout.text == ""
    assert rollout.finish_reason == "stop" and rollout.loop is None


def test_special_tokens_stay_in_the_text(tiny_model: Backbone, words: Tokenizer) -> None:
    model = pulled(tiny_model, 10, 50.0)
    (rollout,) = TorchEngine(model, words).generate(prompts_of(1), Sampling(max_new_tokens=3))
    assert rollout.text == "<|tool_call_start|>" * 3 and rollout.finish_reason == "length"


def test_a_loop_is_stopped_early_and_only_when_asked(tiny_model: Backbone, words: Tokenizer) -> None:
    model = pulled(tiny_model, 100, 50.0)
    engine, prompts = TorchEngine(model, words, rows=2), prompts_of(3)  # the third is watched in a slot used before
    for rollout in engine.generate(prompts, Sampling(max_new_tokens=400)):
        assert rollout.finish_reason == "loop" and 2 * CUT_AFTER // 5 <= len(rollout.token_ids) < 330
        assert rollout.loop == find_loop(rollout.token_ids) and rollout.loop is not None
        assert rollout.loop.kind == "token" and rollout.token_ids[-1] == 100
    # As soon as it is one, in the rows that ask for it.
    samplings = [Sampling(max_new_tokens=400, persistence=0), Sampling(max_new_tokens=400)]
    soon, late = (len(rollout.token_ids) for rollout in engine.generate(prompts[:2], samplings))
    assert soon <= 56 and late >= 2 * CUT_AFTER // 5
    for rollout in engine.generate(prompts, Sampling(max_new_tokens=200, stop_on_loop=False)):
        assert rollout.finish_reason == "length" and len(rollout.token_ids) == 200
        assert rollout.loop == find_loop(rollout.token_ids) and rollout.loop is not None


@pytest.mark.parametrize("budget", range(47, 56))
def test_a_loop_at_the_end_of_the_budget_is_not_missed(tiny_model: Backbone, words: Tokenizer, budget: int) -> None:
    """Loops are looked for every few tokens; the verdict on a finished answer is find_loop's, wherever it ends."""
    model = pulled(tiny_model, 100, 50.0)
    (rollout,) = TorchEngine(model, words).generate(prompts_of(1), Sampling(max_new_tokens=budget))
    looping = find_loop(rollout.token_ids)
    assert rollout.loop == looping and rollout.finish_reason == ("loop" if looping else "length")
    assert (looping is not None) == (budget >= 48)


def test_sampling_follows_the_softmax(make_model: Callable[..., Backbone], words: Tokenizer) -> None:
    """First tokens of 20,000 equal prompts at temperature 0.8 against their probabilities: chi-square below its
    99.9% quantile (df + 3.09 sqrt(2 df) + 3)."""
    model = make_model(vocab_size=words.vocab_size + 12)
    prompt, count = [20, 30, 40], 20_000
    rollouts = TorchEngine(model, words, rows=count).generate([("p", prompt)] * count, Sampling(0.8, 1, seed=11))
    with torch.no_grad():
        logits = (model(torch.tensor([prompt]))[0, -1] @ model.head.T)[: words.vocab_size]
    wanted = torch.softmax(logits.double() / 0.8, -1).numpy()
    seen = np.bincount([r.token_ids[0] for r in rollouts], minlength=words.vocab_size)
    often = wanted * count >= 5
    observed = np.append(seen[often], seen[~often].sum())
    expected = np.append(wanted[often], wanted[~often].sum()) * count
    freedom = len(observed) - 1
    assert freedom > 20
    assert ((observed - expected) ** 2 / expected).sum() < freedom + 3.09 * (2 * freedom) ** 0.5 + 3


def noise(seed: int, row: int, position: int) -> float:
    return float(_uniform([_Row(row, ("p", []), Sampling(1.0, seed=seed), 0, [0] * position)])[0])


def test_noise_is_uniform_and_belongs_to_its_place() -> None:
    rows = [_Row(row, ("p", []), Sampling(1.0, seed=7), 0, [0] * place) for row in range(100) for place in range(100)]
    drawn = _uniform(rows)
    assert drawn.min() >= 0 and drawn.max() < 1
    counts = np.histogram(drawn, 50, (0, 1))[0]
    assert ((counts - 200) ** 2 / 200).sum() < 49 + 3.09 * 98**0.5 + 3
    grid = drawn.reshape(100, 100) - 0.5
    for shifted in (np.roll(grid, 1, 0), np.roll(grid, 1, 1), grid.T - np.diag(grid.diagonal())):
        assert abs((grid * shifted).mean()) < 4 * 0.01 / 12 + 0.001  # four standard errors of a product of uniforms
    assert noise(7, 12, 34) == drawn[12 * 100 + 34]


def test_noise_is_not_shared_between_seeds() -> None:
    """Row 1 of seed 0 must not draw what row 0 of seed 1 draws: pairs are made of arms with neighbouring seeds."""
    assert len({noise(seed, row, 3) for seed in range(16) for row in range(64)}) == 16 * 64
    assert noise(2**64 + 5, 1, 2) == noise(5, 1, 2)


def test_the_draw_at_the_very_top_is_a_token_with_a_probability(
    tiny_model: Backbone, words: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 - 2^-53 is 1 in float32; the last entries of the vocabulary have no probability here."""
    from minnow.rollout import torch_engine

    monkeypatch.setattr(torch_engine, "_uniform", lambda rows: np.full(len(rows), 1 - 2.0**-53))
    with torch.no_grad():
        tiny_model.embedding[words.vocab_size - 5 :] = 0
        hidden = tiny_model(torch.tensor([[20, 30]]))[0, -1]
        tiny_model.embedding[words.vocab_size - 5 :] = -1e4 * hidden / hidden.norm() ** 2
    (rollout,) = TorchEngine(tiny_model, words).generate([("p", [20, 30])], Sampling(1.0, 1))
    assert rollout.token_ids[0] < words.vocab_size - 5 and rollout.log_probs[0] > -50


def test_a_finished_row_may_linger_longer_than_its_own_room(tiny_model: Backbone, words: Tokenizer) -> None:
    """Three rows of four end at once and are refilled; the fourth ends later and decodes on unread beside them."""
    prompts: list[Prompt] = [(f"p{i}", [20 + i] * 5) for i in range(7)]
    samplings = [Sampling(0.0, budget, stop_on_loop=False) for budget in (40, 40, 40, 30, 2, 2, 2)]
    with torch.no_grad():
        tiny_model.embedding[words.eos_id] = 0  # none stops before its budget
    rollouts = TorchEngine(tiny_model, words, rows=4, min_refill=0.75).generate(prompts, samplings)
    assert [len(r.token_ids) for r in rollouts] == [40, 40, 40, 30, 2, 2, 2]
    alone = TorchEngine(tiny_model, words, rows=1).generate(prompts, samplings)
    assert [key(r) for r in rollouts] == [key(r) for r in alone]


def test_every_prompt_may_have_a_sampling_of_its_own(stopping: Backbone, words: Tokenizer) -> None:
    """Arms of different temperature, budget and seed decode together and answer as they do apart."""
    prompts = prompts_of(8)
    arms = [Sampling(0.0, 20), Sampling(1.0, 7, seed=3), Sampling(0.5, 30, seed=4), Sampling(1.0, 12, 9, False)]
    samplings = [arms[i % 4] for i in range(8)]
    mixed = TorchEngine(stopping, words, rows=3).generate(prompts, samplings)
    for arm in range(4):
        apart = TorchEngine(stopping, words).generate(prompts, arms[arm])
        assert [key(mixed[i]) for i in range(arm, 8, 4)] == [key(apart[i]) for i in range(arm, 8, 4)]
        assert all(mixed[i].sampling == arms[arm] for i in range(arm, 8, 4))


def test_no_prompts_no_answers(tiny_model: Backbone, words: Tokenizer) -> None:
    assert TorchEngine(tiny_model, words).generate([], Sampling()) == []


@pytest.mark.parametrize(
    ("prompt", "tokens", "named"), [([], 5, "'q' is empty"), ([20] * 2040, 9, "exceed the context of 2048")]
)
def test_prompts_that_cannot_be_answered_are_named(
    tiny_model: Backbone, words: Tokenizer, prompt: list[int], tokens: int, named: str
) -> None:
    with pytest.raises(UserError, match=named):
        TorchEngine(tiny_model, words).generate([("p", [20]), ("q", prompt)], Sampling(max_new_tokens=tokens))


@pytest.mark.parametrize("values", [{"temperature": -0.1}, {"max_new_tokens": 0}, {"persistence": -1}])
def test_sampling_that_cannot_be_is_refused(values: dict) -> None:
    with pytest.raises(UserError, match="cannot be sampled"):
        Sampling(**values)


def test_an_answer_ends_at_a_text_it_was_told_of(tiny_model: Backbone, words: Tokenizer) -> None:
    engine, prompts = TorchEngine(tiny_model, words), prompts_of(12)
    whole = engine.generate(prompts, Sampling(max_new_tokens=40, stop_on_loop=False))
    texts = [words.decode(each.token_ids[10:14]) for each in whole]
    until = tuple({text.strip()[:3] for text in texts if len(text.strip()) >= 3 and "\ufffd" not in text})
    assert until
    cut = engine.generate(prompts, Sampling(max_new_tokens=40, stop_on_loop=False, until=until))
    for one, other in zip(cut, whole, strict=True):
        assert one.token_ids == other.token_ids[: len(one.token_ids)], "up to there it is the same answer"
        if any(text in words.decode(other.token_ids, keep_special=True) for text in until):
            assert one.finish_reason == "stop"
            assert not any(text in words.decode(one.token_ids[:-1], keep_special=True) for text in until)
            assert any(text in one.text for text in until)
    assert any(len(one.token_ids) < 40 for one in cut)
