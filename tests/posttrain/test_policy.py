"""Rewards, advantages and what of a group is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError
from minnow.loops import Loop
from minnow.model.backbone import Backbone
from minnow.posttrain import policy
from minnow.posttrain.policy import RolloutSettings, RolloutStep, advantages, reward, rollout_step
from minnow.rollout import Prompt, Rollout, Sampling, TorchEngine
from minnow.rollout.records import per_prompt
from minnow.tasks import Example, PocketWorld
from minnow.train.objectives import completion_log_probs
from minnow.train.policy_gradient import PolicyGradient

LOOP = Loop("period", onset=6, period=4, copies=10.0, end=42)


@pytest.fixture
def example(pocket: PocketWorld) -> Example:
    return pocket.examples("arithmetic", "train", 1)[0]


class Scripted:
    """Answers each arm of the group with the next of the given (kind) words: right, wrong, loop or cut."""

    def __init__(self, words: Tokenizer, groups: dict[str, list[str]], texts: dict[str, str]) -> None:
        self.words, self.groups, self.texts = words, groups, texts
        self.samplings: list[Sampling] = []

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling | Sequence[Sampling]) -> list[Rollout]:
        out = []
        self.samplings += per_prompt(sampling, len(prompts))
        for (name, ids), one in zip(prompts, per_prompt(sampling, len(prompts)), strict=True):
            kind = self.groups[name][int(10 * one.temperature)]
            text = self.texts[name] if kind == "right" else "No idea."
            tokens = [*self.words.encode_chat(text), self.words.eos_id]
            reason, loop = "stop", None
            if kind in ("loop", "cut"):
                tokens, reason, loop = list(range(20, 62)), ("loop", "length")[kind == "cut"], None
                loop = LOOP if kind == "loop" else None
            out.append(Rollout(name, ids, tokens, text, reason, one, [-0.5 * i for i in range(len(tokens))], loop))
        return out


def step(words: Tokenizer, examples: list[Example], groups: list[list[str]], **settings: Any) -> RolloutStep:
    engine = Scripted(
        words,
        {e.id: kinds for e, kinds in zip(examples, groups, strict=True)},
        {e.id: e.reference[0]["content"] for e in examples},
    )
    temperatures = tuple(arm / 10 for arm in range(len(groups[0])))
    chosen = RolloutSettings(len(examples), temperatures, 64, row_length=128, **settings)
    return rollout_step(engine, words, examples, chosen, seed=3)


def test_a_loop_costs_the_penalty_and_a_cut_answer_nothing(example: Example, words: Tokenizer) -> None:
    texts = {example.id: example.reference[0]["content"]}
    engine = Scripted(words, {example.id: ["right", "wrong", "loop", "cut"]}, texts)
    arms = [engine.generate([(example.id, [1])], Sampling(arm / 10))[0] for arm in range(4)]
    settings = RolloutSettings(loop_penalty=0.75)
    assert [reward(example, rollout, settings) for rollout in arms] == [1.0, pytest.approx(0.0, abs=0.2), -0.75, 0.0]


def test_advantages_are_distances_from_the_groups_mean() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, -1.0], [0.3, 0.3, 0.3, 0.3]])
    wanted = [[0.5, -0.5, -0.5, 0.5], [0.5, 0.5, 0.5, -1.5], [0, 0, 0, 0]]
    torch.testing.assert_close(advantages(rewards), torch.tensor(wanted), atol=1e-6, rtol=0)


def test_penalties_grow_over_their_share_of_the_steps(example: Example, words: Tokenizer) -> None:
    looping = Scripted(words, {example.id: ["loop"]}, {}).generate([(example.id, [1])], Sampling(0.0))[0]
    settings = RolloutSettings(loop_penalty=0.8, penalties_by=0.5)
    assert [reward(example, looping, settings, done) for done in (0.0, 0.25, 0.5, 1.0)] == pytest.approx(
        [0.0, -0.4, -0.8, -0.8]
    )


def test_an_ngram_penalty_takes_its_share_of_any_answer(example: Example, words: Tokenizer) -> None:
    """Tokens 20 … 61 once, then twice over: of 73 12-grams, 31 were there before."""
    once = Scripted(words, {example.id: ["cut"]}, {}).generate([(example.id, [1])], Sampling(0.0))[0]
    twice = replace(once, token_ids=once.token_ids * 2)
    settings = RolloutSettings(ngram_penalty=0.5)
    assert reward(example, once, settings) == 0.0
    assert reward(example, twice, settings) == pytest.approx(-0.5 * 31 / 73)


def test_rewards_are_weighted_sums_of_functions_in_files(example: Example, words: Tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def short(prompt, completion, ids, columns):\n"
        "    assert prompt[-1]['role'] == 'user' and columns['task'] == 'arithmetic'\n"
        "    return len(ids) + len(completion) / 1000\n"
        "def broken(prompt, completion, ids, columns):\n    return {}['x']\n"
        "def nothing(prompt, completion, ids, columns):\n    return float('nan')\n"
    )
    texts = {example.id: example.reference[0]["content"]}
    rollout = Scripted(words, {example.id: ["right"]}, texts).generate([(example.id, [1])], Sampling(0.0))[0]
    settings = RolloutSettings(rewards={"verifier": 2.0, f"{file}:short": -0.1})
    wanted = 2.0 - 0.1 * (len(rollout.token_ids) + len(rollout.text) / 1000)
    assert reward(example, rollout, settings) == pytest.approx(wanted)
    for name, message in (("broken", "failed .KeyError"), ("nothing", "is no finite number")):
        with pytest.raises(UserError, match=message):
            reward(example, rollout, RolloutSettings(rewards={f"{file}:{name}": 1.0}))
    for name in (f"{file}:absent", "verifyer", f"{tmp_path}/none.py:x"):
        with pytest.raises(UserError, match=r"no function 'absent'|there is no reward"):
            RolloutSettings(rewards={name: 1.0})


@pytest.mark.parametrize("wrong", [{"temperatures": (0.0,)}, {"ngram": 3}, {"rewards": {}}, {"penalties_by": 2.0}])
def test_settings_that_mean_nothing_are_refused(wrong: dict) -> None:
    with pytest.raises(UserError):
        RolloutSettings(**wrong)


def test_scaled_advantages_and_a_dead_zone() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.5, 0.5, 0.5, 0.45], [0.3, 0.3, 0.3, 0.3]])
    scaled = advantages(rewards, "group")
    torch.testing.assert_close(scaled[:2].std(dim=1), torch.ones(2), atol=1e-2, rtol=0)
    assert not scaled[2].any()
    still = advantages(rewards, "group", dead_zone=0.1)
    torch.testing.assert_close(still[0], scaled[0])
    assert not still[1:].any()


def test_an_answer_that_runs_out_of_tokens_is_punished_as_a_wrong_one(example: Example, words: Tokenizer) -> None:
    made = step(words, [example], [["right", "cut", "wrong", "right"]])
    assert made.batch is not None and made.batch.advantages.tolist() == [0.5, -0.5, -0.5, 0.5]
    assert made.batch.lengths[1] == 42, "all of its tokens"


def test_masking_leaves_out_cut_answers_and_loops_are_shortened(example: Example, words: Tokenizer) -> None:
    made = step(words, [example], [["right", "loop", "cut", "loop"]], mask_truncated=True)
    batch = made.batch
    assert batch is not None
    # Rewards 1, -1, 0, -1 with mean -0.25; the cut answer counts in the mean and is not trained.
    torch.testing.assert_close(batch.advantages, torch.tensor([1.25, -0.75, -0.75]))
    right = len(words.encode_chat(example.reference[0]["content"])) + 1
    assert batch.lengths.tolist() == [right, 6 + 3 * 4, 6 + 3 * 4]
    for i in range(3):
        known = batch.reference[batch.sequences == i]
        torch.testing.assert_close(known, -0.5 * torch.arange(len(known)))
    prompt = words.prompt(example.messages, example.tools)
    row, first = (batch.sequences == 1).nonzero()[0].tolist()
    assert batch.tokens[row, first + 1 - len(prompt) : first + 1].tolist() == prompt
    assert made.numbers["loops"] == 0.5 and made.numbers["truncated"] == 0.25 and made.numbers["trained"] == 3
    assert made.numbers["reward"] == pytest.approx(-0.25)
    assert made.record.tasks == {"arithmetic": (1, 4)} and made.record.equal is None and made.record.truncated == 0.25


def test_groups_of_equal_rewards_are_dropped(pocket: PocketWorld, words: Tokenizer) -> None:
    first, second, third = pocket.examples("arithmetic", "train", 3)
    made = step(words, [first, second, third], [["right", "right"], ["loop", "loop"], ["right", "loop"]])
    assert made.batch is not None and made.batch.advantages.tolist() == [1.0, -1.0]
    nothing = step(words, [first, second], [["right", "right"], ["loop", "loop"]])
    assert nothing.batch is None and nothing.numbers["trained"] == 0


def test_arms_have_their_temperatures(example: Example, words: Tokenizer) -> None:
    engine = Scripted(words, {example.id: ["right"] * 3}, {example.id: "x"})
    rollout_step(engine, words, [example], RolloutSettings(1, (0.0, 0.1, 0.2), 33), seed=3)
    assert [(s.temperature, s.max_new_tokens) for s in engine.samplings] == [(0.0, 33), (0.1, 33), (0.2, 33)]


def test_the_first_update_is_on_policy(
    tiny_model: Backbone, pocket: PocketWorld, words: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a real engine the ratio to the sampling policy is 1 on every token, at every temperature."""
    values = iter(range(1000))
    monkeypatch.setattr(policy, "reward", lambda *_: float(next(values) % 3))
    monkeypatch.setattr(policy, "cut_loop", lambda rollout, periods: rollout.token_ids[:20])
    examples = pocket.examples("calculator", "train", 3)
    engine = TorchEngine(tiny_model, words, rows=5)
    plain = engine.generate

    def ended(prompts: Sequence[Prompt], sampling: Sampling | Sequence[Sampling]) -> list[Rollout]:
        rollouts = plain(prompts, sampling)
        for rollout in rollouts:
            rollout.finish_reason = "stop"
        return rollouts

    monkeypatch.setattr(engine, "generate", ended)
    made = rollout_step(engine, words, examples, RolloutSettings(3, (0.0, 0.5, 1.0), 24, row_length=256), seed=1)
    assert made.batch is not None
    log_probs = completion_log_probs(tiny_model, made.batch).detach()
    torch.testing.assert_close(log_probs, made.batch.reference, atol=1e-4, rtol=1e-4)
    loss = PolicyGradient()(tiny_model, made.batch)
    assert loss.metrics["clipped"] == 0 and loss.metrics["ratio"] / loss.weight == pytest.approx(1, abs=1e-4)
