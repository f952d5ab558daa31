"""The guard in the torch engine: rewound rows against the training forward, other rows, other batchings."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError
from minnow.loops import Loop, find_loop
from minnow.model.backbone import Backbone
from minnow.model.config import Attention, Dense, GatedDelta, GatedLinear, LayerConfig, Mixer, Rope, ShortConv
from minnow.rollout import Guard, Prompt, Rollout, Sampling, TorchEngine
from minnow.rollout.guard import Rewound
from minnow.train.objectives import completion_log_probs, pack_sequences

LOOPED = 100
ATTENTION, CONV = Attention(4, 2, 16, Rope(1e4)), ShortConv()
MIXERS: dict[str, Mixer] = {
    "attention": ATTENTION,
    "convolution": CONV,
    "window": replace(ATTENTION, window=8),
    "delta net": GatedDelta(2, 4, 16, 16),
    "linear": GatedLinear(2, 16, 16),
}


def prompts_of(count: int) -> list[Prompt]:
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(3, 12, (count,), generator=generator).tolist()
    return [(f"p{i}", torch.randint(14, 400, (n,), generator=generator).tolist()) for i, n in enumerate(lengths)]


def caught(model: Backbone, strength: float) -> Backbone:
    """The model with a reason to say one token again and again, and none to end."""
    with torch.no_grad():
        hidden = model(torch.tensor([[20, 30, 40, 50, 60, 70]])).mean((0, 1))
        model.embedding[LOOPED] += strength * hidden / hidden.norm() ** 2
        model.embedding[7] = 0
    return model


def model_of(mixer: Mixer, like: Backbone, strength: float) -> Backbone:
    layer = LayerConfig(mixer, Dense(96))
    model = Backbone(replace(like.config, family="minnow", layers=(layer, layer)))
    model.initialise(1)
    return caught(model, strength)


def key(rollout: Rollout) -> tuple[object, ...]:
    return (rollout.token_ids, rollout.finish_reason, rollout.loop, rollout.rewinds, rollout.discarded)


@pytest.mark.parametrize("name", MIXERS)
def test_a_rewound_row_goes_on_as_one_that_never_looped(name: str, tiny_model: Backbone, words: Tokenizer) -> None:
    """Each token is the likeliest under a plain forward over the final answer, but where one was banned or drawn, and
    has its log-probability: nothing of what was thrown away is left in the state of any layer."""
    model = model_of(MIXERS[name], tiny_model, 12.0)
    guard = Guard(rewinds=3, stretch=5)
    prompts = prompts_of(5)
    rollouts = TorchEngine(model, words, rows=4, guard=guard).generate(prompts, Sampling(max_new_tokens=120))
    assert sum(rollout.rewinds > 0 for rollout in rollouts) >= 3
    batch = pack_sequences([r.prompt_ids for r in rollouts], [r.token_ids for r in rollouts], 256)
    wanted = completion_log_probs(model, batch).detach()
    for i, rollout in enumerate(rollouts):
        torch.testing.assert_close(torch.tensor(rollout.log_probs), wanted[batch.sequences == i], atol=1e-4, rtol=1e-4)
        hidden = model(torch.tensor([rollout.prompt_ids + rollout.token_ids]))[0, len(rollout.prompt_ids) - 1 : -1]
        likeliest = model.logits(hidden)[:, : words.vocab_size].argmax(-1).tolist()
        other = sum(a != b for a, b in zip(likeliest, rollout.token_ids, strict=True))
        warm = sum(guard.warm_tokens(count) for count in range(1, rollout.rewinds + 1))
        assert other <= rollout.rewinds + warm


def test_neighbours_and_batches_change_nothing(tiny_model: Backbone, words: Tokenizer) -> None:
    model, prompts = model_of(MIXERS["delta net"], tiny_model, 3.0), prompts_of(12)
    sampling = Sampling(max_new_tokens=120, stop_on_loop=False)
    plain = TorchEngine(model, words).generate(prompts, sampling)
    guarded = TorchEngine(model, words, guard=Guard(rewinds=2)).generate(prompts, sampling)
    assert {bool(rollout.rewinds) for rollout in guarded} == {False, True}
    for before, after in zip(plain, guarded, strict=True):
        if not after.rewinds:
            assert key(after) == key(before) and after.log_probs == before.log_probs
    for rows, share in ((1, 0.25), (3, 1.0)):
        again = TorchEngine(model, words, rows, share, Guard(rewinds=2)).generate(prompts, sampling)
        assert [key(one) for one in again] == [key(one) for one in guarded]


def test_a_finished_row_lingers_through_its_neighbours_rewinds(tiny_model: Backbone, words: Tokenizer) -> None:
    """The short answer's row decodes on unread for several times its own room while the long one is taken back."""
    engine = TorchEngine(caught(tiny_model, 50.0), words, rows=2, min_refill=1.0, guard=Guard(rewinds=4))
    short, long = engine.generate(prompts_of(2), [Sampling(max_new_tokens=3), Sampling(max_new_tokens=80)])
    assert len(short.token_ids) == 3 and long.rewinds == 4 and long.discarded > 80


