"""Looks at a model while it trains: several checks at periods of their own, and how often greedy answers loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError
from minnow.evaluate.loops import LoopRates
from minnow.evaluate.measure import judge_rollouts
from minnow.rollout import Sampling, TorchEngine
from minnow.tasks import Example
from minnow.train.loop import Trainer

Prompts = list[tuple[Example, list[int]]]
"""Prompts with their token ids."""


@dataclass(frozen=True)
class EvaluateSettings:
    """Greedy answers while a model trains, to see doom loops come and go.

    Attributes:
        every: steps between two looks; 0 for none.
        prompts: how many; openings of held-out documents in pre-training, loop-prone ones in fine-tuning.
        prompt_tokens: of an opening.
    """

    every: int = 0
    prompts: int = 32
    prompt_tokens: int = 48
    max_new_tokens: int = 256

    def __post_init__(self) -> None:
        if self.every < 0 or min(self.prompts, self.prompt_tokens, self.max_new_tokens) < 1:
            raise UserError("evaluate: every is 0 or more; prompts, prompt_tokens and max_new_tokens are at least 1")


Look = Callable[[Trainer], dict[str, Any]]
"""Measures a model in training; the numbers go into its metrics."""


def looks(checks: Mapping[Look, int]) -> tuple[Callable[[Trainer], bool] | None, int]:
    """One check out of several for :meth:`Trainer.run`, and its period; None out of none.

    Args:
        checks: each at the multiples of its number of steps, before the first step and at the end.
    """

    def check(trainer: Trainer) -> bool:
        step = trainer.done_steps
        for look, every in checks.items():
            if step in (0, trainer.settings.steps) or (every and step % every == 0):
                trainer.record(step=step, tokens=trainer.tokens, seconds=trainer.seconds, **look(trainer))
        return True

    return (check if checks else None), math.gcd(*checks.values())


def loop_look(settings: EvaluateSettings, words: Tokenizer, prompts: Prompts) -> Look:
    """Measures ``greedy_loops`` by Minnow's verdict on greedy answers to ``prompts``, given as ids too."""

    def look(trainer: Trainer) -> dict[str, Any]:
        if trainer.ranks.count > 1:
            raise UserError("evaluate decodes with the whole model in one process; leave it out with several ranks")
        engine = TorchEngine(trainer.model, words)
        sampling = Sampling(0.0, settings.max_new_tokens)
        rollouts = engine.generate([(example.id, ids) for example, ids in prompts], sampling)
        rates = LoopRates(judge_rollouts(words, [example for example, _ in prompts], rollouts))
        return {"greedy_loops": rates.overall.as_dict() | {"truncated": rates.truncated}}

    return look


def chat_prompts(examples: Sequence[Example], words: Tokenizer) -> Prompts:
    """Examples as the chat template puts them to the model."""
    return [(example, words.prompt(example.messages, example.tools)) for example in examples]


def openings(sequences: Sequence[NDArray[np.int32]], words: Tokenizer, count: int, length: int, seed: int) -> Prompts:
    """``count`` stretches of ``length`` tokens from tokenised documents, each after a start token, to be continued; a
    long document gives several.

    Raises:
        UserError: no document is long enough.
    """
    places = [(i, at) for i, ids in enumerate(sequences) for at in range(1, len(ids) - length, length)]
    if not places:
        raise UserError(
            f"no held-out document has the {length} tokens of one opening; lower prompt_tokens or give more text"
        )
    found: Prompts = []
    for number, place in enumerate(np.random.default_rng(seed).permutation(len(places))[:count]):
        i, at = places[place]
        ids = [int(sequences[i][0]), *sequences[i][at : at + length].tolist()]
        asked = [{"role": "user", "content": words.decode(ids)}]
        found.append((Example(f"opening-{number}", "continuation", "held_out", asked, [], None), ids))
    return found