@pytest.mark.parametrize("budget", [60, 300])
def test_a_guard_that_fails_says_so(tiny_model: Backbone, words: Tokenizer, budget: int) -> None:
    """Also where the loop is only seen at the end of the budget."""
    engine = TorchEngine(caught(tiny_model, 50.0), words, guard=Guard(rewinds=2, temperature=1e-3))
    (rollout,) = engine.generate(prompts_of(1), Sampling(max_new_tokens=budget, stop_on_loop=False))
    assert rollout.finish_reason == "loop" and rollout.rewinds == 2
    assert rollout.loop == find_loop(rollout.token_ids, engine.lexicon)
    assert len(rollout.log_probs) == len(rollout.token_ids) <= budget
    assert 2 * 40 <= rollout.discarded <= 2 * budget


def test_an_open_reasoning_block_is_closed_at_last(tiny_model: Backbone, words: Tokenizer) -> None:
    engine = TorchEngine(caught(tiny_model, 50.0), words, guard=Guard(rewinds=3, temperature=1e-3))
    sampling = Sampling(max_new_tokens=80)
    asked = words.encode("Why?")
    for ids, closed in ((asked + words.encode("<think>\n"), True), (asked, False), (words.encode("<think> a"), False)):
        (rollout,) = engine.generate([("p", ids)], sampling)
        assert rollout.rewinds == 3 and ("</think>" in rollout.text) == closed


def test_what_a_rewind_takes_back() -> None:
    rewound, tokens = Rewound(), [1, 2, 3, 2, 3, 2, 3]
    rewound.back(tokens, Loop("period", 3, 2, 3.0, 7))
    assert (tokens, rewound.banned, rewound.discarded) == ([1, 2, 3], {3: {2}}, 4)
    tokens += [9, 9, 9]
    rewound.back(tokens, Loop("token", 4, 1, 3.0, 6))
    assert (tokens, rewound.banned) == ([1, 2, 3, 9], {3: {2}, 4: {9}})
    rewound.back(tokens, Loop("period", 3, 1, 2.0, 4))
    assert (tokens, rewound.banned) == ([1, 2, 3], {3: {2, 9}}), "what was banned further on belonged to another answer"
    assert (rewound.count, rewound.discarded) == (3, 7)


def test_the_remedies_come_in_order() -> None:
    guard = Guard()
    assert [guard.warm_tokens(count) for count in range(1, 5)] == [0, 64, 128, 256]
    assert [guard.closes(count, "<think> so") for count in range(1, 5)] == [False, False, True, True]
    assert not guard.closes(3, "<think> so </think> it is") and not guard.closes(3, "it is")


@pytest.mark.parametrize("values", [{"rewinds": 0}, {"temperature": 0.0}, {"stretch": 0}, {"persistence": -1}])
def test_a_guard_that_cannot_work_is_refused(values: dict) -> None:
    with pytest.raises(UserError, match="cannot work"):
        Guard(**values)
